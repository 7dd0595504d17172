"""What a finished run names is what Make and the parser know."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import pytest

from recipe.cli import commands as verb_commands
from recipe.cli.next_steps import next_steps, without_merged_model
from recipe.cli.parser import build_parser
from recipe.corpus import identity
from recipe.errors import BelowThresholdsError
from recipe.evaluation import comparison, metrics
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.stages import convert, evaluate


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


@pytest.mark.parametrize(
    ("before", "new", "failed", "shown"),
    [
        (None, False, [], True),
        ("publish", False, [], False),
        ("publish", True, [], True),
        ("publish", False, ["identity_hit 0.900"], True),
    ],
)
def test_an_evaluation_on_the_way_to_another_verb_is_shown_where_it_is_new_or_fails(
    before: str | None, new: bool, failed: list[str], shown: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(stage, "require", lambda *_: {})
    monkeypatch.setattr(stage, "read_manifest", lambda _: {"seconds": 1})
    monkeypatch.setattr(convert, "trained_with", lambda _: (tmp_path / "work" / "models" / "miniature", {}))
    monkeypatch.setattr(identity, "read_identity", lambda _: None)
    monkeypatch.setattr(evaluate, "make", lambda *_, **__: {"seconds": 2 if new else 1})
    monkeypatch.setattr(evaluate, "failed_checks", lambda _: failed)
    monkeypatch.setattr(metrics, "read", lambda _: None)
    monkeypatch.setattr(comparison, "table", lambda _: "the table")
    monkeypatch.setattr(verb_commands, "run_report", lambda _: print("the report"))
    options = build_parser().parse_args(
        ["eval", "--work", str(tmp_path / "work"), *(["--before", before] if before else [])]
    )
    with pytest.raises(BelowThresholdsError) if failed else contextlib.nullcontext():
        verb_commands.run_eval(options)
    output = capsys.readouterr().out
    assert all((text in output) == shown for text in ("the table", "the report", "recipe chat"))


def test_elsewhere_every_step_is_a_call_that_the_parser_takes() -> None:
    lines = next_steps("my-run", "/w 2/models/miniature", Path("/w 2")).splitlines()
    for line in lines:
        python, _, module, *words = shlex.split(line.partition(":  ")[2])
        assert (python, module) == ("python", "recipe")
        options = build_parser().parse_args(words)
        assert (options.work, options.run) == (Path("/w 2"), "my-run")
