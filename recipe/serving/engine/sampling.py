"""From logits to tokens, for every slot by its own settings, in one pass and without waiting for the GPU.

Shapes: slots = sequences of the KV cache; vocabulary = rows of the output head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recipe.serving.engine.reply import Sampling


class Sampler:
    """The settings of each slot, (slots,) each, and which tokens its sequence holds, for the repetition penalty.

    Random numbers come from outside: `draw` (slots,) holds one in [0, 1) for each slot and step, which the scheduler
    takes from the sequence's own seed, so that a reply does not depend on what runs beside it.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self.temperature = torch.zeros(slots, device=device)
        self.top_p = torch.ones(slots, device=device)
        self.penalty = torch.ones(slots, device=device)
        self.draw = torch.zeros(slots, device=device)
        self.seen = torch.zeros(slots, vocabulary, dtype=torch.bool, device=device)

    def set(self, slot: int, sampling: Sampling, prompt: list[int]) -> None:
        self.temperature[slot], self.top_p[slot] = sampling.temperature, sampling.top_p
        self.penalty[slot] = sampling.repetition_penalty
        if sampling.repetition_penalty != 1:
            self.seen[slot] = False
            self.seen[slot, torch.tensor(prompt).to(self.seen.device, non_blocking=True)] = True

    def choose(self, logits: Tensor, slots: slice, *, plain: bool) -> Tensor:
        """The next token of each of `slots`.

        Args:
            logits: (slots, vocabulary).
            plain: whether every slot is greedy and without a penalty, so that the largest logit decides.

        Returns:
            (slots,), token ids.
        """
        if plain:
            return logits.argmax(-1)
        logits = logits.float()
        seen, penalty = self.seen[slots], self.penalty[slots, None]  # (slots, vocabulary), (slots, 1)
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        temperature = self.temperature[slots, None]
        likely, order = (logits / temperature.clamp(min=1e-5)).softmax(-1).sort(dim=-1, descending=True, stable=True)
        below = likely.cumsum(-1) - likely  # the probability of everything likelier
        kept = likely * (below < self.top_p[slots, None])
        # The first token whose sum passes the drawn share of what was kept; the likeliest is always kept.
        reached = kept.cumsum(-1)
        index = (reached <= self.draw[slots, None] * reached[:, -1:]).sum(-1, keepdim=True)
        index = index.clamp(max=kept.count_nonzero(-1)[:, None] - 1)
        chosen = torch.where(temperature > 0, order.gather(-1, index), logits.argmax(-1, keepdim=True))
        seen.scatter_(-1, chosen, True)
        return chosen[:, 0]
