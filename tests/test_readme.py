"""What README and docs tell a user to type or to open exists, their numbers hold, and both languages tell the same."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from recipe import device
from recipe.cli.commands import RESERVED_MIB
from recipe.cli.parser import build_parser
from recipe.corpus.identity import Identity
from recipe.corpus.rows import balanced_rows
from recipe.evaluation import thresholds
from recipe.experiments.training_speed import workload
from recipe.paths import ROOT
from recipe.pipeline.table import BY_VERB, STAGES, Stage
from recipe.stages import config
from recipe.stages.evaluate import prompts
from recipe.training import memory

READMES = ("README.md", "README.zh-CN.md")
DOCS = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES = (*READMES, "CONTRIBUTING.md", "SECURITY.md", *DOCS)
# What the record of past work says was true on its day; its links hold all the same.
RECORDS = ("CHANGELOG.md", *(f"docs/adr/{path.name}" for path in sorted((ROOT / "docs/adr").glob("*.md"))))
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*PAGES, *RECORDS)}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):.*## ", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) +\?=", MAKEFILE, re.MULTILINE))
# The environment's: those of compose, and those that libraries and tools read.
SETTINGS = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
OF_UV = {"UV_SYSTEM_CERTS", "UV_DEFAULT_INDEX", "UV_PYTHON_INSTALL_MIRROR"}
OF_TRACKERS = {"WANDB_MODE", "SWANLAB_MODE", "MLFLOW_TRACKING_URI"}
OF_OPENMP = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
OF_OTHERS = OF_UV | OF_TRACKERS | OF_OPENMP | {"CUDA_VISIBLE_DEVICES"}
MAX_WORDS = 1800  # of the README


def code_of(text: str) -> list[str]:
    """What stands in backticks or in code blocks, a line each."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line for block in blocks for line in block.splitlines()] + inline


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_and_variable_named_exists(name: str) -> None:
    commands = [line for line in code_of(TEXT[name]) if line.startswith("make ")]
    assert commands or name not in READMES
    for command in commands:
        words = re.sub(r"'[^']*'", "x", command.split("#")[0]).split()[1:]
        targets = [word for word in words if "=" not in word]
        assert set(targets) <= TARGETS, command
        assert {word.split("=")[0] for word in words if "=" in word} <= VARIABLES, command
    for variable in re.findall(r"`([A-Z_]+)=", TEXT[name]):
        assert variable in VARIABLES or (name not in READMES and variable in SETTINGS | OF_OTHERS), variable


@pytest.mark.parametrize("name", PAGES)
def test_every_verb_option_and_service_named_exists(name: str) -> None:
    (verbs,) = (action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    services = set(re.findall(r"^  (\w+):", (ROOT / "compose.yaml").read_text(encoding="utf-8"), re.MULTILINE))
    for line in code_of(TEXT[name]):
        if command := re.search(r"python -m recipe ([a-z]+)(.*)", line):
            options = {option for action in verbs[command[1]]._actions for option in action.option_strings}
            assert set(re.findall(r"(?<!\S)--[a-z-]+", command[2])) <= options, line
        if command := re.search(r"(?:docker compose|docker/compose\.sh) (?:up|run --rm) ([a-z]+)", line):
            assert command[1] in services, line


def test_every_make_target_and_variable_is_documented() -> None:
    documented = "\n".join(line for name in PAGES if name != "README.zh-CN.md" for line in code_of(TEXT[name]))
    for name in TARGETS:
        assert re.search(rf"\bmake (\S+ )*{name}\b", documented) or f"\n{name}\n" in documented, name
    for name in VARIABLES:
        assert re.search(rf"\b{name}=", documented), name


def test_the_readme_is_short() -> None:
    assert len(TEXT["README.md"].split()) <= MAX_WORDS


@pytest.mark.parametrize("name", READMES)
def test_every_preset_and_no_other_is_described(name: str) -> None:
    table = TEXT[name].split("\n| `PRESET=` |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == config.presets()


@pytest.mark.parametrize("name", READMES)
def test_the_settings_of_an_example_are_those_of_its_preset(name: str) -> None:
    examples = [line for line in code_of(TEXT[name]) if "MODEL=miniature" in line and "SET='" in line]
    assert examples
    for example in examples:
        config.check_settings("miniature", example.split("SET='")[1].split("'")[0].split())


@pytest.mark.parametrize("name", READMES)
def test_every_stage_is_described_in_order(name: str) -> None:
    table = TEXT[name].split("\n| `make` |")[1].split("\n\n")[0]
    described = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    verbs = re.findall(r"^    ([a-z]+)\b", build_parser().format_help(), re.MULTILINE)
    assert described == [verb for verb in verbs if verb != "quickstart"]
    assert described[: len(STAGES)] == [stage.verb for stage in STAGES]
    assert set(described) <= TARGETS
    for stage in STAGES:
        (row,) = re.findall(rf"^\| `{stage.verb}` \| `([^`]*)` \|", table, re.MULTILINE)
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
    folders = re.findall(r"`((?:recipe|data|docs|tests|\.ci)/[\w./-]+)`", TEXT[name]) if name in PAGES else []
    files = [str(here / link.partition("#")[0]) if not link.startswith("#") else name for link in links]
    for path in files + folders + file_tree(name):
        assert (ROOT / path.rstrip("/")).exists(), path
    for path, link in zip(files, links, strict=True):
        anchor = link.partition("#")[2]
        assert not anchor or anchor in anchors_of((ROOT / path).read_text(encoding="utf-8")), link


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page: lower case, no punctuation, numbered where equal."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def test_anchors_are_github_s() -> None:
    text = "# Who is it?\n```\n# no heading\n```\n## A `code`, a [link](x.md)\n## Who is it?\n## 数据 (2026-11-27)\n"
    assert anchors_of(text) == {"who-is-it", "a-code-a-link", "who-is-it-1", "数据-2026-11-27"}


def file_tree(name: str) -> list[str]:
    """The paths in the README's tree of files; an indented one lies in recipe/."""
    blocks = [block for block in TEXT[name].split("```") if block.startswith("\nMakefile ")]
    lines = [line for block in blocks for line in block.splitlines()[1:]]
    return [("recipe/" if line.startswith(" ") else "") + line.split()[0] for line in lines]


@pytest.mark.parametrize("name", READMES)
def test_every_folder_of_the_package_has_its_purpose(name: str) -> None:
    folders = {f"recipe/{path.name}/" for path in (ROOT / "recipe").iterdir() if any(path.glob("*.[ps][yh]"))}
    assert {path for path in file_tree(name) if path.startswith("recipe/") and path != "recipe/"} == folders


def test_the_picture_of_the_folders_is_that_of_the_import_contract() -> None:
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert layers
    contract = re.findall(r"recipe\.(\w+)", layers[1])
    picture = TEXT["docs/architecture.md"].split("```")[1].splitlines()
    *shown, foundation = [line for line in picture if line.strip()]
    assert [line.split()[0] for line in shown] == contract[: len(shown)]
    assert set(foundation.split(", ")) == set(contract[len(shown) :])


def test_every_module_stands_in_the_picture_of_the_folders() -> None:
    picture = TEXT["docs/architecture.md"].split("```")[1].splitlines()
    lines = {line.split()[0]: set(re.findall(r"\w+", line)) for line in picture if line.split()}
    missing = [
        f"{folder}/{module.stem}"
        for folder, named in lines.items()
        if folder != "kernels"
        for module in sorted((ROOT / "recipe" / folder).glob("[!_]*.py"))
        if module.stem not in named
    ]
    assert not missing


def test_counts_are_the_code_s() -> None:
    table = TEXT["docs/data.md"].split("\n| | rows |")[1].split("\n\n")[0]
    rows = {
        False: re.search(r"^\| miniature \|(.*)", table, re.MULTILINE),
        True: re.search(r"^\| every other base \|(.*)", table, re.MULTILINE),
    }
    for extended, row in rows.items():
        assert row
        shown = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", row[1])]
        held_out = prompts(extended=extended)
        assert shown[0] == len(balanced_rows(Identity("小明"), 0, extended=extended))
        counts = [len(held_out.identity), len(held_out.facts), *([len(held_out.more_facts)] if extended else [])]
        assert shown[-len(counts) :] == counts


@pytest.mark.parametrize("name", READMES)
def test_thresholds_are_the_code_s(name: str) -> None:
    text = TEXT[name].split("\n## ")
    (section,) = (part for part in text if "- **identity hit**" in part or "- **身份命中" in part)
    metrics = re.findall(r"^- \*\*(.*(?:\n  .*)*)", section, re.MULTILINE)
    limits = [
        f"≥ {thresholds.MIN_IDENTITY_HIT}",
        f"≤ {thresholds.MAX_IDENTITY_LEAK}",
        f"≤ {thresholds.MAX_IDENTITY_LEAK}",
        f"≥ {thresholds.MIN_RETENTION}",
        f"≥ {thresholds.MIN_OWN_HIT}",
        f"≥ {thresholds.MIN_MULTI_TURN_HIT}",
        f"≥ {thresholds.MIN_INJECTION_HIT}",
        f"≤ {thresholds.MAX_BROKEN}",
        f"≤ {thresholds.MAX_KL_PER_TOKEN}",
    ]
    assert [re.findall(r"[≥≤] [\d.]*\d", metric) for metric in metrics] == [[limit] for limit in limits]


def test_the_facts_that_retention_needs_are_the_code_s() -> None:
    assert f"at least {thresholds.MIN_FACTS_KNOWN} facts" in TEXT["docs/data.md"]


@pytest.mark.parametrize("name", READMES)
def test_what_a_machine_needs_is_what_doctor_checks(name: str) -> None:
    doctor = (ROOT / "recipe/env/doctor.sh").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^disk disk \. (\d+) ", doctor, re.MULTILINE)
    (images,) = re.findall(r'^  disk "docker disk" \S+ (\d+) ', doctor, re.MULTILINE)
    (model,) = re.findall(r"a run of the 1\.8B model (\d+) GB more", doctor)
    (line,) = re.findall(r"^- \*\*(?:Disk|磁盘)\*\*.*", TEXT[name], re.MULTILINE)
    assert re.findall(r"(\d+) GB", line) == [packages, model, images]
    engine, compose = re.findall(r'at_least "\$\{?version[^"]*" ([\d.]+)', doctor)[:2]
    assert re.search(rf"Docker {engine}.{{1,5}}Compose {re.escape(compose)}\b", TEXT[name])
    (card,) = re.findall(r"needs a card of (\d+) GB", doctor)
    assert re.search(rf"(?:card of|一块) {card} GB", TEXT[name])


def test_predicted_memory_is_the_code_s(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(workload.MODEL))
    text = TEXT["docs/gpus.md"]
    for preset in ("fast", "fp8", "qlora"):
        needed = memory.predict(config.load_preset(preset), tmp_path)
        assert needed
        mib = needed.total >> 20
        assert re.search(rf"{mib:,} MiB\s+with\s+`{preset}`", text), (preset, mib)
        for name in READMES:
            (card,) = re.findall(rf"^\| `{preset}` \|.*\| (\d+) GB \|$", TEXT[name], re.MULTILINE)
            assert mib + RESERVED_MIB <= int(card) * 1024, (preset, mib)
    assert f"the presets take {config.load_preset('fast').train_dataloader.batch_size} packs a step" in text
    assert f"{RESERVED_MIB:,} MiB more than predicted" in text
    assert f"{device.DRIVER} or newer (CUDA {device.CUDA[0]}.{device.CUDA[1]})" in text


def test_a_measured_number_stands_on_one_page() -> None:
    """Beside it stands the command that measures it: see the next test."""
    constants = {"10,001", "1,024", "2,048"}  # rows of the tutorial; tokens of a pack and of a step
    pages = [name for name in PAGES if name not in ("README.zh-CN.md", "docs/experiments.md")]
    numbers = {name: set(re.findall(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", TEXT[name])) for name in pages}
    counted = Counter(number for found in numbers.values() for number in found - constants)
    assert [number for number, pages_with in counted.items() if pages_with > 1] == []


@pytest.mark.parametrize("name", ["docs/results.md", "docs/gpus.md", "docs/page-and-containers.md"])
def test_a_table_of_measurements_has_its_command(name: str) -> None:
    measured = [part for part in TEXT[name].split("\n## ") if re.search(r"^\|.*\d[.,]\d{3}", part, re.MULTILINE)]
    assert measured
    for part in measured:
        assert any(line.startswith("make ") for line in code_of(part)), part.splitlines()[0]


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
