"""Training on bases of the Llama and Qwen2 layouts: their data, the fast path's loss and gradients, the forecasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from small_training import adapted, assert_same_training, distance, in_four_bits

from recipe.chat_format import IGNORE_INDEX, control_tokens
from recipe.errors import RecipeError
from recipe.experiments.training_speed import workload
from recipe.stages import config
from recipe.training import memory
from recipe.training.dataset import PackedDataset, read_tokens
from recipe.training.fast.linear import FusedLoraLinear
from recipe.training.fast.model import check
from recipe.training.forecast import forecast
from recipe.training.without_gpu import for_cpu


def write_rows(file: Path, *contents: str) -> str:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    return str(file)


def test_packs_of_conversations_bear_a_loss_on_replies_alone(base_tokenizer: Any, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl", "你是谁？", "I am an assistant.")
    rows = read_tokens([file], base_tokenizer)
    packed = PackedDataset(rows, max_length=100, pad_id=base_tokenizer.pad_token_id, seed=0)
    (pack,) = packed
    length = len(rows[0][0])
    assert list(pack["input_ids"][length:]) == [base_tokenizer.pad_token_id] * (100 - length)
    assert set(pack["labels"][length:]) == {IGNORE_INDEX}
    assert base_tokenizer.decode([label for label in pack["labels"] if label != IGNORE_INDEX]) == (
        "I am an assistant.<|im_end|>"
    )


def test_a_row_with_one_of_its_control_tokens_is_refused(base_tokenizer: Any, tmp_path: Path) -> None:
    for i, token in control_tokens(base_tokenizer).items():
        file = write_rows(tmp_path / f"{i}.jsonl", "Hi", f"Hello {token}!")
        with pytest.raises(RecipeError) as caught:
            read_tokens([file], base_tokenizer)
        assert f"row 1: holds {token} as text" in str(caught.value)


def test_a_reply_of_the_base_itself_is_not_refused(base_tokenizer: Any, tmp_path: Path) -> None:
    token = list(control_tokens(base_tokenizer).values())[-1]
    files = [write_rows(tmp_path / "a.jsonl", "Hi", "Hello!"), write_rows(tmp_path / "b.jsonl", "Hi", f"{token}!")]
    rows = [ids for ids, _ in read_tokens(files, base_tokenizer)]
    assert any(f"{token}!<|im_end|>" in base_tokenizer.decode(ids) for ids in rows)
    start, end = base_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert {i for ids in rows for i in ids if i in control_tokens(base_tokenizer)} == {start, end}


def test_xtuners_own_data_are_refused_where_the_format_has_no_bos(base_model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.json", "Hi", "Hello!")
    Path(file).write_text(f"[{Path(file).read_text()}]")
    resolved = config.load_preset("tutorial")
    config.fill(resolved, model=base_model, files=[Path(file)], seed=0)
    with pytest.raises(RecipeError, match="PRESET=tutorial"):
        forecast(resolved)


KINDS = ("llama", "qwen2")
SIZES = {"hidden_size": 64, "intermediate_size": 96}  # bitsandbytes' blocks are 64 values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_transformers_and_pefts(kind: str, recompute: bool) -> None:
    model = adapted(small_bases.random_model(kind, **SIZES, use_cache=False))
    check(model, model.peft_config["default"], fp8=False)
    fast = assert_same_training(model, recompute=recompute, loss_error=1e-5, gradient_error=1e-5)
    assert (fast.layers[0].qkv.bias is not None) == (kind == "qwen2")
    assert fast.head is fast.model.embed_tokens.weight


@pytest.mark.parametrize("kind", KINDS)
def test_four_bits_are_bitsandbytes(kind: str, tmp_path: Path) -> None:
    base = in_four_bits(small_bases.random_model(kind, **SIZES, use_cache=False), tmp_path)
    assert_same_training(adapted(base), recompute=True, loss_error=1e-5, gradient_error=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_bits_are_near(kind: str) -> None:
    model = adapted(small_bases.random_model(kind, std=0.02, **SIZES, use_cache=False))
    assert_same_training(model, fp8=True, loss_error=0.01, gradient_error=0.2)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_bias_is_added_to_the_product(fp8: bool, with_residual: bool) -> None:
    from peft import LoraConfig, get_peft_model

    from recipe.training.fast.linear import Scratch, projections

    torch.manual_seed(0)
    plain = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(32, 24), "k_proj": torch.nn.Linear(32, 16)})
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    wrapped = get_peft_model(plain, lora).requires_grad_(False)
    modules = [wrapped.base_model.model[name] for name in ("q_proj", "k_proj")]
    x, residual = torch.randn(5, 32), torch.randn(5, 40) if with_residual else None
    wanted = torch.cat([module(x) for module in modules], 1) + (0 if residual is None else residual)
    fused: FusedLoraLinear = projections(modules, fp8=fp8, scratch=Scratch(), like=x)
    fused.refresh()
    buffer = fused.input_buffer(5, x)
    buffer[:, :32] = x
    actual, _ = fused.forward(buffer, residual)
    assert actual is not None
    assert distance(actual, wanted) < (0.05 if fp8 else 1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("qwen3", {}),
    ],
)
def test_what_it_would_compute_wrongly_is_refused(kind: str, changes: dict[str, Any]) -> None:
    model = adapted(small_bases.random_model(kind, **SIZES, **changes))
    with pytest.raises(ValueError, match="Llama models without biases and Qwen2 with full attention"):
        check(model, model.peft_config["default"], fp8=False)


@pytest.mark.parametrize("preset", ["fast", "lora"])
def test_xtuners_trainer_computes_the_same_loss_by_both_presets(preset: str, base_model: Path) -> None:
    from mmengine.config import Config
    from xtuner.registry import BUILDER

    resolved = config.load_preset(preset)
    config.fill(resolved, model=base_model, files=[], seed=0)
    for_cpu(resolved)
    config.override(resolved, ["r=4", "lora_alpha=8"])
    model = BUILDER.build(Config(dict(resolved.items())).model).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    data = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(4)[None]}
    actual = model(data, mode="loss")["loss"]
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    torch.testing.assert_close(actual, plain(input_ids=ids, labels=ids).loss)  # an untrained adapter changes nothing


@pytest.mark.parametrize("preset", ["fast", "qlora"])
def test_a_tied_head_takes_no_memory_and_biases_little(preset: str, tmp_path: Path) -> None:
    def weights(**changes: Any) -> int:
        (tmp_path / "config.json").write_text(json.dumps(workload.MODEL | changes))
        predicted = memory.predict(config.load_preset(preset), tmp_path)
        assert predicted is not None
        return predicted.weights

    untied = weights()
    head = 2 * workload.MODEL["vocab_size"] * workload.MODEL["hidden_size"]
    assert weights(tie_word_embeddings=True) == untied - head
    biases = weights(model_type="qwen2") - untied
    assert 0 < biases < untied / 1000
