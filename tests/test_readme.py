"""What the README tells a user to type or to open exists, and both languages tell the same."""

from __future__ import annotations

import re
import subprocess

import pytest

from recipe.cli.parser import build_parser
from recipe.corpus.identity import Identity
from recipe.corpus.rows import balanced_rows
from recipe.evaluation import thresholds
from recipe.paths import ROOT
from recipe.stages import config
from recipe.stages.evaluate import prompts

READMES = ("README.md", "README.zh-CN.md")
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*READMES, "CONTRIBUTING.md")}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) +\?=", MAKEFILE, re.MULTILINE))


def code_of(text: str) -> list[str]:
    """What stands in backticks or in code blocks, a line each."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


@pytest.mark.parametrize("name", TEXT)
def test_every_make_target_and_variable_named_exists(name: str) -> None:
    commands = [line for line in code_of(TEXT[name]) if line.startswith("make ")]
    assert commands or name == "CONTRIBUTING.md"
    for command in commands:
        words = re.sub(r"'[^']*'", "x", command.split("#")[0]).split()[1:]
        targets = [word for word in words if "=" not in word]
        assert set(targets) <= TARGETS, command
        assert {word.split("=")[0] for word in words if "=" in word} <= VARIABLES, command
    for variable in re.findall(r"`([A-Z_]+)=", TEXT[name]):
        assert variable in VARIABLES


@pytest.mark.parametrize("name", READMES)
def test_every_preset_and_no_other_is_described(name: str) -> None:
    table = TEXT[name].split("\n| `PRESET=` |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == config.presets()


@pytest.mark.parametrize("name", READMES)
def test_every_stage_is_described_in_order(name: str) -> None:
    table = TEXT[name].split("\n| `make` |")[1].split("\n\n")[0]
    described = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    verbs = re.findall(r"^    ([a-z]+)\b", build_parser().format_help(), re.MULTILINE)
    assert described == [verb for verb in verbs if verb != "quickstart"]
    assert set(described) <= TARGETS


@pytest.mark.parametrize("name", TEXT)
def test_every_file_linked_or_named_exists(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT[name]) if "://" not in link]
    folders = re.findall(r"`((?:recipe|data|docs|tests|\.ci)/[\w./-]+)`", TEXT[name])
    named = [
        line.split()[0]
        for line in TEXT[name].split("```")
        if line.startswith("\nMakefile ")
        for line in line.splitlines()[1:]
    ]
    for path in links + folders + named:
        assert (ROOT / path.rstrip("/")).exists(), path


@pytest.mark.parametrize("name", READMES)
def test_counts_and_thresholds_are_the_code_s(name: str) -> None:
    text, asked = TEXT[name], prompts()
    trained = len(balanced_rows(Identity("小明"), 0))
    lines = {
        start: re.search(rf"^{re.escape(start)}.*", text, re.MULTILINE)
        for start in ("| `data` |", "- **identity hit**", "- **身份命中", "- **identity leak**", "- **身份泄漏")
    }
    shown = [re.findall(r"(?<![\d.,])\d+(?![\d.,])", line.group()) for line in lines.values() if line]
    counts = (trained, len(asked.identity), len(asked.facts))
    assert [numbers[0] for numbers in shown] == [str(number) for number in counts]
    assert text.count(f"≥ {thresholds.MIN_IDENTITY_HIT}") >= 2
    assert f"≥ {thresholds.MIN_MULTI_TURN_HIT}" in text
    assert f"≥ {thresholds.MIN_INJECTION_HIT}" in text
    assert f"≤ {thresholds.MAX_IDENTITY_LEAK}" in text


def test_both_languages_hold_the_same_commands_numbers_and_sections() -> None:
    english, chinese = (TEXT[name] for name in READMES)
    commands = [
        [line for line in code_of(text) if line.startswith(("make ", "python "))] for text in (english, chinese)
    ]
    assert commands[0] == commands[1]
    assert english.count("\n#") == chinese.count("\n#")
    assert english.count("\n|") == chinese.count("\n|")
    decimals = [sorted(re.findall(r"\d\.\d{3}\b", text)) for text in (english, chinese)]
    assert decimals[0] == decimals[1]


def test_make_help_names_every_target_and_variable() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in TARGETS | VARIABLES:
        assert re.search(rf"\b{name}\b", shown), name


def test_the_changelog_begins_with_what_is_not_released() -> None:
    assert re.search(r"^## \[Unreleased\]$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
