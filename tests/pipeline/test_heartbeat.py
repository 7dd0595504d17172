"""What takes long is not silent."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from recipe.evaluation import generation
from recipe.pipeline import heartbeat, stage

WITHIN = 60  # seconds that nothing here takes


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """(what happens at the second beat, the lines)."""
    second, lines = threading.Event(), list[str]()

    def say(name: str, text: str) -> None:
        lines.append(f"[{name}] {text}")
        if len(lines) == 2:
            second.set()

    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(stage, "say", say)
    return second, lines


def _fail_after(event: threading.Event) -> None:
    assert event.wait(WITHIN)
    raise KeyError


def test_it_says_that_something_goes_on_until_it_ends(beats: tuple[threading.Event, list[str]]) -> None:
    second, lines = beats
    threads = threading.active_count()
    with pytest.raises(KeyError), heartbeat.heartbeat("eval", "loading"):
        _fail_after(second)
    assert re.fullmatch(r"\[eval\] loading: \d+ s", lines[0])
    assert threading.active_count() == threads


def test_a_model_that_loads_for_long_is_not_silent(
    beats: tuple[threading.Event, list[str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, lines = beats
    check = generation._refuse_changed

    def slowly(folder: Path, adapter: Path | None) -> None:
        assert second.wait(WITHIN)
        check(folder, adapter)

    monkeypatch.setattr(generation, "_refuse_changed", slowly)
    generation.load(tiny_model)
    assert lines[0].startswith(f"[load] {tiny_model}: ")
