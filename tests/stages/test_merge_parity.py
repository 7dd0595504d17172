"""A right merge always passes and a wrong one never does: InternLM2's layout, tied Llama and Qwen2 in bfloat16, and the
miniature."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from example_results import example_results
from safetensors.torch import load_file, save_file

from recipe.checkpoint import lora
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.errors import RecipeError
from recipe.evaluation import generation, thresholds
from recipe.pipeline import stage
from recipe.stages import convert, merge, model

Tensors = dict[str, torch.Tensor]
RANK, ALPHA = 8, 16
# Adds an adapter to weights, in place, and returns the names of those that have one.
MergeInto = Callable[[Tensors, Mapping[str, torch.Tensor], float], set[str]]


@pytest.fixture(scope="module", params=["internlm2", "llama", "qwen2", "miniature"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_internlm2: Path) -> Path:
    """A base after stage `model`, in 16 bits."""
    source = str(tiny_internlm2) if request.param == "internlm2" else request.param
    if request.param in ("llama", "qwen2"):
        repository = small_bases.write(tmp_path_factory.mktemp("parity") / request.param, request.param)
        file = repository / "model.safetensors"
        save_file({name: weight.bfloat16() for name, weight in load_file(file).items()}, file, {"format": "pt"})
        source = str(repository)
    folder = tmp_path_factory.mktemp("models") / request.param
    model.make(folder, model=source)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random weights on all layers, as stage `convert` writes it."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = get_peft_model(generation.load(base)[0], settings)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
    results = example_results("convert", model=str(base), base_sha256=stage.content_sha256(base))

    def work(out: Path) -> dict[str, Any]:
        tuned.save_pretrained(out)
        return results

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    stage.run("convert", folder, inputs={}, settings={}, work=work)
    assert (folder / convert.WEIGHTS).is_file()
    return folder


def test_a_right_merge_passes(adapter: Path, tmp_path: Path) -> None:
    manifest = merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert 0 < manifest["results"]["mean_kl"] < thresholds.MAX_MERGE_KL / 2
    assert manifest["results"]["same_top_token"] > 0.9


def scaled(factor: float) -> Callable[[MergeInto], MergeInto]:
    return lambda right: lambda weights, tensors, scale: right(weights, tensors, factor * scale)


def with_one_lost(right: MergeInto) -> MergeInto:
    """The last weight that has an adapter stays the base's, and is counted as merged."""

    def wrong(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
        before = dict(weights)
        merged = right(weights, tensors, scale)
        weights[max(merged)] = before[max(merged)]
        return merged

    return wrong


def on_another_base(right: MergeInto) -> MergeInto:
    """The same layout, every matrix 0.3 % away."""

    def wrong(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
        rng = torch.Generator().manual_seed(0)
        for name, weight in weights.items():
            noise = torch.randn(weight.shape, generator=rng) if weight.ndim == 2 else torch.zeros(weight.shape)
            weights[name] = (weight * (1 + 0.003 * noise)).to(weight.dtype)
        return right(weights, tensors, scale)

    return wrong


def rounded_before_the_sum(right: MergeInto) -> MergeInto:
    """In 16 bits from the start, as a careless merge has it."""

    def wrong(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
        kind = next(iter(weights.values())).dtype
        return right(weights, {name: tensor.to(kind) for name, tensor in tensors.items()}, scale)

    return wrong


def with_one_norm_changed(right: MergeInto) -> MergeInto:
    """A tensor without an adapter, one value of it by one unit of the last place."""

    def wrong(weights: Tensors, tensors: Mapping[str, torch.Tensor], scale: float) -> set[str]:
        weights["model.norm.weight"].view(torch.int16)[0] ^= 1
        return right(weights, tensors, scale)

    return wrong


WRONG = {
    "scale x 2": scaled(2.0),
    "scale x 0.8": scaled(0.8),
    "scale x 1.01": scaled(1.01),
    "a lost tensor": with_one_lost,
    "another base": on_another_base,
    "rounded before the sum": rounded_before_the_sum,
    "another norm": with_one_norm_changed,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_merge_is_refused(
    wrong: Callable[[MergeInto], MergeInto], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "merge_into", wrong(lora.merge_into))
    with pytest.raises(RecipeError, match=r"merged and base \+ adapter disagree: (model|lm_head)\.") as caught:
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_right_weights_under_another_config_are_refused(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the weights do not show: a config.json that makes another model of them."""
    right = merge.compare

    def compare(base: Path, adapter_folder: Path, merged: Path, device: str) -> dict[str, float]:
        config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
        (merged / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}), encoding="utf-8")
        return right(base, adapter_folder, merged, device)

    monkeypatch.setattr(merge, "compare", compare)
    with pytest.raises(RecipeError, match=rf"nats a token, at most {thresholds.MAX_MERGE_KL} is rounding"):
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())


def test_both_sides_are_computed_in_float32_and_one_at_a_time(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    right = generation.load

    def load(*arguments: Any, **settings: Any) -> tuple[Any, Any]:
        gc.collect()
        assert not [each for each in alive if each() is not None]
        assert settings == {"dtype": torch.float32, "device": "auto"}
        loaded, tokenizer = right(*arguments, **settings)
        assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
        alive.append(weakref.ref(loaded))
        return loaded, tokenizer

    monkeypatch.setattr(generation, "load", load)
    merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert len(alive) == 2
