"""Of a checkpoint, mmengine's or DeepSpeed's, only tensors and a trainer's plain state are loaded, whoever asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.checkpoint import lora
from recipe.checkpoint.trainer_state import FORCE, FORCE_NOT, allow_trainer_state
from recipe.errors import RecipeError


class Program:
    """What runs a program as it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.ran}",)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORCE, raising=False)
    monkeypatch.setenv(FORCE_NOT, "1")  # of a user, who meant something else with it


def deepspeeds_own() -> dict[str, Any]:
    """What its ZeRO optimizers save beside tensors."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return {
        "loss_scaler": LossScaler(scale=2.0),
        "dynamic": DynamicLossScaler(1.0, 2.0, 1000, 1.0, 1, False, dtype=torch.half),
        "zero_stage": ZeroStageEnum.gradients,
        "param_slice_mappings": [{"a": fragment_address(numel=3, start=0)}],
    }


def test_deepspeed_loads_its_own_state_and_no_program(tmp_path: Path) -> None:
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    engine = TorchCheckpointEngine()
    allow_trainer_state(deepspeed=True)
    torch.save(deepspeeds_own(), tmp_path / "own.pt")
    loaded = engine.load(str(tmp_path / "own.pt"))
    assert loaded["loss_scaler"].cur_scale == 2.0
    assert loaded["param_slice_mappings"][0]["a"].numel == 3
    torch.save({"module": Program(tmp_path / "ran")}, tmp_path / "program.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        engine.load(str(tmp_path / "program.pt"))
    assert not (tmp_path / "ran").exists()


def test_a_caller_that_asks_for_the_other_reader_does_not_get_it(tmp_path: Path) -> None:
    allow_trainer_state()
    torch.save({"state": Program(tmp_path / "ran")}, tmp_path / "iter_1.pth")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "iter_1.pth", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("deepspeed", [False, True])
def test_a_checkpoint_with_a_program_is_refused_in_one_line(tmp_path: Path, *, deepspeed: bool) -> None:
    program, path = Program(tmp_path / "ran"), tmp_path / "iter_1.pth"
    if deepspeed:
        path.mkdir()
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            torch.save({"optimizer_state_dict": program}, path / name)
    else:
        torch.save({"state_dict": {}, "message_hub": program}, path)
    with pytest.raises(RecipeError, match=r"iter_1\.pth: is no checkpoint .*could run code") as error:
        lora.read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
