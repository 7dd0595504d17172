"""Conversations of similar length together, for passes over text that is there already.

Shapes: batch = rows; width = tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of at most `size`, the shortest first.

    Args:
        lengths: tokens of each row; a row of none is left out.
        size: rows of a batch.

    Returns:
        The rows' indices, batch by batch.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """The rows as one tensor with padding at the end, where causal attention does not look.

    Args:
        rows: token ids, or one number for each of them.
        value: the padding.

    Returns:
        (batch, width) int64.
    """
    import torch

    tensor = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        tensor[i, : len(row)] = torch.tensor(row)
    return tensor
