"""Bases of the Llama and Qwen2 layouts through the stages: trained, converted, merged, and not exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from replay_folder import write_replay
from test_model import all_tensors

from recipe.chat_format import assistant, user
from recipe.corpus.identity import Identity
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.pipeline import stage
from recipe.stages import config, convert, data, export, merge, train
from recipe.training.rendezvous import ALONE, Machines

SETTINGS = ["max_iters=4", "save_steps=2", "max_length=256", "r=4", "lr=0.01", "param_scheduler.0.end=2",
            "param_scheduler.1.begin=2", "custom_hooks.2.questions=['Who are you?']"]  # fmt: skip


@pytest.fixture(scope="module")
def run(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with data and replay, whose model is one of the two."""
    folder = tmp_path_factory.mktemp(base_model.name) / "run"
    data.make(folder / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0)
    write_replay(folder / "replay", base_model, [[user("1+1=?"), assistant("2")]])  # a random model has no answers
    return folder


@pytest.fixture(scope="module")
def trained(run: Path, base_model: Path) -> Callable[..., Path]:
    """Trains by a preset for four iterations of so many packs in each process; returns the train folder."""

    def make(
        preset: str, batch: int = 1, deepspeed: str | None = None, machines: Machines = ALONE, *settings: str
    ) -> Path:
        from mmengine.config import Config

        name = f"{preset}_{batch}_{deepspeed}{'_set' if settings else ''}"
        config.make(
            run / f"{name}_config", preset=preset, model=base_model, data_folder=run / "data",
            replay_folder=run / "replay", settings=[*SETTINGS, f"batch_size={batch}", *settings], seed=0,
            processes=machines.processes,
        )  # fmt: skip
        settled = Config.fromfile(run / f"{name}_config" / config.FILE)
        # Scoring the checkpoints of a model that never stops talking takes longer than everything else.
        settled.custom_hooks = [hook for hook in settled.custom_hooks if not hook.type.endswith(".ScoreCheckpoints")]
        settled.dump(run / f"{name}.py")
        folder = run / f"{name}_train"
        train.make(folder, config=run / f"{name}.py", resume=False, deepspeed=deepspeed, machines=machines)
        return folder

    return make


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / train.LOSSES).read_text().splitlines()]


def converted(folder: Path) -> Path:
    adapter = folder.with_name(f"{folder.name}_adapter")
    manifest = convert.make(adapter, train_folder=folder, checkpoint=None)
    assert manifest["results"]["tensors"] == 2 * 2 * 7
    return adapter


def merged_with(adapter: Path) -> Path:
    folder = adapter.with_name(f"{adapter.name}_merged")
    merge.make(folder, adapter_folder=adapter, identity_names=("小明",))
    return folder


@pytest.fixture(scope="module")
def adapter(trained: Callable[..., Path]) -> Path:
    return converted(trained("fast"))


@pytest.fixture(scope="module")
def merged(adapter: Path) -> Path:
    return merged_with(adapter)


def test_the_fast_path_and_xtuner_s_own_learn_the_same(trained: Callable[..., Path]) -> None:
    by_words = "train_dataloader.dataset.distill=False"
    fast, plain = losses(trained("fast", 1, None, ALONE, by_words)), losses(trained("lora"))
    assert fast == pytest.approx(plain, rel=1e-3)
    assert fast[-1] != pytest.approx(fast[0], rel=1e-3)


def test_four_bits_train_what_converts_and_merges(trained: Callable[..., Path], base_model: Path) -> None:
    folder = merged_with(converted(trained("qlora")))
    assert all_tensors(folder).keys() == all_tensors(base_model).keys()


def test_weights_are_pefts_own_merge_and_the_head_stays_tied(merged: Path, adapter: Path, base_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    ours = all_tensors(merged)
    assert ours.keys() == expected.keys() - {"lm_head.weight"}
    for name, weight in ours.items():
        torch.testing.assert_close(weight, expected[name])
    before = all_tensors(base_model)
    assert {name for name in ours if not torch.equal(ours[name], before[name])} == {
        name for name in ours if name.endswith("_proj.weight")
    }
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is True


def test_the_merged_folder_answers_as_base_and_adapter(merged: Path, adapter: Path, base_model: Path) -> None:
    manifest = stage.read_manifest(merged)
    assert manifest is not None
    assert manifest["results"]["largest_logit_difference"] < 1e-3
    talks = [[user(probe)] for probe in merge.PROBES]
    answers = generation.answer(*generation.load(merged), talks, max_new_tokens=6)
    assert answers == generation.answer(*generation.load(base_model, adapter), talks, max_new_tokens=6)


def test_what_it_is_served_with_are_its_own_ids(merged: Path, adapter: Path, base_model: Path) -> None:
    for name in convert.SERVED_WITH:
        assert (merged / name).read_bytes() == (adapter / name).read_bytes() == (base_model / name).read_bytes()


def test_internlm2_s_layout_is_refused_in_one_line(merged: Path, base_model: Path, tmp_path: Path) -> None:
    what = {"llama": "a tied head", "qwen2": "biases on q, k and v"}[base_model.name]
    with pytest.raises(RecipeError, match=f"cannot hold {what}") as caught:
        export.make(tmp_path / "export", model=merged)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("deepspeed", ["zero3", "zero3_offload"])
def test_sharding_a_tied_head_or_biases_is_refused_in_one_line(trained: Callable[..., Path], deepspeed: str) -> None:
    """It was right three times of four: once in a while the first loss was another one, and then none at all."""
    with pytest.raises(RecipeError, match=f"DEEPSPEED={deepspeed}: ZeRO-3 is for .* use DEEPSPEED=zero2"):
        trained("fast", batch=1, deepspeed=deepspeed, machines=Machines(2))
