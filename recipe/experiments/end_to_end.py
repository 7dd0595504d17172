"""`bench end_to_end`: the seconds from a name to a proved result, by stage and by what a stage spends them on.

A process of its own runs the quickstart in a fresh folder, so that imports and first steps count. A stage lasts from
the end of the one before it, which is when that one's manifest was written. What its phases (`pipeline.phases`) leave
is "other".
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recipe.device import gpus
from recipe.errors import RecipeError
from recipe.files import write_json
from recipe.pipeline import stage
from recipe.pipeline.phases import OTHER, PHASES, with_other

NAME = "end_to_end"
WHOSE = "小明"  # the name that is taught
# Milliseconds between two readings of the GPU.
INTERVAL = 100
Sample = tuple[float, float]  # time.time, percent of the time that the GPU was busy


@dataclass(frozen=True)
class Duration:
    """A stage, or what comes after the last.

    Attributes:
        stage: its verb.
        seconds: since the end of the stage before it.
        busy: share of the seconds that the GPU was busy; None where it was not measured.
        phases: seconds of each phase, and of OTHER.
    """

    stage: str
    seconds: float
    busy: float | None
    phases: dict[str, float] = field(default_factory=dict)


def run(work: Path, folder: Path, model: str, languages: str | None = None) -> list[Duration]:
    """Run every stage for a model, and measure.

    Args:
        work: the folder of all runs, whose downloads are used.
        folder: for the run, emptied first; `end_to_end.json` in it has the result.
        model: as MODEL names it.
        languages: as LANGUAGES takes them; None for the model's own.

    Returns:
        The stages in the order of the work.

    Raises:
        RecipeError: a stage failed. A result below the thresholds is measured like any other.
    """
    runs = folder / NAME
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    (work / "hub").mkdir(parents=True, exist_ok=True)
    (runs / "hub").symlink_to((work / "hub").resolve())
    command = [sys.executable, "-m", "recipe", "quickstart", "--work", str(runs), "--name", WHOSE, "--model", model]
    command += ["--languages", languages] if languages else []
    with _Readings() as readings:
        started = time.time()
        subprocess.run(command, check=False)
        ended = time.time()
    folders = [path for part in ("models", "replay", "quickstart") for path in runs.glob(f"{part}/*/manifest.json")]
    manifests = {path.stat().st_mtime: path.parent for path in folders}
    if not any(path.name == "report" for path in manifests.values()):
        raise RecipeError("bench end_to_end: the pipeline ended before its report; its error is above")
    measured = durations(manifests, started, ended, readings.samples)
    write_json(folder / f"{NAME}.json", [asdict(each) for each in measured])
    return measured


def durations(
    folders: dict[float, Path], started: float, ended: float, samples: Sequence[Sample] = ()
) -> list[Duration]:
    """Divide a run's time among its stages.

    Args:
        folders: when each stage ended -> its folder. All times by time.time, in seconds.
        started, ended: of the process.
        samples: readings of the GPU.

    Returns:
        The stages in the order of the work, and what came after the last as "end".
    """
    measured, since = [], started
    for end, name, phases in [*((at, *_of(folder)) for at, folder in sorted(folders.items())), (ended, "end", {})]:
        seconds = end - since
        measured.append(Duration(name, seconds, _busy(samples, since, end), with_other(phases, seconds)))
        since = end
    return measured


def _of(folder: Path) -> tuple[str, dict[str, float]]:
    """(verb, seconds of each phase) of a complete stage folder."""
    manifest = stage.complete(folder, "quickstart")
    return manifest["stage"], manifest["phases"]


def _busy(samples: Sequence[Sample], since: float, until: float) -> float | None:
    """The mean of the readings of an interval, as a share; None without any."""
    values = [percent for at, percent in samples if since <= at < until]
    return sum(values) / len(values) / 100 if values else None


class _Readings:
    """How busy the run's GPU was, by nvidia-smi, which reads NVML; nothing where there is neither."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> _Readings:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"-lms={INTERVAL}"]
        if (there := gpus()) and (program := shutil.which(query[0])):
            self.process = subprocess.Popen(
                [program, *query[1:], f"--id={there[0]}"], stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self.process is not None
        for line in self.process.stdout or ():
            if line.strip().isdigit():
                self.samples.append((time.time(), float(line)))

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()


def table(measured: Sequence[Duration]) -> str:
    """The durations as a table in Markdown, in seconds; phases without any are left out."""
    shown = [name for name in (*PHASES, OTHER) if any(each.phases.get(name) for each in measured)]
    total = Duration(
        "all",
        sum(each.seconds for each in measured),
        _mean([(each.seconds, each.busy) for each in measured]),
        {name: sum(each.phases.get(name, 0.0) for each in measured) for name in shown},
    )
    lines = [f"| stage | seconds | GPU busy | {' | '.join(shown)} |", f"|---|{'---|' * (len(shown) + 2)}"]
    for each in (*measured, total):
        busy = "not measured" if each.busy is None else f"{each.busy:.0%}"
        cells = [f"{each.phases[name]:.1f}" if each.phases.get(name, 0.0) >= 0.05 else "" for name in shown]
        lines.append(f"| {each.stage} | {each.seconds:.1f} | {busy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(parts: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean of shares, each weighted by its seconds; None without any."""
    measured = [(seconds, share) for seconds, share in parts if share is not None]
    seconds = sum(part for part, _ in measured)
    return sum(part * share for part, share in measured) / seconds if seconds else None
