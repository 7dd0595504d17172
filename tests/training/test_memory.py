"""The memory predicted for a preset against what one H200 was measured to take."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from recipe.experiments.training_speed.workload import MODEL
from recipe.stages import config
from recipe.training import memory
from recipe.training.without_gpu import for_cpu

# preset, packs of 1,024 tokens -> MiB that PyTorch had allocated at its peak (torch 2.11.0, rank 64)
MEASURED = {
    ("fast", 8): 15319, ("fast", 16): 25929, ("fp8", 8): 18226, ("fp8", 16): 28871,
    ("qlora", 2): 3033, ("qlora", 8): 4084,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return tmp_path


def resolved(preset: str, batch: int, **model: Any) -> Any:
    chosen = config.load_preset(preset)
    chosen.train_dataloader.batch_size = batch
    chosen.model.update(model)
    return chosen


@pytest.mark.parametrize(("preset", "batch"), MEASURED)
def test_it_agrees_with_what_was_measured(preset: str, batch: int, model: Path) -> None:
    predicted = memory.predict(resolved(preset, batch), model)
    assert predicted is not None
    assert predicted.total / 2**20 == pytest.approx(MEASURED[preset, batch], rel=0.1)


def test_recomputing_takes_less_and_a_larger_batch_more(model: Path) -> None:
    sizes = []
    for preset, batch, recompute in (("qlora", 1, True), ("qlora", 8, True), ("fast", 8, True), ("fast", 8, False)):
        predicted = memory.predict(resolved(preset, batch, recompute=recompute), model)
        assert predicted is not None
        sizes.append(predicted.total)
    assert sizes == sorted(sizes)


def test_the_buckets_of_several_processes_are_counted(model: Path) -> None:
    one, two = (memory.predict(resolved("fast", 8), model, processes) for processes in (1, 2))
    assert one is not None
    assert two is not None
    assert two.adapter * 12 == one.adapter * 16
    assert dataclasses.replace(two, adapter=one.adapter) == one


def test_it_says_what_takes_it(model: Path) -> None:
    predicted = memory.predict(resolved("fast", 4), model)
    assert predicted is not None
    assert predicted.line(gpu=True).startswith("about 9,")
    assert "weights 3,8" in predicted.line(gpu=True)


def test_without_a_gpu_it_speaks_of_memory_and_of_float32(model: Path) -> None:
    settings = resolved("fast", 4)
    on_gpu = memory.predict(settings, model)
    for_cpu(settings)
    on_cpu = memory.predict(settings, model)
    assert on_gpu is not None
    assert on_cpu is not None
    assert on_cpu.weights == 2 * on_gpu.weights
    assert on_cpu.adapter == on_gpu.adapter  # float32 on both
    assert " MiB of GPU memory: weights" in on_gpu.line(gpu=True)
    assert re.match(r"at least [\d,]+ MiB of memory: weights", on_cpu.line(gpu=False))


def test_xtuners_own_path_is_not_guessed(model: Path) -> None:
    assert memory.predict(resolved("lora", 4), model) is None
    assert memory.predict(config.load_preset("tutorial"), model) is None
