"""Lets torch's weights-only reader, and no other, load what mmengine and DeepSpeed save beside a checkpoint's tensors.

A pickle may run any code while it is loaded, and a checkpoint may come from another machine. DeepSpeed asks for the
reader that runs it; torch's own variable overrides that.
"""

from __future__ import annotations

import codecs
import copyreg
import os
from typing import Any

# Of torch.load, also where the caller says weights_only=False; torch refuses both at once.
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def allow_trainer_state(*, deepspeed: bool = False) -> None:
    """Force the reader on everything that calls torch.load, and allow it the types of a trainer's state.

    Call it before saving, too.

    mmengine's loss histories carry bound methods, for which the reader would need leave to call getattr. From this call
    on they are saved as their numbers. The other types are numpy's scalars (the last loss, a learning rate) and the
    class of the settings that DeepSpeed saves beside its part of a model.

    Args:
        deepspeed: allow the plain records of DeepSpeed's optimizers too, which takes seconds to import.
    """
    os.environ[FORCE] = "1"
    os.environ.pop(FORCE_NOT, None)
    import numpy
    import torch
    from mmengine.config import ConfigDict
    from mmengine.logging.history_buffer import HistoryBuffer

    def numbers(buffer: Any) -> tuple[Any, tuple[list[float], list[float], int]]:
        values, counts = buffer.data
        return HistoryBuffer, (values.tolist(), counts.tolist(), buffer.max_length)

    copyreg.pickle(HistoryBuffer, numbers)
    scalar: list[Any] = [
        numpy.core.multiarray.scalar,  # type: ignore[attr-defined]
        numpy.dtype,
        type(numpy.dtype("float64")),
        type(numpy.dtype("int64")),
    ]
    torch.serialization.add_safe_globals([HistoryBuffer, ConfigDict, *scalar, codecs.encode])
    if deepspeed:
        from deepspeed.runtime.fp16 import loss_scaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        scalers = [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler]
        torch.serialization.add_safe_globals([*scalers, ZeroStageEnum, fragment_address])
