"""What XTuner, mmengine and PEFT import wherever it is installed, left out of a training that uses none of it.

bitsandbytes brings torch's compiler along and DeepSpeed its inference: a quarter of all that a training imports, 5 s on
a GPU machine with a slow file system, 1.4 s with a fast one (docs/experiments.md, "What is not imported").
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Set by `python -m recipe`, whose process trains by one config. What a library has seen as missing it never looks for
# again, so that a process that trains by several configs leaves nothing out.
one_config = False


def unused(config: str, *, deepspeed: bool) -> list[str]:
    """The libraries that a training does not use.

    Args:
        config: the text of its resolved config.
        deepspeed: whether it runs under DeepSpeed.
    """
    quantised = "bitsandbytes" in config.lower()  # also BitsAndBytesConfig
    return [*([] if quantised else ["bitsandbytes"]), *([] if deepspeed else ["deepspeed"])]


@contextmanager
def left_out(names: list[str]) -> Iterator[None]:
    """Have these look like not installed to whoever imports them meanwhile; nothing is left out where one is loaded."""
    hidden = [name for name in names if one_config and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importlib finds no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
