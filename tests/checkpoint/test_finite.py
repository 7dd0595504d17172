from __future__ import annotations

import pytest
import torch

from recipe.checkpoint.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (12, 40), (36, 96)])
def test_one_value_is_enough(dtype: torch.dtype, value: float, place: tuple[int, int]) -> None:
    tensor = torch.randn(37, 97).to(dtype)
    assert all_finite(tensor)
    tensor[place] = value
    assert not all_finite(tensor)


def test_nothing_and_the_largest_values_are_finite() -> None:
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).min]).bfloat16())
