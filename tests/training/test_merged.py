"""LoRA added to the weights: when, and that its gradients are right by both ways."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_training import adapted, assert_same_training, distance, llama

from recipe.training.fast import merged
from recipe.training.fast.linear import FusedLoraLinear, Scratch, projections
from recipe.training.fast.merged import MergedLoraLinear, merges

TOKENS = 40  # of a batch of small_training


@pytest.mark.parametrize(("rank", "by_weight"), [(4, False), (128, True)])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_pefts_by_both_ways(rank: int, by_weight: bool, recompute: bool) -> None:
    model = adapted(llama(), r=rank, lora_alpha=3 * rank)
    fast = assert_same_training(model, recompute=recompute, loss_error=1e-6, gradient_error=1e-5)
    groups = [group for layer in fast.layers for group in layer.groups if isinstance(group, MergedLoraLinear)]
    assert [group._by_weight(TOKENS) for group in groups] == [by_weight, by_weight, False, False] * 2


@pytest.mark.parametrize("tokens", [8, 4096])
def test_it_is_what_one_matrix_computes(tokens: int) -> None:
    """With a bias and a residual; few tokens take the low ranks' way, many the weight's."""
    group = _attention_group()
    one, other = projections(group, fp8=False, scratch=Scratch(), like=torch.ones(1)), MergedLoraLinear(group)
    assert other._by_weight(tokens) == (tokens > 8)
    torch.manual_seed(3)
    x, residual, dy = torch.randn(tokens, 64), torch.randn(tokens, 128), torch.randn(tokens, 128)
    for actual, expected in zip(_all_of(other, x, residual, dy), _all_of(one, x, residual, dy), strict=True):
        assert distance(actual, expected) < 1e-5


def _attention_group() -> list[Any]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 97, "pad_token_id": 2}  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape))
    attend = adapted(model, r=16).get_base_model().model.layers[0].self_attn
    group = [attend.q_proj, attend.k_proj, attend.v_proj]
    for module in group:
        torch.nn.init.normal_(module.base_layer.bias)
    return group


def _all_of(fused: FusedLoraLinear, x: torch.Tensor, residual: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """y, dx and the gradients."""
    fused.refresh()
    inputs, grads = fused.input_buffer(len(x), x), fused.grad_buffer(len(x), x)
    inputs[:, : fused.k], grads[:, : fused.n] = x, dy
    y, x_low = fused.forward(inputs, residual)
    dx, dy_low = fused.backward(grads)
    assert y is not None
    assert dx is not None
    return [y, dx, *fused.gradients(dy, x, x_low, dy_low)]


@pytest.mark.parametrize(
    ("dtype", "most", "merged_here"),
    [
        (torch.float32, 1 << 20, True),
        (torch.float32, 1 << 10, False),  # too large
        (torch.bfloat16, 1 << 20, False),
        (torch.float64, 1 << 20, False),
    ],
)
def test_it_is_for_small_models_in_float32(
    dtype: torch.dtype, most: int, merged_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "MOST_BYTES", most)
    modules = [module for module in adapted(llama()).modules() if hasattr(module, "lora_A")]
    assert merges(modules, torch.ones(1, dtype=dtype)) == merged_here


def test_a_model_of_four_bits_takes_two_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dequantised one and the merged one; a model of whole weights has the first already."""

    def module(**quantised: object) -> Any:
        weight = SimpleNamespace(**quantised)
        return SimpleNamespace(base_layer=SimpleNamespace(weight=weight), in_features=16, out_features=16)

    monkeypatch.setattr(merged, "MOST_BYTES", 4 * 16 * 16)
    assert merges([module()], torch.ones(1))
    assert not merges([module(quant_state=object())], torch.ones(1))
