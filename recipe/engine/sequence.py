"""One request inside the engine: its prompt, its slot of the KV cache and the tokens that were accepted so far."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from recipe.engine.reply import Sampling

if TYPE_CHECKING:
    from recipe.engine.logprobs import StepLogprob


class Listener(Protocol):
    """Follows the tokens of a sequence, in the scheduler's thread."""

    @property
    def cancelled(self) -> bool:
        """Whether the sequence is to end before its next token."""

    def add(self, token: int, logprob: StepLogprob | None = None) -> bool:
        """Take the next token id, with its log probability where the sampling wants it; returns whether the reply ends
        with it."""

    def end(self, how: str, error: Exception | None = None, last: StepLogprob | None = None) -> None:
        """Take note of the end.

        Args:
            how, error: see `reply.Reply`.
            last: the log probability of the token that ended it and is no part of it, where the sampling wants it.
        """


@dataclass(eq=False)  # each is itself alone: to compare prompts would take long
class Sequence:
    """A request that is waiting, prefilling or decoding.

    Attributes:
        sampling: how tokens are chosen, and where the reply ends.
        prompt: token ids.
        adapted: whether the adapter is on.
        listener: follows the tokens.
        rng: of this sequence alone, so that a reply does not depend on what runs beside it.
        slot: of the KV cache; -1 while the request waits.
        prefilled: prompt tokens that the slot's cache holds.
        output_ids: tokens that were decoded and accepted.
    """

    sampling: Sampling
    prompt: list[int]
    adapted: bool
    listener: Listener
    rng: random.Random
    slot: int = -1
    prefilled: int = 0
    output_ids: list[int] = field(default_factory=list)

    def draw(self) -> float:
        """The sequence's next random number, in [0, 1)."""
        return self.rng.random()
