"""Seconds by phase: what is counted for which, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.pipeline import phases, stage
from recipe.pipeline.phases import phase


class Now:
    """The time, which only the test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[Now]:
    now = Now()
    monkeypatch.setattr("time.perf_counter", now)
    phases.take()
    yield now
    phases.take()


def test_time_inside_an_inner_phase_is_not_the_outer_one_s(now: Now) -> None:
    now.pass_by(5)  # in no phase
    with phase("steps"):
        now.pass_by(1)
        with phase("generate"):
            now.pass_by(10)
        now.pass_by(2)
    assert phases.take() == {"generate": 10.0, "steps": 3.0}
    assert phases.take() == {}


def test_a_function_is_counted_at_each_call_also_one_that_fails(now: Now) -> None:
    @phase("score")
    def judge(seconds: float) -> None:
        now.pass_by(seconds)
        if seconds > 1:
            raise ValueError("too long")

    judge(1)
    with pytest.raises(ValueError, match="too long"):
        judge(2)
    assert phases.take() == {"score": 3.0}


def test_what_was_never_left_ends_with_the_phase_around_it(now: Now) -> None:
    """As a hook's, of a training that failed between its first step and its last."""
    with phase("load"):
        phase("steps").__enter__()
        now.pass_by(4)
    now.pass_by(8)
    assert phases.take() == {"steps": 4.0}


def test_seconds_of_another_process_are_added(now: Now) -> None:
    with phase("import"):
        now.pass_by(1)
    phases.add({"import": 2.0, "steps": 5.0})
    assert phases.take() == {"import": 3.0, "steps": 5.0}


def test_other_is_what_the_phases_leave() -> None:
    assert phases.with_other({"load": 1.0, "steps": 2.0}, 4.5) == {"load": 1.0, "steps": 2.0, "other": 1.5}
    assert phases.with_other({"import": 1.0}, 0.5) == {"import": 1.0, "other": 0.0}


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="'lunch' is none of import, load"):
        phase("lunch")


def test_a_manifest_has_the_seconds_since_the_stage_before(now: Now, tmp_path: Path) -> None:
    def work(out: Path) -> None:
        with phase("save"):
            now.pass_by(2)
            (out / "file").write_text("x")

    with phase("load"):
        now.pass_by(1)  # before the work, as when inputs are verified
    first = stage.run("first", tmp_path / "a", inputs={}, settings={}, work=work)
    again = stage.run("first", tmp_path / "a", inputs={}, settings={}, work=work)
    second = stage.run("second", tmp_path / "b", inputs={}, settings={}, work=work)
    assert first["phases"] == again["phases"] == {"load": 1.0, "save": 2.0}
    assert second["phases"] == {"save": 2.0}
