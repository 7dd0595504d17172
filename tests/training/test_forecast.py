"""What the forecast counts is what XTuner's packing and this recipe's own come to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler

from recipe.chat_format import training_ids
from recipe.corpus.identity import Identity
from recipe.corpus.rows import tutorial_rows
from recipe.errors import RecipeError
from recipe.pipeline.results import Forecast
from recipe.stages import config
from recipe.training.dataset import EndlessSampler, PackedDataset
from recipe.training.forecast import MAP_BATCH, forecast, lines, shards, xtuner_packs


@pytest.fixture(autouse=True)
def no_progress_bars() -> Iterator[None]:
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def packed_by_xtuner(lengths: list[int], max_length: int, workers: int, *, shuffle: bool = False) -> tuple[int, int]:
    """(packs, dropped tokens) of a run of XTuner's own packing."""
    from datasets import Dataset
    from xtuner.dataset.huggingface import pack_dataset

    rows = Dataset.from_dict({"input_ids": [[1] * n for n in lengths], "labels": [[1] * n for n in lengths]})
    packed = pack_dataset(rows, max_length, False, shuffle, workers)
    return len(packed), sum(lengths) - sum(len(ids) for ids in packed["input_ids"])


def write_rows(file: Path, contents: list[tuple[str, str]]) -> list[list[dict[str, str]]]:
    rows = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in contents]
    text = "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
    return rows


def resolved(preset: str, model: Path, file: Path, *overrides: str) -> Any:
    chosen = config.load_preset(preset)
    config.fill(chosen, model=model, files=[file], seed=0)
    config.override(chosen, overrides)
    return chosen


def test_the_tutorial_packs_into_384_and_loses_the_rest() -> None:
    assert xtuner_packs([40] * 10_001, 1024, 32) == (384, 10_001 * 40 - 384 * 1024)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(
    ("count", "length", "max_length"),
    [(100, 40, 512), (7, 40, 1024), (2, 5, 100), (1, 64, 64), (2 * MAP_BATCH + 300, 3, 100), (MAP_BATCH, 10, 10_000)],
)
def test_packs_of_equal_rows_are_xtuners(count: int, length: int, max_length: int, workers: int) -> None:
    expected = packed_by_xtuner([length] * count, max_length, workers, shuffle=True)
    assert xtuner_packs([length] * count, max_length, workers) == expected


@pytest.mark.parametrize("workers", [2, 3])
def test_packs_of_unequal_rows_are_xtuners_in_the_same_order(workers: int) -> None:
    lengths = [1 + i * 37 % 91 for i in range(2 * MAP_BATCH + 11)]
    assert xtuner_packs(lengths, 2048, workers) == packed_by_xtuner(lengths, 2048, workers)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), max_length=st.integers(50, 400))
@settings(max_examples=10)
def test_packs_of_any_rows_are_xtuners_with_one_worker(lengths: list[int], max_length: int) -> None:
    assert xtuner_packs(lengths, max_length, 1) == packed_by_xtuner(lengths, max_length, 1)


@given(count=st.integers(1, 200), workers=st.integers(1, 40))
@settings(max_examples=30)
def test_shares_of_the_workers_are_those_of_datasets(count: int, workers: int) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"row": list(range(count))})
    used = min(count, workers)
    theirs = [rows.shard(used, i, contiguous=True)["row"] for i in range(used)]
    assert [list(share) for share in shards(count, workers)] == [list(share) for share in theirs]


def test_the_tutorial_preset_forecasts_the_tutorials_own_numbers(
    real_tokenizer: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """384 packs, 768 iterations and 48 optimizer steps: the iter_768.pth that the tutorial ends with."""
    model, file = tmp_path / "model", tmp_path / "personal_assistant.json"
    real_tokenizer.save_pretrained(model)
    (model / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    file.write_text(json.dumps(tutorial_rows(Identity("剑锋大佬"))), encoding="utf-8")
    counted = forecast(resolved("tutorial", model, file))
    assert counted == Forecast(
        rows=10_001,
        tokens=400_040,
        packs=384,
        max_length=1024,
        iterations=768,
        optimizer_steps=48,
        trained_tokens=786_432,
        dropped=6_824,
        truncated=0,
    )


@pytest.mark.parametrize("max_length", [40, 100, 1000])
def test_the_own_dataset_forecasts_the_packs_it_makes(
    tiny_model: Path, tokenizer: Any, tmp_path: Path, max_length: int
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = write_rows(file, [(f"{i}加{i}等于几？", f"{i}加{i}等于{2 * i}。" * (1 + i % 3)) for i in range(50)])
    counted = forecast(resolved("qlora", tiny_model, file, f"max_length={max_length}"))
    tokens = [training_ids(tokenizer, row) for row in rows]
    dataset = PackedDataset(tokens, max_length=max_length, pad_id=tokenizer.pad_token_id, seed=0)
    assert counted.rows == 50
    assert counted.packs == len(dataset)
    assert counted.tokens == sum(len(ids) for ids, _ in tokens)
    assert counted.truncated == dataset.truncated == sum(len(ids) > max_length for ids, _ in tokens)
    assert counted.dropped == 0


@pytest.mark.parametrize(
    ("overrides", "iterations", "steps"),
    [
        (["max_iters=40"], 40, 40),
        (["max_iters=41", "accumulative_counts=16"], 41, 3),
        (["max_iters=41", "accumulative_counts=64"], 41, 1),
    ],
)
def test_steps_are_iterations_over_accumulation_the_last_one_counted(
    tiny_model: Path, tmp_path: Path, overrides: list[str], iterations: int, steps: int
) -> None:
    write_rows(tmp_path / "rows.jsonl", [("你好", "你好！")] * 20)
    chosen = resolved("qlora", tiny_model, tmp_path / "rows.jsonl", "batch_size=2", "max_length=64", *overrides)
    counted = forecast(chosen)
    assert (counted.iterations, counted.optimizer_steps) == (iterations, steps)
    assert counted.trained_tokens == iterations * 2 * 64


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_epochs_are_counted_in_batches_the_last_one_included(tiny_model: Path, tmp_path: Path, batch_size: int) -> None:
    from torch.utils.data import DataLoader

    write_rows(tmp_path / "rows.jsonl", [("你好", "你好！")] * 40)
    chosen = resolved("tutorial", tiny_model, tmp_path / "rows.jsonl", "max_length=64", f"batch_size={batch_size}")
    counted = forecast(chosen)
    assert counted.iterations == 2 * len(DataLoader(range(counted.packs), batch_size=batch_size))


def test_a_share_of_epochs_made_for_so_many_steps_comes_to_them(tiny_model: Path, tmp_path: Path) -> None:
    """As the ablation asks for them: 3 * (21 / 60) * 20 is 20.999999999999996."""
    write_rows(tmp_path / "rows.jsonl", [("你好", "你好！")] * 40)
    chosen = resolved("miniature", tiny_model, tmp_path / "rows.jsonl", "max_length=16")
    packs = forecast(chosen).packs
    for steps in range(packs, 3 * packs):
        chosen.train_cfg.max_epochs = 3 * (steps / (3 * packs))
        assert forecast(chosen).iterations == steps


@pytest.mark.parametrize(("preset", "sampler"), [("tutorial", DefaultSampler), ("qlora", EndlessSampler)])
@pytest.mark.parametrize(("processes", "batch_size"), [(2, 1), (2, 3), (3, 2), (64, 1)])
def test_epochs_of_several_processes_are_counted_by_the_share_of_one(
    preset: str, sampler: Any, processes: int, batch_size: int, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from mmengine.dataset import sampler as samplers
    from torch.utils.data import DataLoader

    write_rows(tmp_path / "rows.jsonl", [("你好", "你好！")] * 40)
    chosen = resolved(preset, tiny_model, tmp_path / "rows.jsonl", "max_length=64", f"batch_size={batch_size}")
    chosen.train_cfg = {"max_epochs": 2}
    counted = forecast(chosen, processes)
    for rank in range(processes):
        monkeypatch.setattr(samplers, "get_dist_info", lambda rank=rank: (rank, processes))
        packs = range(counted.packs)
        loader = DataLoader(packs, batch_size=batch_size, sampler=sampler(packs, seed=0))
        assert counted.iterations == 2 * len(loader)
    assert counted.trained_tokens == counted.iterations * processes * batch_size * 64
    assert f"of {processes} processes" in lines(counted)[0]


def test_a_pack_too_short_for_any_answer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [("请你做一下自我介绍吧", "好。")] * 3)
    with pytest.raises(RecipeError, match="max_length=10 cuts every row before the answer"):
        forecast(resolved("qlora", tiny_model, tmp_path / "rows.jsonl", "max_length=10"))


GOOD = Forecast(
    rows=10, tokens=1000, packs=2, max_length=500, iterations=2, optimizer_steps=2, trained_tokens=1000,
    dropped=0, truncated=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "warnings"),
    [
        ({}, []),
        ({"dropped": 20}, []),  # a fiftieth of the tokens is worth no word
        ({"dropped": 21}, ["drops 21 of 1,000 tokens"]),
        ({"truncated": 1}, ["1 rows are longer than max_length 500"]),
        ({"dropped": 900, "truncated": 3}, ["drops 900 of 1,000 tokens", "3 rows are longer"]),
    ],
)
def test_a_user_is_warned_of_what_gets_lost(change: dict[str, int], warnings: list[str]) -> None:
    first, *others = lines(dataclasses.replace(GOOD, **change))
    assert "10 conversations" in first
    assert "2 packs" in first
    assert len(others) == len(warnings)
    for line, warning in zip(others, warnings, strict=True):
        assert line.startswith("warning: ")
        assert warning in line


def test_small_data_that_xtuner_would_drop_are_forecast_as_dropped(tiny_model: Path, tmp_path: Path) -> None:
    # Every one of 32 workers starts a second pack that it does not fill.
    write_rows(tmp_path / "rows.jsonl", [("你好", "你好！")] * 400)
    counted = forecast(resolved("tutorial", tiny_model, tmp_path / "rows.jsonl", "max_length=160"))
    assert counted.packs == 32
    assert counted.dropped == counted.tokens - 32 * 160
    assert any("warning: packing drops" in line for line in lines(counted))
