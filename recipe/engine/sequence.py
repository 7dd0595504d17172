"""One request inside the engine: its prompt, its slot of the KV cache and the tokens that were accepted so far."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from recipe.engine.reply import Reply, Sampling
from recipe.engine.text import Text


@dataclass
class Sequence:
    """A request that is waiting, prefilling or decoding.

    Attributes:
        reply: what the caller holds.
        sampling: how tokens are chosen, and where the reply ends.
        prompt: token ids.
        adapted: whether the adapter is on.
        text: makes characters of the tokens.
        rng: of this sequence alone, so that a reply does not depend on what runs beside it.
        slot: of the KV cache; -1 while the request waits.
        prefilled: prompt tokens that the slot's cache holds.
        output_ids: tokens that were decoded and accepted.
    """

    reply: Reply
    sampling: Sampling
    prompt: list[int]
    adapted: bool
    text: Text
    rng: random.Random
    slot: int = -1
    prefilled: int = 0
    output_ids: list[int] = field(default_factory=list)

    def draw(self) -> float:
        """The sequence's next random number, in [0, 1)."""
        return self.rng.random()
