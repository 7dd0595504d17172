"""InternLM2's tensors in the Llama layout are the same model: checked against InternLM2's own definition, written out
here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import silu

from recipe.checkpoint.internlm2_llama import Shape, internlm2_config, llama_config, llama_names, to_internlm2, to_llama
from recipe.paths import MINIATURE

Tensors = dict[str, torch.Tensor]


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any number of key-value heads, each shared by any number of query heads."""
    kv_heads, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * per_group
    return Shape(
        hidden=heads * draw(st.sampled_from((2, 4, 6))),
        intermediate=draw(st.integers(1, 8)),
        layers=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        vocab=draw(st.integers(1, 8)),
    )


def config_of(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "hidden_act": "silu",
    }


def random_weights(shape: Shape, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator) * 0.3 for name, size in shape.internlm2().items()}


def converted(weights: Tensors, shape: Shape) -> Tensors:
    llama: Tensors = {}
    for name, tensor in weights.items():
        llama |= to_llama(name, tensor, shape)
    return llama


def internlm2_logits(weights: Tensors, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """The logits of InternLM2 by its definition, for one sequence, in the weights' own precision."""
    shape, eps = Shape.of(config), config["rms_norm_eps"]
    length, width = len(ids), shape.head_dim

    def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    base = config["rope_theta"]
    if (scaling := config.get("rope_scaling")) and length > config["max_position_embeddings"]:
        # InternLM2DynamicNTKScalingRotaryEmbedding: the base grows with what lies beyond the trained length.
        beyond = scaling["factor"] * length / config["max_position_embeddings"] - (scaling["factor"] - 1)
        base = base * beyond ** (width / (width - 2))
    frequencies = base ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), frequencies)
    angles = torch.cat((angles, angles), dim=-1)[:, None]  # the same for every head

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

    masked = torch.full((length, length), float("-inf")).triu(1)
    x = weights["model.tok_embeddings.weight"][ids]
    for i in range(shape.layers):
        layer = {
            name.removeprefix(f"model.layers.{i}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{i}.")
        }
        h = rms_norm(x, layer["attention_norm.weight"])
        # The one subtle part: rows grouped by key-value head, in each group its query heads, then its key, then its
        # value.
        qkv = (h @ layer["attention.wqkv.weight"].T).view(length, shape.kv_heads, -1, width)
        q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
        q, k = rotate(q.reshape(length, shape.heads, width)), rotate(k)
        attended = []
        for head in range(shape.heads):
            group = head // (shape.heads // shape.kv_heads)
            scores = q[:, head] @ k[:, group].T / width**0.5 + masked
            attended.append(scores.softmax(-1) @ v[:, group])
        x = x + torch.cat(attended, dim=-1) @ layer["attention.wo.weight"].T
        h = rms_norm(x, layer["ffn_norm.weight"])
        gate, up = h @ layer["feed_forward.w1.weight"].T, h @ layer["feed_forward.w3.weight"].T
        x = x + (silu(gate) * up) @ layer["feed_forward.w2.weight"].T
    return rms_norm(x, weights["model.norm.weight"]) @ weights["output.weight"].T


def llama_logits(weights: Tensors, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**llama_config(config))).float().eval()
    model.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        logits: torch.Tensor = model(ids[None]).logits[0]
    return logits


def plain_split(weights: Tensors, shape: Shape) -> Tensors:
    """What one gets who takes `wqkv` for [Q | K | V]."""
    llama = converted(weights, shape)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for name, tensor in weights.items():
        if name.endswith("wqkv.weight"):
            llama |= dict(zip(llama_names(name), tensor.split((q, kv, kv)), strict=True))
    return llama


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 4), (4, 1), (6, 3)])
def test_converted_weights_compute_what_internlm2_computes(heads: int, kv_heads: int) -> None:
    shape = Shape(hidden=8 * heads, intermediate=40, layers=2, heads=heads, kv_heads=kv_heads, vocab=50)
    weights, ids = random_weights(shape, seed=heads), torch.arange(23) * 7 % 50
    ours = llama_logits(converted(weights, shape), config_of(shape), ids)
    assert (ours - internlm2_logits(weights, config_of(shape), ids)).abs().max() < 1e-4


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 3)])
def test_a_plain_split_of_wqkv_computes_something_else(heads: int, kv_heads: int) -> None:
    # So the test above can fail: shapes and names are right here, and only the order of the rows is wrong.
    shape = Shape(hidden=8 * heads, intermediate=40, layers=2, heads=heads, kv_heads=kv_heads, vocab=50)
    weights, ids = random_weights(shape, seed=heads), torch.arange(23) * 7 % 50
    wrong = llama_logits(plain_split(weights, shape), config_of(shape), ids)
    assert (wrong - internlm2_logits(weights, config_of(shape), ids)).abs().max() > 0.01


@pytest.mark.parametrize("rope_theta", [10_000, 1_000_000])
@pytest.mark.parametrize("length", [5, 63, 64, 65, 100], ids=lambda length: f"{length} of 64")
def test_positions_are_internlm2s(rope_theta: int, length: int) -> None:
    """Its own base and its dynamic scaling: none within the trained length, the same one beyond it."""
    shape = Shape(hidden=32, intermediate=40, layers=2, heads=4, kv_heads=2, vocab=50)
    config = config_of(shape) | {"rope_theta": rope_theta, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    weights, ids = random_weights(shape, seed=1), torch.arange(length) * 7 % 50
    theirs = internlm2_logits(weights, config, ids)
    assert (llama_logits(converted(weights, shape), config, ids) - theirs).abs().max() < 1e-4
    # And this would show another base, or scaling where there is none to be.
    other = config | {"rope_theta": 1_010_000 - rope_theta}
    assert (llama_logits(converted(weights, shape), other, ids) - theirs).abs().max() > 0.001


def test_the_real_geometry_computes_what_internlm2_computes() -> None:
    """16 heads of 128 on 8 key-value heads, as in the 1.8B model; one layer, and few words."""
    shape = Shape(hidden=2048, intermediate=256, layers=1, heads=16, kv_heads=8, vocab=64)
    config = config_of(shape) | {
        "rope_theta": 1_000_000,
        "max_position_embeddings": 32768,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    weights = {name: tensor * 0.1 if tensor.dim() > 1 else tensor for name, tensor in random_weights(shape, 3).items()}
    ids = torch.arange(48) * 5 % 64
    theirs = internlm2_logits(weights, config, ids)
    assert (llama_logits(converted(weights, shape), config, ids) - theirs).abs().max() < 1e-4 * theirs.abs().max()
    wrong = llama_logits(plain_split(weights, shape), config, ids)
    assert (wrong - theirs).abs().max() > 0.01 * theirs.abs().max()


def test_a_model_folder_computes_what_internlm2_computes(tiny_internlm2: Path, tiny_model: Path) -> None:
    """Through stage `model`, with the miniature's config, its rope scaling included."""
    from transformers import AutoModelForCausalLM

    config = json.loads((tiny_internlm2 / "config.json").read_text(encoding="utf-8"))
    weights = {name: tensor.float() for name, tensor in load_file(tiny_internlm2 / "model.safetensors").items()}
    ids = torch.arange(40) * 11 % config["vocab_size"]
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.inference_mode():
        ours = model(ids[None]).logits[0]
    assert (ours - internlm2_logits(weights, config, ids)).abs().max() < 1e-4


@given(shape=shapes(), seed=st.integers(0, 99), dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))
@settings(max_examples=40)
def test_there_and_back_is_the_same_to_the_bit(shape: Shape, seed: int, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(shape, seed).items()}
    llama = converted(weights, shape)
    for name, tensor in weights.items():
        back = to_internlm2(name, llama, shape)
        assert back.dtype == dtype
        assert torch.equal(back, tensor), name


@given(shapes())
@settings(max_examples=40)
def test_conversion_gives_the_shapes_that_are_announced(shape: Shape) -> None:
    assert {name: tuple(t.shape) for name, t in converted(random_weights(shape, 0), shape).items()} == shape.llama()


@given(shapes())
@settings(max_examples=15)
def test_announced_shapes_are_those_of_a_llama_model(shape: Shape) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**llama_config(config_of(shape))))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shape.llama()


def test_a_config_without_kv_heads_has_one_for_each_head() -> None:
    config = config_of(Shape(hidden=16, intermediate=8, layers=1, heads=4, kv_heads=4, vocab=8))
    del config["num_key_value_heads"]
    assert Shape.of(config).kv_heads == 4


@pytest.mark.parametrize(
    "name", ["model.layers.0.attention.bias.weight", "lm_head.weight", "model.layers.x.wqkv.weight"]
)
def test_a_name_that_internlm2_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        llama_names(name)


def test_converted_config_names_no_code_and_keeps_rope_scaling() -> None:
    config = config_of(Shape(hidden=16, intermediate=8, layers=1, heads=4, kv_heads=2, vocab=8)) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    llama = llama_config(config)
    assert "auto_map" not in llama
    assert llama["architectures"] == ["LlamaForCausalLM"]
    assert llama["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}


def test_a_config_comes_back_as_it_was() -> None:
    config = json.loads((MINIATURE / "config.json").read_text(encoding="utf-8"))
    back = internlm2_config(llama_config(config | {"auto_map": {"AutoModel": "modeling_internlm2.InternLM2Model"}}))
    config.pop("attn_implementation")  # how to compute, not what
    assert back == config
    del config["rope_scaling"]
    assert internlm2_config(llama_config(config)) == config
