"""Keeps the libraries' notes to themselves: what a user can neither mend nor use."""

import logging
import os
import sys
import warnings

from recipe.device import has_gpu

# Set beside HF_HUB_OFFLINE where `quieten` sets that, so that a child process does not take it for the user's wish.
OFFLINE_BY_DEFAULT = "RECIPE_OFFLINE_BY_DEFAULT"
# Whether the user forbade connections, before `quieten` forbids them to every library.
OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"} and not os.environ.get(
    OFFLINE_BY_DEFAULT
)


def quieten() -> None:
    """Set what must be set before torch, transformers, bitsandbytes and DeepSpeed are imported. Errors still show."""
    if "HF_HUB_OFFLINE" not in os.environ:  # stage `model` alone connects, and says so
        os.environ |= {"HF_HUB_OFFLINE": "1", OFFLINE_BY_DEFAULT: "1"}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # that a network has no reverse DNS
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what DeepSpeed would find, with a warning
    for name in ("bitsandbytes", "huggingface_hub"):  # stage `model` says in a line of its own what the latter retries
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("streamlit.watcher.local_sources_watcher").disabled = True  # its search of torch's modules
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    warnings.filterwarnings("ignore", message=".*torch.utils.checkpoint.*")


def close_bars() -> None:
    """Close all progress bars of this process, so that what is printed next begins a line and stands last."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()
