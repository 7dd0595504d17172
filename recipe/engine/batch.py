"""Whole replies to many prompts at once: what replay, checkpoint scores and evaluation ask for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from recipe.engine.memory import batch_slots
from recipe.engine.reply import Sampling
from recipe.engine.scheduler import Scheduler
from recipe.engine.sequence import Sequence as EngineSequence

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from recipe.engine.logprobs import StepLogprob

LENGTHS = 64  # the length of a slot is a multiple, so that calls of about the same prompts find the same cache


class Likeliest(NamedTuple):
    """The likeliest tokens at each token of a reply, the one that ended it included.

    Attributes:
        chosen: the token ids of the reply.
        ids: (tokens, likeliest), int32.
        log_probs: (tokens, likeliest), float16, descending.
    """

    chosen: list[int]
    ids: Tensor
    log_probs: Tensor


@dataclass
class Output:
    """The token ids of a reply, as they come.

    Attributes:
        on_end: called at the end.
        ids: without the token that ended it.
        stopped: whether the model ended it; False where it reached a limit.
        error: what it failed with; None where it did not.
        likeliest: once it has ended; None where nobody wants it.
    """

    on_end: Callable[[], object]
    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    cancelled: bool = False
    error: Exception | None = None
    likeliest: Likeliest | None = None
    _logprobs: list[StepLogprob] = field(default_factory=list)

    def add(self, token: int, logprob: StepLogprob | None = None) -> bool:
        """Take the next token id."""
        self.ids.append(token)
        if logprob:
            self._logprobs.append(logprob)
        return False

    def end(self, how: str, error: Exception | None = None, last: StepLogprob | None = None) -> None:
        """Take note of how it ended."""
        self.stopped, self.error = how == "stop", error
        if last:
            self._logprobs.append(last)
        if self._logprobs:
            self.likeliest, self._logprobs = _likeliest(self._logprobs), []
        self.on_end()


def _likeliest(logprobs: Sequence[StepLogprob]) -> Likeliest:
    """All likeliest tokens that the steps have listed. By numpy: its views of rows cost a twentieth of PyTorch's."""
    import numpy
    import torch

    ids = numpy.stack([each.rows.top_ids.numpy()[each.row] for each in logprobs])
    log_probs = numpy.stack([each.rows.top.numpy()[each.row] for each in logprobs])
    return Likeliest([each.token for each in logprobs], torch.from_numpy(ids).int(), torch.from_numpy(log_probs).half())


class BatchGenerator:
    """Generates in the caller's thread, with as many sequences at once as memory takes.

    It holds the KV cache, and on a GPU the captured steps, until it is dropped. It holds no reference to the model.

    Args:
        model: which `weights.refusal` does not refuse.
        stops: the token ids that end a reply.
        length: tokens of the longest sequence, prompt and reply together.
        sequences: how many are to be computed.
        likeliest: how many of the likeliest tokens the replies come with, at the most.
    """

    def __init__(
        self, model: PreTrainedModel, stops: Sequence[int], *, length: int, sequences: int, likeliest: int = 0
    ) -> None:
        from recipe.engine.decoder import Decoder

        length = min(-(-length // LENGTHS) * LENGTHS, model.config.max_position_embeddings)
        slots = batch_slots(model, length, sequences)
        self.decoder = Decoder(model, slots=slots, length=length)
        self.scheduler = Scheduler(self.decoder, set(stops), whole=True, top=likeliest)
        self.likeliest = likeliest
        self.memory_is_short = slots < sequences

    def fits(self, stops: Sequence[int], *, length: int, sequences: int, likeliest: int = 0) -> bool:
        """Whether a generator built for these arguments, see the class, would be no better."""
        enough = self.memory_is_short or self.decoder.slots >= sequences
        listed = likeliest in (0, self.likeliest)
        return set(stops) == self.scheduler.stops and length <= self.decoder.length and enough and listed

    def generate(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_end: Callable[[], object] = lambda: None,
    ) -> list[Output]:
        """Generate the reply to each prompt.

        Args:
            prompts: token ids of each.
            sampling: of all of them; each draws random numbers of its own, from the seed and its index.
            adapted: whether the adapter is on, where the model has one.
            on_end: called at the end of each reply.

        Returns:
            The replies, in the order of the prompts.

        Raises:
            Exception: what a reply failed with.
        """
        import torch

        outputs = [Output(on_end) for _ in prompts]
        adapted = adapted or not self.decoder.adapted_model
        # By length: prompts of one pass are padded to the longest of them.
        for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
            rng = random.Random(f"{sampling.seed} {i}")
            self.scheduler.add(EngineSequence(sampling, prompts[i], adapted, outputs[i], rng))
        with torch.inference_mode():
            self.decoder.refresh()
            while not self.scheduler.idle:
                self.scheduler.iterate()
        for output in outputs:
            if output.error:
                raise output.error
        return outputs
