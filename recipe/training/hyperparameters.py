"""The hyperparameters of a training, read out of what its config came to, for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from recipe.errors import RecipeError
from recipe.training import resolved_config


@dataclass(frozen=True)
class Hyperparameters:
    """What is usually asked of a LoRA training; None where a config of the user's own does not have it.

    Attributes:
        lr: the highest learning rate.
        schedule: how the rate rises and falls, as classes of mmengine with the steps or epochs between which they hold.
        optimizer: its class.
        betas, weight_decay, max_norm: of the optimizer, and of the clipped gradient.
        rank, alpha, dropout: of LoRA.
        targets: names of the adapted layers.
        batch_size: packs of each process in a forward pass.
        accumulation: forward passes in an optimizer step.
        max_length: tokens of a pack.
        precision: type that the base computes in.
        quantised: whether the base lies in 4 bits.
        replay_ratio: replay rows to rows about the identity; None for all of them.
        distilled: whether replay is learnt by the base's distribution.
    """

    lr: float | None
    schedule: str | None
    optimizer: str | None
    betas: Sequence[float] | None
    weight_decay: float | None
    max_norm: float | None
    rank: int | None
    alpha: float | None
    dropout: float | None
    targets: Sequence[str] | None
    batch_size: int | None
    accumulation: int | None
    max_length: int | None
    precision: str | None
    quantised: bool
    replay_ratio: float | None
    distilled: bool

    def shown(self) -> dict[str, str]:
        """Name of a field -> its value as text, without those that are not known."""
        texts: dict[str, str] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None or value is False:
                continue
            if isinstance(value, float):
                texts[each.name] = f"{value:g}"
            elif isinstance(value, (list, tuple)):
                texts[each.name] = ", ".join(map(str, value))
            else:
                texts[each.name] = "yes" if value is True else str(value)
        return texts


def read(config_file: Path) -> Hyperparameters:
    """Read a resolved config, or what a config of the user's own came to.

    Args:
        config_file: config.py of stage `config` or `train`.

    Raises:
        RecipeError: the file cannot be read as data.
    """
    config = resolved_config.read_values(config_file)
    try:
        return _of(config)
    except (AttributeError, TypeError) as error:  # a config of the user's may have any shape
        raise RecipeError(f"{config_file}: has no shape of an XTuner config ({error})") from None


def _of(config: Mapping[str, Any]) -> Hyperparameters:
    wrapper, model = config.get("optim_wrapper") or {}, config.get("model") or {}
    optimizer, lora, llm = wrapper.get("optimizer") or {}, model.get("lora") or {}, model.get("llm") or {}
    loader = config.get("train_dataloader") or {}
    dataset = loader.get("dataset") or {}
    betas, targets = optimizer.get("betas"), lora.get("target_modules")
    return Hyperparameters(
        lr=optimizer.get("lr"),
        schedule=_schedule(config.get("param_scheduler") or []),
        optimizer=_last(optimizer.get("type")),
        betas=tuple(betas) if betas else None,
        weight_decay=optimizer.get("weight_decay"),
        max_norm=(wrapper.get("clip_grad") or {}).get("max_norm"),
        rank=lora.get("r"),
        alpha=lora.get("lora_alpha"),
        dropout=lora.get("lora_dropout"),
        targets=[targets] if isinstance(targets, str) else sorted(targets) if targets else None,
        batch_size=loader.get("batch_size"),
        accumulation=wrapper.get("accumulative_counts"),
        max_length=dataset.get("max_length"),
        precision=_last(llm.get("torch_dtype")),
        quantised=bool((llm.get("quantization_config") or {}).get("load_in_4bit")),
        replay_ratio=dataset.get("replay_ratio"),
        distilled=bool(dataset.get("distill")),
    )


def _last(name: Any) -> str | None:
    """The last part of a dotted name: "torch.optim.AdamW" is AdamW."""
    return str(name).rpartition(".")[2] if name else None


def _schedule(schedulers: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> str | None:
    """Such as "LinearLR 0-24, CosineAnnealingLR 24-480 steps"."""
    parts = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    if not parts:
        return None
    spans = [f"{_last(part.get('type'))} {part.get('begin', 0):g}-{part['end']:g}" for part in parts if "end" in part]
    spans += [str(_last(part.get("type"))) for part in parts if "end" not in part]
    unit = "epochs" if parts[0].get("by_epoch", True) else "steps"
    return f"{', '.join(spans)} {unit}"
