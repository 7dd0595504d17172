"""In which precision a model computes where there is no GPU."""

from __future__ import annotations

from pathlib import Path

from recipe.device import cpu_precision
from recipe.pipeline.stage import read_json


def on_cpu(folder: Path) -> str:
    """The precision on this machine's CPU, "bfloat16" or "float32": see `device.cpu_precision`.

    Args:
        folder: of the model. Its config.json names the precision of the weights; transformers 5 calls it dtype.
    """
    config = read_json(folder / "config.json")
    return cpu_precision(config.get("torch_dtype") or config.get("dtype"))
