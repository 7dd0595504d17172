"""InternLM2's tensors and Llama's: the same model under other names. Qwen2's are Llama's, with biases on q, k and v.

InternLM2 keeps queries, keys and values in one matrix `wqkv`, its rows grouped by key-value head: for each of the
`num_key_value_heads` groups, first the `q` query heads that share it, then its key head, then its value head, of
`head_dim` rows each (q = num_attention_heads / num_key_value_heads; 2, 8 and 128 for the 1.8B model, so eight groups
of 512 rows). The rest is a change of names: see `RENAMED`. Source: `modeling_internlm2.py` of InternLM2, which splits
with "b q (h gs d) -> b q h gs d", gs = 2 + q.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# InternLM2's name -> Llama's, inside model.layers.{i} and outside of it.
RENAMED = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "model.tok_embeddings": "model.embed_tokens",
    "model.norm": "model.norm",
    "output": "lm_head",
}
WQKV = "attention.wqkv"
HEAD = "lm_head.weight"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_LAYER = re.compile(r"^(model\.layers\.\d+\.)(.+)\.weight$")


@dataclass(frozen=True)
class Shape:
    """The sizes that the layout depends on, from a config.json of any of the formats.

    tied: whether the head is the embedding, so that there is one tensor for both.
    qkv_bias: whether the projections of queries, keys and values have a bias, as Qwen2's do.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = False
    qkv_bias: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=config.get("model_type") == "qwen2",
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def internlm2(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of an InternLM2 model and its shape."""
        qkv_rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = {
            WQKV: (qkv_rows, self.hidden),
            "attention.wo": (self.hidden, self.hidden),
            "feed_forward.w1": (self.intermediate, self.hidden),
            "feed_forward.w3": (self.intermediate, self.hidden),
            "feed_forward.w2": (self.hidden, self.intermediate),
            "attention_norm": (self.hidden,),
            "ffn_norm": (self.hidden,),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        return shapes | {"model.norm.weight": (self.hidden,), "output.weight": (self.vocab, self.hidden)}

    def llama(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the same model in the Llama layout, Qwen2's included, and its shape."""
        shapes: dict[str, tuple[int, ...]] = {}
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for name, shape in self.internlm2().items():
            for renamed in llama_names(name):
                is_qkv = len(llama_names(name)) == 3
                rows = (q if renamed.endswith("q_proj.weight") else kv,) if is_qkv else shape[:1]
                shapes[renamed] = rows + shape[1:]
                if is_qkv and self.qkv_bias:
                    shapes[renamed.removesuffix("weight") + "bias"] = rows
        if self.tied:
            del shapes[HEAD]
        return shapes


def llama_names(name: str) -> list[str]:
    """The Llama names of one InternLM2 tensor: three for `wqkv`, one for all others. KeyError: no such tensor."""
    if match := _LAYER.match(name):
        prefix, inner = match.groups()
        return [f"{prefix}{part}.weight" for part in (QKV if inner == WQKV else (RENAMED[inner],))]
    return [f"{RENAMED[name.removesuffix('.weight')]}.weight"]


def to_llama(name: str, tensor: torch.Tensor, shape: Shape) -> dict[str, torch.Tensor]:
    """One InternLM2 tensor as the Llama tensors that it holds."""
    names = llama_names(name)
    if len(names) == 1:
        return {names[0]: tensor}
    per_group = shape.heads // shape.kv_heads
    grouped = tensor.view(shape.kv_heads, per_group + 2, shape.head_dim, shape.hidden)
    parts = grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1]
    return {n: part.reshape(-1, shape.hidden).contiguous() for n, part in zip(names, parts, strict=True)}


def to_internlm2(name: str, llama: Mapping[str, torch.Tensor], shape: Shape) -> torch.Tensor:
    """The InternLM2 tensor `name` out of the Llama tensors that make it up: the inverse of `to_llama`, bit for bit."""
    import torch

    names = llama_names(name)
    if len(names) == 1:
        return llama[names[0]]
    per_group = shape.heads // shape.kv_heads
    q, k, v = (llama[n].view(shape.kv_heads, -1, shape.head_dim, shape.hidden) for n in names)
    assert q.shape[1] == per_group
    return torch.cat((q, k, v), dim=1).reshape(-1, shape.hidden)


# What config.json calls by one name in both formats.
SAME = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype",
)  # fmt: skip


def llama_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of an InternLM2 model rewritten for `LlamaForCausalLM`; nothing in it names Python code."""
    out: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    out |= {key: config[key] for key in SAME if key in config}
    bias = bool(config.get("bias", False))
    out |= {"attention_bias": bias, "mlp_bias": False, "head_dim": Shape.of(config).head_dim, "use_cache": True}
    if scaling := config.get("rope_scaling"):
        # transformers calls the key rope_type; dynamic scaling only acts beyond max_position_embeddings.
        out["rope_scaling"] = {"rope_type": scaling["type"], "factor": float(scaling["factor"])}
    return out


def internlm2_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json in InternLM2's own format for a model in the Llama layout: the inverse of `llama_config`."""
    out: dict[str, Any] = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"}
    out |= {key: config[key] for key in SAME if key in config}
    out |= {"bias": bool(config.get("attention_bias", False)), "use_cache": True}
    if scaling := config.get("rope_scaling"):
        kind = scaling.get("rope_type") or scaling["type"]
        out["rope_scaling"] = {"type": kind, "factor": float(scaling["factor"])}
    return out
