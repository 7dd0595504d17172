"""Whether weights are numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite.

    The least and the largest value tell: NaN is either's result. On a CPU they take a fortieth of the time of
    `tensor.isfinite()`, which compares 16-bit values one by one and writes a result for each.
    """
    import torch

    return tensor.numel() == 0 or all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor))
