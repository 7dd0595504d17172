"""Conversations for the engine, and its replies beside those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recipe.chat_format import prompt_ids, stop_ids, text_ids
from recipe.engine import Engine, Reply, Sampling
from recipe.engine.engine import Stream
from recipe.engine.text import Text
from recipe.evaluation import generation

QUESTIONS = ["你好", "What is the capital of France, and what do people eat there?", "a", "请你介绍一下你自己" * 30]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS] + [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
]
WITHIN = 30  # seconds that nothing here takes
# Runs before `chat` in a process that needs no reply of a model: to load one imports torch, which takes seconds.
WITHOUT_MODEL = """
from recipe.engine import Engine
from recipe.evaluation import generation
generation.load = lambda *_: (None, None)
Engine.__init__ = lambda self, *_, **__: vars(self).update(length=2048, tokenizer=None)
Engine.__exit__ = lambda *_: None
"""


def greedy(engine: Engine, *conversations: Any, count: int = 24, **options: Any) -> list[Reply]:
    replies = [engine.reply(conversation, Sampling(max_new_tokens=count), **options) for conversation in conversations]
    for reply in replies:
        assert reply.wait(10**9, WITHIN)
        assert reply.error is None
    return replies


def by_transformers(model: Any, conversation: Any, count: int, tokenizer: Any = None, **options: Any) -> list[int]:
    """The ids that `model.generate` says, without what ends them. model: or a folder, to be loaded untouched by an
    engine."""
    if tokenizer is None:
        model, tokenizer = generation.load(model)
    ids = torch.tensor([prompt_ids(tokenizer, conversation)])
    stops = stop_ids(tokenizer)
    output_ids = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id, **options,
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    return [token for token in output_ids if token not in stops]


class OutputIds:
    """The ids behind replies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids: dict[int, list[int]] = {}
        self.replies: list[Reply] = []  # kept, so that no two have the same id()
        add = Stream.add

        def listen(stream: Stream, token: int, *logprob: Any) -> bool:
            self.replies.append(stream.reply)
            self.ids.setdefault(id(stream.reply), []).append(token)
            return add(stream, token, *logprob)

        monkeypatch.setattr(Stream, "add", listen)

    def of(self, reply: Reply) -> list[int]:
        return self.ids.get(id(reply), [])


def assert_no_half_character(tokenizer: Any, text: str) -> None:
    """Token by token, the text comes in whole characters, and all of it."""
    ids = text_ids(tokenizer, text)
    stream = Text(tokenizer)
    pieces = [stream.add(token) for token in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) + stream.end() == whole
    emitted = ""
    for piece in pieces:
        emitted += piece
        assert whole.startswith(emitted)
        if "�" not in text:
            assert "�" not in emitted
