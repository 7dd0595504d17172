"""The slots of the KV cache: which of them a sequence gets, and what their caches still hold.

A slot that was freed keeps its keys and values. A prompt that begins with the same tokens is not computed again from
the start (prefix caching): so a conversation that goes on costs only its new turn.
"""

from __future__ import annotations

from collections.abc import Collection

from recipe.engine.sequence import Sequence

# Prompt tokens that a cached prefix must save for each slot by which it widens the decode batch. By the README's table
# of `make speed`, a slot costs every decode step of the reply about what one prefilled token costs, on two CPU cores
# and on an H200, and a reply has about so many steps. An estimate: what widening costs was not measured by itself.
SAVED_TOKENS_PER_SLOT = 100


class SlotManager:
    """Gives a slot to each sequence, and remembers the token ids whose keys and values each slot's cache holds.

    Which slots are in use is the scheduler's to say.

    Args:
        count: slots of the KV cache.
        caching: whether prompts use the prefixes that slots hold; without it a sequence gets the lowest free slot.
    """

    def __init__(self, count: int, *, caching: bool = True) -> None:
        self.count, self.caching = count, caching
        self._cached: list[tuple[bool, list[int]]] = [(True, [])] * count  # of each slot: (adapter on, token ids)

    def allocate(self, sequence: Sequence, used: Collection[int]) -> None:
        """Set the sequence's slot, and how much of its prompt the slot's cache holds already.

        Args:
            sequence: without a slot yet.
            used: slots of other sequences; at least one slot must be free.
        """
        if not self.caching:
            sequence.slot = next(slot for slot in range(self.count) if slot not in used)
            return
        sequence.slot = self._choose(sequence, used)
        sequence.prefilled = self._shared_prefix(sequence.slot, sequence)

    def store(self, sequence: Sequence, ids: list[int]) -> None:
        """Remember that the cache of the sequence's slot holds the keys and values of `ids`, and of nothing else."""
        self._cached[sequence.slot] = (sequence.adapted, ids)

    def batch_size(self, highest_slot: int) -> int:
        """Slots that a decode step computes: a power of two, so that there are few CUDA graphs."""
        batch = 1
        while batch <= highest_slot:
            batch *= 2
        return min(batch, self.count)

    def _choose(self, sequence: Sequence, used: Collection[int]) -> int:
        """The free slot whose cached prefix saves the most, less what a wider decode batch costs; the lowest of
        equals."""
        batch = self.batch_size(max(used, default=0))

        def saved_tokens(slot: int) -> int:
            extra = max(self.batch_size(slot) - batch, 0)
            return self._shared_prefix(slot, sequence) - SAVED_TOKENS_PER_SLOT * extra

        free = (slot for slot in range(self.count) if slot not in used)
        return max(free, key=lambda slot: (saved_tokens(slot), -slot))

    def _shared_prefix(self, slot: int, sequence: Sequence) -> int:
        """Prompt tokens that the slot's cache holds already; the last one is always computed, for the logits after
        it."""
        adapted, cached = self._cached[slot]
        if adapted != sequence.adapted:
            return 0
        most = min(len(cached), len(sequence.prompt) - 1)
        return next((i for i in range(most) if cached[i] != sequence.prompt[i]), most)
