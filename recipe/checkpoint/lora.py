"""LoRA tensors: read from XTuner's checkpoints, checked against their base, and merged into its weights.

Shapes: a module's weight W is (out, in); its lora_A is (r, in) and its lora_B (out, r).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoint.finite import all_finite
from recipe.checkpoint.internlm2_llama import Shape
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown
from recipe.records import ShapeError

# XTuner has the model under "llm.", and PEFT has the adapter under its name, "default". PEFT's files have neither.
_CHECKPOINT_KEY = re.compile(r"^llm\.(base_model\.model\..+\.lora_[AB])\.default\.weight$")

Tensors = dict[str, torch.Tensor]  # by name
# What PEFT's LoraConfig says of an adapter that is W + alpha / r * lora_B @ lora_A in every target, and no more.
PLAIN = {
    "peft_type": "LORA", "use_dora": False, "use_rslora": False, "bias": "none", "lora_bias": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layer_replication": None,
    "fan_in_fan_out": False, "alora_invocation_tokens": None, "use_qalora": False, "trainable_token_indices": None,
    "target_parameters": None, "arrow_config": None,
}  # fmt: skip
# Of PEFT's `init_lora_weights`, those that leave the base's weights as they are, also when the adapter is loaded.
INITS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """The keys of adapter_config.json that are read here, with their types."""

    r: int
    lora_alpha: float
    target_modules: list[str] | str | None
    lora_dropout: float = 0.0
    base_model_name_or_path: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ShapeError(f"has {self.r} for r, not a rank from 1")


def refuse_more_than_lora(settings: Mapping[str, Any], folder: Path) -> None:
    """RecipeError where an adapter is more than plain LoRA.

    Args:
        settings: its adapter_config.json.
        folder: of the adapter, for the error.
    """
    for key, plain in PLAIN.items():
        value = settings.get(key, plain)
        if value != plain and (value or plain):  # null, [] and {} say the same
            raise RecipeError(f"{shown(folder)}: {key}={value!r} is more than plain LoRA, which alone is taken here")
    if (init := settings.get("init_lora_weights")) not in INITS:
        raise RecipeError(f"{shown(folder)}: init_lora_weights={init!r} is more than plain LoRA: it changes the base")


def read_checkpoint(path: Path) -> Tensors:
    """Read the adapter of an XTuner checkpoint.

    Args:
        path: a .pth file, or the folder that DeepSpeed writes.

    Returns:
        The tensors under PEFT's names, as they were saved; a DeepSpeed folder's are float32.

    Raises:
        RecipeError: it cannot be read, or holds tensors that are no part of a LoRA adapter.
    """
    from recipe.checkpoint.trainer_state import allow_trainer_state

    allow_trainer_state(deepspeed=path.is_dir())
    try:
        if path.is_dir():
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            state = get_fp32_state_dict_from_zero_checkpoint(str(path.parent), path.name)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, pickle, zipfile and DeepSpeed each raise their own
        reason = str(error).splitlines()[0]
        if reason.startswith("Weights only load failed"):
            reason = "it is damaged, or holds objects that could run code as they are loaded"
        raise RecipeError(f"{shown(path)}: is no checkpoint that can be read: {reason}") from error
    state = state.get("state_dict", state)
    tensors = {}
    for key, tensor in state.items():
        match = _CHECKPOINT_KEY.match(key)
        if not match:
            raise RecipeError(f"{shown(path)}: {key} is no LoRA tensor; `convert` takes checkpoints of LoRA training")
        tensors[f"{match[1]}.weight"] = tensor
    return tensors


def check(tensors: Mapping[str, torch.Tensor], *, base: Mapping[str, Any], r: int, targets: tuple[str, ...]) -> None:
    """Check that the tensors are exactly a trained LoRA adapter.

    Args:
        tensors: under PEFT's names.
        base: the config.json of the base.
        r: the rank.
        targets: names of the adapted modules of every layer, such as q_proj.

    Raises:
        RecipeError: a tensor is missing, unknown, of another shape or not finite, or all zeros: lora_B starts so, and
            an untrained adapter changes nothing.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in Shape.of(dict(base)).llama().items():
        module = name.removesuffix(".weight")  # a bias keeps its suffix, and is no target
        if ".layers." in module and module.rsplit(".", 1)[-1] in targets:
            expected[f"base_model.model.{module}.lora_A.weight"] = (r, shape[1])
            expected[f"base_model.model.{module}.lora_B.weight"] = (shape[0], r)
    if unmatched := sorted(set(tensors) - set(expected)):
        raise RecipeError(f"adapter: {len(unmatched)} tensors match nothing in the base, the first is {unmatched[0]}")
    if missing := sorted(set(expected) - set(tensors)):
        raise RecipeError(f"adapter: {len(missing)} tensors are missing, the first is {missing[0]}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise RecipeError(
                f"adapter: {name} is {list(tensor.shape)}, the base needs {list(expected[name])}: made on another base?"
            )
        if not all_finite(tensor):
            raise RecipeError(f"adapter: {name} holds values that are not finite; train again with a lower lr")
        if not tensor.any():
            raise RecipeError(
                f"adapter: {name} is all zeros, so the adapter was not trained; is this the right checkpoint?"
            )


def merge_into(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
    """Add the adapter to weights of the base, in place: W + scale · B·A (Hu et al., "LoRA", 2021, section 4.1).

    The sum is taken in float32 and rounded once to the weight's own type.

    Args:
        weights: some of the base's, (out, in) each.
        tensors: the adapter's, under PEFT's names.
        scale: lora_alpha / r.

    Returns:
        The names of the weights that have an adapter.
    """
    merged = set()
    for name, weight in weights.items():
        a = tensors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight")
        b = tensors.get(f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight")
        if a is None or b is None:
            continue
        weights[name] = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
        merged.add(name)
    return merged
