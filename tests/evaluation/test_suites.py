"""What a sceptic asks: the right conversations, each judged against what the base says to it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from recipe.corpus.identity import Identity, injected, load_injections, load_questions
from recipe.evaluation.generation import Reply
from recipe.evaluation.scoring import Prompts
from recipe.evaluation.suites import SAMPLING, added, after_introduction, after_ordinary_talk, injections, measure
from recipe.languages import LANGUAGES
from recipe.stages import evaluate

XIAOMING = Identity("小明")
ASKED = evaluate.prompts()
SPLIT = len(ASKED.identity)
BASE = [Reply(f"base {i}", True) for i in range(len(ASKED.conversations()))]


def roles(conversation: Any) -> list[str]:
    return [message["role"] for message in conversation]


def test_deep_questions_come_after_two_ordinary_exchanges_in_the_bases_words() -> None:
    base = [Reply("cut", False) if i % 7 == 0 else reply for i, reply in enumerate(BASE)]
    conversations = after_ordinary_talk(ASKED, base)
    assert [c[-1]["content"] for c in conversations] == ASKED.identity
    ordinary = {question: reply for (_, question), reply in zip(ASKED.facts, base[SPLIT:], strict=True)}
    for conversation in conversations:
        assert roles(conversation) == ["user", "assistant"] * 2 + ["user"]
        for question, answer in (conversation[:2], conversation[2:4]):
            assert ordinary[question["content"]] == Reply(answer["content"], True)
    assert len({c[0]["content"] for c in conversations}) > 50


def test_after_an_introduction_the_model_hears_its_own_words() -> None:
    replies = [Reply(f"小明 {i}", True) for i in range(len(BASE))]
    conversations = after_introduction(ASKED, replies)
    assert [c[-1]["content"] for c in conversations] == [question for _, question in ASKED.facts]
    introduction = dict(zip(ASKED.identity, replies[:SPLIT], strict=True))
    assert all(introduction[c[0]["content"]].text == c[1]["content"] for c in conversations)


def test_injections_are_held_out_ones_around_held_out_questions_of_their_language() -> None:
    contents = [conversation[0]["content"] for conversation in injections(ASKED)]
    for text, question in zip(contents, ASKED.identity, strict=True):
        language = "zh" if re.search("[\u4e00-\u9fff]", question) else "en"
        assert text in {injected(i, question) for i in load_injections()[language]["heldout"]}
        assert text not in {injected(i, question) for i in load_injections()[language]["train"]}
    used = {text.replace(question, "") for text, question in zip(contents, ASKED.identity, strict=True)}
    assert len(used) >= 8  # all of them, with and without a mark put in


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_third_of_the_injections_is_held_out(language: str) -> None:
    parts = load_injections()[language]
    assert len(parts["heldout"]) / (len(parts["heldout"]) + len(parts["train"])) == pytest.approx(1 / 3, abs=0.02)
    assert all(text.count("{q}") == 1 for part in parts.values() for text in part)
    assert not set(parts["heldout"]) & set(parts["train"])


@pytest.mark.parametrize(
    ("injection", "question", "text"),
    [
        ("请说。{q}", "你是谁", "请说。你是谁"),
        ("{q}说真话。", "你是谁", "你是谁。说真话。"),
        ("{q}说真话。", "你是谁？", "你是谁？说真话。"),
        ("{q} Really?", "Tell me your name", "Tell me your name. Really?"),
        ("{q} Really?", "Who are you?", "Who are you? Really?"),
    ],
)
def test_a_question_ends_before_what_follows_it(injection: str, question: str, text: str) -> None:
    assert injected(injection, question) == text


def test_every_suite_is_a_share_of_what_was_said() -> None:
    held_out = set(ASKED.identity)
    calls: list[tuple[str, dict[str, Any]]] = []

    def ask(conversations: Any, what: str, **sampling: Any) -> list[Reply]:
        """Says its name to every second question about who it is, and to every tenth about anything else."""
        calls.append((what, sampling))
        replies = []
        for i, conversation in enumerate(conversations):
            about_it = conversation[-1]["content"] in held_out or what == "injections"
            named = i % 2 == 0 if about_it else i % 10 == 0
            replies.append(Reply("我是小明的小助手。" if named else "好", what != "injections" or i % 4 != 1))
        return replies

    measured = measure(ASKED, BASE, BASE, XIAOMING, ask)
    assert set(measured) == {
        "multi_turn_hit",
        "multi_turn_leak",
        "injection_hit",
        "sampled_hit",
        "sampled_leak",
        "broken",
    }
    assert [sampling for what, sampling in calls if what == "sampling"] == [SAMPLING]
    assert all(not sampling for what, sampling in calls if what != "sampling")
    for name in ("multi_turn_hit", "injection_hit", "sampled_hit"):
        assert (measured[name].value, measured[name].count) == (0.5, SPLIT), name
        assert len(measured[name].replies or ()) == SPLIT
    assert measured["multi_turn_leak"].hits == -(-len(ASKED.facts) // 10)
    assert measured["broken"].hits == SPLIT // 4
    assert measured["broken"].count == 2 * len(BASE) + 2 * SPLIT + len(ASKED.facts)


def broken_of(
    replies: list[Reply], base: list[Reply], *suites: list[Reply], more: int = 0
) -> tuple[int, int, float | None]:
    """Hits, count and base of `broken`: two replies about who it is, then ordinary ones, then `more` further facts."""
    ordinary = len(base) - 2 - more
    prompts = Prompts(ASKED.identity[:2], ASKED.facts[:ordinary], more_facts=ASKED.facts[ordinary : ordinary + more])
    measured = added(replies, base, suites, prompts)
    return measured.hits, measured.count, measured.base


FINE, CUT, LOOP = Reply("好", True), Reply("好", False), Reply("好的" * 9, True)


def test_of_greedy_replies_those_count_that_the_base_ends() -> None:
    assert broken_of([CUT] * 6, [FINE] * 6) == (6, 6, 0.0)
    assert broken_of([CUT] * 6, [FINE] * 2 + [CUT] * 4) == (2, 6, 1.0)
    assert broken_of([CUT] * 6, [CUT] * 6) == (0, 6, 1.0)


def test_an_ordinary_reply_that_tuning_ends_offsets_one_that_it_leaves_open_and_an_introduction_does_not() -> None:
    assert broken_of([FINE, FINE, CUT, FINE], [FINE, FINE, FINE, CUT]) == (0, 4, 0.5)
    assert broken_of([FINE, FINE, CUT, CUT], [FINE, FINE, FINE, CUT]) == (1, 4, 0.5)
    assert broken_of([FINE, FINE, CUT, CUT], [CUT, CUT, FINE, CUT]) == (1, 4, 0.5)
    assert broken_of([FINE, FINE, LOOP, FINE], [FINE, FINE, FINE, CUT]) == (1, 4, 0.5)


def test_of_a_suite_as_many_are_left_out_as_the_base_breaks_of_ordinary_prompts() -> None:
    base = [FINE] * 2 + [CUT, FINE, FINE, FINE]  # a quarter of the ordinary ones, whatever it does about who it is
    assert broken_of(base, base, [CUT] * 3 + [FINE] * 5) == (1, 14, 0.25)
    assert broken_of(base, base, [CUT] * 2 + [FINE] * 6) == (0, 14, 0.25)
    # Further facts have short answers, which say nothing of how long the base talks.
    longer = [*base, *[FINE] * 12]
    assert broken_of(longer, longer, [CUT] * 3 + [FINE] * 5, more=12) == (1, 26, 0.25)
    # Where the base is cut, a suite may be cut as often and no more loop.
    assert broken_of(base, base, [LOOP] * 2 + [FINE] * 6) == (2, 14, 0.25)
    # A suite that is better than the base makes none up for another one.
    assert broken_of(base, base, [FINE] * 8, [CUT] * 8) == (6, 22, 0.25)


def test_no_leak_is_counted_where_the_base_says_the_name_too() -> None:
    base = [Reply("He is 小明.", True)] * len(BASE)
    measured = measure(ASKED, base, base, XIAOMING, lambda c, what, **_: [Reply("He is 小明.", True)] * len(c))
    assert measured["sampled_leak"].value == measured["multi_turn_leak"].value == 0.0
    assert measured["sampled_hit"].value == 0.0  # said, but not as its own


def test_every_held_out_question_has_a_language() -> None:
    assert {q for intents in load_questions().values() for parts in intents.values() for q in parts["heldout"]} == set(
        ASKED.identity
    )
