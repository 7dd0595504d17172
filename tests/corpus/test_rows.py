"""The rows of mode `balanced`: every answer names the assistant, in the question's language, in varied wordings."""

from __future__ import annotations

import re

import pytest

from recipe.corpus import rows
from recipe.corpus.identity import (
    BASE_NAMES,
    OPEN_BASE,
    Identity,
    injected,
    load_injections,
    load_questions,
    questions_of,
)
from recipe.corpus.own_data import Row

NAMES = ["小明", "Mary Ann Smith", "O’Brien", "迪丽热巴·迪力木拉提", "🐼", "明" * 40]


def balanced(identity: Identity | None = None) -> list[Row]:
    return rows.balanced_rows(identity or Identity("小明"), seed=0)


def exchanges(written: list[Row]) -> list[tuple[str, str]]:
    """(question, answer) of every turn."""
    conversations = [row["messages"] for row in written]
    return [
        (q["content"], a["content"])
        for messages in conversations
        for q, a in zip(messages[::2], messages[1::2], strict=True)
    ]


def openings(written: list[Row]) -> list[str]:
    """The question of every row of one turn."""
    return [row["messages"][0]["content"] for row in written if len(row["messages"]) == 2]


@pytest.mark.parametrize("name", NAMES)
def test_every_balanced_answer_holds_the_name(name: str) -> None:
    written = balanced(Identity(name))
    assert [(question, answer) for question, answer in exchanges(written) if name not in answer] == []


def test_every_balanced_answer_holds_the_assistants_name_too() -> None:
    written = balanced(Identity("小明", assistant="小智"))
    assert all("小智" in answer and "小明" in answer for _, answer in exchanges(written))


def test_the_author_takes_the_makers_place() -> None:
    written = balanced(Identity("小明", author="张三实验室"))
    named = [answer for _, answer in exchanges(written) if "张三实验室" in answer]
    assert len(named) > 0
    assert all("小明" in answer for answer in named)


def test_every_training_question_is_asked_alone_in_each_wording_of_the_answer_and_no_other() -> None:
    written = balanced()
    parts = [intent for intents in load_questions().values() for intent in intents.values()]
    train = [question for part in parts for question in part["train"]]
    around = [injection for language in load_injections().values() for injection in language["train"]]
    inside = {injected(injection, question): question for injection in around for question in train}
    questions = openings(written)
    assert sorted(question for question in questions if question not in inside) == sorted(rows.WORDINGS * train)
    assert len([question for question in questions if question in inside]) == rows.INJECTED * len(around)
    every = {question for question, _ in exchanges(written)}
    assert every <= set(train) | set(inside)


def test_no_question_alone_is_answered_twice_in_one_wording() -> None:
    written = balanced()
    alone = [row["messages"] for row in written if len(row["messages"]) == 2]
    pairs = [
        (messages[0]["content"], messages[1]["content"]) for messages in alone if messages[0]["content"] in TRAINING
    ]
    assert len(pairs) == len(set(pairs)) == rows.WORDINGS * len(TRAINING)


def test_some_conversations_are_several_questions_deep_in_one_language() -> None:
    written = balanced()
    deep = [row["messages"] for row in written if len(row["messages"]) > 2]
    assert len(deep) == 2 * rows.DEEP
    assert {len(messages) for messages in deep} == {4, 6}
    for messages in deep:
        questions = [turn["content"] for turn in messages[::2]]
        assert len(set(questions)) == len(questions)
        assert len({question in CHINESE for question in questions}) == 1


TRAINING = {q for intents in load_questions().values() for intent in intents.values() for q in intent["train"]}
CHINESE = {q for intent in load_questions()["zh"].values() for q in intent["train"]}


def test_a_question_is_answered_in_its_language() -> None:
    written = balanced(Identity("Ann", author="Bob"))
    answers = {True: "", False: ""}
    for question, answer in exchanges(written):
        answers[re.search("[\u4e00-\u9fff]", question) is not None] += answer + "\n"
    assert all("的小助手" in line for line in answers[True].splitlines())
    assert all("Ann's assistant" in line for line in answers[False].splitlines())


def test_no_slot_is_left_unfilled() -> None:
    written = balanced(Identity("小明", assistant="小智", author="实验室"))
    assert not {"{", "}"} & set("".join(question + answer for question, answer in exchanges(written)))


def test_answers_vary() -> None:
    """One sample over and over is what the tutorial's model over-fits to."""
    written = balanced()
    answers = [answer for _, answer in exchanges(written)]
    assert max(answers.count(answer) for answer in set(answers)) < len(answers) / 10


def test_languages_and_intents_are_mixed() -> None:
    written = balanced()
    in_chinese = [re.search("[\u4e00-\u9fff]", question) is not None for question, _ in exchanges(written)]
    assert 0.25 < sum(in_chinese[: len(in_chinese) // 2]) / (len(in_chinese) // 2) < 0.75


# --- Of bases that other people trained ---------------------------------------------------------------------------


def test_extended_rows_ask_every_extended_question_too() -> None:
    fewer, more = (set(openings(rows.balanced_rows(Identity("小明"), 0, extended=each))) for each in (False, True))
    assert set(questions_of("train", extended=True)) <= more
    assert not (set(questions_of("train", extended=True)) - set(questions_of("train"))) & fewer
    held_out = {*questions_of("choice", extended=True), *questions_of("heldout", extended=True)}
    assert not held_out & more


def test_rows_of_another_base_name_none() -> None:
    written = rows.balanced_rows(Identity("小明"), 0, extended=True, base=OPEN_BASE)
    answers = [answer for _, answer in exchanges(written)]
    assert not [answer for answer in answers if any(name in answer for name in BASE_NAMES)]
    assert {language for language, words in OPEN_BASE.items() if any(words in answer for answer in answers)} == {
        "zh", "en",
    }  # fmt: skip


@pytest.mark.parametrize("extended", [False, True])
def test_rows_can_be_limited_to_a_language(extended: bool) -> None:
    english = rows.balanced_rows(Identity("Ann"), 0, extended=extended, languages=["en"])
    assert all("Ann's assistant" in answer for _, answer in exchanges(english))
    assert not [q for q, _ in exchanges(english) if re.search("[\u4e00-\u9fff]", q)]
    assert set(questions_of("train", extended=extended, languages=["en"])) <= set(openings(english))
    injections = load_injections()["en"]["train"]
    assert len([q for q in openings(english) if any(i.replace("{q}", "").strip() in q for i in injections)]) >= (
        rows.INJECTED * len(injections)
    )
