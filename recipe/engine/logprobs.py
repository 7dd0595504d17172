"""Log probabilities of the chosen tokens and of the likeliest ones, from the model's own logits.

Before temperature, penalties and limits, as vLLM's `raw_logprobs`: how likely the model holds a token.

Shapes: slots = sequences of the KV cache; rows = sequences of one step; vocabulary = rows of the output head;
top = tokens that are listed for each position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MAX_TOP = 20  # OpenAI's limit of top_logprobs


class TokenLogprob(NamedTuple):
    """A token of a reply with its log probability, and the likeliest tokens in its place.

    Attributes:
        token: its id.
        logprob: natural logarithm.
        top: (id, log probability), the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Rows(NamedTuple):
    """Log probabilities of some sequences' latest tokens.

    Attributes:
        chosen: (rows,), float32, of the chosen tokens.
        top: (rows, top), float32, descending.
        top_ids: (rows, top), int32.
    """

    chosen: Tensor
    top: Tensor
    top_ids: Tensor

    def of(self, row: int, token: int) -> StepLogprob:
        """What a row holds of its token, the one that was chosen."""
        return StepLogprob(token, self, row)


class StepLogprob(NamedTuple):
    """A token and where its log probability lies, which is read only if somebody wants it by itself.

    Attributes:
        token: its id.
        rows: of its step, in host memory.
        row: its own.
    """

    token: int
    rows: Rows
    row: int

    def listed(self, count: int) -> TokenLogprob:
        """The log probability, with the `count` likeliest."""
        ids, logprobs = self.rows.top_ids[self.row, :count].tolist(), self.rows.top[self.row, :count].tolist()
        return TokenLogprob(self.token, float(self.rows.chosen[self.row]), tuple(zip(ids, logprobs, strict=True)))


class LogprobBuffers:
    """Where a step leaves the log probabilities of each slot: tensors that stay in place, as a CUDA graph demands.

    Args:
        slots: of the KV cache.
        vocabulary: rows of the output head.
        device: of the logits.
        top: tokens that are listed for each position, at the most.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device, *, top: int = MAX_TOP) -> None:
        self._top = min(top, vocabulary)
        self._buffers = Rows(
            torch.zeros(slots, device=device),
            torch.zeros(slots, self._top, device=device),
            torch.zeros(slots, self._top, dtype=torch.int32, device=device),
        )

    def compute(self, logits: Tensor, chosen: Tensor, slots: slice | Tensor) -> None:
        """Take note of the log probabilities of `slots`.

        Args:
            logits: (slots, vocabulary), of the model, unchanged.
            chosen: (slots,), token ids.
            slots: which of the slots the rows are; a tensor of them is on the device.
        """
        logprobs = logits.float().log_softmax(-1)  # (slots, vocabulary)
        self._buffers.chosen[slots] = logprobs.gather(-1, chosen[:, None])[:, 0]
        top, ids = logprobs.topk(self._top, -1)
        self._buffers.top[slots], self._buffers.top_ids[slots] = top, ids.int()

    def rows(self, slots: slice | Tensor) -> Rows:
        """A copy of what the last step left for these slots. A list of them would make the CPU wait for the GPU."""
        return Rows(*(buffer[slots].clone() for buffer in self._buffers))
