"""The bytes of a text's tokens are the text's, also where a character has several tokens."""

from __future__ import annotations

from typing import Any

import pytest

from recipe.chat_format import text_ids
from recipe.engine.token_bytes import token_bytes

TEXTS = ["Hello there", "你好，小明。", "👩‍🚀 ひ é ß\n\ta  b", "a" * 40]


def assert_bytes_are_the_text(tokenizer: Any, text: str) -> None:
    pieces = [token_bytes(tokenizer, token) for token in text_ids(tokenizer, text)]
    assert b"".join(pieces).decode() == text
    assert len(pieces) > 1


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_their_text(tokenizer: Any, text: str) -> None:
    assert_bytes_are_the_text(tokenizer, text)


@pytest.mark.parametrize("text", TEXTS)
def test_so_are_those_of_byte_level_tokenizers(base_tokenizer: Any, text: str) -> None:
    assert_bytes_are_the_text(base_tokenizer, text)


def test_a_special_token_is_its_name_and_an_unused_row_nothing(tokenizer: Any) -> None:
    assert token_bytes(tokenizer, tokenizer.convert_tokens_to_ids("<|im_end|>")) == b"<|im_end|>"
    assert token_bytes(tokenizer, 10**6) == b""
