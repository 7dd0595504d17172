"""Safetensors read and written one tensor at a time, so that a model of any size is rewritten in little memory.

The library's own `save_file` wants every tensor of a shard at once, and copies them. The format needs neither: eight
bytes of length, a JSON header with the place of each tensor, then the tensors' bytes.
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
from recipe.pipeline import stage

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Bytes an element takes. A name that is not here is a precision that no unquantised model comes in.
BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Rewrite:
    """Tensors that are read together and what is written in their place: name -> shape."""

    sources: Sequence[str]
    results: Shapes


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The safetensors file; RecipeError where it is none."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise RecipeError(f"{stage.shown(file)}: cannot be read ({error}); fetch it again") from None


def shards(folder: Path) -> list[str]:
    """The weight files of a model folder, in order, all of them present."""
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
    """The shard of every tensor, once names, shapes and precisions of all of them are what config.json says.

    ignored: tensors that may be there and are not taken.
    """
    shard_of: dict[str, str] = {}
    for shard in shards(folder):
        with _opened(folder / shard) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name.endswith("rotary_emb.inv_freq") or name in ignored:
                    continue  # the former is a buffer that some versions stored and every one computes
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
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> int:
    """Write what `change` makes of each step's tensors to `out`, under the shard names of `folder`.

    where: the shard of every source (`locate`). A result stands in the shard of its first source and keeps that one's
    precision. Returns the number of parameters.
    """
    weight_map: dict[str, str] = {}
    parameters, total = 0, 0
    for shard in sorted(set(where.values())):
        steps = [step for step in plan if where[step.sources[0]] == shard]
        if not steps:
            continue
        with _opened(folder / shard) as file:
            kinds = {step.sources[0]: file.get_slice(step.sources[0]).get_dtype() for step in steps}
        # The widest first, so that every tensor starts at a multiple of its own element.
        steps.sort(key=lambda step: -BYTES[kinds[step.sources[0]]])
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for step in steps:
            kind = kinds[step.sources[0]]
            for name, shape in step.results.items():
                start, end = end, end + math.prod(shape) * BYTES[kind]
                header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
                weight_map[name] = shard
                parameters += math.prod(shape)
        total += end
        _write(out / shard, header, (_changed(folder, where, step, change) for step in steps))
    if len(set(weight_map.values())) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    elif weight_map:
        (out / next(iter(weight_map.values()))).rename(out / SINGLE)
    return parameters


def _changed(
    folder: Path,
    where: Mapping[str, str],
    step: Rewrite,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """One step's results, in the order of the header. Each file is closed at once: what was read of it is given
    back."""
    sources = {}
    for name in step.sources:
        with _opened(folder / where[name]) as file:
            sources[name] = file.get_tensor(name)
    results = change(sources)
    return {name: results[name] for name in step.results}


def _write(file: Path, header: dict[str, Any], results: Iterator[dict[str, torch.Tensor]]) -> None:
    import torch

    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    with file.open("wb") as written:
        written.write(len(text).to_bytes(8, "little") + text)
        for tensors in results:
            for name, tensor in tensors.items():
                start, end = header[name]["data_offsets"]
                data = tensor.contiguous().view(torch.uint8).numpy()
                assert data.nbytes == end - start, name
                written.write(data.data)
