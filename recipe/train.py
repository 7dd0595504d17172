"""Stage `train`: XTuner's trainer on the resolved config."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from recipe import stage, trainer
from recipe.errors import RecipeError
from recipe.paths import ROOT

DEEPSPEED = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
LOSSES = "losses.jsonl"
CONFIG = "config.py"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that can be read to the end, oldest first: files, or folders under DeepSpeed.

    A process killed while it saves leaves a file without the directory that ends a zip archive.
    """
    found = [path for path in folder.glob("iter_*.pth") if path.is_dir() or zipfile.is_zipfile(path)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("iter_")))


def make(folder: Path, *, config: Path, resume: bool, deepspeed: str | None) -> stage.Manifest:
    """Train by `config` into `folder`. resume: go on from the last checkpoint of a stopped run of the same inputs.

    config: a resolved config, or a user's own XTuner config whose model `make model` has prepared.
    """
    if deepspeed and deepspeed not in DEEPSPEED:
        raise RecipeError(f"DEEPSPEED={deepspeed} is none of {', '.join(DEEPSPEED)}")
    inputs = {"config": config, **_read_by(config)}

    def work(out: Path) -> dict[str, Any]:
        arguments = [str(config), "--work-dir", str(out)]
        if resume and (saved := checkpoints(out)):
            arguments += ["--resume", str(saved[-1])]
            stage.say("train", f"resuming from {saved[-1].name}")
        if deepspeed:
            arguments += ["--deepspeed", f"deepspeed_{deepspeed}"]
        _launch(arguments, out, in_torchrun=deepspeed is not None)
        shutil.copyfile(config, out / CONFIG)
        return _tidy(out)

    settings = {"deepspeed": deepspeed}
    return stage.run("train", folder, inputs=inputs, settings=settings, work=work, resume=resume)


def _read_by(config: Path) -> dict[str, Path]:
    """The model folder and the data files that a config names, by role."""
    from mmengine.config import Config

    if not config.is_file():
        raise RecipeError(f"{stage.shown(config)}: no such config; run `make config` first")
    try:
        loaded = Config.fromfile(config)
        model = ROOT / loaded.model.llm.pretrained_model_name_or_path
        dataset = loaded.train_dataloader.dataset
        files = dataset.get("files") or dataset.dataset.data_files.train
    except Exception as error:  # a user's Python may raise anything
        raise RecipeError(
            f"{stage.shown(config)}: cannot be read as an XTuner config ({type(error).__name__}: {error})"
        ) from error
    stage.require(model, "model")
    return {"model": model, **{f"data_{i}": ROOT / name for i, name in enumerate(files)}}


def _launch(arguments: list[str], out: Path, *, in_torchrun: bool) -> None:
    """In this process, which has torch loaded already, or in one of torchrun's, as DeepSpeed wants."""
    failed = RecipeError(
        f"training failed; the end of {stage.shown(out / trainer.LOG)} says why; "
        f"`make train RESUME=1` goes on from the last checkpoint once that is mended"
    )
    try:
        if in_torchrun:
            _torchrun(["-m", "recipe.trainer", *arguments, "--launcher", "pytorch"])
        else:
            trainer.run(arguments)
    except (OSError, RecipeError):
        raise
    except Exception as error:
        raise failed from error


def _torchrun(arguments: list[str]) -> None:
    """What the command `torchrun` does, without its tracebacks of ours."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    try:
        torchrun.run(torchrun.parse_args(["--standalone", "--nproc-per-node=1", *arguments]))
    except SignalException:
        raise KeyboardInterrupt from None


def _tidy(out: Path) -> dict[str, Any]:
    """Bring the log to fixed names, whatever time the run began, and say what came out."""
    import torch

    losses: dict[int, dict[str, Any]] = {}
    for scalars in sorted(out.glob("*/vis_data/scalars.json")):
        for line in scalars.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "loss" in record:
                losses[record["step"]] = {key: record[key] for key in ("step", "loss", "lr") if key in record}
    saved = checkpoints(out)
    if not saved or not losses:
        raise RecipeError(f"training saved no checkpoint; see {stage.shown(out / 'console.log')}")
    if not all(torch.isfinite(torch.tensor(record["loss"])) for record in losses.values()):
        raise RecipeError("the loss became infinite or not a number: lower lr, for example SET='lr=1e-4'")
    with (out / LOSSES).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(losses[step]) + "\n" for step in sorted(losses))
    (out / "last_checkpoint").unlink(missing_ok=True)  # holds the path of the work folder, which changes now
    first, last = losses[min(losses)], losses[max(losses)]
    stage.say("train", f"loss {first['loss']:.3f} -> {last['loss']:.4f} in {last['step']} iterations")
    return {"checkpoints": [path.name for path in saved], "last_loss": last["loss"], "iterations": last["step"]}
