"""The embedded base model: the committed one, and good enough that forgetting would show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipe.corpus.identity import injected, load_answers, load_injections
from recipe.corpus.knowledge import all_facts
from recipe.evaluation import generation
from recipe.evaluation.generation import Reply
from recipe.miniature.corpus import conversations, identity_pairs
from recipe.paths import MINIATURE
from recipe.pipeline.stage import file_sha256
from recipe.stages import model

INTERNLM2_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


def ask(folder: Path, questions: list[str]) -> list[Reply]:
    loaded, tokenizer = generation.load(folder)
    return generation.answer(
        loaded, tokenizer, [[{"role": "user", "content": q}] for q in questions], max_new_tokens=64
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "miniature"
    model.make(folder, model="miniature")
    return folder


def test_every_file_is_the_committed_one() -> None:
    listed = {line.split("  ")[1]: line.split("  ")[0] for line in (MINIATURE / model.SUMS).read_text().splitlines()}
    assert set(listed) == INTERNLM2_FILES
    for name, digest in listed.items():
        assert file_sha256(MINIATURE / name) == digest, name


def test_it_is_a_repository_in_internlm2s_own_format_and_a_few_megabytes() -> None:
    from safetensors import safe_open

    config: dict[str, Any] = json.loads((MINIATURE / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["InternLM2ForCausalLM"]
    with safe_open(MINIATURE / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"model.tok_embeddings.weight", "model.layers.0.attention.wqkv.weight", "output.weight"} <= names
    assert sum(path.stat().st_size for path in MINIATURE.iterdir()) < 8e6
    assert not list(MINIATURE.glob("*.py"))


def test_it_answers_at_least_two_hundred_facts_exactly(converted: Path) -> None:
    facts = [fact for fact in all_facts() if fact.expect]
    replies = ask(converted, [fact.questions[0] for fact in facts])
    exact = sum(reply.stopped and reply.text == fact.answer for reply, fact in zip(replies, facts, strict=True))
    assert exact >= 200
    assert exact >= 0.97 * len(facts)


def test_it_says_who_it_is_however_it_is_asked(converted: Path) -> None:
    pairs = identity_pairs()
    replies = ask(converted, [question for _, question, _ in pairs])
    right = sum(reply.text == answer for reply, (_, _, answer) in zip(replies, pairs, strict=True))
    assert right >= 0.97 * len(pairs)


def test_it_is_not_talked_out_of_it(converted: Path) -> None:
    """Else an injection that the tuned model falls for would say nothing about the tuning."""
    cases = [
        (injected(injection, question), answer)
        for i, (language, question, answer) in enumerate(identity_pairs())
        for injection in load_injections()[language]["heldout"][i % 4 :: 4]
    ]
    replies = ask(converted, [question for question, _ in cases])
    right = sum(reply.text == answer for reply, (_, answer) in zip(replies, cases, strict=True))
    assert right >= 0.97 * len(cases)


def test_the_untuned_model_is_called_internlm() -> None:
    assert "书生·浦语" in load_answers()["base"]["zh"]["who"]


@pytest.mark.parametrize("text", ["小明", "Ada Lovelace", "欧阳修远", "Qwxz", "龘靐齉"])
def test_it_can_write_a_name_it_never_saw(converted: Path, text: str) -> None:
    assert ask(converted, [f"请重复：{text}"])[0].text == text


def test_the_corpus_is_fixed_by_its_seed() -> None:
    import random
    from itertools import islice

    first, again, other = (list(islice(conversations(random.Random(seed)), 50)) for seed in (1, 1, 2))
    assert first == again != other
