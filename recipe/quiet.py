"""Keeps the libraries' notes to themselves: what a user can neither mend nor use."""

import logging
import os
import warnings

from recipe.device import has_gpu


def quieten() -> None:
    """Set what must be set before torch, transformers, bitsandbytes and DeepSpeed are imported. Errors still show."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no stage needs the network
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what DeepSpeed would find, with a warning
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message=".*torch.utils.checkpoint.*")
