"""The engine behind chat, page and API: replies that grow, of one model, in a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from recipe.chat_format import Message, prompt_ids, stop_ids, text_ids, text_prompt_ids
from recipe.engine.memory import SLOTS, capacity
from recipe.engine.reply import NotServedError, Reply, Sampling
from recipe.engine.scheduler import Scheduler
from recipe.engine.sequence import Sequence as EngineSequence
from recipe.engine.text import Text
from recipe.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe.engine.logprobs import StepLogprob


class Prompt(NamedTuple):
    """What a model is to go on from.

    Attributes:
        ids: token ids.
        continued: how many of the last ones are text that the reply goes on from.
    """

    ids: list[int]
    continued: int = 0


@dataclass
class Stream:
    """Makes a growing reply of a sequence's tokens.

    Attributes:
        reply: what the caller holds.
        text: makes characters of the tokens.
        listed: how many likeliest tokens the caller wants with each token, where it wants log probabilities.
    """

    reply: Reply
    text: Text
    listed: int = 0

    @property
    def cancelled(self) -> bool:
        """Whether the caller wants no more."""
        return self.reply.cancelled

    def add(self, token: int, logprob: StepLogprob | None = None) -> bool:
        """Add a token's text to the reply; returns whether a stop text was complete."""
        self.reply.add(self.text.add(token), logprob=logprob and logprob.listed(self.listed))
        return self.text.stopped

    def end(self, how: str, error: Exception | None = None, last: StepLogprob | None = None) -> None:  # noqa: ARG002
        """End the reply, after the text that was withheld."""
        try:
            pending = self.text.end()
        except Exception as failure:  # nobody must wait for a reply that never ends
            pending, how, error = "", "error", error or failure
        if pending:
            self.reply.add(pending, tokens=0)
        self.reply.end(how, error)


class Engine:
    """Generates the replies to many requests at once. A model with a PEFT adapter answers with the adapter on or off.

    Args:
        model: a Llama of transformers, which the engine takes over; with a PEFT adapter or without.
        tokenizer: of the model.
        slots: sequences that run at once, fewer where memory is short.
        length: tokens of a slot, prompt and reply together; the longest that fits where it is not given.
        on_failure: called in the engine's thread where the engine ends by itself, before its replies end.

    Attributes:
        length: tokens of a slot, prompt and reply together.
        defaults: the sampling of the model's own generation_config.json.
        scheduler: runs the sequences.

    Raises:
        RecipeError: the model is not of the Llama layout.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        slots: int = SLOTS,
        length: int | None = None,
        on_failure: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        from recipe.engine.decoder import Decoder
        from recipe.engine.weights import base_of

        fitting, longest = capacity(model.config, base_of(model).lm_head.weight.element_size(), slots)
        self.tokenizer = tokenizer
        self.decoder = Decoder(model, slots=fitting, length=min(length or longest, longest))
        self.length = self.decoder.length
        self.defaults = Sampling.of(model.generation_config)
        self.scheduler = Scheduler(self.decoder, set(stop_ids(tokenizer)))
        self._work = threading.Condition()
        self._closed = False
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def can_compare(self) -> bool:
        """Whether the base can answer beside the tuned model."""
        return self.decoder.adapted_model

    @property
    def closed(self) -> bool:
        """Whether no request is taken any more."""
        return self._closed

    @property
    def busy(self) -> int:
        """How many replies are on their way."""
        return self.scheduler.busy

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_change: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Start the reply to a conversation, and return at once.

        Args:
            messages: see `prompt`.
            sampling: how tokens are chosen, and where the reply ends.
            adapted: whether the adapter is on, where the model has one.
            on_change: called in the engine's thread when text was added and at the end.

        Returns:
            The reply, which grows.

        Raises:
            RecipeError: the conversation leaves no room for a reply.
            NotServedError: the engine is closed, or has failed.
        """
        prompt = self.prompt(messages)
        return self.start(prompt.ids, sampling, adapted=adapted, on_change=on_change, continued=prompt.continued)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """What asks the model for the next reply to a conversation.

        Args:
            messages: the conversation, as `recipe.chat_format` takes it. Where the last message is the assistant's, the
                reply goes on from it (prefill).
        """
        if messages[-1]["role"] != "assistant":
            return Prompt(prompt_ids(self.tokenizer, messages))
        beginning = text_ids(self.tokenizer, messages[-1]["content"])
        return Prompt([*prompt_ids(self.tokenizer, messages[:-1]), *beginning], len(beginning))

    def text_prompt(self, text: str) -> Prompt:
        """What asks the model to go on from a text as it stands, outside of any conversation."""
        ids = text_prompt_ids(self.tokenizer, text)
        return Prompt(ids, len(ids))

    def start(
        self,
        ids: list[int],
        sampling: Sampling,
        *,
        adapted: bool = True,
        on_change: Callable[[], None] = lambda: None,
        continued: int = 0,
    ) -> Reply:
        """Start the reply to a prompt of token ids, and return at once.

        Args:
            ids: of the prompt.
            sampling, adapted, on_change: see `reply`.
            continued: see `Prompt`.

        Returns:
            The reply, which grows.

        Raises:
            RecipeError: the prompt is empty, or leaves no room for a reply.
            NotServedError: the engine is closed, or has failed.
        """
        if not ids:
            raise RecipeError("the prompt holds nothing that is a token of the model: write a text")
        if len(ids) >= self.length:
            raise RecipeError(
                f"the conversation is {len(ids)} tokens long and the model reads {self.length}: shorten it"
            )
        reply = Reply(on_change, prompt_tokens=len(ids))
        text = Text(self.tokenizer, sampling.stop, ids[len(ids) - continued :])
        stream = Stream(reply, text, sampling.logprobs or 0)
        adapted = adapted or not self.can_compare
        sequence = EngineSequence(sampling, ids, adapted, stream, random.Random(sampling.seed))
        with self._work:
            if self._closed:
                raise NotServedError("the model is no longer served")
            self.scheduler.add(sequence)
            self._work.notify()
        return reply

    def close(self) -> None:
        """End every reply and the engine."""
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._iterate()
        except BaseException as failure:  # also SystemExit, by which a thread ends without a word
            error = failure if isinstance(failure, Exception) else RuntimeError(f"{type(failure).__name__}: {failure}")
            with self._work:  # from here on nobody adds a request that nobody would end
                self._closed = True
            logging.getLogger(__name__).critical("the engine failed", exc_info=failure)
            try:
                self._on_failure(error)
            finally:  # nobody must wait for a reply that never ends
                self.scheduler.end_all("error", error)
        else:
            self.scheduler.end_all("cancelled")

    def _iterate(self) -> None:
        """Run the requests until the engine is closed.

        Raises:
            Exception: what the device failed with, and fails with still.
        """
        import torch

        with torch.inference_mode():
            while not self._closed:
                with self._work:
                    self._work.wait_for(lambda: self._closed or not self.scheduler.idle)
                try:
                    self.scheduler.iterate()
                except Exception as error:  # out of memory, a kernel that failed: the requests must end with it
                    self.scheduler.fail(error)
