"""Stage `convert`: a checkpoint of XTuner's becomes a PEFT adapter.

XTuner's own `pth_to_hf` builds the whole model again, takes a checkpoint that does not fit it in silence and writes a
pickle. This reads the tensors, checks each against the base, and writes safetensors; the values are the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.base_origin import base_origin
from recipe.checkpoint.model_card import CARD, Subject, adapter_card
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.pipeline.phases import phase
from recipe.pipeline.results import ConvertResults
from recipe.stages import train
from recipe.training import resolved_config

SERVED_WITH = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
WEIGHTS = "adapter_model.safetensors"


def pick_checkpoint(folder: Path, name: str | None) -> Path:
    """The named checkpoint in the train folder (iter_80 or iter_80.pth), or the best, or where none was scored the
    last."""
    checkpoints = train.checkpoints(folder)
    if not checkpoints:
        raise RecipeError(f"{stage.shown(folder)}: holds no checkpoint; run `make train` first")
    if name is None:
        best = train.best_checkpoint(folder)
        return next((path for path in checkpoints if path.stem == best), checkpoints[-1])
    for path in checkpoints:
        if path.stem == Path(name).stem:
            return path
    raise RecipeError(f"CHECKPOINT={name} is none of {', '.join(path.stem for path in checkpoints)}")


def lora_settings(config_file: Path) -> dict[str, Any]:
    """r, lora_alpha, lora_dropout and target_modules of a resolved config."""
    from recipe.checkpoint.linear_layers import LINEAR_LAYERS

    lora = resolved_config.read(config_file).model.get("lora")
    if not lora:
        raise RecipeError(f"{stage.shown(config_file)}: trains no LoRA adapter, there is nothing to convert")
    targets = sorted(lora.get("target_modules") or LINEAR_LAYERS)
    dropout = lora.get("lora_dropout", 0.0)
    return {"r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": dropout, "target_modules": targets}


def trained_with(train_folder: Path) -> tuple[Path, Path]:
    """(model folder, config) that a completed training used."""
    manifest = stage.complete(train_folder, "train")
    return ROOT / stage.input_of(manifest, "model")[0], train_folder / train.CONFIG


def make(folder: Path, *, train_folder: Path, checkpoint: str | None) -> stage.Manifest:
    """Write the adapter in a checkpoint of `train_folder` to `folder` in PEFT's format."""
    manifest = stage.complete(train_folder, "train")
    model, config = trained_with(train_folder)
    stage.complete(model, "model")
    base_name, base_sha256 = stage.input_of(manifest, "model")
    stage.refuse_another_base(train_folder, model, base_sha256, "train")
    path = pick_checkpoint(train_folder, checkpoint)
    stage.refuse_changed(train_folder, manifest, [config.name, path.name])

    def work(out: Path) -> ConvertResults:
        with phase("import"):
            from peft import LoraConfig
            from safetensors.torch import save_file

            from recipe.checkpoint import lora

        settings = lora_settings(config)
        with phase("load"):
            tensors = lora.read_checkpoint(path)
        base = stage.read_json(model / "config.json", ConfigShape)
        lora.check(tensors, base=base, r=settings["r"], targets=tuple(settings["target_modules"]))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / WEIGHTS, {"format": "pt"})
        (out / WEIGHTS).chmod(0o644)
        peft_config = LoraConfig(
            **settings, bias="none", task_type="CAUSAL_LM", inference_mode=True,
            base_model_name_or_path=base_name,
        )  # fmt: skip
        content = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config.to_dict().items()}
        (out / "adapter_config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name in SERVED_WITH:
            shutil.copyfile(model / name, out / name)
        parameters = sum(tensor.numel() for tensor in tensors.values())
        card = adapter_card(Subject(base_origin(model)), parameters, settings["r"])
        (out / CARD).write_text(card, encoding="utf-8")
        stage.say("convert", f"{path.name}: {len(tensors)} tensors, {parameters:,} parameters")
        return ConvertResults(
            checkpoint=path.name, checkpoint_sha256=stage.content_sha256(path), tensors=len(tensors),
            parameters=parameters, model=base_name, base_sha256=base_sha256,
        )  # fmt: skip

    return stage.run(
        "convert", folder, inputs={"checkpoint": path, "model": model, "config": config}, settings={}, work=work
    )
