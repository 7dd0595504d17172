"""A step whose tokens may still be on their way from the GPU, while the next one is launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe.engine.sequence import Sequence

if TYPE_CHECKING:
    from recipe.engine.logprobs import Rows, StepLogprob
    from recipe.engine.reply import Sampling


@dataclass
class InFlightStep:
    """A step whose tokens may still be on their way from the GPU.

    Attributes:
        sequences: (row of `tokens`, sequence) of those that get a token.
        tokens: (rows,), the sampled ids, in host memory once `arrived` has happened.
        arrived: the CUDA event after the copy; None where there is no GPU.
        logprobs: of the same rows, in host memory likewise; None where no sequence wants them.
    """

    sequences: list[tuple[int, Sequence]]
    tokens: Any
    arrived: Any = None
    logprobs: Rows | None = None

    def result(self) -> list[int]:
        """The sampled id of each row; waits until they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        ids: list[int] = self.tokens.tolist()
        return ids

    def logprob(self, row: int, token: int, sampling: Sampling) -> StepLogprob | None:
        """The log probability of a row's token, for after `result`; None where the sampling wants none."""
        return None if self.logprobs is None or sampling.logprobs is None else self.logprobs.of(row, token)


def in_flight(sequences: list[tuple[int, Sequence]], tokens: Any, logprobs: Rows | None) -> InFlightStep:
    """A step whose results begin to move to host memory.

    Args:
        sequences, logprobs: of `InFlightStep`.
        tokens: (rows,), ids on the model's device.
    """
    import torch

    if not tokens.is_cuda:
        return InFlightStep(sequences, tokens, logprobs=logprobs)
    host = _to_pinned(tokens)
    pinned = logprobs and type(logprobs)(*map(_to_pinned, logprobs))
    arrived = torch.cuda.Event()
    arrived.record()
    return InFlightStep(sequences, host, arrived, pinned)


def _to_pinned(tensor: Any) -> Any:
    """A copy in pinned host memory, which is there once the GPU has come so far."""
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
