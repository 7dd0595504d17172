"""The bench without a GPU: what it counts, and that it says in one line why it does not start."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe import bench, config
from recipe.errors import RecipeError


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "has_gpu", lambda: False)
    with pytest.raises(RecipeError, match="no NVIDIA GPU here"):
        bench.run(tmp_path / "bench", ["fast"])
    assert not (tmp_path / "bench").exists()


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "has_gpu", lambda: True)
    with pytest.raises(RecipeError, match="'slow' is none of tutorial; lora; fast"):
        bench.run(tmp_path / "bench", ["fast", "slow"])


def test_every_preset_of_the_real_model_is_measured() -> None:
    runners = {runner for runner, _, _ in bench.CASES.values()}
    assert set(config.presets()) - {"miniature"} <= runners


def test_operations_a_token_counted_by_hand() -> None:
    layer = 2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 8192
    adapter = 64 * (2 * 4096 + 2 * 3072 + 3 * 10240)
    assert bench.flop_per_token() == 4 * (24 * layer + 2048 * 92544) + 6 * 24 * adapter + 7 * 1024 * 2048 * 24


def test_the_model_has_the_real_ones_size() -> None:
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    with init_empty_weights():
        model = LlamaForCausalLM(LlamaConfig(**bench.MODEL))
    assert sum(p.numel() for p in model.parameters()) == 1_889_110_016


def test_packs_are_the_same_for_everyone() -> None:
    first, second = bench.RandomPacks(3), bench.RandomPacks(5, positions=False)
    assert list(first[2]["input_ids"]) == list(second[2]["input_ids"]) == list(first[2]["labels"])
    assert "position_ids" not in second[0]
    assert len(first[0]["input_ids"]) == bench.LENGTH


def test_the_table_shows_figures_and_failures() -> None:
    figures = {
        "name": "fast", "batch": 8, "tokens_per_s": 61234, "slowest": 61000, "fastest": 61500, "peak_mib": 15682,
        "mfu": 0.65, "seconds_to_first_step": 20.0,
    }  # fmt: skip
    text = bench.table([figures, {"name": "TRL", "error": "trl is not installed"}])
    assert "| fast | 8 | 61,234 | 61,000–61,500 | 15,682 | 65% | 20.0 |" in text
    assert "trl is not installed" in text
