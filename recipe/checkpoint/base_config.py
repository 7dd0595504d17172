"""config.json of a base model: which models this recipe takes, and for what reason it refuses the others.

Layouts and keys are those of transformers' configuration_llama.py and configuration_qwen2.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recipe.checkpoint.internlm2_llama import Shape
from recipe.records import from_json

# model_type -> the class that computes it; InternLM2's own is Python of its repository, which is not read.
FORMATS = {"internlm2": None, "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# Rotary embeddings whose angle of a position is the same in every sequence that max_position_embeddings allows, so that
# the engine may compute all of them once. `longrope` has other angles in longer sequences.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
# The largest that a size may be: well above any model that one machine holds. A file that says more is damaged, and
# counting the tensors of 10^9 layers would take the machine's memory.
LARGEST = {
    "num_hidden_layers": 1_000, "num_attention_heads": 1_000, "num_key_value_heads": 1_000, "hidden_size": 100_000,
    "intermediate_size": 1_000_000, "vocab_size": 4_000_000, "max_position_embeddings": 100_000_000,
}  # fmt: skip


@dataclass(frozen=True)
class ConfigShape:
    """The keys of config.json that are read here or by transformers' Llama and Qwen2, with their types."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float | None = None
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    architectures: list[str] | None = None
    layer_types: list[str] | None = None
    hidden_act: str | None = None
    tie_word_embeddings: bool | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    initializer_range: float | None = None


def with_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The config with rope_theta and rope_scaling, which the locked transformers reads, for v5's rope_parameters.

    transformers 4 ignores rope_parameters and would compute with a theta of 10,000.
    """
    if not isinstance(parameters := config.get("rope_parameters"), dict) or not parameters:
        return config
    out = {key: value for key, value in config.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    if "rope_theta" in parameters:
        out["rope_theta"] = parameters["rope_theta"]
    if scaling.get("rope_type", "default") != "default":
        out["rope_scaling"] = scaling
    return out


def refusal(config: dict[str, Any]) -> str | None:
    """Why this recipe does not take a model of this config.json, or None.

    Raises:
        ShapeError: a size is missing, or a key has a value of another type.
        ValueError: the sizes cannot be.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FORMATS:
        return f"model_type {kind!r} is none of {', '.join(FORMATS)}"
    if config.get("quantization_config") or config.get("compression_config"):
        return "its weights are quantised; take the same model in 16 bits, PRESET=qlora quantises by itself"
    from_json(ConfigShape, config)
    check_sizes(config)
    if kind == "internlm2":
        if config.get("bias") or config.get("tie_word_embeddings"):
            return "biases and tied embeddings are not InternLM2's"
    elif reason := _other_architecture(config):
        return reason
    shape = Shape.of(config)
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads:
        raise ValueError("hidden_size, num_attention_heads and num_key_value_heads do not divide")
    if (size := config.get("head_dim") or shape.head_dim) != shape.head_dim:
        return f"head_dim {size} is not hidden_size / num_attention_heads, {shape.head_dim}: not supported"
    return _other_positions(config)


def check_sizes(config: dict[str, Any]) -> None:
    """Check the sizes in a config.json of any model. ValueError: one is no whole number, or none that can be."""
    for key, largest in LARGEST.items():
        size = config.get(key)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= largest):
            raise ValueError(f"{key} {str(size)[:40]} is no whole number from 1 to {largest:,}")


def _other_architecture(config: dict[str, Any]) -> str | None:
    """What of a Llama or Qwen2 config makes it another architecture than the one this recipe computes."""
    kind = config["model_type"]
    if (named := config.get("architectures") or [FORMATS[kind]]) != [FORMATS[kind]]:
        return f"architectures {named} is not [{FORMATS[kind]!r}], the chat model of model_type {kind!r}"
    if biases := [key for key in ("attention_bias", "mlp_bias") if config.get(key)]:
        return f"{biases[0]}: biases are supported on q, k and v of Qwen2 alone"
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return f"hidden_act {activation!r} is not silu"
    layers = config.get("layer_types") or []
    if config.get("use_sliding_window") or any(layer != "full_attention" for layer in layers):
        return "its attention has a sliding window (use_sliding_window), and every layer here sees all that precedes"
    return None


def _other_positions(config: dict[str, Any]) -> str | None:
    scaling = config.get("rope_scaling") or {}
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    return None if kind in ROPE_TYPES else f"rope_scaling of type {kind!r} is none of {', '.join(ROPE_TYPES)}"
