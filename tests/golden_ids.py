"""Token ids that other people's code computed, to compare a tokenizer with: tests/checkpoint/golden_ids.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipe.chat_format import prompt_ids, text_ids

FILE = Path(__file__).parent / "checkpoint" / "golden_ids.json"


def assert_golden(name: str, tokenizer: Any) -> None:
    """The tokenizer gives the ids that are written down for `name`, for texts of a user and for whole prompts."""
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    ids = golden["ids"][name]
    assert len(golden["texts"]) >= 40
    for text, wanted in zip(golden["texts"], ids["texts"], strict=True):
        assert text_ids(tokenizer, text) == wanted, text
    for messages, wanted in zip(golden["prompts"], ids["prompts"], strict=True):
        assert prompt_ids(tokenizer, messages) == wanted, messages
