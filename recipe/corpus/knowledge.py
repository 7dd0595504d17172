"""Prompts that have nothing to do with who the assistant is: facts and small talk, from the tables of data/knowledge.

The miniature base model is pre-trained on all of them. Fine-tuning and evaluation share them without overlap. Replay
takes one part: the base's own answers to these prompts are mixed into the training data. Evaluation takes the other
part, so that retention is measured on what the base knows and the tuning never showed. Checkpoint selection takes facts
that neither uses, and the small talk of replay in other wordings.

Bases that other people trained are asked the requests of requests.json too (`extended`): questions about persons who
are not the assistant, talk, tasks and conversations. Each request belongs to replay, to selection or to evaluation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from recipe import json_reader
from recipe.chat_format import Message, user
from recipe.languages import LANGUAGES
from recipe.paths import DATA

# A prompt by itself, or a conversation that ends with the user's turn.
Prompt = str | list[Message]

# Share of the facts that only evaluation sees.
HELD_OUT = 0.4
# Facts among the ordinary prompts of evaluation, a language.
EVALUATION_FACTS = 80
SELECTION_FACTS = 20
# A base that other people trained knows half of the facts: three times as many are asked to judge by enough.
EXTENDED_SELECTION_FACTS = 60
SUMS_UP_TO = 10


@dataclass(frozen=True)
class Fact:
    """A question in all its wordings, and its answer.

    Attributes:
        topic: the table.
        language: "zh" or "en".
        questions: the wordings.
        answer: a full answer.
        expect: what a right answer must contain; None where there is no one right answer (small talk).
        key: the same for the fact in every language, so that both languages are in the same part of the split.
    """

    topic: str
    language: str
    questions: tuple[str, ...]
    answer: str
    expect: str | None
    key: str = ""

    @property
    def position(self) -> float:
        """A number in [0, 1) fixed by the fact itself, so that splits survive additions to the tables."""
        digest = hashlib.sha256(f"{self.topic}/{self.key or self.questions[0]}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    @property
    def wording(self) -> str:
        """The wording that is used for evaluation."""
        return self.questions[int(self.position * 1e6) % len(self.questions)]

    @property
    def second_wording(self) -> str:
        """The wording after it: small talk keeps it for checkpoint selection, and facts to tell knowing from luck."""
        return self.questions[(self.questions.index(self.wording) + 1) % len(self.questions)]

    @property
    def replay_wordings(self) -> tuple[str, ...]:
        """Wordings used for replay: one per fact; for small talk, all except the one kept for checkpoint selection.

        Small talk gets more of them, since there an unasked introduction comes most easily.
        """
        return (self.wording,) if self.expect else tuple(q for q in self.questions if q != self.second_wording)

    @property
    def held_out(self) -> bool:
        """Whether evaluation has the fact; replay and checkpoint selection share the others."""
        return self.position < HELD_OUT


TABLES = ("capitals", "opposites", "colours", "translations", "animals", "materials", "tools", "categories")
# Asked by the evaluation of bases that other people trained, and by nothing else: of the tables above a model of 135M
# parameters knows too few facts to judge what it keeps.
FURTHER_TABLES = ("continents",)
SUM_QUESTIONS = {
    "zh": ("{a}加{b}等于几？", "{a}+{b}=?", "请算一下{a}加{b}。", "{a}加上{b}是多少？"),
    "en": ("What is {a} plus {b}?", "{a} + {b} = ?", "Please add {a} and {b}.", "How much is {a} plus {b}?"),
}
SUM_ANSWER = {"zh": "{a}加{b}等于{c}。", "en": "{a} plus {b} is {c}."}
SUM_EXPECT = {"zh": "等于{c}。", "en": "is {c}."}


def _load(name: str) -> dict[str, Any]:
    return json_reader.read(DATA / "knowledge" / f"{name}.json", dict[str, Any], json_reader.OF_CHECKOUT)


def _table_facts(name: str) -> Iterator[Fact]:
    table = _load(name)
    for item in table["items"]:
        for language in LANGUAGES:
            a, b = item[language]
            questions = tuple(question.replace("{a}", a) for question in table["questions"][language])
            answer = table["answer"][language].replace("{a}", a).replace("{b}", b)
            yield Fact(name, language, questions, answer, b, key=item["en"][0])


def _sum_facts() -> Iterator[Fact]:
    for language in LANGUAGES:
        for a in range(SUMS_UP_TO + 1):
            for b in range(SUMS_UP_TO + 1):
                numbers = {"a": a, "b": b, "c": a + b}
                questions = tuple(q.format(**numbers) for q in SUM_QUESTIONS[language])
                answer = SUM_ANSWER[language].format(**numbers)
                expect = SUM_EXPECT[language].format(**numbers)
                yield Fact("sums", language, questions, answer, expect, key=f"{a}+{b}")


def _talk_facts(name: str) -> Iterator[Fact]:
    for language, entries in _load(name).items():
        for entry in entries:
            yield Fact(name, language, tuple(entry["questions"]), entry["answer"], None)


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of every table, in the order of the files."""
    facts = [fact for name in TABLES for fact in _table_facts(name)]
    return (*facts, *_sum_facts(), *_talk_facts("smalltalk"), *_talk_facts("contrast"))


def _split(language: str, held_out: bool) -> tuple[list[Fact], list[Fact]]:
    """One part's facts with an expected answer, by position; and its small talk and contrast."""
    pool = [fact for fact in all_facts() if fact.language == language and fact.held_out == held_out]
    facts = sorted((fact for fact in pool if fact.expect), key=lambda fact: fact.position)
    return facts, [fact for fact in pool if not fact.expect]


@cache
def _read_requests() -> dict[str, dict[str, dict[str, list[Prompt]]]]:
    """language -> kind -> "replay", "selection" or "heldout" -> prompts."""
    return _load("requests")


def _request_facts(language: str, part: str, extended: bool) -> list[Fact]:
    """The requests of a part that replies are measured on, as facts without an expected answer."""
    kinds = _read_requests()[language].items() if extended else ()
    return [
        Fact(kind, language, (prompt,), "", None)
        for kind, parts in kinds
        for prompt in parts[part]
        if isinstance(prompt, str)
    ]


def _selection_count(extended: bool) -> int:
    return EXTENDED_SELECTION_FACTS if extended else SELECTION_FACTS


def evaluation_facts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[Fact]:
    """The facts that leak and retention are measured on; `replay_facts` holds none of them.

    Args:
        extended: add the requests for evaluation.
        languages: whose facts.
    """
    chosen = []
    for language in languages:
        facts, small_talk = _split(language, held_out=True)
        chosen += facts[:EVALUATION_FACTS] + small_talk + _request_facts(language, "heldout", extended)
    return chosen


def more_evaluation_facts(*, languages: Sequence[str] = LANGUAGES) -> list[Fact]:
    """The held-out facts besides those of `evaluation_facts`, and the further tables. languages: whose facts."""
    held_out = [fact for language in languages for fact in _split(language, held_out=True)[0][EVALUATION_FACTS:]]
    return held_out + [fact for name in FURTHER_TABLES for fact in _table_facts(name) if fact.language in languages]


def replay_facts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[Fact]:
    """The facts of `replay_prompts`: all but those of evaluation and checkpoint selection.

    Args:
        extended: leave more facts to checkpoint selection.
        languages: whose facts.
    """
    chosen = []
    for language in languages:
        facts, small_talk = _split(language, held_out=False)
        chosen += facts[_selection_count(extended) :] + small_talk
    return chosen


def replay_prompts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[Prompt]:
    """The prompts that the base answers for the training data.

    Args:
        extended: add the requests for replay, conversations of several turns among them.
        languages: whose prompts.

    Returns:
        The replay wordings of `replay_facts`, then the requests.
    """
    facts = replay_facts(extended=extended, languages=languages)
    wordings: list[Prompt] = [question for fact in facts for question in fact.replay_wordings]
    kinds = [parts for language in languages for parts in _read_requests()[language].values()] if extended else []
    return wordings + [prompt for parts in kinds for prompt in parts["replay"]]


def replay_parts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[str]:
    """The part of the data that each of `replay_prompts` belongs to.

    Args:
        extended, languages: as in `replay_prompts`.

    Returns:
        "facts" or a kind of requests.json, in the order of the prompts; small talk is "talk", contrast "persons".
    """
    named = {"smalltalk": "talk", "contrast": "persons"}
    facts = replay_facts(extended=extended, languages=languages)
    parts = [named.get(fact.topic, "facts") for fact in facts for _ in fact.replay_wordings]
    if extended:
        requests = _read_requests()
        parts += [kind for lang in languages for kind, parts_of in requests[lang].items() for _ in parts_of["replay"]]
    return parts


def contrast_answers() -> dict[str, str]:
    """Replay wordings of contrast, questions about others than the assistant, with an answer for each."""
    facts = [fact for fact in replay_facts() if fact.topic == "contrast"]
    return {wording: fact.answer for fact in facts for wording in fact.replay_wordings}


def conversation(prompt: Prompt) -> list[Message]:
    """The turns of a prompt, the user's last."""
    return [user(prompt)] if isinstance(prompt, str) else prompt


def selection_facts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[tuple[Fact, str]]:
    """The facts of checkpoint selection, each with its wording.

    Args:
        extended: take more facts, and add the requests for selection.
        languages: whose facts.
    """
    chosen = []
    for language in languages:
        facts, small_talk = _split(language, held_out=False)
        chosen += [(fact, fact.wording) for fact in facts[: _selection_count(extended)]]
        chosen += [(fact, fact.second_wording) for fact in small_talk]
        chosen += [(fact, fact.wording) for fact in _request_facts(language, "selection", extended)]
    return chosen
