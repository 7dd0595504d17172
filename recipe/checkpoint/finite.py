"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from recipe.errors import RecipeError
from recipe.paths import shown
from recipe.pipeline.heartbeat import heartbeat
from recipe.pipeline.phases import phase

if TYPE_CHECKING:
    from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value of a floating-point tensor is NaN or infinite.

    The least and the largest value tell: NaN is either's result. On a CPU they take a fortieth of the time of
    `tensor.isfinite()`, which compares 16-bit values one by one and writes a result for each.
    """
    import torch

    return tensor.numel() == 0 or all(bool(torch.isfinite(value)) for value in torch.aminmax(tensor))


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Refuse a model that holds NaN or infinity.

    A manifest says who wrote a file, not that its values are numbers, and whoever copies a folder can write both. So
    this look is part of every load and every other format. There it costs least: the values are in memory, 7 GB a
    second on two cores (one second for the 1.8B in float32, of a load of ten and more), and hardly anything on a GPU.

    Args:
        tensors: name and values of each.
        folder: of the model or adapter, for the error.

    Raises:
        RecipeError: a value is not finite.
    """
    for name, tensor in tensors:
        if not all_finite(tensor):
            raise RecipeError(
                f"{shown(folder)}: {name} holds values that are not finite: remove that folder and make it again, or "
                f"take another model"
            )


def refuse_untrainable(model: Path, teacher: Path | None) -> None:
    """Refuse what a training reads where it holds NaN or infinity. Its loss would be NaN, and lr would get the blame.

    The files are read one tensor at a time, and lie in the system's cache when the trainer reads them.

    Args:
        model: the base's folder.
        teacher: the file of the base's distributions; None where nothing is learnt from these.

    Raises:
        RecipeError: a value is not finite.
    """
    from safetensors import safe_open

    sources = dict.fromkeys(sorted(model.glob("*.safetensors")), "model") | ({teacher: "replay"} if teacher else {})
    with heartbeat("train", f"checking the weights of {shown(model)}"), phase("load"):
        for file, verb in sources.items():
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    if not all_finite(tensors.get_tensor(name)):
                        raise RecipeError(
                            f"{shown(file)}: {name} holds values that are not finite, on which nothing can be "
                            f"trained: remove {shown(file.parent)} and run `make {verb}` again, or take another MODEL"
                        )
