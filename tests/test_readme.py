"""What the README tells a user to type or to open exists, and both languages tell the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from recipe.cli.parser import build_parser
from recipe.corpus.identity import Identity
from recipe.corpus.rows import balanced_rows
from recipe.evaluation import thresholds
from recipe.paths import ROOT
from recipe.pipeline.table import BY_VERB, STAGES, Stage
from recipe.stages import config
from recipe.stages.evaluate import prompts

READMES = ("README.md", "README.zh-CN.md")
TEXT = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in (*READMES, "CONTRIBUTING.md", "docs/architecture.md")
}
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
    assert commands or name not in READMES
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
    assert described[: len(STAGES)] == [stage.verb for stage in STAGES]
    assert set(described) <= TARGETS
    for stage in STAGES:
        (row,) = re.findall(rf"^\| `{stage.verb}` \|[^|]*\| `([^`]*)`", table, re.MULTILINE)
        assert row.startswith(f"work/{stage.folder}/" if stage.shared else f"{stage.folder}/"), stage.verb


def prerequisites(target: str) -> set[str]:
    """The targets that `make` makes before this one, all the way back."""
    rule = re.search(rf"^{target}: (.*?) ##", MAKEFILE, re.MULTILINE)
    assert rule, target
    direct = set(re.findall(r"[a-z]+", re.sub(r"\$\(if \$\(CONFIG\),(.*?),(.*?)\)", r"\1 \2", rule[1]))) & set(BY_VERB)
    return direct.union(*map(prerequisites, direct))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.verb)
def test_make_makes_what_a_stage_reads_and_nothing_that_comes_after_it(stage: Stage) -> None:
    order = [each.verb for each in STAGES]
    assert set(stage.reads) - {"data"} <= prerequisites(stage.verb)  # replay only looks whether data are there
    assert all(order.index(verb) < order.index(stage.verb) for verb in {*stage.reads, *prerequisites(stage.verb)})


@pytest.mark.parametrize("name", TEXT)
def test_every_file_linked_or_named_exists(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT[name]) if "://" not in link]
    here = Path(name).parent
    folders = re.findall(r"`((?:recipe|data|docs|tests|\.ci)/[\w./-]+)`", TEXT[name])
    for path in [str(here / link) for link in links] + folders + file_tree(name):
        assert (ROOT / path.rstrip("/")).exists(), path


def file_tree(name: str) -> list[str]:
    """The paths in the README's tree of files; an indented one lies in recipe/."""
    blocks = [block for block in TEXT[name].split("```") if block.startswith("\nMakefile ")]
    lines = [line for block in blocks for line in block.splitlines()[1:]]
    return [("recipe/" if line.startswith(" ") else "") + line.split()[0] for line in lines]


@pytest.mark.parametrize("name", READMES)
def test_every_folder_of_the_package_has_its_purpose(name: str) -> None:
    folders = {f"recipe/{path.name}/" for path in (ROOT / "recipe").iterdir() if any(path.glob("*.[ps]*"))}
    assert {path for path in file_tree(name) if path.startswith("recipe/") and path != "recipe/"} == folders


def test_the_picture_of_the_folders_is_that_of_the_import_contract() -> None:
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert layers
    contract = re.findall(r"recipe\.(\w+)", layers[1])
    picture = TEXT["docs/architecture.md"].split("```")[1].splitlines()
    *shown, foundation = [line for line in picture if line.strip()]
    assert [line.split()[0] for line in shown] == contract[: len(shown)]
    assert set(foundation.split(", ")) == set(contract[len(shown) :])


@pytest.mark.parametrize("name", READMES)
def test_counts_and_thresholds_are_the_code_s(name: str) -> None:
    text, held_out = TEXT[name], prompts()
    trained = len(balanced_rows(Identity("小明"), 0))
    lines = {
        start: re.search(rf"^{re.escape(start)}.*", text, re.MULTILINE)
        for start in ("| `data` |", "- **identity hit**", "- **身份命中", "- **identity leak**", "- **身份泄漏")
    }
    shown = [re.findall(r"(?<![\d.,])\d+(?![\d.,])", line.group()) for line in lines.values() if line]
    counts = (trained, len(held_out.identity), len(held_out.facts))
    assert [numbers[0] for numbers in shown] == [str(number) for number in counts]
    extended = prompts(extended=True)
    more = (len(balanced_rows(Identity("小明"), 0, extended=True)), len(extended.identity), len(extended.facts))
    assert [f"{number:,}" in line.group() for number, line in zip(more, filter(None, lines.values()), strict=True)] == [
        True, True, True,
    ]  # fmt: skip
    limits = re.findall(r"[≥≤] [\d.]*\d", text)  # whole numbers: 0.9 is not found in 0.95
    assert limits.count(f"≥ {thresholds.MIN_IDENTITY_HIT}") >= 2
    assert f"≥ {thresholds.MIN_MULTI_TURN_HIT}" in limits
    assert f"≥ {thresholds.MIN_INJECTION_HIT}" in limits
    assert f"≤ {thresholds.MAX_IDENTITY_LEAK}" in limits


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
