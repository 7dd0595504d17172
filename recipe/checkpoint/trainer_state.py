"""What mmengine and DeepSpeed save beside the tensors of a checkpoint, for torch's weights-only reader."""

from __future__ import annotations

import codecs
import copyreg
from typing import Any


def allow_trainer_state() -> None:
    """Make the loss histories that mmengine saves beside the tensors plain enough for torch.load's weights-only reader.

    They carry bound methods, for which that reader (the default since torch 2.6) would need leave to call getattr; here
    they are saved as their numbers. What else it has to know are numpy's scalars (the last loss, a learning rate) and
    the class of the settings that DeepSpeed saves beside its part of a model.
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
