"""What a finished run names is what Make and the parser know."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from recipe.cli.next_steps import next_steps, without_merged_model
from recipe.cli.parser import build_parser
from recipe.paths import ROOT


@pytest.mark.parametrize(("run", "named"), [("main", ""), ("my-run", " RUN=my-run")])
def test_every_step_is_a_command_with_the_run(run: str, named: str) -> None:
    lines = next_steps(run, "work/models/miniature", ROOT / "work").splitlines()
    commands = [line.partition(":  ")[2] for line in lines]
    verbs = re.findall(r"^make (\w+)", "\n".join(commands), re.MULTILINE)
    assert verbs == ["chat", "chat", "demo", "api", "gguf", "publish"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(verbs) <= set(targets)
    for verb, command in zip(verbs, commands, strict=True):
        assert command.startswith(f"make {verb}{named}"), command
    assert commands[1].endswith("CHAT='--model work/models/miniature'")


@pytest.mark.parametrize(
    ("newest", "remedy"),
    [
        (None, "run `make merge RUN=typo`"),
        ("quickstart", "`make chat RUN=quickstart` talks to the run that merged last; else run `make merge RUN=typo`"),
        ("main", "`make chat RUN=main` talks to the run that merged last; else run `make merge RUN=typo`"),
    ],
)
def test_chat_without_a_merged_model_names_the_run_that_has_one(newest: str | None, remedy: str) -> None:
    line = without_merged_model(Path("/w/typo/merged"), Path("/w") / newest / "merged" if newest else None)
    assert line == f"/w/typo/merged is missing: {remedy}, or name a model with --model (CHAT='--model FOLDER')"


@pytest.mark.parametrize("run", ["main", "my-run"])
def test_what_talks_is_this_run_also_where_another_merges_later(run: str) -> None:
    commands = [
        line.partition(":  ")[2] for line in next_steps(run, "work/models/miniature", ROOT / "work").splitlines()
    ]
    assert {f"make {verb} RUN={run}" for verb in ("chat", "demo", "api")} <= set(commands)


def test_elsewhere_every_step_is_a_call_that_the_parser_takes() -> None:
    lines = next_steps("my-run", "/w 2/models/miniature", Path("/w 2")).splitlines()
    for line in lines:
        python, _, module, *words = shlex.split(line.partition(":  ")[2])
        assert (python, module) == ("python", "recipe")
        options = build_parser().parse_args(words)
        assert (options.work, options.run) == (Path("/w 2"), "my-run")
