"""The training's progress bar: its first loss, and its remaining time while checkpoints are scored."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipe.pipeline import heartbeat, stage
from recipe.training import hooks, xtuner


class Clock:
    """A clock that goes on only when told to. seconds: since the epoch."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def time(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock.time)
    monkeypatch.setattr(hooks, "time", clock)
    return clock


def trained(clock: Clock, *, start: int, steps: int, scores_after: int | None = None) -> tuple[hooks.Progress, Any]:
    """A training of 200 steps after `steps` of a second each. scores_after: a step after which five minutes go by."""
    progress = hooks.Progress()
    runner = SimpleNamespace(iter=start, max_iters=200, hooks=[progress])
    progress.before_train(runner)
    batch = {"data": {"input_ids": torch.zeros(1, 512)}}
    for _ in range(steps):
        clock.seconds += 1
        if runner.iter + 1 == scores_after:
            with hooks._aside(runner):
                clock.seconds += 300
        progress.after_train_iter(runner, runner.iter, batch, {"loss": torch.tensor(2.5)})
        runner.iter += 1
    return progress, runner


@pytest.mark.parametrize("start", [0, 40], ids=["from the beginning", "resumed"])
def test_the_loss_stands_in_the_bar_from_the_first_step(start: int, clock: Clock) -> None:
    progress, _ = trained(clock, start=start, steps=1)
    assert progress.bar.postfix == "loss=2.5000, tokens_per_s=512"
    progress.bar.close()


def test_the_scores_of_a_checkpoint_are_no_step_of_the_training(clock: Clock) -> None:
    """Neither the remaining time nor the tokens a second know of them."""
    shown = {}
    for scores_after in (None, 96):
        progress, _ = trained(clock, start=0, steps=100, scores_after=scores_after)
        shown[scores_after] = str(progress.bar)
        progress.bar.close()
    assert "[01:40<01:40,  1.00step/s, loss=2.5000, tokens_per_s=512]" in shown[None]
    assert shown[96] == shown[None]


def test_what_the_trainer_shows_while_it_starts_ends_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its work takes no time here: it waits for a line, and says what happened in which order."""
    events, line = list[str](), threading.Event()

    def say(name: str, text: str) -> None:
        events.append(f"{name}: {text.rpartition(':')[0]}")
        line.set()

    def trainer(*_: Any, **__: Any) -> None:
        assert line.wait(60)
        hooks.MeanLoss().before_train(None)
        events.append("first step")
        beating = [thread for thread in threading.enumerate() if "beat" in thread.name]
        assert not beating

    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(stage, "say", say)
    monkeypatch.setattr("runpy.run_module", trainer)
    xtuner.run(["config.py", "--work-dir", str(tmp_path)])
    assert events[0] == "train: XTuner's trainer starts"
    assert events[-1] == "first step"


def test_where_the_training_shows_no_bar_there_is_none_to_stop() -> None:
    with hooks._aside(SimpleNamespace()):
        pass
