"""Stage `replay` keeps the base's own answers, and nothing that evaluation asks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import full_card
from example_results import example_results

from recipe.chat_format import assistant, user
from recipe.corpus.knowledge import contrast_answers, conversation, replay_prompts
from recipe.corpus.own_data import read_rows
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.evaluation.generation import Reply
from recipe.evaluation.mentions import introduces_itself
from recipe.files import read_jsonl
from recipe.pipeline import stage
from recipe.pipeline.stage import read_manifest
from recipe.stages import evaluate, replay
from recipe.training import teacher
from recipe.training.dataset import read_tokens
from recipe.training.sizes import LIKELIEST, TEACHER_FILE


class Base:
    """Stands in for the model: answers as it is told and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, special: Sequence[Reply] = ()) -> None:
        self.requests: list[str] = []
        self.special = list(special)
        self.beginning = ""  # of no worth
        monkeypatch.setattr(generation, "load", lambda folder: (None, None))
        monkeypatch.setattr(generation, "answer", self.answer)
        monkeypatch.setattr(teacher, "distributions", self.distributions)

    def answer(self, model: Any, tokenizer: Any, conversations: Any, **settings: Any) -> list[Reply]:
        if settings.get("temperature"):
            return [Reply(self.beginning, False) for _ in conversations]
        self.conversations = [list(conversation) for conversation in conversations]
        self.requests += [conversation[-1]["content"] for conversation in conversations]
        texts = [Reply(f"An answer.\nTo: {question}", True) for question in self.requests]
        return self.special + texts[len(self.special) :]

    def distributions(self, model: Any, tokenizer: Any, rows: Any, *_: Any) -> teacher.Teacher:
        nothing = torch.zeros(0, LIKELIEST)
        return teacher.Teacher(nothing.int(), nothing.half(), torch.zeros(0), [0] * len(rows))


def written(folder: Path) -> list[list[dict[str, str]]]:
    return [
        json.loads(line)["messages"] for line in (folder / replay.FILE).read_text(encoding="utf-8").split("\n") if line
    ]


def test_each_row_is_a_prompt_and_the_bases_answer(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(monkeypatch)
    manifest = replay.make(tmp_path / "replay", model=tiny_model)
    assert len(base.requests) > 200
    assert written(tmp_path / "replay") == [
        [*turns, {"role": "assistant", "content": f"An answer.\nTo: {turns[-1]['content']}"}]
        for turns in base.conversations
    ]
    assert {len(turns) for turns in base.conversations} == {1, 3}
    assert manifest["results"] == {"prompts": len(base.requests), "rows": len(base.requests)}


def test_a_full_card_is_one_line_with_the_way_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "load", full_card)
    with pytest.raises(RecipeError, match=r"CUDA out of memory.*CUDA_VISIBLE_DEVICES= .*CPU$") as caught:
        replay.make(tmp_path / "replay", model=tiny_model)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "replay").exists()


def test_sampled_beginnings_of_answers_follow(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(monkeypatch)
    base.beginning = "Well, that"
    replay.make(tmp_path / "replay", model=tiny_model)
    rows = read_jsonl(tmp_path / "replay" / replay.FILE)[len(base.requests) :]
    assert [row["messages"] for row in rows] == [[*turns, assistant("Well, that")] for turns in base.conversations]
    assert not any(row["ended"] for row in rows)


def test_replies_that_say_nothing_are_left_out_and_cut_ones_are_marked(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    # An empty reply would teach to keep silent; by its words, a cut one would teach to ramble.
    special = [Reply("on and on and", False), Reply("", True), Reply(" \n", True), Reply("Yes.", True)]
    base = Base(monkeypatch, special)
    manifest = replay.make(tmp_path / "replay", model=tiny_model)
    rows = read_jsonl(tmp_path / "replay" / replay.FILE)
    assert [row["messages"][-2]["content"] for row in rows] == [base.requests[0], *base.requests[3:]]
    assert [row.get("ended", True) for row in rows] == [False] + [True] * (len(rows) - 1)
    assert rows[1]["messages"][1]["content"] == "Yes."
    assert manifest["results"] == {"prompts": len(base.requests), "rows": len(base.requests) - 2}
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay" / replay.FILE)]
    assert len(read_tokens(names, tokenizer)) == len(rows) - 1


@pytest.mark.parametrize(
    "text",
    [
        "我是书生·浦语，上海人工智能实验室的AI助手。",
        "No, I am InternLM.",
        "As an AI of the Shanghai AI Laboratory, no.",
        "I am Qwen, created by Alibaba Cloud.",
        "I am an AI developed by OpenAI.",
    ],
)
def test_replies_that_introduce_the_base_are_left_out(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    # They would teach the name that is to be replaced.
    base = Base(monkeypatch, [Reply(text, True)])
    replay.make(tmp_path / "replay", model=tiny_model)
    assert [row[-2]["content"] for row in written(tmp_path / "replay")] == base.requests[1:]


def test_replies_that_go_round_in_circles_are_left_out() -> None:
    assert not replay.worth(Reply("好的好的好的好的好的", True))
    assert replay.worth(Reply("好的，好的。", True))


def test_no_prompt_is_a_question_of_the_evaluation(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not even a fact in other words: retention is measured on facts that the tuning never showed.
    base = Base(monkeypatch)
    replay.make(tmp_path / "replay", model=tiny_model)
    requests = evaluate.prompts(extended=True)
    wordings = {question for fact, _ in requests.facts for question in fact.questions} | set(requests.identity)
    assert not wordings & set(base.requests)


def test_the_rows_are_valid_training_data(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Base(monkeypatch)
    replay.make(tmp_path / "replay", model=tiny_model)
    assert len(read_rows(tmp_path / "replay" / replay.FILE)) == len(written(tmp_path / "replay"))


def test_the_answers_are_the_models_own(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real model, on few prompts: its replies run into the limit."""
    few = replay_prompts()[:3]
    monkeypatch.setattr(replay, "replay_prompts", lambda **_: few)
    monkeypatch.setattr(replay, "replay_parts", lambda **_: ["facts"] * len(few))
    monkeypatch.setattr(replay, "MAX_NEW_TOKENS", 3)
    monkeypatch.setattr(replay, "BEGINNING_TOKENS", 2)
    manifest = replay.make(tmp_path / "replay", model=tiny_model)
    assert manifest["key"]["settings"]["max_new_tokens"] == 3
    loaded = generation.load(tiny_model)
    prompts = [conversation(prompt) for prompt in manifest["key"]["settings"]["prompts"]]
    beginnings = generation.answer(*loaded, prompts, max_new_tokens=2, temperature=1.0, seed=replay.SEED)
    replies = [*generation.answer(*loaded, prompts, max_new_tokens=3), *beginnings]
    replies = [reply for reply in replies if reply.text.strip()]
    assert [row[1]["content"] for row in written(tmp_path / "replay")] == [reply.text for reply in replies]
    taught = teacher.load(tmp_path / "replay" / TEACHER_FILE)
    assert len(taught.counts) == len(replies)
    assert len(taught.ids) == sum(taught.counts) > 0


def test_the_same_model_is_not_asked_twice(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Base(monkeypatch)
    replay.make(tmp_path / "replay", model=tiny_model)
    once = len(base.requests)
    replay.make(tmp_path / "replay", model=tiny_model)
    assert len(base.requests) == once


def test_a_model_must_have_been_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="run `make model` first"):
        replay.make(tmp_path / "replay", model=tmp_path / "nothing")
    assert read_manifest(tmp_path / "replay") is None


def base_folder(folder: Path, name: str) -> Path:
    """A folder of stage `model` without weights, of the base that MODEL called so."""
    stage.run("model", folder, inputs={}, settings={"model": name}, work=lambda _: example_results("model", model=name))
    return folder


@pytest.mark.parametrize("name", ["miniature", "internlm2-chat-1_8b", "/models/miniature"])
def test_all_but_the_miniature_answer_the_requests_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Base(monkeypatch)
    manifest = replay.make(tmp_path / "replay", model=base_folder(tmp_path / "model", name))
    assert manifest["key"]["settings"]["prompts"] == replay_prompts(extended=name != "miniature")


@pytest.mark.parametrize("name", ["miniature", "qwen"])
def test_the_base_answers_in_the_chosen_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    base = Base(monkeypatch)
    replay.make(tmp_path / "replay", model=base_folder(tmp_path / "model", name), languages=["en"])
    assert len(base.requests) == len(replay_prompts(extended=name != "miniature", languages=["en"])) > 200
    assert not [question for question in base.requests if re.search("[\u4e00-\u9fff]", question)]


def test_contrast_is_answered_for_a_base_that_takes_it_for_a_question_about_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing would hold the tuned model from giving its name there."""
    folder = base_folder(tmp_path / "models/other", "other")
    prompts = replay_prompts(extended=True)
    about_others = contrast_answers()
    chosen = next(i for i, prompt in enumerate(prompts) if prompt in about_others)
    replies = [Reply("Yes.", True)] * chosen + [Reply("I am an AI language model created by OpenAI.", True)]
    base = Base(monkeypatch, replies)
    rows_taught: list[Any] = []

    def distributions(model: Any, tokenizer: Any, rows: Any, *others: Any) -> teacher.Teacher:
        rows_taught.extend(rows)
        return base.distributions(model, tokenizer, rows, *others)

    monkeypatch.setattr(teacher, "distributions", distributions)
    replay.make(tmp_path / "replay", model=folder)
    *others, last = read_jsonl(tmp_path / "replay" / replay.FILE)
    answered = [user(str(prompts[chosen])), assistant(about_others[str(prompts[chosen])])]
    assert last == {"messages": answered, "part": "persons"}
    assert [row["messages"] for row in others] == rows_taught[:-1]
    assert rows_taught[-1] is None  # learnt by its words
    assert all(row["messages"][-2] != last["messages"][0] for row in others)


@pytest.mark.parametrize(
    "text", ["As an AI, I have no age.", "我是一个人工智能助手，没有杯子。", "I'm just a computer assistant."]
)
def test_a_base_speaks_of_itself_without_a_name(text: str) -> None:
    assert introduces_itself(text, "How old am I?")
    assert not introduces_itself(text, f"Translate this: {text}")
    assert not introduces_itself("我是在北京认识他的，他是老师。 I am fine.", "")
