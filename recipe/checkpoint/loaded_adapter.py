"""An adapter put on its base by PEFT, whole or not at all."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.errors import RecipeError
from recipe.paths import shown
from recipe.pipeline.phases import phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter_model.safetensors"


def put_on(model: PreTrainedModel, adapter: Path) -> Any:
    """The model with an adapter.

    Args:
        model: the base.
        adapter: a PEFT folder, whose adapter_config.json is checked (`recipe.checkpoint.lora`).

    Returns:
        PEFT's model around `model`.

    Raises:
        RecipeError: the adapter does not fit the model, or its file holds other tensors than its configuration says.
    """
    with phase("import"):
        import torch
        from peft import PeftModel
        from safetensors import safe_open

    try:
        with phase("load"):
            # By default PEFT reads the adapter into the GPU's memory first, whichever device the model is on.
            adapted = PeftModel.from_pretrained(model, str(adapter), local_files_only=True, torch_device="cpu")
            with safe_open(adapter / ADAPTER, framework="pt") as file:
                names = set(file.keys())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # PEFT, torch and safetensors each raise their own
        lines = (str(error) or repr(error)).splitlines()
        reason = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise RecipeError(f"{shown(adapter)}: cannot be put on the base: {reason}") from error
    present = {name.replace(".default.", ".") for name, _ in adapted.named_parameters() if ".lora_" in name}
    _refuse_other_tensors(names, present, adapter)
    return adapted


def _refuse_other_tensors(names: Collection[str], model_names: Collection[str], folder: Path) -> None:
    """RecipeError where an adapter's file holds other tensors than adapter_config.json puts on the base.

    PEFT leaves out what it has no place for, and keeps its random beginning where a tensor is missing.

    Args:
        names: of the tensors in the file.
        model_names: of the adapter's parameters in the loaded model, as PEFT's files have them.
        folder: of the adapter, for the error.
    """
    for what, differing in (
        ("tensors that adapter_config.json puts nowhere on this base", set(names) - set(model_names)),
        ("no tensors for modules that adapter_config.json names", set(model_names) - set(names)),
    ):
        if differing:
            raise RecipeError(
                f"{shown(folder)}: holds {what} ({len(differing)}, the first is {min(differing)}): was it made on "
                f"another base?"
            )
