"""The stages together, on the miniature with a training too short to learn much: what runs again, and what it
leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipe import cli
from recipe.evaluation import checkpoint_selection
from recipe.evaluation.scoring import Prompts
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.stages import evaluate

STAGES = ("data", "config", "train", "adapter", "merged", "eval", "report")
WARM_UP = ["param_scheduler.0.end=0.05", "param_scheduler.1.begin=0.05"]
SHORT = ["--set", "max_epochs=0.1", "save_steps=5", "lr=2e-4", *WARM_UP]

Go = Callable[..., int]


@pytest.fixture(scope="module", autouse=True)
def few_prompts() -> Iterator[None]:
    """Of those that score the checkpoints and the result, every fourth: `make quickstart` asks all of them."""

    def fewer(prompts: Callable[..., Prompts]) -> Callable[..., Prompts]:
        def every_fourth(**options: Any) -> Prompts:
            asked = prompts(**options)
            facts = asked.facts[::4]
            second = [fact.second_wording for fact, _ in facts if fact.expect is not None]
            return replace(
                asked,
                identity=asked.identity[::4],
                facts=facts,
                second_wordings=second if asked.second_wordings else [],
            )

        return every_fourth

    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoint_selection, evaluate):
            patch.setattr(module, "prompts", fewer(module.prompts))
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def go(work: Path) -> Go:
    def quickstart(*arguments: str) -> int:
        return cli.main(["quickstart", "--work", str(work), "--run", "short", *arguments])

    return quickstart


def stage_times(work: Path) -> dict[str, float]:
    """When each stage was completed."""
    folders = {name: work / "short" / name for name in STAGES} | {
        "model": work / "models" / "miniature", "replay": work / "replay" / "miniature",
    }  # fmt: skip
    return {name: (folder / stage.MANIFEST).stat().st_mtime for name, folder in folders.items()}


@pytest.fixture(scope="module")
def first(go: Go, work: Path) -> dict[str, float]:
    assert go("--name", "小明", *SHORT) == 3  # too little, and eval says so
    return stage_times(work)


def test_run_again_every_stage_has_done_its_work_once(
    first: dict[str, float], go: Go, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go() == 3  # the choices are remembered, and so is the verdict
    assert stage_times(work) == first
    assert capsys.readouterr().err.count("up to date") == len(stage_times(work))


def test_a_stage_that_has_done_its_work_answers_without_torch(first: dict[str, float], work: Path) -> None:
    """Importing torch takes seconds, in each verb of a `make report`."""
    script = (
        "import sys; from recipe import cli\n"
        "for verb in sys.argv[2:]: cli.main([verb, '--work', sys.argv[1], '--run', 'short'])\n"
        "print(*({'torch', 'transformers'} & sys.modules.keys()))"
    )
    # Not eval, which of all prompts has not done its work.
    verbs = ("data", "model", "replay", "config", "train", "convert", "merge", "report")
    done = subprocess.run(
        [sys.executable, "-c", script, str(work), *verbs], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.count("up to date") == len(verbs)
    assert done.stdout.splitlines()[-1] == ""


def test_a_result_below_the_thresholds_fails_and_says_which(
    first: dict[str, float], go: Go, capsys: pytest.CaptureFixture[str]
) -> None:
    go()
    shown = capsys.readouterr()
    assert "FAILED" in shown.out
    assert "error: the result is not good enough: identity_hit" in shown.err


def test_a_result_below_the_thresholds_has_its_report(first: dict[str, float], work: Path) -> None:
    page = (work / "short/report/index.html").read_text(encoding="utf-8")
    metrics = json.loads((work / "short/eval/metrics.json").read_text(encoding="utf-8"))
    assert 'class="verdict failed"' in page
    assert repr(metrics["tuned"]["identity_hit"]) in page


def test_metrics_hold_base_and_tuned_with_counts_and_replies(first: dict[str, float], work: Path) -> None:
    metrics = json.loads((work / "short/eval/metrics.json").read_text(encoding="utf-8"))
    for who in ("base", "tuned"):
        assert all(0 <= metrics[who][key] <= 1 for key in ("identity_hit", "identity_leak", "retention"))
        assert len(metrics[who]["replies"]) == sum(
            metrics[who]["counts"][key] for key in ("identity_questions", "unrelated_prompts")
        )
    assert metrics["base"]["identity_hit"] == 0
    assert metrics["base"]["retention"] == 1
    assert list(metrics["checkpoints"])[:2] == ["iter_5", "iter_10"]  # and the last step
    assert len(metrics["checkpoints"]) == 3
    merged = json.loads((work / "short/merged/manifest.json").read_text(encoding="utf-8"))["results"]["checkpoint"]
    assert merged == f"{metrics['best_checkpoint']}.pth"


def test_the_merged_model_loads_with_plain_transformers_and_answers_alike(first: dict[str, float], work: Path) -> None:
    """Here after a training, in this process; `test_the_merged_folder_is_for_anyone` has one that knows no recipe."""
    from transformers import pipeline

    chat = pipeline("text-generation", str(work / "short/merged"), trust_remote_code=False, dtype="float32")
    metrics = json.loads((work / "short/eval/metrics.json").read_text(encoding="utf-8"))
    answered_rows = [row for row in metrics["tuned"]["replies"] if row["stopped"]][::10]
    assert answered_rows
    for row in answered_rows:
        talk = chat([{"role": "user", "content": row["prompt"]}], max_new_tokens=200, do_sample=False)
        assert talk[0]["generated_text"][-1]["content"] == row["reply"]
    assert not list((work / "short/merged").glob("*.py"))
    assert not list((work / "short/merged").glob("*.bin"))


def test_gguf_files_have_their_numbers_and_the_report_shows_them(
    first: dict[str, float], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["gguf", "--work", str(work), "--run", "short"]) == 0
    assert "[gguf] hit/leak/retention: tuned " in capsys.readouterr().err
    measured = json.loads((work / "short/eval/metrics.json").read_text(encoding="utf-8"))["tuned"]
    scores = json.loads((work / "short/gguf/manifest.json").read_text(encoding="utf-8"))["results"]["scores"]
    for key in ("identity_hit", "identity_leak", "retention", "counts"):
        assert scores["model-f16.gguf"][key] == measured[key]  # the same weights, bit for bit
    written = (work / "short/report/report.md").read_text(encoding="utf-8")
    assert "| model-q4\\_0.gguf | " in written


def test_base_adapter_and_merged_all_chat(
    first: dict[str, float], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["chat", "--work", str(work), "--run", "short", "--prompt", "3+4=?"]
    for which in ([], ["--model", "miniature"], ["--adapter", str(work / "short/adapter")]):
        assert cli.main([*common, *which]) == 0
        assert capsys.readouterr().out.strip()


def test_another_name_redoes_what_depends_on_it_and_nothing_else(
    first: dict[str, float], go: Go, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go("--name", "小红")
    redone = {name for name, when in stage_times(work).items() if when != first[name]}
    assert redone == {"data", "config", "train", "adapter", "merged", "eval", "report"}


def test_another_checkpoint_redoes_only_what_follows_it(
    first: dict[str, float], go: Go, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stage_times(work)
    go("--checkpoint", "iter_5")
    redone = {name for name, when in stage_times(work).items() if when != before[name]}
    assert redone == {"adapter", "merged", "eval", "report"}


def test_a_changed_base_is_noticed_before_anything_is_merged_onto_it(
    first: dict[str, float], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = work / "models/miniature/config.json"
    original = config.read_bytes()
    before = stage_times(work)
    try:
        config.write_bytes(original.replace(b"10000", b"20000"))
        assert cli.main(["merge", "--work", str(work), "--run", "short"]) == 1
        assert "another base" in capsys.readouterr().err
    finally:
        config.write_bytes(original)
    assert stage_times(work) == before
