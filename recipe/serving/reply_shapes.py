"""The shape of replies in OpenAI's API: whole or in pieces, of a chat or of a text, and log probabilities in both.

https://platform.openai.com/docs/api-reference/chat/object and …/completions/object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recipe.engine.reply import Reply
from recipe.engine.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recipe.engine.logprobs import TokenLogprob

LEAST = -9999.0  # a log probability of minus infinity, which JSON has not


@dataclass(frozen=True)
class Piece:
    """Part of a reply.

    Attributes:
        index: of the reply in its request.
        text: since the last piece.
        logprobs: of the tokens since the last piece; empty where the request wants none.
        ended: how the reply ended, in its last piece.
    """

    index: int
    text: str
    logprobs: Sequence[TokenLogprob]
    ended: str | None = None


@dataclass
class ChatShape:
    """Of /v1/chat/completions.

    Args:
        tokenizer: of the model.
        with_logprobs: whether the request wants log probabilities.
    """

    tokenizer: PreTrainedTokenizerBase
    with_logprobs: bool
    kind: str = "chat.completion"
    chunk_kind: str = "chat.completion.chunk"
    prefix: str = "chatcmpl"

    def choice(self, piece: Piece) -> dict[str, Any]:
        """A whole reply."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": piece.index, "message": message, "logprobs": self._logprobs(piece), "finish_reason": piece.ended
        }  # fmt: skip

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The choices of the piece before the first: the role alone."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A reply's next piece, or its end."""
        delta = {"content": piece.text} if piece.text else {}
        return {
            "index": piece.index, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": piece.ended
        }  # fmt: skip

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        content = [
            self._token(entry.token, entry.logprob) | {"top_logprobs": [self._token(*each) for each in entry.top]}
            for entry in piece.logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = token_bytes(self.tokenizer, token)
        return {"token": token_text(content), "logprob": max(logprob, LEAST), "bytes": list(content)}


@dataclass
class TextShape:
    """Of /v1/completions; see `ChatShape`."""

    tokenizer: PreTrainedTokenizerBase
    with_logprobs: bool
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    prefix: str = "cmpl"
    _characters: dict[int, int] = field(default_factory=dict)  # index -> characters so far

    def choice(self, piece: Piece) -> dict[str, Any]:
        """A whole reply, a piece of it, or its end."""
        return {
            "index": piece.index, "text": piece.text, "logprobs": self._logprobs(piece), "finish_reason": piece.ended
        }  # fmt: skip

    chunk = choice

    def opening(self, index: int) -> list[dict[str, Any]]:  # noqa: ARG002
        """No piece comes before the first."""
        return []

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        tokens, offsets = [], []
        for entry in piece.logprobs:
            content = token_bytes(self.tokenizer, entry.token)
            offset = self._characters.get(piece.index, 0)
            # Each byte that is no continuation begins a character.
            self._characters[piece.index] = offset + sum(byte & 0xC0 != 0x80 for byte in content)
            tokens.append(token_text(content))
            offsets.append(offset)
        top = [{self._text(token): max(logprob, LEAST) for token, logprob in entry.top} for entry in piece.logprobs]
        return {
            "tokens": tokens, "token_logprobs": [max(entry.logprob, LEAST) for entry in piece.logprobs],
            "top_logprobs": top, "text_offset": offsets,
        }  # fmt: skip

    def _text(self, token: int) -> str:
        return token_text(token_bytes(self.tokenizer, token))


Shape = ChatShape | TextShape


def token_text(content: bytes) -> str:
    """A token's text; where it is part of a character, its bytes, written as OpenAI writes them."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def usage(replies: Sequence[Reply], choices: int) -> dict[str, int]:
    """The tokens of prompts and replies, counted; each prompt once. choices: replies to each prompt."""
    counts = {
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies[::choices]),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }
    return counts | {"total_tokens": sum(counts.values())}
