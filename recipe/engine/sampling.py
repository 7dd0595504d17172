"""From logits to tokens, for every slot by its own settings, in one pass and without waiting for the GPU.

Shapes: slots = sequences of the KV cache; vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recipe.engine.reply import Sampling

# Likeliest tokens among which a CPU looks first: sorting 49,152 takes it 3.4 ms a sequence, finding these 0.2 ms.
FEW = 256


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
        old, new = (torch.tensor(slots).to(self.draw.device, non_blocking=True) for slots in (sources, targets))
        for state in (self.temperature, self.top_p, self.top_k, self.min_p, self.penalty, self.seen):
            state[new] = state[old]

    def choose(self, logits: Tensor, slots: slice | Tensor, *, plain: bool) -> Tensor:
        """The next token of each of `slots`, which counts as seen from then on.

        Nucleus sampling: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020. Min-p: Nguyen et al.,
        "Turning Up the Heat", 2024. Repetition penalty: Keskar et al., "CTRL", 2019, section 4.1, as transformers'
        RepetitionPenaltyLogitsProcessor computes it. The nucleus is one of the top k, as in transformers and vLLM.

        Args:
            logits: (slots, vocabulary).
            slots: which of the slots the rows are; a tensor of them is on the device.
            plain: whether every slot is greedy and without a penalty, so that the largest logit decides.

        Returns:
            (slots,), token ids.
        """
        if plain:
            return (logits if logits.is_cuda else logits.float()).argmax(
                -1
            )  # in 16 bits a CPU takes four times as long
        logits = logits.float()
        seen, penalty = self.seen[slots], self.penalty[slots, None]  # (slots, vocabulary), (slots, 1)
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        temperature = self.temperature[slots, None]
        likeliest = logits.argmax(-1, keepdim=True)
        if logits.is_cuda:
            probabilities = (logits / temperature.clamp(min=1e-5)).softmax(-1)
            chosen = torch.where(temperature > 0, self._draw(probabilities, slots), likeliest)
        else:
            chosen, hot = likeliest, temperature[:, 0].gt(0).nonzero()[:, 0]
            if len(hot):
                probabilities = (logits[hot] / temperature[hot].clamp(min=1e-5)).softmax(-1)
                drawn = hot + (slots.start or 0) if isinstance(slots, slice) else slots[hot]
                chosen[hot] = self._draw_among_few(probabilities, drawn)
        if isinstance(slots, slice):
            seen.scatter_(-1, chosen, True)
        else:  # `seen` is a copy
            self.seen[slots, chosen[:, 0]] = True
        return chosen[:, 0]

    def _draw(self, probabilities: Tensor, slots: slice | Tensor) -> Tensor:
        """A token of each of `slots`, (slots, 1). probabilities: (slots, vocabulary)."""
        likely, order = probabilities.sort(dim=-1, descending=True, stable=True)
        return order.gather(-1, self._rank(likely, slots)[0])

    def _draw_among_few(self, probabilities: Tensor, slots: Tensor) -> Tensor:
        """What `_draw` draws, the whole vocabulary sorted only where the likeliest tokens do not decide."""
        likely, order = probabilities.topk(min(FEW, probabilities.shape[1]), -1)
        order, by_id = order.sort(-1)  # so that of equal ones the first comes first, as where all are sorted
        likely, by_probability = likely.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
        rank, decided = self._rank(likely, slots)
        chosen = order.gather(-1, by_probability).gather(-1, rank)
        if len(others := decided.logical_not().nonzero()[:, 0]):
            chosen[others] = self._draw(probabilities[others], slots[others])
        return chosen

    def _rank(self, likely: Tensor, slots: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Which of a slot's likeliest tokens its random number draws.

        Args:
            likely: (slots, count), the probabilities of the likeliest tokens, descending.

        Returns:
            Ranks, (slots, 1), and whether the tokens that are not among them could not change these, (slots,).
        """
        top_k, top_p, min_p, draw = (
            setting[slots].unsqueeze(-1) for setting in (self.top_k, self.top_p, self.min_p, self.draw)
        )
        count = likely.shape[1]
        among, cut = self.rank[:count] < top_k, top_k < len(self.rank)  # (slots, count), (slots, 1)
        likelier = likely.cumsum(-1) - likely  # the probability of everything likelier
        share = torch.where(cut, top_p * (likely * among).sum(-1, keepdim=True), top_p)
        inside = (likelier < share) & among & (likely >= min_p * likely[:, :1])
        nucleus = likely * inside
        sums = nucleus.cumsum(-1)
        whole = ~cut & (top_p >= 1) & (min_p == 0)  # nothing is cut off, and all probabilities are 1 together
        # The first token whose sum passes the drawn share of the nucleus; the likeliest is always in it.
        rank = (sums <= draw * torch.where(whole, 1.0, sums[:, -1:])).sum(-1, keepdim=True)
        # Of tokens as likely as the last of these, others may come first.
        passed = (rank < count) & (likely.gather(-1, rank.clamp(max=count - 1)) > likely[:, -1:])
        decided = torch.where(whole, passed, ~inside[:, -1:] & (~cut | (top_k <= count)))
        return rank.clamp(max=nucleus.count_nonzero(-1)[:, None] - 1), decided[:, 0]
