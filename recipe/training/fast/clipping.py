"""Gradients clipped by their norm as the one tensor that `graphs` writes them to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor

# What `clip_grad_norm_` adds to a norm before it divides by it.
EPSILON = 1e-6


def clipping_wrapper(**options: Any) -> OptimWrapper:
    """The `optim_wrapper` of a config: mmengine's, which clips by `clip_norm`."""
    wrapper = OptimWrapper(**options)
    wrapper.clip_func = clip_norm
    return wrapper


def clip_norm(parameters: Sequence[Tensor], max_norm: float, *, error_if_nonfinite: bool = False) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_`, in two kernels where all gradients are views of one tensor and fill it.

    PyTorch sorts hundreds of gradients by device and type and takes each one's norm, for longer than a small step's
    optimizer computes.

    Args:
        parameters: with gradients.
        max_norm: of all gradients together, the largest that stays as it is.
        error_if_nonfinite: whether a norm that is no number raises RuntimeError.

    Returns:
        The norm before, a scalar.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = gradients[0]._base if gradients else None
    filled = whole is not None and sum(map(torch.numel, gradients)) == whole.numel()
    if whole is None or not filled or any(gradient._base is not whole for gradient in gradients):
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=error_if_nonfinite)
    norm = torch.linalg.vector_norm(whole)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError("the norm of the gradients is not finite")
    whole *= (max_norm / (norm + EPSILON)).clamp(max=1.0)
    return norm
