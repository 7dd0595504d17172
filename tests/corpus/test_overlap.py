"""Nothing that the evaluation asks, nor anything near it, is in what the model is trained on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import pytest

from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import replay_facts, replay_prompts
from recipe.corpus.rows import balanced_rows
from recipe.evaluation import checkpoint_selection, suites
from recipe.evaluation.scoring import Prompts
from recipe.stages import evaluate

# Of SequenceMatcher: at this two prompts of a dozen letters differ by two or three.
NEAR = 0.85


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def near(prompts: Iterable[str], trained: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs that are all but the same, as (asked, trained)."""
    trained_texts, pairs = sorted(set(trained)), []
    for prompt in sorted(set(prompts)):
        matcher = difflib.SequenceMatcher(b=plain(prompt), autojunk=False)
        for other in trained_texts:
            matcher.set_seq1(plain(other))
            if matcher.real_quick_ratio() >= NEAR and matcher.quick_ratio() >= NEAR and matcher.ratio() >= NEAR:
                pairs.append((prompt, other))
    return pairs


@pytest.fixture(scope="module")
def trained() -> list[str]:
    """Every message of the rows about who it is, of two seeds, and every prompt of replay."""
    rows = [row for seed in (0, 1) for row in balanced_rows(Identity("小明"), seed)]
    contents = [message["content"] for row in rows for message in row["messages"]]
    return [*contents, *replay_prompts()]


def held_out_injections(prompts: Prompts) -> list[str]:
    return [conversation[0]["content"] for conversation in suites.injections(prompts)]


def test_no_question_about_who_it_is_is_nearly_trained_on(trained: list[str]) -> None:
    assert near(evaluate.prompts().identity, trained) == []


def test_no_injection_is_nearly_trained_on(trained: list[str]) -> None:
    assert near(held_out_injections(evaluate.prompts()), trained) == []


def test_no_ordinary_talk_is_nearly_trained_on(trained: list[str]) -> None:
    small_talk = [question for fact, question in evaluate.prompts().facts if fact.expect is None]
    assert small_talk
    assert near(small_talk, trained) == []


def test_no_fact_is_trained_on_in_any_wording_or_language(trained: list[str]) -> None:
    """Of two facts of one table the wording is alike and what is asked is not, so here the fact itself is compared."""
    facts = [fact for fact, _ in evaluate.prompts().facts if fact.expect is not None]
    assert not {(f.topic, f.key) for f in facts} & {(f.topic, f.key) for f in replay_facts() if f.expect is not None}
    trained_texts = set(map(plain, trained))
    # Signs are part of a sum.
    assert [q for f in facts if f.topic != "sums" for q in f.questions if plain(q) in trained_texts] == []


def test_what_chooses_the_checkpoint_is_neither_trained_on_nor_evaluated(trained: list[str]) -> None:
    selection, held_out = checkpoint_selection.prompts(), evaluate.prompts()
    assert near(selection.identity, [*trained, *held_out.identity, *held_out_injections(held_out)]) == []
    evaluated = {conversation[0]["content"] for conversation in held_out.conversations()}
    assert not {question for _, question in selection.facts} & {*trained, *evaluated}


def test_a_near_copy_is_found() -> None:
    assert near(["Who are you?"], ["who are  you", "What can you do?"]) == [("Who are you?", "who are  you")]
    assert near(["请你介绍一下你自己吧"], ["请你介绍一下你自己。"]) != []
