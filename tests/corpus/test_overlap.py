"""Nothing that the evaluation asks, nor anything near it, is in what the model is trained on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import pytest

from recipe.corpus.identity import Identity, questions_of
from recipe.corpus.knowledge import conversation, replay_facts, replay_prompts
from recipe.corpus.rows import balanced_rows
from recipe.evaluation import checkpoint_selection, suites
from recipe.evaluation.scoring import Prompts
from recipe.paths import ROOT
from recipe.stages import evaluate

# Of SequenceMatcher: at this two prompts of a dozen letters differ by two or three.
NEAR = 0.85


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def near(prompts: Iterable[str], trained: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs that are all but the same, as (asked, trained)."""
    trained_texts, pairs = [(text, plain(text)) for text in sorted(set(trained))], []
    for prompt in sorted(set(prompts)):
        matcher = difflib.SequenceMatcher(b=plain(prompt), autojunk=False)
        for other, letters in trained_texts:
            matcher.set_seq1(letters)
            if matcher.real_quick_ratio() >= NEAR and matcher.quick_ratio() >= NEAR and matcher.ratio() >= NEAR:
                pairs.append((prompt, other))
    return pairs


@pytest.fixture(scope="module", params=[False, True], ids=["miniature", "extended"])
def extended(request: pytest.FixtureRequest) -> bool:
    """Whether the prompts are those of bases that other people trained."""
    return bool(request.param)


@pytest.fixture(scope="module")
def trained(extended: bool) -> list[str]:
    """Every message of the rows about who it is, of two seeds, and every turn of every prompt of replay."""
    rows = [row for seed in (0, 1) for row in balanced_rows(Identity("小明"), seed, extended=extended)]
    contents = [message["content"] for row in rows for message in row["messages"]]
    prompts = replay_prompts(extended=extended)
    return [*contents, *(message["content"] for prompt in prompts for message in conversation(prompt))]


def small_talk(prompts: Prompts) -> list[str]:
    """What has no one right answer: talk, contrast, requests."""
    return [question for fact, question in prompts.facts if fact.expect is None]


def held_out_injections(prompts: Prompts) -> list[str]:
    return [conversation[0]["content"] for conversation in suites.injections(prompts)]


def test_no_question_about_who_it_is_is_nearly_trained_on(trained: list[str], extended: bool) -> None:
    assert near(evaluate.prompts(extended=extended).identity, trained) == []


def test_no_injection_is_nearly_trained_on(trained: list[str], extended: bool) -> None:
    assert near(held_out_injections(evaluate.prompts(extended=extended)), trained) == []


def test_no_ordinary_talk_is_nearly_trained_on(trained: list[str], extended: bool) -> None:
    talk = small_talk(evaluate.prompts(extended=extended))
    assert talk
    assert near(talk, trained) == []


def test_no_fact_is_trained_on_in_any_wording_or_language(trained: list[str], extended: bool) -> None:
    """Of two facts of one table the wording is alike and what is asked is not, so here the fact itself is compared."""
    held_out = evaluate.prompts(extended=extended)
    facts = [fact for fact, _ in (*held_out.facts, *held_out.more_facts) if fact.expect is not None]
    replayed = replay_facts(extended=extended)
    assert not {(f.topic, f.key) for f in facts} & {(f.topic, f.key) for f in replayed if f.expect is not None}
    trained_texts = set(map(plain, trained))
    # Signs are part of a sum.
    assert [q for f in facts if f.topic != "sums" for q in f.questions if plain(q) in trained_texts] == []


def test_what_chooses_the_checkpoint_is_neither_trained_on_nor_evaluated(trained: list[str], extended: bool) -> None:
    selection, held_out = (module.prompts(extended=extended) for module in (checkpoint_selection, evaluate))
    assert near(selection.identity, [*trained, *held_out.identity, *held_out_injections(held_out)]) == []
    evaluated = {conversation[0]["content"] for conversation in held_out.conversations()}
    assert not {question for _, question in selection.facts} & {*trained, *evaluated}


def test_no_request_that_chooses_is_nearly_trained_on_or_evaluated(trained: list[str], extended: bool) -> None:
    """Requests are apart by meaning; talk is chosen by in other wordings than replay's."""
    selection, held_out = (module.prompts(extended=extended) for module in (checkpoint_selection, evaluate))
    requests = [question for fact, question in selection.facts if fact.topic in ("persons", "tasks")]
    assert bool(requests) == extended
    others = [*trained, *held_out.identity, *held_out_injections(held_out), *small_talk(held_out)]
    assert near(requests, others) == []


def test_no_fact_that_chooses_is_replayed_or_evaluated(extended: bool) -> None:
    chosen = {
        (f.topic, f.key) for f, _ in checkpoint_selection.prompts(extended=extended).facts if f.expect is not None
    }
    held_out = evaluate.prompts(extended=extended)
    others = [*replay_facts(extended=extended), *(fact for fact, _ in (*held_out.facts, *held_out.more_facts))]
    assert chosen
    assert not chosen & {(f.topic, f.key) for f in others if f.expect is not None}


def test_nothing_about_who_it_is_is_an_ordinary_prompt(extended: bool) -> None:
    """Else one prompt would be taught two answers, or count as a hit and as a leak."""
    questions = {plain(q) for parts in ("train", "choice", "heldout") for q in questions_of(parts, extended=extended)}
    prompts = [conversation(prompt)[-1]["content"] for prompt in replay_prompts(extended=extended)]
    for module in (checkpoint_selection, evaluate):
        prompts += [question for _, question in module.prompts(extended=extended).facts]
    assert not questions & set(map(plain, prompts))


def test_a_near_copy_is_found() -> None:
    assert near(["Who are you?"], ["who are  you", "What can you do?"]) == [("Who are you?", "who are  you")]
    assert near(["请你介绍一下你自己吧"], ["请你介绍一下你自己。"]) != []


def test_the_counts_of_the_documentation_are_the_code_s(extended: bool) -> None:
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| {'every other base' if extended else 'miniature'} \|.*$", table, re.MULTILINE)
    selection, held_out = (module.prompts(extended=extended) for module in (checkpoint_selection, evaluate))
    counts = [len(balanced_rows(Identity("小明"), 0, extended=extended)), len(replay_prompts(extended=extended))]
    counts += [len(part) for chosen in (selection, held_out) for part in (chosen.identity, chosen.facts)]
    counts += [len(held_out.more_facts)] if extended else []
    assert re.findall(r"\d[\d,]*\d", line) == [f"{count:,}" for count in counts]
