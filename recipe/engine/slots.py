"""The slots of the KV cache: how many fit into memory, which of them a sequence gets, and what their caches still hold.

A slot that was freed keeps its keys and values. A prompt that begins with the same tokens is not computed again from
the start (prefix caching): so a conversation that goes on costs only its new turn.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from recipe.engine.sequence import Sequence

SLOTS = 32  # sequences that run at once; further requests wait
MIN_CONTEXT = 4096  # tokens of a slot: where memory is short, fewer slots rather than shorter ones
CPU_CACHE_BYTES = 4 << 30  # of the KV cache where there is no GPU; on one it takes two thirds of what is free
# Prompt tokens that a cached prefix must save for each slot by which it widens the decode batch. By the README's table
# of `make speed`, a slot costs every decode step of the reply about what one prefilled token costs, on two CPU cores
# and on an H200, and a reply has about so many steps. An estimate: what widening costs was not measured by itself.
SAVED_TOKENS_PER_SLOT = 100


def capacity(config: Any, slots: int = SLOTS) -> tuple[int, int]:
    """The size of a KV cache that fits beside a model that is loaded already.

    Args:
        config: the configuration of the model.
        slots: the most that are needed.

    Returns:
        (slots, tokens of each slot).
    """
    import torch

    from recipe.engine.decoder import Decoder

    memory = torch.cuda.mem_get_info()[0] * 2 // 3 if torch.cuda.is_available() else CPU_CACHE_BYTES
    tokens = memory // Decoder.bytes_per_token(config)
    longest = config.max_position_embeddings
    while slots > 1 and tokens // slots < min(MIN_CONTEXT, longest):
        slots //= 2
    return slots, max(min(longest, tokens // slots) // 64 * 64, 64)


class SlotManager:
    """Gives a slot to each sequence, and remembers the token ids whose keys and values each slot's cache holds.

    Which slots are in use is the scheduler's to say.

    Args:
        count: slots of the KV cache.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._cached: list[tuple[bool, list[int]]] = [(True, [])] * count  # of each slot: (adapter on, token ids)

    def allocate(self, sequence: Sequence, used: Collection[int]) -> None:
        """Set the sequence's slot, and how much of its prompt the slot's cache holds already.

        Args:
            sequence: without a slot yet.
            used: slots of other sequences; at least one slot must be free.
        """
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
