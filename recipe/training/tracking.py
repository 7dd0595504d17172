"""Trackers: where the loss and the scores of a training go besides its own folder, through backends of mmengine.

The packages are none of this recipe's: a tracker's is checked before anything else is done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from recipe.errors import RecipeError
from recipe.paths import ROOT, shown

# What the trainings are filed under, where the tracker's own variable does not say otherwise.
PROJECT = "internlm2-identity"
# In the folder of a run: what a tracker keeps on this machine. A stage's own folder moves when it is complete.
FOLDER = "tracking"


@dataclass(frozen=True)
class Tracker:
    """One tracker.

    Attributes:
        module: what must be importable.
        requirement: what an installer calls the package.
        backend: from (folder for local files, name of the run) to the entry of a config's `vis_backends`.
    """

    module: str
    requirement: str
    backend: Callable[[str, str], dict[str, Any]]


def _wandb(folder: str, run: str) -> dict[str, Any]:
    os.environ.setdefault("WANDB_CONSOLE", "off")  # it would send what the terminal shows, replies included
    names = {"project": _of_environment("WANDB_PROJECT", PROJECT), "name": _of_environment("WANDB_NAME", run)}
    return {
        "type": "recipe.training.wandb_backend.WandbByStep",
        "save_dir": _of_environment("WANDB_DIR", folder),
        "init_kwargs": names,
    }


def _swanlab(folder: str, run: str) -> dict[str, Any]:
    names = {
        "project": _of_environment("SWANLAB_PROJ_NAME", PROJECT),
        "experiment_name": _of_environment("SWANLAB_EXP_NAME", run),
    }
    return {
        "type": "swanlab.integration.mmengine.SwanlabVisBackend",
        "save_dir": _of_environment("SWANLAB_LOG_DIR", folder),
        "init_kwargs": names,
    }


def _public_address(uri: str) -> str:
    """A tracking address without user and password, which would stand in the config and the logs of the training.

    Those of a server go to MLflow's own variables.

    Raises:
        RecipeError: it is no address, or one of a database with a password, for which there are no such variables.
    """
    try:
        parts = urlsplit(uri)
        user, password = parts.username, parts.password
    except ValueError:
        raise RecipeError("MLFLOW_TRACKING_URI is no address: it is like http://127.0.0.1:5000") from None
    if parts.scheme in ("http", "https") and (user or password):
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(user or ""))
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password or ""))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if password:
        raise RecipeError(
            "MLFLOW_TRACKING_URI holds a password, which the training's config would keep: leave it to the database's "
            "own file, such as ~/.pgpass, or track through an MLflow server"
        )
    return uri


def _mlflow(folder: str, run: str) -> dict[str, Any]:
    uri = _public_address(_of_environment("MLFLOW_TRACKING_URI", Path(folder).as_uri()))
    if "://" not in uri or uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be asked twice for plain files
    return {
        "type": "mmengine.visualization.MLflowVisBackend",
        "save_dir": folder,
        "tracking_uri": uri,
        "exp_name": _of_environment("MLFLOW_EXPERIMENT_NAME", PROJECT),
        "run_name": run,
        "artifact_suffix": (".py",),  # neither logs nor replies
    }


TRACKERS: Mapping[str, Tracker] = {
    "wandb": Tracker("wandb", "wandb", _wandb),
    "swanlab": Tracker("swanlab", "'swanlab[dashboard]<0.8'", _swanlab),
    "mlflow": Tracker("mlflow", "mlflow-skinny", _mlflow),
}


def _of_environment(variable: str, default: str) -> str:
    """The tracker's own variable, which a value in the config would hide."""
    return os.environ.get(variable) or default


def check(name: str) -> None:
    """Check that a tracker can be used here.

    Raises:
        RecipeError: there is none of that name, or its package is not installed.
    """
    if name not in TRACKERS:
        raise RecipeError(f"TRACK={name} is none of {', '.join(TRACKERS)}")
    tracker = TRACKERS[name]
    if name == "mlflow":
        _public_address(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if (spec := find_spec(tracker.module)) and spec.origin:  # a mere folder, such as wandb's own ./wandb, has none
        return
    if os.environ.get("RECIPE_IMAGE"):
        raise RecipeError(f"TRACK={name}: the image has no package {tracker.module}: train with RUNTIME=local")
    places = (Path(sys.executable).with_name("uv"), ROOT / ".venv-uv/bin/uv")
    uv = next((shown(place) for place in places if place.is_file()), "uv")
    raise RecipeError(
        f"TRACK={name}: the package {tracker.module} is not installed: run `{uv} pip install --python "
        f"{shown(Path(sys.executable))} -c requirements.lock {tracker.requirement}`"
    )


def write_config(resolved: Any, file: Path, *, name: str, run_folder: Path) -> Path:
    """Write a config whose training goes to a tracker too.

    Args:
        resolved: the training's mmengine Config, which stays as it is.
        file: to write.
        name: of the tracker.
        run_folder: of the run, whose name the tracker shows.

    Returns:
        The file.
    """
    from mmengine.config import Config

    tracked = Config(resolved.to_dict())
    # The default is mmengine's own: the stage reads the losses that the local backend writes.
    visualizer = tracked.get("visualizer") or {"type": "mmengine.visualization.Visualizer", "vis_backends": None}
    backends = visualizer["vis_backends"] or [{"type": "mmengine.visualization.LocalVisBackend"}]
    folder = (run_folder / FOLDER).absolute()
    visualizer["vis_backends"] = [*backends, TRACKERS[name].backend(str(folder), run_folder.name)]
    tracked.visualizer = visualizer
    tracked.dump(file)
    return file


def end(*, failed: bool) -> None:
    """End what a training has open at a tracker in this process, where its logger did not come to that."""
    if (wandb := sys.modules.get("wandb")) and getattr(wandb, "run", None):
        wandb.finish(exit_code=int(failed))
    if (mlflow := sys.modules.get("mlflow")) and mlflow.active_run():
        mlflow.end_run("FAILED" if failed else "FINISHED")
    if (swanlab := sys.modules.get("swanlab")) and swanlab.get_run():
        swanlab.finish(*((swanlab.State.CRASHED, "the training failed") if failed else ()))
