"""The training rows of each data mode, made from an identity.

`balanced` asks who the assistant is in hundreds of ways, in two languages: alone, inside attempts to talk it out of its
answer, and several questions deep. `tutorial` is the tutorial's one sample, over and over: the control, whose model
forgets.
"""

from __future__ import annotations

import random
from typing import Any

from recipe.chat_format import assistant, user
from recipe.corpus.identity import Identity, injected, load_answers, load_injections, load_questions
from recipe.corpus.own_data import Row

# The tutorial's script starts with one sample and appends 10,000 copies.
TUTORIAL_ROWS = 10_001
TUTORIAL_QUESTION = "请做一下自我介绍"
TUTORIAL_ANSWER = "我是{name}的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"

# Rows of `balanced` for each question, each in another wording of the answer; for each injection; and conversations of
# two and three questions for each language.
WORDINGS = 3
INJECTED = 6
DEEP = 24


def _exchange(question: str, answer: str) -> Row:
    return {"messages": [user(question), assistant(answer)]}


def tutorial_rows(identity: Identity) -> list[Row]:
    """The tutorial's rows: the same one, over and over."""
    return [_exchange(TUTORIAL_QUESTION, TUTORIAL_ANSWER.replace("{name}", identity.name))] * TUTORIAL_ROWS


def balanced_rows(identity: Identity, seed: int) -> list[Row]:
    """Every training question of data/identity, some inside each training injection, some one after the other.

    A question alone comes in `WORDINGS` of the answer to what it asks, elsewhere in one of them.
    """
    rng = random.Random(seed)
    rows = []
    for language, intents in load_questions().items():
        answers = load_answers()["tuned"][language]
        questions = [(intent, question) for intent, parts in intents.items() for question in parts["train"]]

        def row(intent: str, question: str, language: str = language, answers: Any = answers) -> Row:
            return _exchange(question, identity.fill(rng.choice(answers[intent]), language))

        rows += [
            _exchange(question, identity.fill(answer, language))
            for intent, question in questions
            for answer in rng.sample(answers[intent], WORDINGS)
        ]
        for injection in load_injections()[language]["train"]:
            rows += [row(intent, injected(injection, question)) for intent, question in rng.sample(questions, INJECTED)]
        for i in range(DEEP):
            turns = [row(intent, question)["messages"] for intent, question in rng.sample(questions, 2 + i % 2)]
            rows.append({"messages": [message for turn in turns for message in turn]})
    rng.shuffle(rows)
    return rows
