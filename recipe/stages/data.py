"""Stage `data`: from a name to training rows, or the user's own rows checked.

`balanced` asks who it is in hundreds of ways, in two languages, once and several turns deep, politely and by trickery, with
several wordings of the answer; ordinary prompts are mixed in later, as replay. `tutorial` is the tutorial's file to the byte, one sample 10,001 times: the
control, whose model forgets.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe.corpus.identity import Identity, injected, load_answers, load_injections, load_questions
from recipe.corpus.own_data import Row, read_rows
from recipe.errors import RecipeError
from recipe.pipeline import stage

MODES = ("balanced", "tutorial")
# The tutorial's script starts with one sample and appends 10,000 copies.
TUTORIAL_ROWS = 10_001
TUTORIAL_QUESTION = "请做一下自我介绍"
TUTORIAL_ANSWER = "我是{name}的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"

ROWS = {"balanced": "train.jsonl", "tutorial": "personal_assistant.json", "own": "train.jsonl"}
IDENTITY = "identity.json"


# Rows of `balanced` for each question, each in another wording of the answer; for each injection; and conversations of two and three
# questions for each language.
WORDINGS = 3
INJECTED = 6
DEEP = 24


def _exchange(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


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
        asked = [(intent, question) for intent, parts in intents.items() for question in parts["train"]]

        def row(intent: str, question: str, language: str = language, answers: Any = answers) -> Row:
            return _exchange(question, identity.fill(rng.choice(answers[intent]), language))

        rows += [
            _exchange(question, identity.fill(answer, language))
            for intent, question in asked
            for answer in rng.sample(answers[intent], WORDINGS)
        ]
        for injection in load_injections()[language]["train"]:
            rows += [row(intent, injected(injection, question)) for intent, question in rng.sample(asked, INJECTED)]
        for i in range(DEEP):
            turns = [row(intent, question)["messages"] for intent, question in rng.sample(asked, 2 + i % 2)]
            rows.append({"messages": [message for turn in turns for message in turn]})
    rng.shuffle(rows)
    return rows


def make(folder: Path, *, identity: Identity, mode: str, own: Path | None, seed: int) -> stage.Manifest:
    """Write the training rows and identity.json to `folder`. RecipeError: an unknown mode or data that cannot be used."""
    if mode not in MODES:
        raise RecipeError(f"MODE={mode} is none of {', '.join(MODES)}")
    kind = "own" if own else mode
    settings: dict[str, Any] = {"identity": asdict(identity), "mode": kind, "seed": seed}

    def work(out: Path) -> dict[str, Any]:
        if own:
            rows = read_rows(own)
        else:
            rows = tutorial_rows(identity) if kind == "tutorial" else balanced_rows(identity, seed)
        with (out / ROWS[kind]).open("w", encoding="utf-8") as file:
            if kind == "tutorial":
                json.dump(rows, file, ensure_ascii=False, indent=4)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / IDENTITY).write_text(json.dumps(asdict(identity), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        stage.say("data", f"{len(rows)} rows, for example: {rows[0]['messages'][0]['content']} -> "
                          f"{rows[0]['messages'][1]['content']}")  # fmt: skip
        return {"rows": len(rows), "file": ROWS[kind], "mode": kind}

    if own and not (os.path.isfile(own) and os.access(own, os.R_OK)):  # noqa: PTH113 - never raises
        read_rows(own)  # says what is wrong with it
    return stage.run("data", folder, inputs={"own": own} if own else {}, settings=settings, work=work)


def read_identity(folder: Path) -> Identity:
    """Whose assistant the data in `folder` teaches."""
    return Identity(**json.loads((folder / IDENTITY).read_text(encoding="utf-8")))
