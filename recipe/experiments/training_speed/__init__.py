"""Verb `bench`: training speed side by side, of this recipe's presets and of what others offer for the same work.

Each measurement is a process of its own (`__main__`), on the same model and packs (`workload`). Speed is the median
over windows of steps after a warm-up; memory is the most that PyTorch had allocated (`clock`). `cases` lists what is
measured, `trainers` says how each trainer is called.

Model FLOP utilisation = tokens/s x FLOP a token (`workload.flop_per_token`) / the rate of an 8192^3 bfloat16 product
measured in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.device import has_gpu
from recipe.errors import RecipeError
from recipe.experiments.training_speed.cases import CASES, Case, unmet_requirement
from recipe.files import write_json
from recipe.training.rendezvous import Machines

__all__ = ["CASES", "run", "table"]


def run(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Measure each case in a process of its own.

    Args:
        folder: for the model and the trainers' files; `bench.json` in it has the results as they come.
        names: of CASES.

    Returns:
        The figures of each case, as `__main__.measure` returns them, with its seconds; or its name and an "error".

    Raises:
        RecipeError: there is no GPU.
    """
    if not has_gpu():
        raise RecipeError("bench: there is no NVIDIA GPU here, and training speed on a CPU says nothing")
    import torch

    gpus = torch.cuda.device_count()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not (model / "config.json").is_file():
        _child(["make", str(model)])
    results: list[dict[str, Any]] = []
    for name in names:
        if reason := unmet_requirement(name, gpus):
            results.append({"name": name, "error": reason})
            continue
        work = folder / "".join(c if c.isalnum() else "_" for c in name)
        work.mkdir(exist_ok=True)
        started = time.time()
        lines = _child(["one", name, str(model), str(work), str(started)], CASES[name])
        results.append(json.loads(lines[-1]) if lines else {"name": name, "error": "failed; its error is above"})
        results[-1]["seconds"] = round(time.time() - started, 1)
        write_json(folder / "bench.json", results)
    return results


def _child(arguments: list[str], case: Case | None = None) -> list[str]:
    """The lines that a process of this package, or the first of several, printed; none where it failed."""
    command = [sys.executable]
    if case and case.distributed:
        command += ["-m", "torch.distributed.run", *Machines(case.gpus).torchrun()]
    process = subprocess.run(
        [*command, "-m", "recipe.experiments.training_speed", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return process.stdout.strip().splitlines() if process.returncode == 0 else []


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown. The ratio is to the same on one GPU, where that was measured too."""
    rates = {CASES[r["name"]]: r["tokens_per_s"] for r in results if "error" not in r}
    lines = [
        "| what | GPUs | batch | tokens/s | slowest–fastest | x one GPU | peak MiB | MFU | s to first step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "error" in r:
            lines.append(f"| {r['name']} | | | {r['error']} | | | | | |")
            continue
        one_gpu = rates.get(CASES[r["name"]]._replace(gpus=1))
        ratio = f"{r['tokens_per_s'] / one_gpu:.2f}" if one_gpu else ""
        lines.append(
            f"| {r['name']} | {r['gpus']} | {r['batch']} | {r['tokens_per_s']:,} | {r['slowest']:,}–{r['fastest']:,} | "
            f"{ratio} | {r['peak_mib']:,} | {r['mfu']:.0%} | {r['seconds_to_first_step']} |"
        )
    return "\n".join(lines)
