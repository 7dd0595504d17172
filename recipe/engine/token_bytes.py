"""The bytes of single tokens, for log probabilities: one token need not be a whole character."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How SentencePiece writes a blank, and a byte that no piece covers.
BLANK, BYTE = "\u2581", re.compile("<0x([0-9A-F]{2})>")


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE's alphabet: a printable character for each byte, as GPT-2 introduced it."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The UTF-8 bytes that a token stands for; of a special token its name.

    Args:
        tokenizer: of the model, SentencePiece's kind or byte-level BPE.
        token: its id; one that only the output head has stands for nothing.
    """
    from tokenizers import decoders

    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return b""
    if token in tokenizer.added_tokens_decoder:
        return piece.encode()
    if isinstance(tokenizer.backend_tokenizer.decoder, decoders.ByteLevel):
        alphabet = _bytes_of_characters()
        return bytes(alphabet[character] for character in piece)
    if byte := BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(BLANK, " ").encode()
