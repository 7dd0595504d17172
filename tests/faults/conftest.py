"""The campaign of faults: seeded, minutes long, its figures printed at the end. `make test-faults` alone runs it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from .runs import Runs, prepare
from .user import preload

FIGURES = pytest.StashKey[list[str]]()


def seed() -> int:
    return int(os.environ.get("SEED") or 0)


@pytest.fixture(scope="session")
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line of figures, to be shown at the end."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, None):
        terminalreporter.section(f"faults, SEED={seed()}")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def runs(tiny_internlm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A small run, as it is before each of its verbs."""
    folder = tmp_path_factory.mktemp("runs")
    preload()
    return prepare(folder / "work", folder / "states", tiny_internlm2)
