"""LoRA tensors: out of XTuner's checkpoints, checked against the base they belong to, and into its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoint.internlm2_llama import Shape
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown

# XTuner keeps the model under "llm." and PEFT the adapter under its name; PEFT's files have neither.
_CHECKPOINT_KEY = re.compile(r"^llm\.(base_model\.model\..+\.lora_[AB])\.default\.weight$")
_PEFT_KEY = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])\.weight$")

Tensors = dict[str, torch.Tensor]


def read_checkpoint(path: Path) -> Tensors:
    """The adapter in an XTuner checkpoint (a file, or a folder under DeepSpeed), under PEFT's names.

    RecipeError: it cannot be read, or holds tensors that are no part of a LoRA adapter.
    """
    from recipe.checkpoint.trainer_state import allow_trainer_state

    allow_trainer_state()
    try:
        if path.is_dir():
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            state = get_fp32_state_dict_from_zero_checkpoint(str(path.parent), path.name)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, pickle, zipfile and DeepSpeed each raise their own
        raise RecipeError(f"{shown(path)}: is no checkpoint that can be read: {str(error).splitlines()[0]}") from error
    state = state.get("state_dict", state)
    tensors = {}
    for key, tensor in state.items():
        match = _CHECKPOINT_KEY.match(key)
        if not match:
            raise RecipeError(f"{shown(path)}: {key} is no LoRA tensor; `convert` takes checkpoints of LoRA training")
        tensors[f"{match[1]}.weight"] = tensor
    return tensors


def check(tensors: Mapping[str, torch.Tensor], *, base: Mapping[str, Any], r: int, targets: tuple[str, ...]) -> None:
    """RecipeError unless the tensors are exactly a trained LoRA adapter of rank `r` for the base of config `base`.

    Every target module of every layer must have its A [r, in] and B [out, r], nothing else may be there, none may be
    all zeros (B starts so: an untrained adapter changes nothing) or hold a value that is not finite.
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
        if not torch.isfinite(tensor).all():
            raise RecipeError(f"adapter: {name} holds values that are not finite; train again with a lower lr")
        if not tensor.any():
            raise RecipeError(
                f"adapter: {name} is all zeros, so the adapter was not trained; is this the right checkpoint?"
            )


def merge_into(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
    """Add scale · B·A to every weight in `weights` that has an adapter, in place; returns the names of those.

    The sum is taken in float32 and rounded once to the weight's own type.
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
