"""Stage `train`: XTuner's trainer on the resolved config."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.finite import refuse_untrainable
from recipe.checkpoint.repository_files import refuse_programs
from recipe.device import has_gpu
from recipe.errors import RecipeError, Stopped
from recipe.evaluation import checkpoint_selection, scoring
from recipe.files import jsonl_text
from recipe.paths import ROOT
from recipe.pipeline import phases, results, stage
from recipe.pipeline.results import TrainResults
from recipe.pipeline.run import Run
from recipe.training import resolved_config, tracking, xtuner
from recipe.training.continuation import checkpoints as checkpoints
from recipe.training.continuation import how_to_go_on, refuse_damaged
from recipe.training.rendezvous import ALONE, Machines, environment, hosting, joining, watching

DEEPSPEED = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
LOSSES = "losses.jsonl"
CONFIG = "config.py"
LONGEST_REASON = 200  # characters of an error that stand in one line; the log has all of it
MEETING = ".meeting"  # in the first machine's work folder: how another one sees that it is its own too


class TrainingFailedError(RecipeError):
    """What the trainer ended with; to be completed by how to go on."""


def make(
    folder: Path,
    *,
    config: Path,
    resume: bool,
    deepspeed: str | None,
    machines: Machines = ALONE,
    program: bool = False,
    command: Sequence[str] = ("make", "train"),
    tracker: str | None = None,
) -> stage.Manifest:
    """Train by a config into `folder`, which keeps what the config came to, as data.

    Args:
        folder: of the stage.
        config: a resolved config, or a user's own XTuner config whose model `make model` has prepared.
        resume: go on from the last checkpoint of a stopped run of the same inputs.
        deepspeed: one of `DEEPSPEED`, or None.
        machines: where; of several, this is the first one, which writes the result. The others call `join`.
        program: the config is a user's own, and may be run. Otherwise it is read as data.
        command: what trains so again, in words; for who stops it, or finds it stopped.
        tracker: one of `tracking.TRACKERS`, which gets losses and scores too; the result does not depend on it.

    Raises:
        Stopped: Ctrl-C or SIGTERM came while it trained.
    """
    resolved = resolved_config.load(config, program=program)
    inputs, settings = _depends_on(config, resolved, deepspeed, machines)
    with hosting(machines) as host:

        def work(out: Path) -> TrainResults:
            last = saved[-1] if resume and (saved := checkpoints(out, machines.processes)) else None
            if last:
                refuse_damaged(last)
                stage.say("train", f"resuming from {last.name}")
            elif resume:
                stage.say("train", "no checkpoint to resume from: starting at the first step")
            if host:
                (out / MEETING).write_text(name := uuid.uuid4().hex)
                host.agree(stage.key_of(inputs, settings), {"meeting": name, "resume": last and last.name})
            elif machines.nodes > 1:
                raise RecipeError(
                    f"NNODES={machines.nodes}: say with MASTER_ADDR where machine 0 is, and with NODE_RANK which "
                    f"one this is"
                )
            write_down = functools.partial(resolved_config.write_down, resolved, config, out / CONFIG, program=program)
            write_down()  # before hours of training, where it cannot be written
            refuse_untrainable(inputs["model"], inputs.get("teacher"))
            tracked = tracker and tracking.write_config(resolved, out / CONFIG, name=tracker, run_folder=folder.parent)
            with _saying_how_to_go_on(out, command, machines.processes), watching(host and host.store):
                _launch(_arguments(tracked or config, out, last, deepspeed), out, machines, program=program)
            (out / MEETING).unlink(missing_ok=True)
            write_down()  # again: mmengine writes its own under the config's name
            return _tidy(out)

        before = stage.read_manifest(folder)
        manifest = stage.run("train", folder, inputs=inputs, settings=settings, work=work, resume=resume)
        if tracker and manifest == before:
            stage.say("train", f"TRACK={tracker}: nothing was trained just now, so nothing is logged there")
        return manifest


@contextlib.contextmanager
def _saying_how_to_go_on(out: Path, command: Sequence[str], processes: int) -> Iterator[None]:
    """What a training in `out` that is stopped or fails is completed by: the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(how_to_go_on(out, command, processes)) from None
    except TrainingFailedError as error:
        raise RecipeError(f"{error}; {how_to_go_on(out, command, processes)}") from error.__cause__


def join(
    folder: Path,
    *,
    config: Path,
    resume: bool,  # noqa: ARG001
    deepspeed: str | None,
    machines: Machines,
    program: bool = False,
) -> None:
    """Train with the machine that makes `folder`, which is this one's too where they share work/, and keep nothing.

    Whether it goes on from a checkpoint, that machine decides.
    """
    inputs, settings = _depends_on(config, resolved_config.load(config, program=program), deepspeed, machines)
    theirs = folder.parent / f".{folder.name}.partial"
    with joining(machines) as guest:
        if (plan := guest.plan(stage.key_of(inputs, settings))) is None:
            stage.say("train", "up to date on machine 0")
            return
        shared = theirs in folder.parent.iterdir() and _reads(theirs / MEETING) == plan["meeting"]
        if not shared and (deepspeed or plan["resume"]):
            what = f"DEEPSPEED={deepspeed}" if deepspeed else "RESUME=1"
            raise RecipeError(
                f"{what} on several machines needs a work/ that they share: every one reads and writes checkpoints"
            )
        with contextlib.nullcontext(theirs) if shared else stage.helping("train", folder, machines.rank) as out:
            last = theirs / plan["resume"] if plan["resume"] else None
            guest.ready()
            with watching(guest.store):
                _launch(_arguments(config, out, last, deepspeed), out, machines, program=program)
            guest.end()
    stage.say("train", f"done; the result is on machine 0{', which shares work/' if shared else ''}")


def _reads(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _depends_on(
    config: Path, resolved: Any, deepspeed: str | None, machines: Machines
) -> tuple[dict[str, Path], dict[str, Any]]:
    """(inputs, settings) of a training. resolved: what the config came to."""
    if deepspeed and deepspeed not in DEEPSPEED:
        raise RecipeError(f"DEEPSPEED={deepspeed} is none of {', '.join(DEEPSPEED)}")
    if not has_gpu() and (mixed := resolved_config.needs_gpu(resolved)):
        raise RecipeError(
            f"{stage.shown(config)}: {mixed} needs a GPU, and this machine has none: train on one that has, or "
            f"without CONFIG=, by a preset that `make config` resolves here"
        )
    inputs = {"config": config, **_read_by(resolved, config)}
    if (deepspeed or "").startswith("zero3"):
        _refuse_sharding(inputs["model"], str(deepspeed))
    return inputs, {"deepspeed": deepspeed, "processes": machines.processes}


def _refuse_sharding(model: Path, deepspeed: str) -> None:
    """RecipeError where ZeRO-3 would shard a tied head or biases: now and then a run then began with other weights."""
    base = stage.read_json(model / "config.json", ConfigShape)
    if base.get("tie_word_embeddings") or base["model_type"] != "llama":
        raise RecipeError(
            f"DEEPSPEED={deepspeed}: ZeRO-3 is for Llama layouts with a head of their own; {stage.shown(model)} has a "
            f"tied head or biases: use DEEPSPEED=zero2 or none, such models are small"
        )


def _arguments(config: Path, out: Path, last: Path | None, deepspeed: str | None) -> list[str]:
    """XTuner's own. last: the checkpoint to go on from."""
    arguments = [str(config), "--work-dir", str(out)]
    if last:
        arguments += ["--resume", str(last)]
    if deepspeed:
        arguments += ["--deepspeed", f"deepspeed_{deepspeed}"]
    return arguments


def _read_by(resolved: Any, config: Path) -> dict[str, Path]:
    """The model folder and the data files that a config names, by role."""
    try:
        base = resolved.model.llm.pretrained_model_name_or_path
        model = ROOT / base
        dataset = resolved.train_dataloader.dataset.to_dict()
        files = resolved_config.data_files(dataset)
        others = {"own": dataset.get("own"), "teacher": resolved.model.get("teacher")}
        inputs = {"model": model, **{f"data_{i}": ROOT / name for i, name in enumerate(files)}}
        inputs |= {role: ROOT / name for role, name in others.items() if name}
    except Exception as error:  # a config may have any shape
        raise resolved_config.unreadable(config, error) from error
    for role, file in inputs.items():
        if role != "model" and not file.is_file():
            raise RecipeError(f"{stage.shown(config)}: names {stage.shown(file)}, which is no file")
    if stage.read_manifest(model) is None and config.name != CONFIG:
        place = stage.shown(Run(ROOT / "work", "main").model(base))
        raise RecipeError(
            f"{stage.shown(config)}: trains {base}, which is no model that stage `model` has prepared: run `make model "
            f"MODEL={base}`, then write pretrained_model_name_or_path = '{place}'"
        )
    refuse_programs(model)
    stage.require(model, "model")
    for folder in sorted({config.parent, *(file.parent for role, file in inputs.items() if role != "model")}):
        if manifest := stage.read_manifest(folder):  # a file of the user's own has none
            stage.refuse_changed(folder, manifest)
    return inputs


def _launch(arguments: list[str], out: Path, machines: Machines, *, program: bool) -> None:
    """In this process, which has torch loaded already, or in torchrun's, as several processes and DeepSpeed want."""
    try:
        if "--deepspeed" in arguments or machines.processes > 1:
            _torchrun(["-m", "recipe.training.xtuner", *arguments, "--launcher", "pytorch"], machines)
            if (spent := out / xtuner.PHASES).is_file():  # of the first process; machine 0 has it
                phases.add(json.loads(spent.read_text(encoding="utf-8")))
                spent.unlink()
        else:
            xtuner.run(arguments, program=program)
    except (OSError, RecipeError):
        raise
    except (Exception, SystemExit) as error:  # a config that ends the process has trained nothing
        raise _failed(error, out / xtuner.LOG) from error


def _failed(error: BaseException, log: Path) -> RecipeError:
    """What the trainer ended with, in one line, and what to do."""
    text = str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
    lines = text.strip().splitlines() or [type(error).__name__]
    reason = lines[0] if len(lines[0]) <= LONGEST_REASON else f"{lines[0][:LONGEST_REASON]}…"
    if "out of memory" in text:
        return RecipeError(
            f"training failed: {reason}; SET='batch_size=1' and PRESET=qlora need less memory, "
            f"and `make config` predicts how much"
        )
    return TrainingFailedError(f"training failed: {reason}; the end of {stage.shown(log)} says more")


def _torchrun(arguments: list[str], machines: Machines) -> None:
    """What the command `torchrun` does, without its tracebacks of ours.

    RecipeError: a process was killed from outside. RuntimeError: one failed, with its own message.
    """
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if has_gpu() and machines.gpus > (there := torch.cuda.device_count()):
        raise RecipeError(f"GPUS={machines.gpus}: this machine has {there}")
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        with environment(machines):
            torchrun.run(torchrun.parse_args([*machines.torchrun(), *arguments]))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        print(file=sys.stderr)  # behind the progress bar, which nobody closed
        # The others, whom torchrun stops, or who lose the connection, are not to blame.
        rank, first = min(
            error.failures.items(), key=lambda each: (each[1].exitcode != -signal.SIGKILL, each[1].timestamp)
        )
        if first.exitcode < 0 and (by := first.signal_name()) != "SIGTERM":
            perhaps = ", perhaps for want of memory" if by == "SIGKILL" else ""
            raise TrainingFailedError(
                f"training failed: process {rank} of {machines.processes} was killed ({by}){perhaps}"
            ) from None
        message = first.error_file_data["message"]
        raise RuntimeError(
            message["message"] if isinstance(message, dict) else f"process {rank} ended with status {first.exitcode}"
        ) from None
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def _tidy(out: Path) -> TrainResults:
    """Bring the log to fixed names, whatever time the run began, and say what came out."""
    import torch

    losses: dict[int, dict[str, Any]] = {}
    peak = 0
    for scalars in sorted(out.glob("*/vis_data/scalars.json")):
        for record in _logged(scalars):
            peak = max(peak, record.get("memory", 0))  # MiB, on a GPU; mmengine counts anew after every step
            if "loss" in record:
                losses[record["step"]] = {key: record[key] for key in ("step", "loss", "lr") if key in record}
    saved = checkpoints(out)
    if not saved:
        raise RecipeError(f"training saved no checkpoint; see {stage.shown(out / 'console.log')}")
    if not losses:
        raise RecipeError(
            "training logged no loss, since it has fewer steps than the logger's interval: write "
            "default_hooks.logger.interval = 1 in the config"
        )
    if not all(torch.isfinite(torch.tensor(record["loss"])) for record in losses.values()):
        raise RecipeError("the loss became infinite or not a number: lower lr, for example SET='lr=1e-4'")
    (out / LOSSES).write_text(jsonl_text(losses[step] for step in sorted(losses)), encoding="utf-8")
    (out / "last_checkpoint").unlink(missing_ok=True)  # holds the path of the work folder, which changes now
    first, last = losses[min(losses)], losses[max(losses)]
    stage.say("train", f"loss {first['loss']:.3f} -> {last['loss']:.4f} in {last['step']} iterations")
    return TrainResults(
        checkpoints=[path.name for path in saved], best=_best_of(out, saved), last_loss=last["loss"],
        iterations=last["step"], gpu_peak_mib=peak or None,
    )  # fmt: skip


def _logged(file: Path) -> list[dict[str, Any]]:
    """The records of mmengine's log, without a last line that a killed process left unfinished.

    A loss may be NaN here: `_tidy` says what to do about it.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    try:
        json.loads(lines[-1] if lines else "null")
    except ValueError:
        stage.say("train", f"{stage.shown(file)}: its last line is unfinished, as a killed process leaves it: left out")
        lines.pop()
    return [json.loads(line) for line in lines]


def best_checkpoint(folder: Path) -> str | None:
    """The best checkpoint of a completed training, such as iter_80, as its manifest names it; None where none was
    scored."""
    return results.of(stage.complete(folder, "train"), TrainResults).best


def _best_of(folder: Path, saved: Sequence[Path]) -> str | None:
    """The name of the best of the `saved` checkpoints by the scores in `folder`; None where they were not scored."""
    scored = {
        name: each for name, each in checkpoint_selection.read(folder).items() if name in {path.stem for path in saved}
    }
    return scoring.best(scored) if scored else None
