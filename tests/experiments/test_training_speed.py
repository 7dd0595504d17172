"""The bench without a GPU: what it counts, and that it says in one line why it does not start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipe.cli import main
from recipe.errors import RecipeError
from recipe.experiments import training_speed
from recipe.experiments.training_speed import cases, trainers, workload
from recipe.experiments.training_speed.cases import CASES, Case
from recipe.experiments.training_speed.clock import WARM_UP, WINDOWS, Clock
from recipe.paths import ROOT
from recipe.stages import config


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training_speed, "has_gpu", lambda: False)
    with pytest.raises(RecipeError, match="no NVIDIA GPU here"):
        training_speed.run(tmp_path / "bench", ["fast"])
    assert not (tmp_path / "bench").exists()


def test_an_unknown_name_is_refused_before_the_gpu_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--work", str(tmp_path), "fast", "endtoend"]) == 1
    assert "'endtoend' is none of end_to_end; tutorial; lora; fast" in capsys.readouterr().err


def test_every_preset_of_the_real_model_is_measured() -> None:
    measured = {case.trainer for case in CASES.values()}
    assert set(config.presets()) - {"miniature"} <= measured
    assert measured <= set(config.presets()) | set(trainers.OTHERS)


def test_operations_a_token_counted_by_hand() -> None:
    layer = 2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 8192
    adapter = 64 * (2 * 4096 + 2 * 3072 + 3 * 10240)
    assert workload.flop_per_token() == 4 * (24 * layer + 2048 * 92544) + 6 * 24 * adapter + 7 * 1024 * 2048 * 24


def test_the_model_has_the_real_ones_size() -> None:
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    with init_empty_weights():
        model = LlamaForCausalLM(LlamaConfig(**workload.MODEL))
    assert sum(p.numel() for p in model.parameters()) == 1_889_110_016


def test_packs_are_the_same_for_everyone() -> None:
    first, second = workload.RandomPacks(3), workload.RandomPacks(5, positions=False)
    assert list(first[2]["input_ids"]) == list(second[2]["input_ids"]) == list(first[2]["labels"])
    assert "position_ids" not in second[0]
    assert len(first[0]["input_ids"]) == workload.LENGTH


def figures(name: str, rate: int) -> dict[str, Any]:
    case = CASES[name]
    return {
        "name": name, "batch": case.batch, "gpus": case.gpus, "tokens_per_s": rate, "slowest": 61000, "fastest": 61500,
        "peak_mib": 15682, "mfu": 0.65, "seconds_to_first_step": 20.0,
    }  # fmt: skip


def test_the_table_shows_figures_ratios_and_failures() -> None:
    measured = [figures("fast", 61234), figures("fast, 2 GPUs", 119406), figures("fast zero2, 2 GPUs", 100000)]
    text = training_speed.table([*measured, {"name": "TRL", "error": "trl is not installed"}])
    assert "| fast | 1 | 8 | 61,234 | 61,000–61,500 | 1.00 | 15,682 | 65% | 20.0 |" in text
    assert "| fast, 2 GPUs | 2 | 8 | 119,406 | 61,000–61,500 | 1.95 |" in text
    assert "| fast zero2, 2 GPUs | 2 | 8 | 100,000 | 61,000–61,500 |  |" in text  # without zero2 on one GPU
    assert "trl is not installed" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_what_takes_two_gpus_is_measured_beside_one_and_left_out_where_there_is_one() -> None:
    for name, case in CASES.items():
        if case.gpus > 1:
            assert case._replace(gpus=1) in CASES.values(), name
            assert cases.unmet_requirement(name, 1) == f"needs {case.gpus} GPUs"
            assert cases.unmet_requirement(name, case.gpus) is None
    assert {case.deepspeed for case in CASES.values() if case.gpus == 2} == {None, "zero2"}


@pytest.mark.parametrize("name", ["fast", "fast zero2", "fast, 2 GPUs"])
def test_several_processes_are_torchruns_and_one_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="a line\n{}\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert training_speed._child(["one", name], CASES[name])[-1] == "{}"
    case = CASES[name]
    assert ("torch.distributed.run" in started[0]) is (name != "fast")
    assert (f"--nproc-per-node={case.gpus}" in started[0]) is (name != "fast")
    assert started[0][-4:] == ["-m", "recipe.experiments.training_speed", "one", name]


def test_the_measuring_process_is_a_module_that_starts() -> None:
    command = [sys.executable, "-m", "recipe.experiments.training_speed", "--help"]
    assert "{make,one}" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


class StepCounter(Clock):
    """A clock that needs no GPU."""

    steps_done = 0

    def step(self) -> None:
        self.steps_done += 1


def test_xtuner_steps_the_clock_on_the_bench_s_own_data(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    monkeypatch.setattr(workload, "VOCABULARY", vocabulary)
    monkeypatch.setattr(workload, "LENGTH", 32)
    clock = StepCounter(started=0.0, tokens=64, steps=1)
    trainers.train(Case("fast", batch=2, steps=1), tiny_model, clock, tmp_path)
    assert clock.steps_done == clock.total_steps == WARM_UP + WINDOWS
    assert not list(tmp_path.glob("*.pth"))
