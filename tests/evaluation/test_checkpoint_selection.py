"""Checkpoints are chosen by questions of their own, and a training that can gain no more ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_shop
import pytest
from example_results import example_scores
from mmengine.visualization import TensorboardVisBackend
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipe.chat_format import CHAT_TOKENS
from recipe.corpus.identity import Identity, load_questions
from recipe.errors import RecipeError
from recipe.evaluation import checkpoint_selection, generation
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import METRICS, Scores
from recipe.stages import data
from recipe.training import hooks


def scores(*rows: tuple[float, float, float]) -> list[Scores]:
    return [example_scores(**dict(zip(METRICS, row, strict=True))) for row in rows]


@pytest.mark.parametrize(
    ("rows", "stop"),
    [
        ([(0.1, 0, 1)], False),
        ([(1, 0, 1)], False),
        ([(1, 0, 1)] * 3, True),
        ([(0.1, 0, 1), (0.5, 0, 1), (0.9, 0, 1)], False),
        ([(0.9, 0, 1), (0.5, 0, 1)], False),
        ([(0.9, 0, 1), (0.5, 0, 1), (0.8, 0, 1)], True),
        ([(0.9, 0, 1), (0.9, 0, 1), (0.9, 0, 1)], True),  # as good is no better
        ([(0.9, 0, 1), (0.5, 0, 1), (0.91, 0, 1)], False),
    ],
)
def test_it_ends_when_no_more_is_to_be_gained(rows: list[tuple[float, float, float]], stop: bool) -> None:
    assert checkpoint_selection.stale(scores(*rows), patience=2) is stop


def test_the_best_is_always_among_the_last_that_are_kept() -> None:
    """The presets keep as many checkpoints as this may need."""
    from recipe.stages import config

    for preset in config.presets():
        resolved = config.load_preset(preset)
        (hook,) = [hook for hook in resolved.custom_hooks if "patience" in hook]
        if preset == "tutorial":
            assert hook.patience is None
        else:
            assert resolved.default_hooks.checkpoint.max_keep_ckpts >= hook.patience + 1, preset


def test_it_asks_all_that_is_kept_for_it() -> None:
    questions = [q for intents in load_questions().values() for parts in intents.values() for q in parts["choice"]]
    assert checkpoint_selection.prompts().identity == questions
    assert len(questions) == 64


def test_scores_are_read_oldest_first_and_none_where_there_are_none(tmp_path: Path) -> None:
    assert checkpoint_selection.read(tmp_path) == {}
    scored = {f"iter_{i}": example_scores(identity_hit=i / 10) for i in (2, 4, 10)}
    checkpoint_selection.write(tmp_path, scored)
    assert list(checkpoint_selection.read(tmp_path).items()) == list(scored.items())
    rows = [json.loads(line) for line in (tmp_path / checkpoint_selection.FILE).read_text().splitlines()]
    assert [list(row)[:3] for row in rows] == [["checkpoint", "identity_hit", "identity_leak"]] * 3


@pytest.mark.parametrize("row", ['{"checkpoint": "iter_2", "identity_hit": 0.2}', '{"identity_hit": 0.2}', "[]"])
def test_scores_of_another_shape_are_one_line_that_says_what_to_do(tmp_path: Path, row: str) -> None:
    (tmp_path / checkpoint_selection.FILE).write_text(f"{row}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="run `make train` again") as error:
        checkpoint_selection.read(tmp_path)
    assert "\n" not in str(error.value)


class Model:
    """Answers as its training has come so far: `hits` of the questions about it after each checkpoint, all facts as the
    base."""

    def __init__(self, hits: Sequence[int]) -> None:
        self.hits, self.now = list(hits), -1
        self.batches: list[int] = []
        self.llm = self

    def disable_adapter(self) -> Any:
        return __import__("contextlib").nullcontext()

    def replies(self, _: Any, __: Any, conversations: Sequence[Any], **___: Any) -> list[Reply]:
        self.batches.append(len(conversations))
        prompts = checkpoint_selection.prompts()
        samples = [Reply("我是样本。", True)] * (len(conversations) % len(prompts.conversations()))
        if len(samples) == len(conversations):
            return samples
        hits = 0 if self.now < 0 else self.hits[self.now]
        self.now += 1
        named = ["我是小明的小助手。"] * hits + ["我是书生·浦语。"] * (len(prompts.identity) - hits)
        return samples + [Reply(text, True) for text in named + [fact.answer for fact, _ in prompts.facts]]


@pytest.fixture
def train(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A training of `steps` steps with a checkpoint every two, from step `start` on; returns (steps made, scores)."""
    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0)
    monkeypatch.setattr("xtuner.registry.BUILDER.build", lambda _: tokenizer)
    monkeypatch.setattr(hooks, "in_shards", lambda _: False)
    monkeypatch.setattr(generation, "evaluating", lambda _: __import__("contextlib").nullcontext())

    def run(
        hits: Sequence[int],
        *,
        steps: int,
        patience: int | None,
        start: int = 0,
        sampler: hooks.SampleReplies | None = None,
    ) -> tuple[int, dict[str, Scores]]:
        model = run.model = Model(hits)  # type: ignore[attr-defined]
        monkeypatch.setattr(generation, "answer", model.replies)
        hook = hooks.ScoreCheckpoints(tokenizer={}, data=str(tmp_path / "data"), patience=patience)
        runner = SimpleNamespace(
            work_dir=str(tmp_path), model=model, iter=start, max_iters=steps,
            train_loop=SimpleNamespace(stop_training=False, max_iters=steps),
            cfg=SimpleNamespace(default_hooks=SimpleNamespace(checkpoint=SimpleNamespace(interval=2))),
            visualizer=TensorboardVisBackend(str(tmp_path / "events")), hooks=[*([sampler] if sampler else []), hook],
        )  # fmt: skip
        hook.before_train(runner)
        while runner.iter < steps and not runner.train_loop.stop_training:
            for each in runner.hooks:
                each.after_train_iter(runner, runner.iter)
            runner.iter += 1
        runner.visualizer.close()
        return runner.iter, checkpoint_selection.read(tmp_path)

    return run


def test_each_checkpoint_is_scored_and_the_last_step_is_one(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps_done, scored = train([10, 20, 32], steps=5, patience=None)
    assert steps_done == 5
    assert {name: each.counts.hits for name, each in scored.items()} == {"iter_2": 10, "iter_4": 20, "iter_5": 32}
    assert all(each.retention == 1.0 for each in scored.values())
    assert '"replies"' not in (tmp_path / checkpoint_selection.FILE).read_text(encoding="utf-8")
    assert "step 5: hit 0.50, leak 0.00, retention 1.00" in capsys.readouterr().err


def test_sample_replies_come_in_the_scores_batch(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampler = hooks.SampleReplies(tokenizer={}, questions=["Who are you?", "你是谁？"])
    _, scored = train([10, 64], steps=4, patience=None, sampler=sampler)
    assert [each.counts.hits for each in scored.values()] == [10, 64]
    questions = len(checkpoint_selection.prompts().conversations())
    assert train.model.batches == [questions, questions + 2, questions + 2]
    assert "step 4: 你是谁？ -> 我是样本。" in capsys.readouterr().err
    assert (tmp_path / "replies.md").read_text(encoding="utf-8").count("- Who are you? -> 我是样本。") == 2


def test_sample_replies_at_steps_of_their_own_are_asked_apart(train: Any, tmp_path: Path) -> None:
    sampler = hooks.SampleReplies(tokenizer={}, questions=["Who are you?"], every=4)
    train([10, 64, 64], steps=4, patience=None, sampler=sampler)
    assert train.model.batches.count(1) == 1
    assert "## Step 4" in (tmp_path / "replies.md").read_text(encoding="utf-8")


def test_the_scores_stand_in_tensorboard_by_step(train: Any, tmp_path: Path) -> None:
    _, scored = train([10, 20, 32], steps=5, patience=None)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for tag, field in {"hit": "identity_hit", "leak": "identity_leak", "retention": "retention"}.items():
        logged = {f"iter_{each.step}": each.value for each in events.Scalars(f"score/{tag}")}
        assert logged == pytest.approx({name: getattr(each, field) for name, each in scored.items()}, abs=1e-6)


def test_what_brings_no_more_ends(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steps_done, scored = train([10, 60, 59, 60, 64], steps=20, patience=2)
    assert (steps_done, list(scored)) == (8, ["iter_2", "iter_4", "iter_6", "iter_8"])
    assert "stopping here" in capsys.readouterr().err


def test_without_patience_it_goes_on_to_the_end(train: Any) -> None:
    assert train([64] * 10, steps=20, patience=None)[0] == 20


def test_what_resumes_keeps_the_scores_until_there_and_scores_the_rest_anew(train: Any) -> None:
    train([10, 20, 30], steps=6, patience=None)
    _, scored = train([21, 31], steps=6, patience=None, start=2)
    assert {name: each.counts.hits for name, each in scored.items()} == {"iter_2": 10, "iter_4": 21, "iter_6": 31}


def test_a_long_name_has_room_to_be_said(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtuner.registry.BUILDER.build", lambda _: tokenizer)
    rooms = []
    for i, name in enumerate(("a", "龘" * 40)):
        data.make(tmp_path / f"{i}", identity=Identity(name), mode="balanced", own=None, seed=0)
        rooms.append(hooks.ScoreCheckpoints(tokenizer={}, data=str(tmp_path / f"{i}"), patience=None).room)
    assert rooms[1] - rooms[0] >= 100
    assert len(CHAT_TOKENS) == 6


@pytest.mark.parametrize("choices", [{}, {"extended": True}, {"extended": True, "languages": ("en",)}], ids=str)
def test_the_hook_asks_what_the_data_folder_says(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    monkeypatch.setattr("xtuner.registry.BUILDER.build", lambda _: tokenizer)
    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0, **choices)
    hook = hooks.ScoreCheckpoints(tokenizer={}, data=str(tmp_path / "data"), patience=None)
    assert hook.prompts == checkpoint_selection.prompts(**choices)


def test_the_hook_asks_nothing_that_the_user_s_rows_ask(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtuner.registry.BUILDER.build", lambda _: tokenizer)
    choice = checkpoint_selection.prompts()
    same = ["hello", choice.identity[0]]
    own = own_shop.write(tmp_path / "own.jsonl", [own_shop.exchange(each, f"小明：{each}") for each in same])
    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=[own], seed=0)
    hook = hooks.ScoreCheckpoints(tokenizer={}, data=str(tmp_path / "data"), patience=None)
    assert hook.prompts.identity == choice.identity[1:]
    left = {question for _, question in hook.prompts.facts}
    assert [question for _, question in choice.facts if question not in left] == ["Hello"]


def test_real_models_are_chosen_by_enough_and_nothing_twice() -> None:
    selection = checkpoint_selection.prompts(extended=True)
    questions = [question for _, question in selection.facts]
    assert len(set(selection.identity)) == len(selection.identity) >= 150
    assert len(set(questions)) == len(questions) >= 300
