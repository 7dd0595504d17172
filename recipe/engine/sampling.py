"""From logits to tokens, for every slot by its own settings, in one pass and without waiting for the GPU.

Shapes: slots = sequences of the KV cache; vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipe.engine.reply import Sampling


class Sampler:
    """Chooses tokens by the settings of each slot.

    Random numbers come from outside. The scheduler puts them into `draw` from the sequence's own seed, so that a reply
    does not depend on what runs beside it.

    Args:
        slots: of the KV cache.
        vocabulary: rows of the output head.
        device: of the logits.

    Attributes:
        temperature, top_p, min_p, penalty: (slots,), float32.
        top_k: (slots,), int64, the size of the vocabulary where there is no limit.
        draw: (slots,), float32, a random number in [0, 1) for each slot's next token.
        seen: (slots, vocabulary), bool, the tokens that the sequence holds, for the repetition penalty.
    """

    def __init__(self, slots: int, vocabulary: int, device: torch.device) -> None:
        self.temperature = torch.zeros(slots, device=device)
        self.top_p = torch.ones(slots, device=device)
        self.top_k = torch.full((slots,), vocabulary, device=device)
        self.min_p = torch.zeros(slots, device=device)
        self.rank = torch.arange(vocabulary, device=device)
        self.penalty = torch.ones(slots, device=device)
        self.draw = torch.zeros(slots, device=device)
        self.seen = torch.zeros(slots, vocabulary, dtype=torch.bool, device=device)

    def set(self, slot: int, sampling: Sampling, prompt: list[int]) -> None:
        """Take over the settings of a sequence, and the token ids of its prompt, for the slot that it was given."""
        self.temperature[slot], self.top_p[slot] = sampling.temperature, sampling.top_p
        self.top_k[slot], self.min_p[slot] = min(sampling.top_k or len(self.rank), len(self.rank)), sampling.min_p
        self.penalty[slot] = sampling.repetition_penalty
        if sampling.repetition_penalty != 1:
            self.seen[slot] = False
            self.seen[slot, torch.tensor(prompt).to(self.seen.device, non_blocking=True)] = True

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Move the settings of sequences to other slots."""
        old, new = list(sources), list(targets)
        for state in (self.temperature, self.top_p, self.top_k, self.min_p, self.penalty, self.seen):
            state[new] = state[old]

    def choose(self, logits: Tensor, slots: slice, *, plain: bool) -> Tensor:
        """The next token of each of `slots`, which counts as seen from then on.

        Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020. Min-p: Nguyen et al.,
        "Turning Up the Heat", 2024. Repetition penalty: Keskar et al., "CTRL", 2019, section 4.1, as transformers'
        RepetitionPenaltyLogitsProcessor computes it. The nucleus is one of the top k, as in transformers and vLLM.

        Args:
            logits: (slots, vocabulary).
            slots: which of the slots the rows are.
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
        probabilities, order = (
            (logits / temperature.clamp(min=1e-5)).softmax(-1).sort(dim=-1, descending=True, stable=True)
        )
        top_k, top_p = self.top_k[slots, None], self.top_p[slots, None]  # (slots, 1)
        least = self.min_p[slots, None] * probabilities[:, :1]
        among = self.rank < top_k  # (slots, vocabulary)
        likelier = probabilities.cumsum(-1) - probabilities  # the probability of everything likelier
        share = torch.where(top_k < len(self.rank), top_p * (probabilities * among).sum(-1, keepdim=True), top_p)
        nucleus = probabilities * ((likelier < share) & among & (probabilities >= least))
        # The first token whose sum passes the drawn share of the nucleus; the likeliest is always in it.
        sums = nucleus.cumsum(-1)
        index = (sums <= self.draw[slots, None] * sums[:, -1:]).sum(-1, keepdim=True)
        index = index.clamp(max=nucleus.count_nonzero(-1)[:, None] - 1)
        chosen = torch.where(temperature > 0, order.gather(-1, index), logits.argmax(-1, keepdim=True))
        seen.scatter_(-1, chosen, True)
        return chosen[:, 0]
