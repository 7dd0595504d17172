"""The weights lie where the model has them, one copy of each; a model in training generates and goes on training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from small_training import adapted, batch, gradients

from recipe.engine import decoder as decoder_module
from recipe.engine.decoder import Decoder, PromptChunk
from recipe.engine.weights import Projections, Scratch, base_of, dequantised_bytes, linear_layers, refusal
from recipe.training.fast import model as training_model
from recipe.training.fast.merged import MergedLoraLinear
from recipe.training.fast.model import PROJECTIONS, FusedLlama

SIZES = {"hidden_size": 64, "intermediate_size": 96, "use_cache": False}  # bitsandbytes' blocks are 64 values
KINDS = ("llama", "qwen2")


def four_bits(kind: str, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    small_bases.random_model(kind, **SIZES).save_pretrained(folder)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32)
    for module in model.modules():  # as recipe.training.fast.model keeps them
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def logits(model: Any, ids: list[int], *, adapted: bool = True) -> Any:
    decoder = Decoder(model, slots=2, length=64)
    decoder.adapted[:] = float(adapted)
    with torch.inference_mode():
        return decoder.prefill([PromptChunk(1, ids, 0)])[0]


def by_modules(model: Any, ids: list[int]) -> Any:
    model.eval()
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0, -1]
    model.train()
    return found


IDS = [5, 17, 3, 90, 41, 8]


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_training_is_computed_as_its_modules_do(kind: str, fused: bool, bits: int, tmp_path: Path) -> None:
    """Before the fast path took the weights over and after; the training goes on as if nothing had been."""
    model = adapted(four_bits(kind, tmp_path) if bits == 4 else small_bases.random_model(kind, **SIZES))
    untouched = adapted(four_bits(kind, tmp_path / "2") if bits == 4 else small_bases.random_model(kind, **SIZES))
    fast = FusedLlama(model, fp8=False) if fused else None
    torch.testing.assert_close(logits(model, IDS), by_modules(untouched, IDS), rtol=1e-4, atol=1e-4)
    with untouched.disable_adapter():
        base = by_modules(untouched, IDS)
    torch.testing.assert_close(logits(model, IDS, adapted=False), base, rtol=1e-4, atol=1e-4)
    fast = fast or FusedLlama(model, fp8=False)
    wanted = gradients(untouched, untouched(**batch()).loss)
    found = gradients(model, fast.loss(**batch(), recompute=False))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4)


def test_an_adapter_that_a_training_changes_is_read_anew() -> None:
    model = adapted(small_bases.random_model("llama", **SIZES))
    decoder = Decoder(model, slots=1, length=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-2)
    decoder.refresh()
    with torch.inference_mode():
        found = decoder.prefill([PromptChunk(0, IDS, 0)])[0]
    torch.testing.assert_close(found, by_modules(model, IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_the_fast_path_are_not_copied(kind: str, merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not merged:  # as on a GPU
        monkeypatch.setattr(training_model, "merges", lambda *_: False)
    model = adapted(small_bases.random_model(kind, **SIZES))
    fast = FusedLlama(model, fp8=False)
    layers = Decoder(model, slots=1, length=64).layers
    for ours, theirs in zip(layers, fast.layers, strict=True):
        for group, matrix in zip((ours.qkv, ours.o, ours.gate_up, ours.down), theirs.groups, strict=True):
            assert group.weight is not None
            frozen = matrix.frozen if isinstance(matrix, MergedLoraLinear) else matrix.matrix
            assert group.weight.data_ptr() == frozen.data_ptr()
            assert torch.equal(group.weight, frozen[: matrix.n, : matrix.k])


def test_plain_weights_are_laid_out_once_and_the_model_sees_them() -> None:
    model = small_bases.random_model("qwen2", **SIZES)
    expected = by_modules(model, IDS)
    first, second = (Decoder(model, slots=1, length=64) for _ in range(2))
    for one, other, module in zip(first.layers, second.layers, model.model.layers, strict=True):
        assert one.qkv.weight is not None
        assert other.qkv.weight is not None
        assert one.qkv.weight.data_ptr() == other.qkv.weight.data_ptr() == module.self_attn.q_proj.weight.data_ptr()
    assert torch.equal(by_modules(model, IDS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_are_dequantised_at_each_product_where_memory_is_short(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(four_bits(kind, tmp_path))
    expected = logits(model, IDS)
    weights = [m.base_layer for layer in base_of(model).model.layers for group in linear_layers(layer) for m in group]
    assert dequantised_bytes(model) == 4 * sum(m.in_features * m.out_features for m in weights)
    monkeypatch.setattr(decoder_module, "free_memory", lambda _: 2 * dequantised_bytes(model) - 1)
    decoder = Decoder(model, slots=2, length=64)
    assert {group.weight for layer in decoder.layers for group in layer.groups} == {None}
    torch.testing.assert_close(logits(model, IDS), expected)


def test_an_adapter_on_some_of_the_layers_that_read_one_input() -> None:
    model = adapted(small_bases.random_model("llama", **SIZES), target_modules=["q_proj", "v_proj", "up_proj"])
    assert refusal(model) is None
    torch.testing.assert_close(logits(model, IDS), by_modules(model, IDS), rtol=1e-4, atol=1e-4)


def test_weights_that_lie_apart_are_no_view() -> None:
    rows = torch.arange(60.0).view(10, 6)
    linear = [torch.nn.Linear(6, 4, bias=False) for _ in range(2)]
    for start, expected in ((4, True), (5, False)):
        linear[0].weight.data, linear[1].weight.data = rows[:4], rows[start : start + 4]
        group = Projections(linear, rows)
        assert group.weight is not None
        assert (group.weight.data_ptr() == rows.data_ptr()) == expected
        assert torch.equal(group.weight, torch.cat([rows[:4], rows[start : start + 4]]))


def test_scratch_holds_the_largest_weight() -> None:
    scratch = Scratch(torch.zeros(1))
    for numbers in (6, 20, 12):
        scratch.reserve(numbers)
    assert scratch.matrix(4, 5).shape == (4, 5)
    assert scratch.matrix(2, 3).data_ptr() == scratch.matrix(4, 5).data_ptr()


def sharded(model: Any) -> Any:
    next(iter(base_of(model).model.layers[0].mlp.up_proj.parameters())).ds_id = 1
    return model


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


def two_adapters(model: Any) -> Any:
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    return model


def halved(model: Any) -> Any:
    base_of(model).model.layers[1].mlp.down_proj.base_layer.half()
    return model


@pytest.mark.parametrize(
    ("change", "lora", "why"),
    [(sharded, {}, "reads whole weights"), (halved, {}, "reads whole weights"), (merged, {}, "one plain LoRA"),
     (two_adapters, {}, "one plain LoRA"), (lambda m: m, {"use_dora": True}, "one plain LoRA"),
     (lambda m: m, {"target_modules": [*sorted(PROJECTIONS), "embed_tokens"]}, "linear layers alone"),
     (lambda m: m, {"modules_to_save": ["norm"]}, "linear layers alone")],
)  # fmt: skip
def test_what_the_engine_does_not_compute_is_refused(
    change: Callable[[Any], Any], lora: dict[str, Any], why: str
) -> None:
    model = adapted(small_bases.random_model("llama", **SIZES), **lora)
    assert why in (refusal(change(model)) or "")


def test_windows_of_attention_are_refused() -> None:
    model = small_bases.random_model("qwen2", use_sliding_window=True, max_window_layers=0, sliding_window=8)
    assert "full attention alone" in (refusal(model) or "")
