"""From tokens to text as they come: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from recipe.panics import panics_as_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a tokenizer's decoder writes for bytes that are no character, or not one yet.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# More byte tokens than any character has: what is still incomplete then will never be complete.
LONGEST = 16


class StopText:
    """Finds one text in another that comes in pieces, in time that grows with the pieces alone.

    Knuth, Morris and Pratt, "Fast Pattern Matching in Strings", 1977.

    Args:
        text: to be found, not empty.

    Attributes:
        matched: characters of its beginning that end the text so far.
    """

    def __init__(self, text: str) -> None:
        self._text, self.matched = text, 0
        self._fallback = [0] * len(text)  # of each beginning, its longest proper beginning that also ends it
        for i in range(1, len(text)):
            self._fallback[i] = self._longest(self._fallback[i - 1], text[i])

    def find(self, piece: str) -> int | None:
        """Take the next piece; returns where the text begins, counted from the piece's start, or None."""
        for i, character in enumerate(piece):
            self.matched = self._longest(self.matched, character)
            if self.matched == len(self._text):
                return i + 1 - self.matched
        return None

    def _longest(self, matched: int, character: str) -> int:
        while matched and self._text[matched] != character:
            matched = self._fallback[matched - 1]
        return matched + (self._text[matched] == character)


class Text:
    """Makes text of tokens as they come (incremental detokenization).

    Rare characters come as several byte tokens, and a token's text can depend on the one before it. So the latest
    tokens are decoded together with those emitted last, and emitted once they end in a whole character.

    Args:
        tokenizer: of the model.
        stop: texts that end the reply and are not part of it.
        before: token ids of the text that the reply goes on from.

    Attributes:
        stopped: whether a stop text was complete.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), before: Sequence[int] = ()
    ) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._stop_texts = [StopText(text) for text in stop]
        self._ids = list(before[-LONGEST:])  # those emitted last, then those not emitted yet
        self._emitted = len(self._ids)  # how many of them were emitted
        self._withheld = ""  # may be the beginning of a stop text
        self.stopped = False

    def add(self, token: int) -> str:
        """Take the next token id; returns the text that can be emitted now, which may be empty."""
        self._ids.append(token)
        before, now = self._decode(self._ids[: self._emitted]), self._decode(self._ids)
        waiting = len(self._ids) - self._emitted
        if waiting < LONGEST and (len(now) <= len(before) or now.endswith(INCOMPLETE)):
            return ""
        self._ids, self._emitted = self._ids[self._emitted :], waiting
        return self._until_stop(now[len(before) :])

    def end(self) -> str:
        """The text that was withheld, now that nothing more comes."""
        pending = self._decode(self._ids)[len(self._decode(self._ids[: self._emitted])) :]
        self._ids, self._emitted = [], 0
        piece, self._withheld = ("" if self.stopped else self._until_stop(pending)) + self._withheld, ""
        return piece

    @panics_as_errors()
    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _until_stop(self, piece: str) -> str:
        text = self._withheld + piece
        starts = [start for stop in self._stop_texts if (start := stop.find(piece)) is not None]
        if starts:
            self.stopped, before = True, len(self._withheld)
            self._withheld = ""
            return text[: before + min(starts)]
        withheld = max((stop.matched for stop in self._stop_texts), default=0)
        self._withheld = text[len(text) - withheld :]
        return text[: len(text) - withheld]
