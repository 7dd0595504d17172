"""Lets torch's weights-only reader load what mmengine and DeepSpeed save beside the tensors of a checkpoint."""

from __future__ import annotations

import codecs
import copyreg
from typing import Any


def allow_trainer_state() -> None:
    """Allow the reader, the default since torch 2.6, the types of a trainer's state; call it before saving, too.

    mmengine's loss histories carry bound methods, for which the reader would need leave to call getattr. From this call
    on they are saved as their numbers. The other types are numpy's scalars (the last loss, a learning rate) and the
    class of the settings that DeepSpeed saves beside its part of a model.
    """
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
