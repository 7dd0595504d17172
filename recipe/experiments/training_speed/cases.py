"""What is measured: the presets of this recipe, and other trainers on the same work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Case(NamedTuple):
    """One measurement.

    Attributes:
        trainer: a preset, or a key of `trainers.OTHERS`.
        batch: packs a step on each GPU.
        steps: of a window.
        gpus: processes that train together, one a GPU.
        deepspeed: XTuner's name for a DeepSpeed config, such as zero2.
    """

    trainer: str
    batch: int
    steps: int
    gpus: int = 1
    deepspeed: str | None = None

    @property
    def distributed(self) -> bool:
        """Whether torchrun starts the processes."""
        return self.gpus > 1 or self.deepspeed is not None


# The tutorial's own step is one pack, sixteen of which make an update.
CASES = {
    "tutorial": Case("tutorial", 1, 16),
    "lora": Case("lora", 8, 4),
    "fast, batch 4": Case("fast", 4, 8),
    "fast": Case("fast", 8, 6),
    "fast, batch 16": Case("fast", 16, 4),
    "fp8": Case("fp8", 8, 6),
    "fp8, batch 16": Case("fp8", 16, 4),
    "qlora": Case("qlora", 8, 6),
    "qlora, batch 2": Case("qlora", 2, 16),
    "fast, 2 GPUs": Case("fast", 8, 6, gpus=2),
    "fast zero2": Case("fast", 8, 6, deepspeed="zero2"),
    "fast zero2, 2 GPUs": Case("fast", 8, 6, gpus=2, deepspeed="zero2"),
    "transformers + PEFT": Case("plain", 8, 4),
    "transformers + PEFT + Liger": Case("plain_liger", 8, 4),
    "TRL": Case("trl", 8, 4),
    "TRL + Liger": Case("trl_liger", 8, 4),
    "Unsloth": Case("unsloth", 8, 4),
    "Unsloth, batch 16": Case("unsloth", 16, 4),
    "Unsloth nf4": Case("unsloth_nf4", 8, 4),
}
# Packages beyond the locked environment: trainer -> module.
PACKAGES = {
    "plain_liger": "liger_kernel", "trl": "trl", "trl_liger": "liger_kernel", "unsloth": "unsloth",
    "unsloth_nf4": "unsloth",
}  # fmt: skip


def unmet_requirement(name: str, gpus: int) -> str | None:
    """What a measurement needs and this machine has not.

    Args:
        name: of CASES.
        gpus: of this machine.

    Returns:
        A clause such as "needs 2 GPUs"; None where nothing is missing.
    """
    package = PACKAGES.get(CASES[name].trainer)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    return f"needs {CASES[name].gpus} GPUs" if CASES[name].gpus > gpus else None
