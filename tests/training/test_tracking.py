"""TRACK=: what reaches a tracker, and what is refused before anything is done; the packages are stand-ins here."""

from __future__ import annotations

import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import VISBACKENDS
from mmengine.visualization import Visualizer
from tracker_service import Service

from recipe import cli
from recipe.errors import RecipeError
from recipe.stages import config
from recipe.training import tracking

VARIABLES = (
    "RECIPE_IMAGE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_CONSOLE", "SWANLAB_PROJ_NAME",
    "SWANLAB_EXP_NAME", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the trackers' variables, and what the code sets is gone afterwards."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setitem(sys.modules, request.param, stand_in := Service(request.param))
    return stand_in


def tracked(file: Path, name: str) -> Any:
    """The config of a preset after `write_config` for a run called "work"."""
    tracking.write_config(config.load_preset("miniature"), file, name=name, run_folder=file.parent / "work")
    return Config.fromfile(file)


@pytest.fixture
def visualizer(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visualizer]:
    """The visualizer of a tracked training, without the other backends, after its config was sent."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())  # none of another test's, whose output is closed
    read = tracked(tmp_path / "config.py", service.__name__)
    read.work_dir = str(tmp_path / "train")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "replies.md").touch()
    (tmp_path / "train" / "console.log").touch()
    backends = read.visualizer.vis_backends[-1:]
    visualizer = Visualizer(vis_backends=backends, save_dir=str(tmp_path), name=tmp_path.name)
    visualizer.add_config(read)
    yield visualizer
    visualizer.close()


@pytest.mark.parametrize("service", ["wandb", "mlflow"], indirect=True)
def test_losses_and_scores_arrive_at_the_training_s_steps(service: Service, visualizer: Visualizer) -> None:
    for step in range(1, 5):
        visualizer.add_scalars({"loss": 5.0 - step}, step=step)
        if step % 2 == 0:
            visualizer.add_scalars({"score/hit": step / 4, "score/leak": 0.0}, step=step)
    visualizer.add_scalar("late", 1.0, step=4)
    assert service.rows == {
        1: {"loss": 4.0},
        2: {"loss": 3.0, "score/hit": 0.5, "score/leak": 0.0},
        3: {"loss": 2.0},
        4: {"loss": 1.0, "score/hit": 1.0, "score/leak": 0.0, "late": 1.0},
    }


@pytest.mark.parametrize("service", ["wandb", "mlflow"], indirect=True)
def test_neither_source_files_nor_replies_are_sent(service: Service, visualizer: Visualizer) -> None:
    visualizer.close()
    assert service.calls[-1].startswith(("finish", "end"))
    assert not any(word in call for call in service.calls for word in ("log_code", "replies", "console"))
    assert "model" in service.settings or "model.lora.r" in service.settings


def test_wandb_keeps_what_the_terminal_shows_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked(tmp_path / "config.py", "wandb")
    assert os.environ["WANDB_CONSOLE"] == "off"
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    tracked(tmp_path / "config.py", "wandb")
    assert os.environ["WANDB_CONSOLE"] == "wrap"


@pytest.mark.parametrize("name", tracking.TRACKERS)
def test_the_other_backends_stay_and_local_files_lie_beside_the_stages(tmp_path: Path, name: str) -> None:
    local, tensorboard, backend = tracked(tmp_path / "config.py", name).visualizer.vis_backends
    assert local.type.endswith("LocalVisBackend")
    assert tensorboard.type.endswith("TensorboardVisBackend")
    assert backend.save_dir == str(tmp_path / "work" / "tracking")
    labels = backend.get("init_kwargs", backend)
    assert {labels.get("project"), labels.get("exp_name")} == {None, "internlm2-identity"}
    assert "work" in (labels.get("name"), labels.get("experiment_name"), labels.get("run_name"))


@pytest.mark.parametrize(
    ("name", "variable", "place"),
    [
        ("wandb", "WANDB_DIR", "save_dir"),
        ("wandb", "WANDB_PROJECT", "init_kwargs.project"),
        ("wandb", "WANDB_NAME", "init_kwargs.name"),
        ("swanlab", "SWANLAB_LOG_DIR", "save_dir"),
        ("swanlab", "SWANLAB_PROJ_NAME", "init_kwargs.project"),
        ("swanlab", "SWANLAB_EXP_NAME", "init_kwargs.experiment_name"),
        ("mlflow", "MLFLOW_TRACKING_URI", "tracking_uri"),
        ("mlflow", "MLFLOW_EXPERIMENT_NAME", "exp_name"),
    ],
)
def test_the_tracker_s_own_variables_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, place: str
) -> None:
    monkeypatch.setenv(variable, "https://mine.example")
    value = tracked(tmp_path / "config.py", name).visualizer.vis_backends[-1]
    for key in place.split("."):
        value = value[key]
    assert value == "https://mine.example"


@pytest.mark.parametrize(
    ("uri", "asked"), [(None, "true"), ("file:/tmp/runs", "true"), ("./runs", "true"), ("https://m.example", None)]
)
def test_mlflow_may_write_plain_files_where_they_are_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None, asked: str | None
) -> None:
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracked(tmp_path / "config.py", "mlflow")
    assert os.environ.get("MLFLOW_ALLOW_FILE_STORE") == asked


def test_a_config_without_visualizer_keeps_the_log_that_the_stage_reads(tmp_path: Path) -> None:
    own = Config({"model": {"type": "x"}, "visualizer": None})
    tracking.write_config(own, tmp_path / "config.py", name="mlflow", run_folder=tmp_path)
    backends = Config.fromfile(tmp_path / "config.py").visualizer.vis_backends
    assert [each.type.rpartition(".")[2] for each in backends] == ["LocalVisBackend", "MLflowVisBackend"]
    assert own.visualizer is None


def test_every_backend_of_mmengine_that_is_named_exists() -> None:
    for name in ("mmengine.visualization.MLflowVisBackend", "recipe.training.wandb_backend.WandbByStep"):
        assert VISBACKENDS.get(name) is not None


# --- What cannot be is refused ------------------------------------------------------------------------------------


@pytest.fixture
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)


@pytest.mark.usefixtures("_not_installed")
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tensorboard", "TRACK=tensorboard is none of wandb, swanlab, mlflow"),
        ("WANDB", "TRACK=WANDB is none of wandb, swanlab, mlflow"),
        ("wandb", "TRACK=wandb: the package wandb is not installed: run `"),
        ("swanlab", "TRACK=swanlab: the package swanlab is not installed: run `"),
        ("mlflow", "TRACK=mlflow: the package mlflow is not installed: run `"),
    ],
)
@pytest.mark.parametrize("verb", ["model", "train", "quickstart"])
def test_a_tracker_that_is_not_there_is_refused_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, name: str, line: str
) -> None:
    assert cli.main([verb, "--work", str(tmp_path / "work"), "--track", name]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.usefixtures("_not_installed")
def test_in_the_image_it_says_where_to_train_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_IMAGE", "sha256:1")
    with pytest.raises(RecipeError, match="the image has no package wandb: train with RUNTIME=local"):
        tracking.check("wandb")


def test_a_folder_of_the_package_s_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tracker_x" / "offline-run-1").mkdir(parents=True)  # as wandb leaves ./wandb where it is called
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tracking, "TRACKERS", {"x": tracking.Tracker("tracker_x", "x", tracking._wandb)})
    with pytest.raises(RecipeError, match="not installed"):
        tracking.check("x")


# --- However a training ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "failed", "last"),
    [
        ("wandb", True, "finish 1"), ("wandb", False, "finish 0"),
        ("mlflow", True, "end FAILED"), ("mlflow", False, "end FINISHED"),
    ],
    indirect=["service"],
)  # fmt: skip
def test_what_is_open_is_ended_once(service: Service, *, failed: bool, last: str) -> None:
    service.run = types.SimpleNamespace()
    tracking.end(failed=failed)
    tracking.end(failed=failed)
    assert service.calls == [last]


def test_the_password_of_a_tracking_server_stands_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")  # so that what the code sets is taken back
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:se%40cret@mlflow.example:5000/a")
    backend = tracked(tmp_path / "config.py", "mlflow").visualizer.vis_backends[-1]
    assert backend["tracking_uri"] == "https://mlflow.example:5000/a"
    assert "cret" not in (tmp_path / "config.py").read_text(encoding="utf-8")
    assert [os.environ[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD")] == ["me", "se@cret"]


@pytest.mark.parametrize("uri", ["postgresql://me:secret@db/mlflow", "http://me:secret@[::1/"])
def test_a_password_that_would_stand_in_a_file_is_refused_first(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RecipeError, match="MLFLOW_TRACKING_URI") as error:
        tracking.check("mlflow")
    assert "secret" not in str(error.value)
