"""Files of at most so many bytes: every tensor in one of them, and none too large that need not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from recipe.checkpoint import shards
from recipe.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500mb", 500 * 10**6), ("2GiB", 2 * 2**30), ("1KiB", 1024), ("10kb", 10_000)],
)
def test_sizes_are_read_as_transformers_reads_them(text: str, size: int) -> None:
    assert shards.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "2", "2 GB", "0GB", "-1GB", "1.5GB", "GB", "2TB", "２GB", "2B"])
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"MAX_SHARD_SIZE=.* is no size: .* like 2GB"):
        shards.parse_size(text)


def write(folder: Path, sizes: list[int]) -> dict[str, int]:
    """A model of float16 tensors of so many bytes, in files of two; name -> bytes."""
    tensors = {f"t{i:03}": torch.full((size // 2,), float(i), dtype=torch.float16) for i, size in enumerate(sizes)}
    names = list(tensors)
    folder.mkdir(exist_ok=True)
    for i in range(0, len(names), 2):
        save_file({name: tensors[name] for name in names[i : i + 2]}, folder / f"{i:03}.safetensors")
    return {name: tensor.nbytes for name, tensor in tensors.items()}


@given(sizes=st.lists(st.integers(1, 50).map(lambda n: 2 * n), min_size=1, max_size=12), most=st.integers(1, 300))
def test_every_tensor_has_one_file_and_no_file_is_too_large(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int
) -> None:
    bytes_of = write(folder := tmp_path_factory.mktemp("model"), sizes)
    plan = shards.plan(folder, most)
    assert sorted(name for names in plan.values() for name in names) == sorted(bytes_of)
    groups = [sum(bytes_of[name] for name in names) for names in plan.values()]
    assert all(size <= most or len(names) == 1 for size, names in zip(groups, plan.values(), strict=True))
    firsts = [bytes_of[names[0]] for names in plan.values()]
    assert all(
        size + first > most for size, first in zip(groups, firsts[1:], strict=False)
    )  # and none is left half empty


def test_the_names_are_those_of_every_tool(tmp_path: Path) -> None:
    write(tmp_path, [10, 10, 10])
    assert list(shards.plan(tmp_path, 1000)) == ["model.safetensors"]
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(shards.plan(tmp_path, 12)) == names
    assert shards.plan(tmp_path, None) == {"000.safetensors": ["t000", "t001"], "002.safetensors": ["t002"]}


def test_the_index_names_the_file_of_each_tensor(tmp_path: Path) -> None:
    bytes_of = write(tmp_path, [10, 20, 30])
    shards.write_index(tmp_path, shards.plan(tmp_path, None))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(bytes_of.values())
    assert index["weight_map"] == {"t000": "000.safetensors", "t001": "000.safetensors", "t002": "002.safetensors"}
