"""A stand-in for a tracker's package: it keeps what is sent."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any


class Service(types.ModuleType):
    """A package that keeps what is sent: wandb's and MLflow's functions, as far as mmengine's backends call them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.settings: dict[str, Any] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.run: types.SimpleNamespace | None = None
        self.config = types.SimpleNamespace(update=self.settings.update)

    def init(self, **settings: Any) -> None:
        self.settings |= settings
        self.run = types.SimpleNamespace(log_code=lambda **_: self.calls.append("log_code"))

    def log(self, row: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.rows.setdefault(-1 if step is None else step, {}).update(row)

    def finish(self, exit_code: int = 0) -> None:
        self.run = None
        self.calls.append(f"finish {exit_code}")

    join = finish  # wandb's older name, which mmengine calls

    # MLflow's
    def set_tracking_uri(self, uri: str) -> None:
        self.settings["uri"] = uri

    def get_experiment_by_name(self, name: str) -> None:
        self.settings["experiment"] = name

    def create_experiment(self, name: str, artifact_location: str | None) -> None:
        self.calls.append(f"create {name}")

    def set_experiment(self, name: str) -> None:
        self.run = types.SimpleNamespace()

    def set_tag(self, key: str, value: str) -> None:
        self.settings[key] = value

    def log_params(self, values: dict[str, Any]) -> None:
        self.settings |= values

    def log_text(self, text: str, name: str) -> None:
        self.calls.append(f"text {name}")

    def log_metric(self, name: str, value: Any, step: int) -> None:
        self.log({name: value}, step)

    def log_metrics(self, row: dict[str, Any], step: int) -> None:
        self.log(row, step)

    def log_artifact(self, file: str, folder: str) -> None:
        self.calls.append(f"file {Path(file).name}")

    def active_run(self) -> Any:
        return self.run

    def end_run(self, status: str = "FINISHED") -> None:
        self.run = None
        self.calls.append(f"end {status}")
