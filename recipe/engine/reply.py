"""A reply while it grows: written by the engine's thread, read, awaited and cancelled by any other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipe.errors import RecipeError

if TYPE_CHECKING:
    from recipe.engine.logprobs import TokenLogprob


class NotServedError(RecipeError):
    """The engine takes no requests any more: it was closed, or it has failed."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are chosen, and where it ends.

    Attributes:
        max_new_tokens: of the reply, at most.
        temperature: divides the logits; 0 is greedy.
        top_p: tokens are drawn from the likeliest that together reach this probability.
        top_k: tokens are drawn from so many of the likeliest; 0 is all.
        min_p: tokens are drawn from those with at least this share of the likeliest one's probability.
        repetition_penalty: divides the positive logits, and multiplies the negative ones, of tokens that were there
            before; 1 is none.
        seed: the same seed gives the same reply; None gives another each time.
        stop: texts that end the reply and are not part of it.
        logprobs: how many of the likeliest tokens to list beside each token's log probability, up to
            `logprobs.MAX_TOP`; None for no log probabilities.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    @classmethod
    def of(cls, generation_config: Any, **changes: Any) -> Sampling:
        """The settings of the model's own generation_config.json.

        Args:
            generation_config: transformers' GenerationConfig.
            changes: fields that get other values.
        """
        settings: dict[str, Any] = {
            "temperature": (generation_config.temperature or 0.0) if generation_config.do_sample else 0.0,
            "top_p": generation_config.top_p or 1.0,
            "repetition_penalty": generation_config.repetition_penalty or 1.0,
        }
        return cls(**settings | changes)

    @property
    def plain(self) -> bool:
        """Whether every token is the likeliest one: greedy, and without a penalty."""
        return self.temperature == 0 and self.repetition_penalty == 1


@dataclass
class Reply:
    """A reply that grows.

    Attributes:
        on_change: called in the engine's thread when text was added and at the end.
        text: so far.
        ended: None while the reply grows, then "stop" (the model's own end, or a stop text), "length", "cancelled" or
            "error".
        error: what the engine failed with, where `ended` is "error".
        prompt_tokens, completion_tokens: how many.
        logprobs: of each token, where the sampling wants them; never behind `text`.
        asked_at, first_at, ended_at: of the request, its first token and its end, by time.monotonic, in seconds.
        cancelled: whether the end was requested.
    """

    on_change: Callable[[], None] = lambda: None
    text: str = ""
    ended: str | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    ended_at: float | None = None
    cancelled: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def cancel(self) -> None:
        """Request the end; the text so far stays. The engine ends the reply before its next token."""
        self.cancelled = True

    def wait(self, seen: int, timeout: float | None = None) -> bool:
        """Wait until there is more text, or the reply has ended.

        Args:
            seen: characters that the caller has already.
            timeout: in seconds; None waits for ever.

        Returns:
            False where neither came in time.
        """
        with self._changed:
            return self._changed.wait_for(lambda: len(self.text) > seen or self.ended is not None, timeout)

    def join(self) -> None:
        """Wait for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended is not None)

    def pieces(self) -> Iterator[str]:
        """The text as it comes; closing the iterator cancels the reply.

        Raises:
            Exception: what the engine failed with.
        """
        seen = 0
        try:
            while True:
                self.wait(seen)
                ended, text = self.ended, self.text  # in this order: nothing is added to an ended reply
                if len(text) > seen:
                    yield text[seen:]
                    seen = len(text)
                elif ended:
                    break
        finally:
            self.cancel()
        if self.error:
            raise self.error

    @property
    def tokens_per_second(self) -> float | None:
        """Speed from the first token to the last; None for fewer than two."""
        if self.first_at is None or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / max((self.ended_at or time.monotonic()) - self.first_at, 1e-9)

    def add(self, piece: str, tokens: int = 1, *, logprob: TokenLogprob | None = None) -> None:
        """Add text, and the number of tokens that it came with; for whoever generates the reply.

        logprob: of the token, where the sampling wants it.
        """
        with self._changed:
            if logprob:
                self.logprobs.append(logprob)
            self.completion_tokens += tokens
            self.first_at = self.first_at or time.monotonic()
            self.text += piece
            self._changed.notify_all()
        self._notify()

    def end(self, how: str, error: Exception | None = None) -> None:
        """End the reply; for whoever generates it. how: see `ended`."""
        with self._changed:
            self.ended, self.error, self.ended_at = how, error, time.monotonic()
            self._changed.notify_all()
        self._notify()

    def _notify(self) -> None:
        try:
            self.on_change()
        except Exception:  # the reader's failure, by which no other request must end
            logging.getLogger(__name__).exception("the reader of a reply failed")
