"""The presets of the real model on a real GPU, with the miniature as model: mixed precision, 4-bit kernels, merge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli
from recipe.device import has_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")]

SHORT = {
    "qlora": ("balanced", ["max_iters=40", "lr=2e-3"]),
    "lora": ("balanced", ["max_iters=40", "lr=2e-3"]),
    "fast": ("balanced", ["max_iters=40", "lr=2e-3"]),
    "fp8": ("balanced", ["max_iters=40", "lr=2e-3"]),
    "tutorial": ("tutorial", ["max_epochs=1", "lr=2e-3"]),
}


@pytest.mark.parametrize("preset", SHORT)
def test_it_trains_converts_merges_and_is_measured(preset: str, tmp_path: Path) -> None:
    mode, settings = SHORT[preset]
    arguments = ["--name", "小明", "--mode", mode, "--preset", preset, "--set", *settings]
    cli.main(["quickstart", "--work", str(tmp_path), "--run", preset, *arguments])
    losses = [json.loads(line) for line in (tmp_path / preset / "train/losses.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert (tmp_path / preset / "eval/metrics.json").is_file()
    assert json.loads((tmp_path / preset / "train/manifest.json").read_text())["gpu_peak_mib"] > 0


@pytest.mark.parametrize("preset", ["qlora", "lora", "fast", "fp8"])
def test_other_bases_train_convert_and_merge(preset: str, base_repository: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am an assistant."}]}
    own.write_text((json.dumps(row) + "\n") * 64, encoding="utf-8")
    run = ["--work", str(tmp_path), "--run", preset]
    cli.main(["data", *run, "--name", "小明", "--data", str(own), "--data-only"])
    cli.main(["model", *run, "--model", str(base_repository)])
    settings = ["max_iters=40", "lr=2e-2", "max_length=256", "patience=None", "replay_ratio=0"]
    for verb in (["replay"], ["config", "--preset", preset, "--set", *settings], ["train"], ["convert"], ["merge"]):
        cli.main([verb[0], *run, *verb[1:]])
    losses = [json.loads(line) for line in (tmp_path / preset / "train/losses.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]


@pytest.mark.parametrize("options", [[], ["--deepspeed", "zero2"], ["--deepspeed", "zero3"]], ids=" ".join)
def test_two_gpus_train_what_converts_and_merges(options: list[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arguments = ["--name", "小明", "--preset", "fast", "--set", "max_iters=40", "lr=2e-3", "--gpus", "2", *options]
    cli.main(["quickstart", "--work", str(tmp_path), "--run", "two", *arguments])
    losses = [json.loads(line) for line in (tmp_path / "two/train/losses.jsonl").read_text().splitlines()]
    assert losses[-1]["loss"] < 0.7 * losses[0]["loss"]
    assert (tmp_path / "two/eval/metrics.json").is_file()
