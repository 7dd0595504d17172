from __future__ import annotations

import torch

from recipe.evaluation.batches import CPU_ROWS, GPU_ROWS, by_length, padded, rows_per_pass


def test_every_row_is_in_one_batch_beside_those_of_its_length_and_empty_ones_in_none() -> None:
    assert by_length([3, 0, 1, 3, 2], 2) == [[2, 4], [0, 3]]
    assert by_length([1, 1, 1], 2) == [[0, 1], [2]]
    assert by_length([0], 2) == by_length([], 2) == []


def test_a_gpu_takes_more_rows_in_a_pass() -> None:
    assert rows_per_pass(torch.device("cuda", 1)) == GPU_ROWS > CPU_ROWS == rows_per_pass(torch.device("cpu"))


def test_padding_comes_last() -> None:
    tensor = padded([[5, 6, 7], [8], []], -1)
    assert tensor.tolist() == [[5, 6, 7], [8, -1, -1], [-1, -1, -1]]
    assert tensor.dtype == torch.int64
