"""Whether there is a GPU, asked without the seconds that importing torch takes."""

import os
from pathlib import Path


def has_gpu() -> bool:
    """Whether PyTorch would find a CUDA device: NVIDIA's driver on Linux, or WSL's, and not hidden from this process."""
    driver = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return driver and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
