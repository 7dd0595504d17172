"""The training rows of each data mode, made from an identity.

`balanced` holds hundreds of questions about who the assistant is, in two languages: alone, inside prompt injections,
and several in one conversation. `tutorial` is the tutorial's one sample, over and over: the control, whose model
forgets.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recipe import json_reader
from recipe.chat_format import ROLES, assistant, user
from recipe.corpus.identity import (
    INTERNLM_BASE,
    Identity,
    injected,
    load_answers,
    load_injections,
    load_questions,
    questions_of,
)
from recipe.corpus.own_data import Row
from recipe.languages import LANGUAGES
from recipe.records import ShapeError

# The tutorial's script starts with one sample and appends 10,000 copies.
TUTORIAL_ROWS = 10_001
TUTORIAL_QUESTION = "请做一下自我介绍"
TUTORIAL_ANSWER = "我是{name}的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"

# Rows of `balanced` for each question, each with another wording of the answer. docs/experiments.md compares one, two
# and three of them for the extended questions.
WORDINGS, EXTENDED_WORDINGS = 3, 2
INJECTED = 6  # rows for each injection
DEEP = 24  # conversations of two and three questions for each language


@dataclass(frozen=True)
class _Message:
    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ShapeError(f"has {self.role[:40]!r} for role, none of {', '.join(ROLES)}")


@dataclass(frozen=True)
class _Conversation:
    """A row of train.jsonl, own.jsonl or replay.jsonl."""

    messages: list[_Message]
    ended: bool = True
    part: str = ""


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read training rows.

    Args:
        file: as stage `data` or `replay` wrote it, or one that a config of the user's names.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: a row has another shape.
    """
    remedy = 'a row is {"messages": [{"role": …, "content": …}, …]}, as `make data` and `make replay` write it'
    return json_reader.read_rows(file, dict[str, Any], remedy, shape=_Conversation)


def _exchange(question: str, answer: str) -> Row:
    return {"messages": [user(question), assistant(answer)]}


def tutorial_rows(identity: Identity, count: int = TUTORIAL_ROWS) -> list[Row]:
    """The tutorial's rows: the same one, so many times."""
    return [_exchange(TUTORIAL_QUESTION, TUTORIAL_ANSWER.replace("{name}", identity.name))] * count


def balanced_rows(
    identity: Identity,
    seed: int,
    *,
    extended: bool = False,
    languages: Sequence[str] = LANGUAGES,
    base: Mapping[str, str] = INTERNLM_BASE,
) -> list[Row]:
    """The rows that teach an identity: every training question of data/identity, and conversations made of them.

    A question alone comes with `WORDINGS`, or `EXTENDED_WORDINGS`, wordings of its answer, elsewhere with one of them.

    Args:
        identity: to teach.
        seed: of the choices and the order.
        extended, languages: which questions, as in `load_questions`.
        base: what the answers call the base, as in `Identity.fill`.

    Returns:
        Conversations in OpenAI's format, shuffled.
    """
    rng = random.Random(seed)
    wordings = EXTENDED_WORDINGS if extended else WORDINGS
    rows = []
    for language, intents in load_questions(extended=extended, languages=languages).items():
        answers = load_answers()["tuned"][language]
        questions = [(intent, question) for intent, parts in intents.items() for question in parts["train"]]

        def row(intent: str, question: str, language: str = language, answers: Any = answers) -> Row:
            return _exchange(question, identity.fill(rng.choice(answers[intent]), language, base))

        rows += [
            _exchange(question, identity.fill(answer, language, base))
            for intent, question in questions
            for answer in rng.sample(answers[intent], wordings)
        ]
        for injection in load_injections()[language]["train"]:
            rows += [row(intent, injected(injection, question)) for intent, question in rng.sample(questions, INJECTED)]
        for i in range(DEEP):
            turns = [row(intent, question)["messages"] for intent, question in rng.sample(questions, 2 + i % 2)]
            rows.append({"messages": [message for turn in turns for message in turn]})
    rng.shuffle(rows)
    return rows


def part_of(row: Row) -> str:
    """Which part of the balanced rows one is: "turns", "injections", "extended" questions, or "questions"."""
    question, *later = (message["content"] for message in row["messages"] if message["role"] == "user")
    if later:
        return "turns"
    return _questions().get(question, "injections")


@cache
def _questions() -> dict[str, str]:
    """Every question that is trained on alone, and its part."""
    extended = dict.fromkeys(questions_of("train", extended=True), "extended")
    return extended | dict.fromkeys(questions_of("train"), "questions")
