"""What a preset becomes on a machine without a GPU."""

from __future__ import annotations

from typing import Any


def for_cpu(config: Any, precision: str = "float32") -> None:
    """Without a GPU the same path runs without automatic mixed precision, which asserts one; nf4 does not.

    Args:
        precision: of the frozen base, see `device.cpu_precision`. XTuner's own model computes in float32, and so does
            what is dequantised from nf4 once for all.
    """
    whole = "recompute" in config.model and "quantization_config" not in config.model.llm
    config.optim_wrapper.type = "mmengine.optim.OptimWrapper"
    for key in ("dtype", "loss_scale"):
        config.optim_wrapper.pop(key, None)
    config.model.llm.torch_dtype = f"torch.{precision if whole else 'float32'}"
    if "quantization_config" in config.model.llm:
        config.model.llm.quantization_config.bnb_4bit_compute_dtype = "torch.float32"
    config.env_cfg.dist_cfg.backend = "gloo"
