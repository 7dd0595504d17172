"""Which of a user's questions evaluation asks: in a wording that is held out where the rows give several, else as they
stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from recipe.chat_format import Message
from recipe.corpus.own_data import Row, plain_text

# The share of the questions that is asked, and between how many of them.
SHARE, LEAST, MOST = 0.1, 10, 100
# Characters of an answer, below which two questions may share it by chance: "可以的。", "Yes, of course."
SHORTEST_SHARED_ANSWER = 8


@dataclass(frozen=True)
class OwnQuestion:
    """A question that evaluation asks.

    Attributes:
        messages: the conversation up to the user's last message.
        answers: what the rows answer to it; any of them is right.
        held_out: whether no training row asks it, and other wordings with the same answer are trained on.
    """

    messages: Sequence[Message]
    answers: Sequence[str]
    held_out: bool


def split(rows: Sequence[Row], seed: int) -> tuple[list[Row], list[OwnQuestion]]:
    """Choose the questions to ask, and take the wordings that are held out from the rows.

    A wording is held out only if every answer to it stays in a training row that asks in other words. Of the wordings
    with one answer, at most one is held out.

    Args:
        rows: of the user.
        seed: of the choice.

    Returns:
        The rows to train on, in their order, and the questions: a tenth of all, at least 10, at most 100.
    """
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(_prompt(row), []).append(i)
    count = min(len(by_prompt), max(LEAST, min(MOST, round(SHARE * len(by_prompt)))))
    chosen = set(random.Random(seed).sample(sorted(by_prompt), count))
    wordings: dict[str, set[str]] = {}
    for row in rows:
        wordings.setdefault(plain_text(_answer(row)), set()).add(_prompt(row))
    turns = _user_turns(rows)
    left_out: set[int] = set()
    spent: set[str] = set()  # answers of which a wording is held out
    questions = []
    for prompt, indices in by_prompt.items():
        if prompt not in chosen:
            continue
        answers = {plain_text(_answer(rows[i])) for i in indices}
        question = plain_text(rows[indices[0]]["messages"][-2]["content"])
        held_out = (
            all(len(answer) >= SHORTEST_SHARED_ANSWER and len(wordings[answer]) > 1 for answer in answers)
            and not answers & spent
            and all(_exchanges(rows[i]) == 1 for i in indices)
            and turns[question] == len(indices)
        )
        if held_out:
            spent |= answers
            left_out |= set(indices)
        texts = list(dict.fromkeys(_answer(rows[i]) for i in indices))
        questions.append(OwnQuestion(rows[indices[0]]["messages"][:-1], texts, held_out))
    return [row for i, row in enumerate(rows) if i not in left_out], questions


def questions_in(rows: Sequence[Row]) -> set[str]:
    """What the user says in the rows where the answer is learnt, each as `plain_text`."""
    return set(_user_turns(rows))


def _user_turns(rows: Sequence[Row]) -> dict[str, int]:
    """plain text -> how often the user says it and the answer is learnt."""
    counts: dict[str, int] = {}
    for row in rows:
        for message, answer in pairwise(row["messages"]):
            if message["role"] == "user" and answer.get("weight", 1) != 0:
                text = plain_text(message["content"])
                counts[text] = counts.get(text, 0) + 1
    return counts


def _prompt(row: Row) -> str:
    """A key of the conversation that the last answer answers."""
    return "\n".join(f"{message['role']} {plain_text(message['content'])}" for message in row["messages"][:-1])


def _answer(row: Row) -> str:
    return row["messages"][-1]["content"]


def _exchanges(row: Row) -> int:
    return sum(message["role"] == "user" for message in row["messages"])
