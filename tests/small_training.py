"""A Llama small enough for a CPU, a batch of two packs, and the comparison of recipe.training.fast with transformers
and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe.training.fast.model import PROJECTIONS, FusedLlama

LENGTHS = ([7, 13], [12, 1, 7])  # of the conversations in two packs of 20


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 2}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape | changes))
    model.config.use_cache = False
    return model


def adapted(model: Any, **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = {"r": 4, "lora_alpha": 12, "target_modules": sorted(PROJECTIONS)} | changes
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped = get_peft_model(model, LoraConfig(**lora))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 97, (2, 20), generator=generator)
    labels = ids.clone()
    labels[:, :3] = labels[0, 9:13] = labels[1, 18:] = -100
    positions = torch.tensor([[p for length in row for p in range(length)] for row in LENGTHS])
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def in_four_bits(model: Any, folder: Path) -> Any:
    """The model as bitsandbytes quantises it while it is loaded. folder: an empty one, for its files."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model.save_pretrained(folder)
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)
    quantised.config.use_cache = False
    return quantised


def assert_same_training(
    model: Any, *, loss_error: float, gradient_error: float, fp8: bool = False, recompute: bool = False
) -> FusedLlama:
    """The fast path's loss and gradients are those of the model's own forward and backward pass.

    Args:
        model: of `adapted`.
        loss_error, gradient_error: relative, at most; of the gradients that of each LoRA matrix.
        fp8, recompute: of the fast path.

    Returns:
        The fast path.
    """
    expected = model(**batch()).loss
    wanted = gradients(model, expected)
    fast = FusedLlama(model, fp8=fp8)
    for _ in range(2):  # the second finds other layers' weights in the matrices that layers share
        loss = fast.loss(**batch(), recompute=recompute)
        actual = gradients(model, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=loss_error)
    assert set(actual) == set(wanted)
    assert len(actual) == 2 * 2 * 7
    assert max(distance(actual[name], wanted[name]) for name in wanted) < gradient_error
    return fast
