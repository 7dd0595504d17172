"""Safetensors read and written one tensor at a time, so that a model of any size is rewritten in little memory.

The library's own `save_file` wants every tensor of a shard at once, and copies them. The format needs neither: eight
bytes of length, a JSON header with the offsets of each tensor, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).

Shapes: tensors have whatever shape `Shapes` gives for their name; nothing here depends on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from recipe.errors import RecipeError
from recipe.files import write_json
from recipe.pipeline import stage
from recipe.pipeline.hashing import hash_ahead

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes of an element, by the format's name for its type. Unquantised models have no other types.
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}

Shapes = Mapping[str, tuple[int, ...]]  # tensor name -> shape
# Makes the tensors of `Rewrite.results` of those of `Rewrite.sources`, by name.
Change = Callable[[dict[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Rewrite:
    """One step of a rewrite.

    Attributes:
        sources: names of tensors that are read together.
        results: the tensors that are written in their place.
    """

    sources: Sequence[str]
    results: Shapes


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The open safetensors file. RecipeError: it cannot be read."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise RecipeError(f"{stage.shown(file)}: cannot be read ({error}); fetch it again") from None


def shards(folder: Path) -> list[str]:
    """The weight files of a model.

    Args:
        folder: of the model.

    Returns:
        Their names, sorted.

    Raises:
        RecipeError: one is missing, or the index is malformed.
    """
    if (folder / INDEX).is_file():
        weight_map = stage.read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise RecipeError(f"{stage.shown(folder / INDEX)}: has no weight_map")
        names = sorted(set(weight_map.values()))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        raise RecipeError(
            f"{stage.shown(folder)}: has neither {SINGLE} nor {INDEX}; weights as pickles (.bin) are not taken"
        )
    for name in names:
        if Path(name).name != name:
            raise RecipeError(f"{stage.shown(folder / INDEX)}: names a shard outside of its folder: {name}")
        if not (folder / name).is_file():
            raise RecipeError(f"{stage.shown(folder / name)}: missing, though {INDEX} lists it; fetch that shard")
    return names


def locate(folder: Path, expected: Shapes, ignored: Collection[str] = ()) -> dict[str, str]:
    """Check a model's tensors against its config.json, and find the shard of each.

    Args:
        folder: of the model.
        expected: the tensors that config.json implies.
        ignored: tensors that may be there and are not taken.

    Returns:
        tensor name -> name of its shard.

    Raises:
        RecipeError: a tensor is missing, unknown, of another shape, or quantised.
    """
    shard_of: dict[str, str] = {}
    for shard in shards(folder):
        with _opened(folder / shard) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name.endswith("rotary_emb.inv_freq") or name in ignored:
                    continue  # the former is a buffer that some versions stored and all compute
                view = file.get_slice(name)
                if name not in expected:
                    raise RecipeError(f"{stage.shown(folder / shard)}: unknown tensor {name}")
                if (shape := tuple(view.get_shape())) != tuple(expected[name]):
                    raise RecipeError(
                        f"{stage.shown(folder / shard)}: {name} is {list(shape)}, config.json makes it "
                        f"{list(expected[name])}; the files are not of one model"
                    )
                if view.get_dtype() not in BYTES:
                    raise RecipeError(
                        f"{stage.shown(folder / shard)}: {name} is {view.get_dtype()}, and only unquantised weights "
                        f"({', '.join(BYTES)}) are taken"
                    )
                shard_of[name] = shard
    if missing := sorted(set(expected) - set(shard_of)):
        raise RecipeError(
            f"{stage.shown(folder)}: {len(missing)} tensors are missing, the first is {missing[0]}; fetch it again"
        )
    return shard_of


def rewrite(
    folder: Path,
    out: Path,
    where: Mapping[str, str],
    plan: Sequence[Rewrite],
    change: Change,
) -> int:
    """Write a model's tensors anew, each step of `plan` by itself.

    A step's results go into the shard of its first source, and keep that one's precision.

    Args:
        folder: of the model.
        out: folder of the new files, which have the names of the old ones.
        where: the shard of every source, from `locate`.
        plan: all steps.
        change: makes a step's results; shapes and types must be those of the header.

    Returns:
        The number of parameters.
    """
    weight_map: dict[str, str] = {}
    parameters, total_bytes = 0, 0
    for shard in sorted(set(where.values())):
        steps = [step for step in plan if where[step.sources[0]] == shard]
        if not steps:
            continue
        with _opened(folder / shard) as file:
            dtypes = {step.sources[0]: file.get_slice(step.sources[0]).get_dtype() for step in steps}
        # The widest first, so that every tensor starts at a multiple of its own element.
        steps.sort(key=lambda step: -BYTES[dtypes[step.sources[0]]])
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0  # bytes
        for step in steps:
            dtype = dtypes[step.sources[0]]
            for name, shape in step.results.items():
                start, end = end, end + math.prod(shape) * BYTES[dtype]
                header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
                weight_map[name] = shard
                parameters += math.prod(shape)
        total_bytes += end
        _write(out / shard, header, (_results(folder, where, step, change) for step in steps))
        hash_ahead(out / shard)  # while the next one is written
    if len(set(weight_map.values())) > 1:
        content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(out / INDEX, content)
    elif weight_map:
        (out / next(iter(weight_map.values()))).rename(out / SINGLE)
    return parameters


def _results(folder: Path, where: Mapping[str, str], step: Rewrite, change: Change) -> dict[str, torch.Tensor]:
    """One step's results, in the order of the header. Each file is closed at once, which frees its memory."""
    sources = {}
    for name in step.sources:
        with _opened(folder / where[name]) as file:
            sources[name] = file.get_tensor(name)
    results = change(sources)
    return {name: results[name] for name in step.results}


def _write(file: Path, header: dict[str, Any], results: Iterator[dict[str, torch.Tensor]]) -> None:
    """Write one shard; `results` come in the order of the header."""
    import torch

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    with file.open("wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        for tensors in results:
            for name, tensor in tensors.items():
                start, end = header[name]["data_offsets"]
                data = tensor.contiguous().view(torch.uint8).numpy()
                assert data.nbytes == end - start, name
                shard.write(data.data)
