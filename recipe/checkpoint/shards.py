"""Which file of a model holds which tensors: as another folder has them, or in files of at most so many bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from recipe.checkpoint.safetensors_io import BYTES, INDEX, SINGLE
from recipe.errors import RecipeError
from recipe.files import write_json

# As transformers and XTuner write sizes: 2GB is 2 * 10 ** 9 bytes, 2GiB is 2 * 2 ** 30.
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

Plan = Mapping[str, Sequence[str]]  # file name -> names of its tensors


def parse_size(text: str) -> int:
    """The bytes that a size such as 2GB means.

    Raises:
        RecipeError: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]*)([KMG]I?B)", text.upper(), re.ASCII)
    if match is None:
        raise RecipeError(f"MAX_SHARD_SIZE={text} is no size: a whole number and KB, MB, GB, KiB, MiB or GiB, like 2GB")
    return int(match[1]) * UNITS[match[2]]


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> its file, for all weights of a model."""
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    return files


def plan(model: Path, max_bytes: int | None) -> Plan:
    """Distribute the tensors of a model over files.

    Args:
        model: its folder.
        max_bytes: of the tensors in a file; a larger tensor has a file of its own. None keeps the model's own files.
    """
    files = tensor_files(model)
    groups: list[list[str]] = []
    if max_bytes is None:
        names = {file.name for file in files.values()}
        return {name: [tensor for tensor, file in files.items() if file.name == name] for name in sorted(names)}
    room = 0  # bytes left in the last group
    for tensor, size in _sizes(files).items():
        if not groups or size > room:
            groups.append([])
            room = max_bytes
        groups[-1].append(tensor)
        room -= size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _sizes(files: Mapping[str, Path]) -> dict[str, int]:
    """Tensor name -> bytes, in the order of the files."""
    sizes = {}
    with opened(files) as tensors:
        for name in files:
            view = tensors[name].get_slice(name)
            sizes[name] = math.prod(view.get_shape()) * BYTES[view.get_dtype()]
    return sizes


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Mapping[str, Any]]:
    """Tensor name -> the open file that holds it; `get_tensor` reads one."""
    with ExitStack() as stack:
        handles = {file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(set(files.values()))}
        yield {name: handles[file] for name, file in files.items()}


def write_index(folder: Path, files: Plan) -> None:
    """Write the index that names the file of each tensor, where there are several files.

    Args:
        folder: of the written model.
        files: its plan.
    """
    if len(files) == 1:
        return
    total = sum(_sizes(tensor_files(folder)).values())
    weight_map = {tensor: file for file, tensors in files.items() for tensor in tensors}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX, content)
