"""Safetensors written a tensor at a time are what the library itself reads, bit for bit."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recipe.checkpoint import safetensors_io
from recipe.checkpoint.safetensors_io import INDEX, SINGLE, Rewrite, locate, rewrite
from recipe.errors import RecipeError

Tensors = dict[str, torch.Tensor]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of arbitrary bytes: not-a-numbers, infinities, denormals and negative zeros included."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.view(torch.uint8).equal(other.view(torch.uint8))
    )


def unchanged(tensors: Tensors) -> Tensors:
    return tensors


def stored(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return tmp_path / "in", tmp_path / "out"


@given(
    kinds=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=5),
    sizes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_every_bit_and_precision_survives(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[torch.dtype], sizes: list[tuple[int, ...]], seed: int
) -> None:
    folder, out = folders(tmp_path_factory.mktemp("weights"))
    tensors = {f"t{i}": any_bits(sizes[i], kind, seed + i) for i, kind in enumerate(kinds)}
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    plan = [Rewrite([name], {name: shape}) for name, shape in shapes.items()]
    assert rewrite(folder, out, locate(folder, shapes), plan, unchanged) == sum(t.numel() for t in tensors.values())
    back = stored(out)
    assert back.keys() == tensors.keys()
    assert all(same_bits(back[name], tensors[name]) for name in tensors)


def test_a_result_may_need_several_shards(tmp_path: Path) -> None:
    folder, out = folders(tmp_path)
    parts = {name: any_bits((2, 3), torch.bfloat16, seed) for seed, name in enumerate(("a", "b", "c"))}
    for name, tensor in parts.items():
        save_file({name: tensor}, folder / f"{name}.safetensors", {"format": "pt"})
    index = {"weight_map": {name: f"{name}.safetensors" for name in parts}}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    plan = [Rewrite(["b", "c"], {"bc": (4, 3)}), Rewrite(["a"], {"a": (2, 3)})]

    def fuse(tensors: Tensors) -> Tensors:
        return {"bc": torch.cat([tensors["b"], tensors["c"]])} if "b" in tensors else tensors

    assert rewrite(folder, out, locate(folder, dict.fromkeys(parts, (2, 3))), plan, fuse) == 18
    assert json.loads((out / INDEX).read_text(encoding="utf-8")) == {
        "metadata": {"total_size": 36},
        "weight_map": {"bc": "b.safetensors", "a": "a.safetensors"},
    }
    back = stored(out)
    assert same_bits(back["bc"], torch.cat([parts["b"], parts["c"]]))
    assert same_bits(back["a"], parts["a"])
    assert sorted(path.name for path in out.iterdir()) == ["a.safetensors", "b.safetensors", INDEX]


def test_what_stands_in_one_file_needs_no_index(tmp_path: Path) -> None:
    folder, out = folders(tmp_path)
    save_file({"a": torch.ones(3)}, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    rewrite(folder, out, locate(folder, {"a": (3,)}), [Rewrite(["a"], {"a": (3,)})], unchanged)
    assert [path.name for path in out.iterdir()] == [SINGLE]


@pytest.mark.parametrize("tensor", [torch.ones(3, dtype=torch.int8), torch.ones(3).to(torch.float8_e4m3fn)], ids=str)
def test_quantised_weights_are_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    folder, _ = folders(tmp_path)
    save_file({"a": tensor}, folder / SINGLE, {"format": "pt"})
    with pytest.raises(RecipeError, match="only unquantised weights"):
        locate(folder, {"a": (3,)})


@pytest.mark.parametrize(
    "change", [lambda t: {"a": t["a"][:2]}, lambda t: {"a": t["a"].double()}], ids=["smaller", "wider"]
)
def test_a_result_of_another_size_than_announced_is_a_bug_and_not_a_file(
    change: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    folder, out = folders(tmp_path)
    save_file({"a": torch.ones(3)}, folder / SINGLE, {"format": "pt"})
    with pytest.raises(AssertionError):
        rewrite(folder, out, locate(folder, {"a": (3,)}), [Rewrite(["a"], {"a": (3,)})], change)


def test_memory_holds_a_tensor_and_not_a_shard(tmp_path: Path) -> None:
    folder, out = folders(tmp_path)
    shapes = {f"t{i}": (1 << 16,) for i in range(8)}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / SINGLE, {"format": "pt"})
    handed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(tensors: Tensors) -> Tensors:
        handed.extend(weakref.ref(tensor) for tensor in tensors.values())
        alive.append(sum(reference() is not None for reference in handed))
        return tensors

    plan = [Rewrite([name], {name: shape}) for name, shape in shapes.items()]
    rewrite(folder, out, locate(folder, shapes), plan, watched)
    assert len(alive) == 8
    assert max(alive) <= 2  # the one at hand, and the last one, which the writer's loop still names


def test_the_widths_are_the_librarys() -> None:
    from safetensors.torch import _TYPES

    assert {kind: _TYPES[kind].itemsize for kind in safetensors_io.BYTES} == safetensors_io.BYTES
