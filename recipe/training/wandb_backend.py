"""Weights & Biases as a backend of mmengine's visualizer; a module of its own, since mmengine is imported late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.visualization import WandbVisBackend


class WandbByStep(WandbVisBackend):
    """mmengine's backend, whose x-axis is the training's step, and which sends no source files.

    mmengine's own leaves the step out, so that wandb counts its calls instead: every score would push the losses after
    it a step further. It also uploads each .py file below the working folder, which here holds .venv and work.
    """

    def add_config(self, config: Any, **_: Any) -> None:
        self.experiment.config.update(config.to_dict())

    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        self.experiment.log({name: value}, step=step)

    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, *_: Any, **__: Any) -> None:
        self.experiment.log(dict(scalar_dict), step=step)
