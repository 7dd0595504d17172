"""The variants differ from the run by their data alone, and train as long."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_results import example_results

from recipe.cli.parser import build_parser
from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import replay_parts, replay_prompts
from recipe.corpus.rows import balanced_rows, part_of
from recipe.errors import BELOW_THRESHOLDS, RecipeError
from recipe.experiments import ablation
from recipe.paths import ROOT
from recipe.pipeline import choices, stage
from recipe.stages import config

TUNED = {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 0.99, "multi_turn_hit": 1.0, "injection_hit": 0.9,
         "broken": 0.0, "kl_per_token": 0.01}  # fmt: skip


def write(folder: Path, results: dict[str, Any], files: dict[str, str] | None = None) -> None:
    def work(out: Path) -> dict[str, Any]:
        for name, content in (files or {}).items():
            (out / name).write_text(content, encoding="utf-8")
        tuned = example_results("eval")["tuned"] | results.get("tuned", {})
        return example_results(folder.name, **results | ({"tuned": tuned} if folder.name == "eval" else {}))

    inputs = {"train": folder.parent / "train"} if folder.name == "eval" else {}
    stage.run(folder.name, folder, inputs=inputs, settings={}, work=work)


def configured(run: Path, iterations: int, *, epochs: bool) -> None:
    length = "max_epochs=8" if epochs else f"max_iters={iterations}"
    file = (
        f"train_cfg = dict({length})\nparam_scheduler = [dict(by_epoch={epochs}, end=0.5), "
        f"dict(by_epoch={epochs}, begin=0.5, end=8)]\n"
    )
    figures = {"iterations": iterations, "optimizer_steps": iterations, "trained_tokens": 1024 * iterations}
    write(run / "config", figures, {config.FILE: file})


class Verbs:
    """In place of processes: notes what is called and writes what the verb would."""

    def __init__(self, work: Path, *, epochs: bool, fails: bool = False) -> None:
        self.work, self.epochs, self.fails = work, epochs, fails
        self.calls: list[Any] = []

    def __call__(self, run_name: str, arguments: Sequence[str]) -> None:
        options = build_parser().parse_args(list(arguments))
        self.calls.append(options)
        run = self.work / options.run
        if options.until == "config":
            configured(run, 800 if options.mode == "tutorial" else 100, epochs=self.epochs)
        elif not self.fails:
            write(run / "train", {"iterations": 150})
            write(run / "eval", {"tuned": TUNED | {"retention": 0.5}})


@pytest.fixture
def own(tmp_path: Path) -> Path:
    run = tmp_path / "mine"
    write(run / "data", {"mode": "balanced"})
    write(run / "train", {"iterations": 150})
    write(run / "eval", {"tuned": TUNED})
    chosen = {"name": "小明", "model": "miniature", "seed": 3, "languages": "en", "set": ["r=8"]}
    (run / choices.FILE).write_text(json.dumps(chosen), encoding="utf-8")
    return run


@pytest.mark.parametrize("epochs", [True, False])
def test_variants_differ_by_their_data_and_train_as_long(
    own: Path, monkeypatch: pytest.MonkeyPatch, epochs: bool
) -> None:
    configured(own, 200, epochs=epochs)  # it stopped early, at 150
    verbs = Verbs(own.parent, epochs=epochs)
    monkeypatch.setattr(ablation, "_call", verbs)
    manifest = ablation.make(own / "ablation", work=own.parent, run="mine")
    assert [(call.run, call.mode, call.until) for call in verbs.calls] == [
        ("mine-tutorial", "tutorial", "config"), ("mine-tutorial", "tutorial", None),
        ("mine-no-replay", "balanced", "config"), ("mine-no-replay", "balanced", None),
    ]  # fmt: skip
    shared = {(call.name, call.model, call.seed, call.languages) for call in verbs.calls}
    assert shared == {("小明", "miniature", 3, "en")}
    assert all(call.set[0] == "r=8" and "patience=None" in call.set for call in verbs.calls)
    assert ["replay_ratio=0" in call.set for call in verbs.calls] == [False, False, True, True]
    lengths = [dict(setting.split("=") for setting in call.set) for call in verbs.calls[1::2]]
    if epochs:
        assert [float(length["max_epochs"]) for length in lengths] == pytest.approx([8 * 150 / 800, 8 * 150 / 100])
        assert [float(length["param_scheduler.0.end"]) for length in lengths] == pytest.approx([0.5 * 150 / 800, 0.75])
    else:
        assert [length["max_iters"] for length in lengths] == ["150", "150"]
    assert list(manifest["results"]) == ["tutorial", "no-replay", "balanced"]
    assert manifest["results"]["balanced"] == TUNED | {"iterations": 150, "trained_tokens": 1024 * 150}
    assert manifest["results"]["tutorial"]["retention"] == 0.5


def test_a_run_is_not_cleaned_while_its_variants_train(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(own, 200, epochs=True)
    verbs, refusals = Verbs(own.parent, epochs=True), []
    (own.parent / "checkout").mkdir()
    (own.parent / "checkout" / "work").symlink_to(own.parent)

    def call(run: str, arguments: Sequence[str]) -> None:
        clean = ["bash", str(ROOT / "recipe" / "env" / "clean.sh"), "mine"]
        done = subprocess.run(clean, cwd=own.parent / "checkout", capture_output=True, text=True, check=False)
        refusals.append((done.returncode, done.stderr.splitlines()[-1]))
        verbs(run, arguments)

    monkeypatch.setattr(ablation, "_call", call)
    ablation.make(own / "ablation", work=own.parent, run="mine")
    line = "error: another process is working on work/mine: stop it or wait for it, then run make clean again"
    assert refusals == [(1, line)] * 4


def test_parts_of_the_data_are_left_out_one_by_one(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(own, 200, epochs=False)
    verbs = Verbs(own.parent, epochs=False)
    monkeypatch.setattr(ablation, "_call", verbs)
    with pytest.raises(RecipeError, match="the miniature's rows, which are not divided into parts"):
        ablation.make(own / "ablation", work=own.parent, run="mine", parts=True)
    assert not verbs.calls
    shutil.rmtree(own / "data")
    write(own / "data", {"mode": "balanced", "extended": True})
    manifest = ablation.make(own / "ablation", work=own.parent, run="mine", parts=True)
    assert list(manifest["results"])[:4] == ["tutorial", "no-replay", "words", "no-extended"]
    assert list(manifest["results"])[-1] == "balanced"
    trained = {call.run.removeprefix("mine-"): call.set for call in verbs.calls if call.until is None}
    assert len(trained) == 3 + len(ablation.PARTS)
    assert "train_dataloader.dataset.distill=False" in trained["words"]
    for part in ablation.PARTS:
        assert f'leave_out=["{part}"]' in trained[f"no-{part}"]


def test_the_parts_are_those_of_the_rows() -> None:
    replay = {*replay_parts(extended=True), "beginnings"}
    rows = {part_of(row) for row in balanced_rows(Identity("Ann"), 0, extended=True)}
    assert set(ablation.PARTS) == replay | rows - {"questions"}  # without any questions there is nothing to learn
    assert len(replay_parts(extended=True)) == len(replay_prompts(extended=True))
    assert len(replay_parts()) == len(replay_prompts())


def test_variants_are_of_the_runs_model_where_it_is_the_default_of_all_verbs_but_quickstart(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(own, 200, epochs=True)
    (own / choices.FILE).write_text('{"name": "小明"}', encoding="utf-8")
    verbs = Verbs(own.parent, epochs=True)
    monkeypatch.setattr(ablation, "_call", verbs)
    ablation.make(own / "ablation", work=own.parent, run="mine")
    assert {call.model for call in verbs.calls} == {"internlm2-chat-1_8b"}


def test_a_variant_that_came_to_nothing_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(own, 200, epochs=True)
    monkeypatch.setattr(ablation, "_call", Verbs(own.parent, epochs=True, fails=True))
    with pytest.raises(RecipeError, match=r"mine-tutorial/eval is missing or incomplete"):
        ablation.make(own / "ablation", work=own.parent, run="mine")
    assert not (own / "ablation").exists()


def test_what_was_not_trained_on_balanced_data_has_nothing_to_take_away(tmp_path: Path) -> None:
    for name in ("train", "eval"):
        write(tmp_path / "mine" / name, {})
    write(tmp_path / "mine" / "data", {"mode": "own"})
    with pytest.raises(RecipeError, match="nothing to take away"):
        ablation.make(tmp_path / "mine" / "ablation", work=tmp_path, run="mine")


def test_an_evaluation_of_another_training_is_never_compared(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(own, 200, epochs=True)
    verbs = Verbs(own.parent, epochs=True)
    monkeypatch.setattr(ablation, "_call", verbs)
    shutil.rmtree(own / "train")
    write(own / "train", {"iterations": 90}, {"losses.jsonl": "trained again"})
    with pytest.raises(RecipeError, match=r"mine/eval is of another training .* run `make eval RUN=mine` first"):
        ablation.make(own / "ablation", work=own.parent, run="mine")
    assert not verbs.calls


@pytest.mark.parametrize(("status", "fails"), [(0, False), (BELOW_THRESHOLDS, False), (1, True), (2, True), (-9, True)])
def test_a_variant_that_fails_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, status: int, fails: bool
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=status))
    refused = pytest.raises(RecipeError, match=rf"the variant mine-tutorial failed \(exit status {status}\)")
    with refused if fails else contextlib.nullcontext():
        ablation._call("mine-tutorial", ["quickstart"])
