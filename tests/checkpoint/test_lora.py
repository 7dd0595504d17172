"""Only a trained LoRA adapter of this very base passes, and merging it adds exactly scale · B·A."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.checkpoint import lora
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.errors import RecipeError

Tensors = dict[str, torch.Tensor]
FIRST_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def base(tiny_model: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def tensors(train_folder: Path) -> Tensors:
    return lora.read_checkpoint(train_folder / "iter_4.pth")


def test_a_checkpoint_is_read_under_pefts_names_with_its_values(
    train_folder: Path, checkpoints: dict[str, dict[str, Any]]
) -> None:
    read = lora.read_checkpoint(train_folder / "iter_2.pth")
    state = checkpoints["iter_2"]
    assert len(read) == len(state) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    for name, tensor in read.items():
        assert torch.equal(tensor, state["llm." + name.replace(".weight", ".default.weight")]), name


def test_a_checkpoint_with_mmengines_records_is_read(train_folder: Path, tmp_path: Path) -> None:
    """Beside the tensors mmengine saves loss histories, which torch's weights-only reader does not know by itself."""
    import numpy as np
    from mmengine.logging import MessageHub

    from recipe.checkpoint.trainer_state import allow_trainer_state

    allow_trainer_state()  # as the trainer does before it saves
    hub = MessageHub("test_adapter")
    for step in range(5):
        hub.update_scalar("train/loss", np.float64(1.0 / (step + 1)))
    state = torch.load(train_folder / "iter_4.pth", weights_only=True)
    torch.save(state | {"message_hub": hub.state_dict(), "meta": {"iter": 4}}, tmp_path / "iter_4.pth")
    read, plain = lora.read_checkpoint(tmp_path / "iter_4.pth"), lora.read_checkpoint(train_folder / "iter_4.pth")
    assert read.keys() == plain.keys()
    assert all(torch.equal(read[name], plain[name]) for name in plain)


class Malice:
    """Unpickling it would run a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "malice": Malice(tmp_path / "ran")}, tmp_path / "iter_1.pth")
    with pytest.raises(RecipeError, match="no checkpoint that can be read"):
        lora.read_checkpoint(tmp_path / "iter_1.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(train_folder: Path, tmp_path: Path, size: float) -> None:
    content = (train_folder / "iter_4.pth").read_bytes()
    file = tmp_path / "iter_4.pth"
    file.write_bytes(content[: int(size * len(content)) if size < 1 else int(size)])
    with pytest.raises(RecipeError, match=r"iter_4\.pth: is no checkpoint") as caught:
        lora.read_checkpoint(file)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_full_training_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"llm.model.embed_tokens.weight": torch.ones(2, 2)}}, tmp_path / "iter_1.pth")
    with pytest.raises(RecipeError, match=r"llm\.model\.embed_tokens\.weight is no LoRA tensor"):
        lora.read_checkpoint(tmp_path / "iter_1.pth")


def check(tensors: Tensors, base: dict[str, Any], r: int = 4, targets: tuple[str, ...] = tuple(LINEAR_LAYERS)) -> None:
    lora.check(tensors, base=base, r=r, targets=targets)


def test_a_trained_adapter_passes(tensors: Tensors, base: dict[str, Any]) -> None:
    check(tensors, base)


def test_an_adapter_of_some_modules_passes_as_such(tensors: Tensors, base: dict[str, Any]) -> None:
    some = {name: t for name, t in tensors.items() if ".q_proj." in name or ".v_proj." in name}
    check(some, base, targets=("q_proj", "v_proj"))


def zero(tensors: Tensors) -> None:
    tensors[FIRST_B] = torch.zeros_like(tensors[FIRST_B])


def zero_a(tensors: Tensors) -> None:
    tensors[FIRST_A] = torch.zeros_like(tensors[FIRST_A])


def missing(tensors: Tensors) -> None:
    del tensors[FIRST_A]


def all_missing(tensors: Tensors) -> None:
    tensors.clear()


def extra_layer(tensors: Tensors) -> None:
    tensors[FIRST_A.replace("layers.0", "layers.2")] = tensors[FIRST_A]


def extra_module(tensors: Tensors) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 16)


def wrong_rank(tensors: Tensors) -> None:
    tensors[FIRST_A] = tensors[FIRST_A][:2]


def transposed(tensors: Tensors) -> None:
    tensors[FIRST_B] = tensors[FIRST_B].T


def not_a_number(tensors: Tensors) -> None:
    tensors[FIRST_B] = tensors[FIRST_B].clone()
    tensors[FIRST_B][3, 1] = float("nan")


def infinite(tensors: Tensors) -> None:
    tensors[FIRST_A] = tensors[FIRST_A].clone()
    tensors[FIRST_A][0, 0] = float("-inf")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (zero, f"{FIRST_B} is all zeros"),
        (zero_a, f"{FIRST_A} is all zeros"),
        (missing, f"1 tensors are missing, the first is {FIRST_A}"),
        (all_missing, "28 tensors are missing"),
        (extra_layer, "1 tensors match nothing in the base, the first is base_model.model.model.layers.2"),
        (extra_module, "the first is base_model.model.lm_head.lora_A.weight"),
        (wrong_rank, f"{FIRST_A} is [2, 16], the base needs [4, 16]"),
        (transposed, f"{FIRST_B} is [4, 16], the base needs [16, 4]"),
        (not_a_number, f"{FIRST_B} holds values that are not finite"),
        (infinite, f"{FIRST_A} holds values that are not finite"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_anything_but_a_trained_adapter_of_the_base_is_refused(
    damage: Callable[[Tensors], None], reason: str, tensors: Tensors, base: dict[str, Any]
) -> None:
    damage(tensors)
    with pytest.raises(RecipeError) as caught:
        check(tensors, base)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 32},
        {"intermediate_size": 48},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 1},
    ],
)
def test_an_adapter_of_another_base_is_refused(change: dict[str, int], tensors: Tensors, base: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="adapter: "):
        check(tensors, base | change)


@pytest.mark.parametrize(("r", "targets"), [(8, tuple(LINEAR_LAYERS)), (4, ("q_proj",)), (4, (*LINEAR_LAYERS[:-1],))])
def test_an_adapter_of_another_config_is_refused(
    r: int, targets: tuple[str, ...], tensors: Tensors, base: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="adapter: "):
        check(tensors, base, r=r, targets=targets)


def test_merging_adds_scale_times_b_a_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "model.layers.0.self_attn.q_proj.weight": torch.randn(6, 4, generator=generator),
        "model.norm.weight": torch.ones(4),
    }
    before = {name: weight.clone() for name, weight in weights.items()}
    a, b = torch.randn(2, 4, generator=generator), torch.randn(6, 2, generator=generator)
    merged = lora.merge_into(weights, {FIRST_A: a, FIRST_B: b}, scale=0.5)
    assert merged == {"model.layers.0.self_attn.q_proj.weight"}
    name = merged.pop()
    expected = before[name].double() + 0.5 * b.double() @ a.double()
    assert torch.allclose(weights[name].double(), expected, atol=1e-6)
    assert torch.equal(weights["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_is_rounded_once_to_the_weights_own_type(dtype: torch.dtype) -> None:
    # Small steps onto large weights: rounding B·A first, or adding in 16 bits, would lose them.
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.0.self_attn.q_proj.weight"
    weight = torch.randn(32, 32, generator=generator).to(dtype)
    a, b = 0.01 * torch.randn(4, 32, generator=generator), 0.01 * torch.randn(32, 4, generator=generator)
    weights = {name: weight.clone()}
    lora.merge_into(weights, {FIRST_A: a, FIRST_B: b}, scale=2.0)
    assert weights[name].dtype == dtype
    assert torch.equal(weights[name], (weight.float() + 2.0 * (b @ a)).to(dtype))
