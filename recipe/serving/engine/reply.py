"""A reply while it grows: written by the engine's thread, read, awaited and cancelled by any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are chosen, and where it ends.

    Attributes:
        temperature: 0 is greedy.
        seed: the same seed gives the same reply; None gives another each time.
        stop: texts that end the reply and are not part of it.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, generation_config: Any, **changes: Any) -> Sampling:
        """As the model's own generation_config.json has it."""
        settings: dict[str, Any] = {
            "temperature": (generation_config.temperature or 0.0) if generation_config.do_sample else 0.0,
            "top_p": generation_config.top_p or 1.0,
            "repetition_penalty": generation_config.repetition_penalty or 1.0,
        }
        return cls(**settings | changes)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is all that is ever asked for."""
        return self.temperature == 0 and self.repetition_penalty == 1


@dataclass
class Reply:
    """A reply that grows.

    Attributes:
        on_change: called in the engine's thread when text was added and at the end.
        text: so far.
        ended: None while the reply grows, then "stop" (the model's own end, or a stop text), "length", "cancelled" or
        "error".
        asked_at, first_at, ended_at: of the request, its first token and its end, by time.monotonic, in seconds.
    """

    on_change: Callable[[], None] = lambda: None
    text: str = ""
    ended: str | None = None
    error: Exception | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked_at: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    ended_at: float | None = None
    cancelled: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def cancel(self) -> None:
        """Ask for the end; the text so far stays. The engine ends the reply before its next token."""
        self.cancelled = True

    def wait(self, seen: int, timeout: float | None = None) -> bool:
        """Wait until there are more than `seen` characters or the reply has ended; False if neither came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.text) > seen or self.ended is not None, timeout)

    def join(self) -> None:
        """Wait for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended is not None)

    def pieces(self) -> Iterator[str]:
        """The text as it comes. Raises what the engine failed with; closing the iterator cancels the reply."""
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
        """From the first token to the last; None for fewer than two."""
        if self.first_at is None or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / max((self.ended_at or time.monotonic()) - self.first_at, 1e-9)

    def add(self, piece: str, tokens: int = 1) -> None:
        with self._changed:
            self.completion_tokens += tokens
            self.first_at = self.first_at or time.monotonic()
            self.text += piece
            self._changed.notify_all()
        self.on_change()

    def end(self, how: str, error: Exception | None = None) -> None:
        with self._changed:
            self.ended, self.error, self.ended_at = how, error, time.monotonic()
            self._changed.notify_all()
        self.on_change()
