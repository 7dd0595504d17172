"""A model in the Llama or Qwen2 layout -> GGUF files for llama.cpp, all in one pass, a tensor at a time; and back.

The library `gguf` writes the format and has the formulas of its quantised blocks. Names and the order of rows are those
of llama.cpp's convert_hf_to_gguf.py; keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Shapes: weights are (rows, columns) as in safetensors; GGUF names the fastest dimension first, which its writer does.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from recipe.checkpoint import gguf_vocabulary, safetensors_io
from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.finite import all_finite, refuse_not_finite
from recipe.checkpoint.gguf_llama import BLOCK_NAMES, CHUNK, NAMES, dequantised, split_halves
from recipe.checkpoint.internlm2_llama import Shape
from recipe.errors import RecipeError
from recipe.pipeline.stage import read_json, shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedTokenizerBase

# Kind of file -> llama.cpp's names of its weights' type and of the whole, general.file_type.
KINDS = {"f16": ("F16", "MOSTLY_F16"), "q8_0": ("Q8_0", "MOSTLY_Q8_0"), "q4_0": ("Q4_0", "MOSTLY_Q4_0")}
BLOCK = 32  # values that share a scale
# 4 bits cost most in what every token goes through: there the file keeps 8.
EMBEDDINGS = ("token_embd.weight", "output.weight")
_PARTS = {llama: gguf for gguf, llama in (BLOCK_NAMES | NAMES).items()}


def file_name(kind: str) -> str:
    """The name of the file of one of `KINDS`."""
    return f"model-{kind}.gguf"


def write(
    model: Path, out: Path, *, tokenizer: PreTrainedTokenizerBase, sentencepiece: Path | None, name: str
) -> tuple[int, gguf_vocabulary.Vocabulary]:
    """Write a file of each of `KINDS`.

    Args:
        model: folder of a model that stage `model` or `merge` wrote.
        out: folder of the files.
        tokenizer: of the model, as transformers loads it.
        sentencepiece: the base's tokenizer.model, where it brought one.
        name: of the model, for general.name.

    Returns:
        The number of parameters, and the vocabulary.

    Raises:
        RecipeError: llama.cpp cannot hold the model, or a weight is not finite or beyond 16 bits.
    """
    import torch

    logging.getLogger("gguf").setLevel(logging.ERROR)  # it announces every file
    config = read_json(model / "config.json", ConfigShape)
    shape = Shape.of(config)
    vocabulary = gguf_vocabulary.read(model, sentencepiece, shape.vocab)
    settings = gguf_vocabulary.tokenizer_settings(model / "tokenizer_config.json")
    where = safetensors_io.locate(model, shape.llama())
    writers: dict[str, GGUFWriter] = {}
    for kind in KINDS:
        writers[kind] = _writer(out / file_name(kind), kind, model, config, name)
        gguf_vocabulary.add_to(writers[kind], vocabulary, tokenizer, settings)
        _begin(writers[kind], kind, shape)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for tensor_name in shape.llama():
            with safe_open(model / where[tensor_name], framework="pt") as shard:
                tensor = shard.get_tensor(tensor_name)
            refuse_not_finite([(tensor_name, tensor)], model)
            tensor = _llama_cpp_rows(tensor_name, tensor, config["model_type"], shape)
            for kind, writer in writers.items():
                writer.write_tensor_data(_values(tensor_name, tensor, _type(kind, tensor_name, tensor.shape), pool.map))
    for writer in writers.values():
        writer.close()
    return sum(math.prod(size) for size in shape.llama().values()), vocabulary


def read(file: Path, model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that llama.cpp multiplies by, out of a file that `write` wrote.

    Args:
        file: of any of `KINDS`.
        model: the folder that the file was written from.

    Yields:
        Name and values, dequantised to float32, of each tensor in the Llama or Qwen2 layout.
    """
    from gguf import GGUFReader

    config = read_json(model / "config.json", ConfigShape)
    shape = Shape.of(config)
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name in shape.llama():
        values = dequantised(stored[gguf_name(name)])
        heads = _rotated_heads(name, config["model_type"], shape)
        yield name, split_halves(values, heads) if heads else values


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor of the Llama or Qwen2 layout."""
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert match, name
    layer, part, kind = match.groups()
    return f"{'' if layer is None else f'blk.{layer}.'}{_PARTS[part]}.{kind}"


def _writer(file: Path, kind: str, model: Path, config: dict[str, Any], name: str) -> GGUFWriter:
    """A writer with the sizes of the model in its metadata. RecipeError: positions that are not written here."""
    import gguf

    writer = gguf.GGUFWriter(file, config["model_type"])
    shape = Shape.of(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[KINDS[kind][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    scaling = config.get("rope_scaling") or {}
    scaled = scaling.get("rope_type") or scaling.get("type") or "default"
    if scaled in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaled))
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        original = scaling.get("original_max_position_embeddings")
        if scaled == "yarn":
            writer.add_rope_scaling_orig_ctx_len(int(original or config["max_position_embeddings"]))
    elif scaled not in ("default", "dynamic"):  # dynamic acts beyond context_length, which llama.cpp keeps to
        raise RecipeError(
            f"{shown(model / 'config.json')}: rope_scaling of type {scaled!r} is not written to GGUF here: convert "
            f"{shown(model)} with llama.cpp's own convert_hf_to_gguf.py"
        )
    return writer


def _type(kind: str, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
    """The type of a tensor in a file of some kind."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    if kind == "q4_0" and gguf_name(name) in EMBEDDINGS:
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[KINDS[kind][0]]


def _begin(writer: GGUFWriter, kind: str, shape: Shape) -> None:
    """Write all that stands before the tensors' values."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    for name, size in shape.llama().items():
        type_ = _type(kind, name, size)
        dtype = np.dtype(plain.get(type_, np.uint8))
        stored = size if type_ in plain else quant_shape_to_byte_shape(size, type_)
        writer.add_tensor_info(gguf_name(name), stored, dtype, math.prod(stored) * dtype.itemsize, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _llama_cpp_rows(name: str, tensor: torch.Tensor, kind: str, shape: Shape) -> torch.Tensor:
    """The rows of q and k in llama.cpp's order: the inverse of `gguf_llama.split_halves`.

    Args:
        name: of the tensor in the Llama layout.
        tensor: (rows, columns), or (rows) of a bias or norm.
        kind: model_type.
        shape: of the model.

    Returns:
        The same shape.
    """
    heads = _rotated_heads(name, kind, shape)
    if heads is None:
        return tensor
    halves = tensor.view(heads, 2, shape.head_dim // 2, *tensor.shape[1:])  # (heads, 2, head_dim / 2, columns)
    return halves.transpose(1, 2).reshape(tensor.shape)


def _rotated_heads(name: str, kind: str, shape: Shape) -> int | None:
    """The heads of a tensor whose rows llama.cpp has in another order than transformers; None of all others.

    Both rotate a Qwen2's rows alike; llama.cpp rotates a Llama's in neighbouring pairs.

    Args:
        name: of the tensor in the Llama layout.
        kind: model_type.
        shape: of the model.
    """
    return {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name.split(".")[-2]) if kind == "llama" else None


def _values(
    name: str, tensor: torch.Tensor, type_: GGMLQuantizationType, each: Callable[..., Any]
) -> np.ndarray[Any, Any]:
    """The values of a tensor as the file stores them.

    Args:
        name: of the tensor, for the error.
        tensor: (rows, columns) or (rows), of any precision.
        type_: of GGUF.
        each: `map` over threads.

    Returns:
        float32 or float16 of the same shape, or (rows, bytes of a row) of quantised blocks.

    Raises:
        RecipeError: a value is beyond float16.
    """
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if type_ is GGMLQuantizationType.F32:
        return tensor.float().numpy()
    if type_ is GGMLQuantizationType.F16:
        half = tensor.to(torch.float16)
        if not all_finite(half):
            raise RecipeError(f"{name} holds values beyond float16, which a GGUF file of 16 bits cannot hold")
        return half.numpy()
    rows = max(1, CHUNK // tensor.shape[1])
    return np.concatenate(list(each(lambda part: quantize(part.float().numpy(), type_), tensor.split(rows))))
