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


def near(asked: Iterable[str], trained: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs that are all but the same, as (asked, trained)."""
    known, found = sorted(set(trained)), []
    for prompt in sorted(set(asked)):
        matcher = difflib.SequenceMatcher(b=plain(prompt), autojunk=False)
        for other in known:
            matcher.set_seq1(plain(other))
            if matcher.real_quick_ratio() >= NEAR and matcher.quick_ratio() >= NEAR and matcher.ratio() >= NEAR:
                found.append((prompt, other))
    return found


@pytest.fixture(scope="module")
def trained() -> list[str]:
    """Every message of the rows about who it is, of two seeds, and every prompt of replay."""
    rows = [row for seed in (0, 1) for row in balanced_rows(Identity("小明"), seed)]
    said = [message["content"] for row in rows for message in row["messages"]]
    return [*said, *replay_prompts()]


def held_out_injections(asked: Prompts) -> list[str]:
    return [conversation[0]["content"] for conversation in suites.injections(asked)]


def test_no_question_about_who_it_is_is_nearly_trained_on(trained: list[str]) -> None:
    assert near(evaluate.prompts().identity, trained) == []


def test_no_injection_is_nearly_trained_on(trained: list[str]) -> None:
    assert near(held_out_injections(evaluate.prompts()), trained) == []


def test_no_ordinary_talk_is_nearly_trained_on(trained: list[str]) -> None:
    talk = [question for fact, question in evaluate.prompts().facts if fact.expect is None]
    assert talk
    assert near(talk, trained) == []


def test_no_fact_is_trained_on_in_any_wording_or_language(trained: list[str]) -> None:
    """Of two facts of one table the wording is alike and what is asked is not, so here the fact itself is compared."""
    facts = [fact for fact, _ in evaluate.prompts().facts if fact.expect is not None]
    assert not {(f.topic, f.key) for f in facts} & {(f.topic, f.key) for f in replay_facts() if f.expect is not None}
    known = set(map(plain, trained))
    # Signs are part of a sum.
    assert [q for f in facts if f.topic != "sums" for q in f.questions if plain(q) in known] == []


def test_what_chooses_the_checkpoint_is_neither_trained_on_nor_evaluated(trained: list[str]) -> None:
    chosen, asked = checkpoint_selection.prompts(), evaluate.prompts()
    assert near(chosen.identity, [*trained, *asked.identity, *held_out_injections(asked)]) == []
    evaluated = {conversation[0]["content"] for conversation in asked.conversations()}
    assert not {question for _, question in chosen.facts} & {*trained, *evaluated}


def test_a_near_copy_is_found() -> None:
    assert near(["Who are you?"], ["who are  you", "What can you do?"]) == [("Who are you?", "who are  you")]
    assert near(["请你介绍一下你自己吧"], ["请你介绍一下你自己。"]) != []
