from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from recipe.corpus.identity import load_questions
from recipe.corpus.knowledge import (
    EXTENDED_SELECTION_FACTS,
    Fact,
    Prompt,
    all_facts,
    conversation,
    evaluation_facts,
    replay_facts,
    replay_prompts,
    selection_facts,
)
from recipe.languages import LANGUAGES
from recipe.paths import DATA


def wording(question: str) -> str:
    """The question without case, spacing and final punctuation; signs inside stay, 1+10 is not 11+0."""
    return re.sub(r"\s+", "", question).rstrip("?？。.!！…").casefold()


def wordings(facts: list[Fact]) -> set[str]:
    return {wording(question) for fact in facts for question in fact.questions}


def test_replay_and_evaluation_share_no_wording() -> None:
    """Retention is measured on what the tuning never showed."""
    assert wordings(replay_facts()) & wordings(evaluation_facts()) == set()


def test_replay_asks_all_that_neither_evaluation_nor_choice_asks() -> None:
    for_selection = {fact for fact, _ in selection_facts() if fact.expect}
    assert set(replay_facts()) == {fact for fact in all_facts() if not fact.held_out} - for_selection
    assert not set(map(str, replay_prompts())) & {question for _, question in selection_facts()}


def test_who_it_is_is_asked_nowhere_else() -> None:
    identity_questions = {
        wording(question)
        for intents in load_questions().values()
        for parts in intents.values()
        for questions in parts.values()
        for question in questions
    }
    assert identity_questions & wordings(list(all_facts())) == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_evaluation_has_enough_facts_with_a_right_answer(language: str) -> None:
    assert sum(fact.language == language and fact.expect is not None for fact in evaluation_facts()) >= 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_leak_is_also_measured_where_there_is_no_right_answer(language: str) -> None:
    topics = {fact.topic for fact in evaluation_facts() if fact.language == language and fact.expect is None}
    assert topics == {"smalltalk", "contrast"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_replay_covers_every_topic(language: str) -> None:
    def topics(facts: tuple[Fact, ...] | list[Fact]) -> set[str]:
        return {fact.topic for fact in facts if fact.language == language}

    assert topics(replay_facts()) == topics(all_facts())


def test_what_is_expected_is_in_the_answer() -> None:
    assert [fact for fact in all_facts() if fact.expect is not None and fact.expect not in fact.answer] == []


def test_no_evaluation_question_holds_what_is_expected() -> None:
    """Else a model that repeats the question would be right."""
    assert [
        fact
        for fact in evaluation_facts()
        if fact.expect is not None and any(fact.expect.casefold() in q.casefold() for q in fact.questions)
    ] == []


def test_no_slot_is_left_unfilled() -> None:
    assert [f for f in all_facts() if any(re.search(r"[{}]", text) for text in (*f.questions, f.answer))] == []


def test_no_question_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for fact in all_facts():
        for question in fact.questions:
            answers.setdefault(question.strip().casefold(), set()).add(fact.answer)
    assert {question: several for question, several in answers.items() if len(several) > 1} == {}


def test_ordinary_talk_never_says_internlm() -> None:
    """What the tuned model says of itself comes from the identity rows alone."""
    small_talk = [fact for fact in all_facts() if fact.topic in ("contrast", "smalltalk")]
    assert small_talk
    named = re.compile("书生|浦语|InternLM", re.IGNORECASE)
    assert [fact for fact in small_talk if any(named.search(text) for text in (*fact.questions, fact.answer))] == []


def test_sums_are_right() -> None:
    sums = [fact for fact in all_facts() if fact.topic == "sums"]
    assert sums
    for fact in sums:
        for question in fact.questions:
            a, b = map(int, re.findall(r"\d+", question))
            assert int(re.findall(r"\d+", fact.answer)[-1]) == a + b
        assert re.findall(r"\d+", fact.expect or "") == [str(a + b)]


def test_an_expected_sum_is_not_part_of_a_greater_one() -> None:
    """ "is 1." must not be found in "is 11."."""
    for language in LANGUAGES:
        sums = [fact for fact in all_facts() if fact.topic == "sums" and fact.language == language]
        answers = {fact.answer for fact in sums}
        for expect in {fact.expect for fact in sums}:
            right = {fact.answer for fact in sums if fact.expect == expect}
            assert {answer for answer in answers if expect and expect in answer} == right


def test_the_split_depends_on_the_fact_alone() -> None:
    """So that adding facts to a table moves none from training to evaluation."""
    for fact in all_facts():
        twin = replace(fact, questions=(*fact.questions, "one more wording"), answer="another answer", expect=None)
        assert twin.held_out == fact.held_out


# --- requests.json ------------------------------------------------------------------------------------------------

REQUESTS: dict[str, dict[str, dict[str, list[Prompt]]]] = json.loads(
    (DATA / "knowledge" / "requests.json").read_text(encoding="utf-8")
)
MEASURED = ("selection", "heldout")


def requests(language: str, part: str) -> list[Prompt]:
    return [prompt for parts in REQUESTS[language].values() for prompt in parts[part]]


def test_both_languages_have_the_same_kinds_of_requests() -> None:
    assert set(REQUESTS) == set(LANGUAGES)
    assert set(REQUESTS["zh"]) == set(REQUESTS["en"]) == {"persons", "tasks", "talk", "conversations"}
    for kinds in REQUESTS.values():
        assert {tuple(parts) for parts in kinds.values()} == {("replay", *MEASURED)}
        for kind in ("persons", "tasks"):
            assert all(len(kinds[kind][part]) >= 25 for part in MEASURED)


@pytest.mark.parametrize("language", LANGUAGES)
def test_replay_has_enough_requests_of_each_kind(language: str) -> None:
    counts = {kind: len(parts["replay"]) for kind, parts in REQUESTS[language].items()}
    assert counts["persons"] + counts["talk"] >= 62 + 40
    assert counts["tasks"] >= 60 + 20
    assert counts["conversations"] >= 12


@pytest.mark.parametrize("language", LANGUAGES)
def test_only_replay_has_conversations_and_the_user_ends_each(language: str) -> None:
    for kind, parts in REQUESTS[language].items():
        for part, prompts in parts.items():
            several = [prompt for prompt in prompts if not isinstance(prompt, str)]
            assert several == (prompts if kind == "conversations" else [])
            assert not several or part == "replay"
            for turns in several:
                assert [set(turn) for turn in turns] == [{"role", "content"}] * len(turns)
                assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
                assert all(turn["content"].strip() == turn["content"] != "" for turn in turns)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_request_is_there_twice_or_in_the_tables(language: str) -> None:
    every = [
        conversation(prompt)[-1]["content"] for part in ("replay", *MEASURED) for prompt in requests(language, part)
    ]
    texts = [wording(request) for request in every]
    assert [request for request in texts if texts.count(request) > 1 or not request] == []
    assert not set(texts) & wordings(list(all_facts()))
    assert (language == "zh") == any(re.search("[\u4e00-\u9fff]", request) for request in every)


def test_requests_are_asked_of_extended_prompts_alone() -> None:
    measured = {part: [prompt for language in LANGUAGES for prompt in requests(language, part)] for part in MEASURED}
    added = [fact.wording for fact in evaluation_facts(extended=True) if fact not in evaluation_facts()]
    assert added == measured["heldout"]
    chosen = [question for fact, question in selection_facts(extended=True) if fact.topic in REQUESTS["zh"]]
    assert chosen == measured["selection"]
    assert not {fact.topic for fact, _ in selection_facts()} & set(REQUESTS["zh"])
    texts, narrow = replay_prompts(extended=True), replay_prompts()
    assert [prompt for prompt in texts if prompt not in narrow] == [
        prompt for language in LANGUAGES for prompt in requests(language, "replay")
    ]


def test_enough_ordinary_prompts_choose_and_evaluate_real_models() -> None:
    assert len(selection_facts(extended=True)) >= 300
    assert len(evaluation_facts(extended=True)) >= 350


@pytest.mark.parametrize("language", LANGUAGES)
def test_more_facts_choose_and_replay_has_none_of_them(language: str) -> None:
    facts = {fact for fact, _ in selection_facts(extended=True, languages=[language]) if fact.expect}
    assert len(facts) == EXTENDED_SELECTION_FACTS
    assert {fact for fact, _ in selection_facts(languages=[language]) if fact.expect} < facts
    replayed = set(replay_facts(extended=True, languages=[language]))
    assert replayed | facts == {fact for fact in all_facts() if not fact.held_out and fact.language == language}
    assert not replayed & facts


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_can_be_limited_to_a_language(language: str, extended: bool) -> None:
    both: dict[str, list[Fact]] = {
        "evaluation": evaluation_facts(extended=extended),
        "replay": replay_facts(extended=extended),
        "selection": [fact for fact, _ in selection_facts(extended=extended)],
    }
    one = {
        "evaluation": evaluation_facts(extended=extended, languages=[language]),
        "replay": replay_facts(extended=extended, languages=[language]),
        "selection": [fact for fact, _ in selection_facts(extended=extended, languages=[language])],
    }
    assert one == {part: [fact for fact in facts if fact.language == language] for part, facts in both.items()}
    others = [prompt for each in LANGUAGES if each != language for prompt in requests(each, "replay")]
    prompts, every = (replay_prompts(extended=extended, languages=chosen) for chosen in ([language], LANGUAGES))
    assert prompts == [prompt for prompt in every if prompt in prompts]
    assert not [prompt for prompt in prompts if prompt in others]
