"""The one table of what SET= may change by a short name: what the trainer reads, the type, and the meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One short name.

    Attributes:
        paths: every place in the resolved config that changes with it; hooks are named by their class.
        kind: what values it takes.
        meaning: in a few words.
    """

    paths: tuple[str, ...]
    kind: str
    meaning: str


_OPTIMIZER, _DATA = "optim_wrapper.optimizer", "train_dataloader.dataset"
COUNT, NUMBER = "whole number", "number"
SETTINGS: Mapping[str, Setting] = {
    "lr": Setting((f"{_OPTIMIZER}.lr",), NUMBER, "highest learning rate"),
    "betas": Setting((f"{_OPTIMIZER}.betas",), "two numbers", "decay of Adam's two moments"),
    "weight_decay": Setting((f"{_OPTIMIZER}.weight_decay",), NUMBER, "decay of the weights"),
    "max_norm": Setting(("optim_wrapper.clip_grad.max_norm",), NUMBER, "largest norm of the gradients"),
    "batch_size": Setting(("train_dataloader.batch_size",), COUNT, "packs a step, of each process"),
    "accumulative_counts": Setting(
        ("optim_wrapper.accumulative_counts",), COUNT, "steps whose gradients are added before an update"
    ),
    "max_length": Setting((f"{_DATA}.max_length",), COUNT, "tokens of a pack"),
    "max_iters": Setting(("train_cfg.max_iters", "param_scheduler.1.end"), COUNT, "steps of the training"),
    "max_epochs": Setting(("train_cfg.max_epochs", "param_scheduler.1.end"), NUMBER, "passes over the data"),
    "save_steps": Setting(("default_hooks.checkpoint.interval",), COUNT, "steps between checkpoints"),
    "r": Setting(("model.lora.r",), COUNT, "rank of LoRA"),
    "lora_alpha": Setting(("model.lora.lora_alpha",), NUMBER, "LoRA's scale times its rank"),
    "lora_dropout": Setting(("model.lora.lora_dropout",), NUMBER, "dropout before LoRA"),
    "replay_ratio": Setting((f"{_DATA}.replay_ratio",), "number or None", "replay rows for each row; None for all"),
    "leave_out": Setting((f"{_DATA}.leave_out",), "list of texts", "parts of the data that are not trained on"),
    "patience": Setting(
        ("custom_hooks.ScoreCheckpoints.patience",), "whole number or None", "checkpoints without gain before the end"
    ),
}
# What other trainers, and other variables of this recipe, call them.
ELSEWHERE = {
    "learning_rate": "lr",
    "lora_rank": "r",
    "lora_r": "r",
    "rank": "r",
    "num_train_epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "epochs": "max_epochs",
    "max_steps": "max_iters",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulative_counts",
    "max_grad_norm": "max_norm",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "warmup_ratio": "param_scheduler.0.end and param_scheduler.1.begin",
    "seed": "SEED= beside SET=",
}


def table(defaults: Mapping[str, object]) -> str:
    """All short names as a text: name, type, default, meaning.

    Args:
        defaults: name -> the value of a preset, of those that it has.
    """
    rows = [("name", "type", "default", "meaning")]
    rows += [
        (name, each.kind, str(defaults[name]) if name in defaults else "(not in this preset)", each.meaning)
        for name, each in SETTINGS.items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows)
    return "\n".join(lines)
