"""Gradients that lie in one tensor are clipped as PyTorch clips them one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recipe.stages import config
from recipe.training.fast import clipping

SHAPES = [(3, 4), (5,), (2, 2, 2)]


def parameters(*, together: bool, scale: float = 1.0) -> tuple[list[Tensor], Tensor]:
    """(parameters with gradients, these in one tensor). together: whether they are views of it."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    whole = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(3)) * scale
    views = [part.view(shape) for part, shape in zip(whole.split(sizes), SHAPES, strict=True)]
    result = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for parameter, view in zip(result, views, strict=True):
        parameter.grad = view if together else view.clone()
    return result, whole


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_views_of_one_tensor_are_clipped_as_single_ones(scale: float) -> None:
    single, _ = parameters(together=False, scale=scale)
    together, whole = parameters(together=True, scale=scale)
    wanted = torch.nn.utils.clip_grad_norm_(single, 1.0)
    assert clipping.clip_norm(together, 1.0).item() == pytest.approx(wanted.item())
    expected = torch.cat([parameter.grad.flatten() for parameter in single if parameter.grad is not None])
    torch.testing.assert_close(whole, expected)
    assert (whole.norm() <= 1.0 + 1e-5) or scale < 1


def test_a_tensor_of_which_they_are_a_part_is_not_clipped() -> None:
    """What else lies in it is no gradient of theirs."""
    several, whole = parameters(together=True, scale=50.0)
    rest = whole[-8:].clone()
    clipping.clip_norm(several[:2], 1.0)
    torch.testing.assert_close(whole[-8:], rest)
    assert whole[:-8].norm() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_a_norm_that_is_no_number_is_an_error_where_it_is_to_be(together: bool) -> None:
    several, _ = parameters(together=together, scale=float("nan"))
    assert clipping.clip_norm(several, 1.0).isnan()
    with pytest.raises(RuntimeError, match="finite"):
        clipping.clip_norm(several, 1.0, error_if_nonfinite=True)


def test_without_gradients_the_norm_is_zero() -> None:
    assert clipping.clip_norm([torch.nn.Parameter(torch.zeros(2))], 1.0) == 0


def test_the_wrapper_clips_by_it() -> None:
    from mmengine.registry import OPTIM_WRAPPERS

    chosen = config.load_preset("fast").optim_wrapper.to_dict()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build({**chosen, "optimizer": optimizer})
    before = model.weight.detach().clone()
    wrapper.update_params(100 * model(torch.ones(1, 4)).sum())
    moved = torch.linalg.vector_norm(model.weight.detach() - before)
    assert moved == pytest.approx((4 / 5) ** 0.5, abs=1e-4)  # the bias has the rest of a norm of 1
