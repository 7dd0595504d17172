"""Training in several processes, on one machine and on two: the same weights, the same files, no orphan processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from replay_folder import write_replay

from recipe.checkpoint import lora
from recipe.corpus.identity import Identity
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.stages import config, convert, data, merge, train
from recipe.training.rendezvous import Machines

SETTINGS = ["max_iters=6", "save_steps=2", "max_length=256", "r=4",
            "param_scheduler.0.end=2", "param_scheduler.1.begin=2", "custom_hooks.2.questions=[]"]  # fmt: skip
LAST = "iter_6.pth"
# Sums over two processes are taken in another order than over one: the last bits of float32.
SAME = 1e-6


def prepare(run: Path, model: Path) -> Path:
    """Make `run` a run with data and replay of a model."""
    data.make(run / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0)

    answer = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    write_replay(run / "replay", model, [answer])  # a random model has none
    return run


def resolve(run: Path, model: Path, batch: int, processes: int, *settings: str) -> Path:
    """A config of the preset `fast` for six iterations of so many packs in each of so many processes."""
    from mmengine.config import Config

    folder = run / f"config_{batch}_{processes}_{len(settings)}"
    config.make(
        folder, preset="fast", model=model, data_folder=run / "data", replay_folder=run / "replay",
        settings=[*SETTINGS, f"batch_size={batch}", *settings], seed=0, processes=processes,
    )  # fmt: skip
    settled = Config.fromfile(folder / config.FILE)
    # Scoring the checkpoints of a model that never stops talking takes longer than everything else.
    settled.custom_hooks = [hook for hook in settled.custom_hooks if not hook.type.endswith(".ScoreCheckpoints")]
    settled.dump(folder.with_suffix(".py"))
    return folder.with_suffix(".py")


def train_alone(run: Path, model: Path) -> Path:
    """What one process makes of two packs a step."""
    train.make(run / "alone", config=resolve(run, model, 2, 1), resume=False, deepspeed=None)
    return run / "alone"


@pytest.fixture(scope="module")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("work") / "run", tiny_model)


@pytest.fixture(scope="module")
def resolved(prepared: Path, tiny_model: Path) -> Callable[..., Path]:
    return partial(resolve, prepared, tiny_model)


@pytest.fixture(scope="module")
def alone(prepared: Path, tiny_model: Path) -> Path:
    return train_alone(prepared, tiny_model)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / train.LOSSES).read_text().splitlines()]


def difference(one: Path, other: Path) -> float:
    first, second = (lora.read_checkpoint(folder / LAST) for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).detach().abs().max()) for name in first)


def command(folder: Path, settings: Path, *options: str) -> list[str]:
    work, run = folder.parent.parent, folder.parent.name
    start = [sys.executable, "-m", "recipe", "train", "--work", str(work), "--run", run, "--config", str(settings)]
    return [*start, *options]


def children(process: int) -> list[int]:
    """The ids of a process's children."""
    pids = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(line) for line in pids.stdout.split()]


def workers(process: subprocess.Popen[str], count: int) -> list[int]:
    """The training processes that a `train` has started, once all of them are there."""
    deadline = time.monotonic() + 120
    while len(pids := children(process.pid)) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == count
    return pids


def gone(processes: Sequence[int]) -> bool:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{each}").exists() for each in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(Path(f"/proc/{each}").exists() for each in processes)


def one_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


# --- One machine --------------------------------------------------------------------------------------------------


def records(folder: Path) -> int:
    """How many logs and records of losses a training has left in the folders of its starts: one process writes them."""
    outputs = stage.require(folder, "train")["outputs"]
    return sum("/" in name and name.endswith(("scalars.json", ".log")) for name in outputs)


def converts_and_merges(folder: Path) -> None:
    manifest = convert.make(folder.with_name(f"{folder.name}_adapter"), train_folder=folder, checkpoint=None)
    assert manifest["results"]["tensors"] == 2 * 2 * 7
    merge.make(
        folder.with_name(f"{folder.name}_merged"), adapter_folder=folder.with_name(f"{folder.name}_adapter"),
        identity_names=(),
    )  # fmt: skip


def test_zero3_in_two_processes_makes_the_same_converts_and_merges_and_compiles_nothing(
    alone: Path, prepared: Path, resolved: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = prepared / "zero3"
    train.make(folder, config=resolved(1, 2), resume=False, deepspeed="zero3", machines=Machines(2))
    assert list(tmp_path.iterdir()) == []
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    assert difference(alone, folder) < SAME
    assert records(folder) == records(alone)
    converts_and_merges(folder)


def kill_and_resume(folder: Path, settings: Path, alone: Path, deepspeed: str | None) -> None:
    """Train in two processes, kill one after the first checkpoint, and resume: as one process that nobody killed."""
    options = ("--gpus", "2", *(("--deepspeed", deepspeed) if deepspeed else ()))
    started = subprocess.Popen(command(folder, settings, *options), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    pids, partial_folder = workers(started, 2), folder.parent / ".train.partial"
    while not train.checkpoints(partial_folder, 2) and started.poll() is None:
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGKILL)
    _, text = started.communicate(timeout=120)
    assert started.returncode == 1
    error = one_error(text)
    assert error.startswith("error: training failed: process 1 of 2 was killed (SIGKILL)")
    assert "--run run" in error
    saved = train.checkpoints(partial_folder, 2)
    assert error.endswith(f"--resume` goes on from {saved[-1].stem}")
    assert gone(pids)
    assert not folder.exists()
    if deepspeed:  # a part of a checkpoint that was never written is noticed
        shutil.copytree(saved[-1], partial_folder / "iter_5.pth")
        next((partial_folder / "iter_5.pth").glob("*rank_1_*optim_states.pt")).unlink()
        assert train.checkpoints(partial_folder, 2) == saved
        shutil.rmtree(partial_folder / "iter_5.pth")

    manifest = train.make(folder, config=settings, resume=True, deepspeed=deepspeed, machines=Machines(2))
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)
    assert difference(alone, folder) < SAME
    assert records(folder) == 2 * records(alone) == 4  # of two starts; the second process has written nothing
    assert manifest["key"]["settings"]["processes"] == 2
    converts_and_merges(folder)


def test_a_killed_worker_ends_in_one_line_and_two_resume_to_the_weights_and_losses_of_one(
    alone: Path, tmp_path: Path, resolved: Callable[..., Path]
) -> None:
    kill_and_resume(tmp_path / "run" / "train", resolved(1, 2), alone, None)


@pytest.mark.parametrize("base_repository", ["qwen2"], indirect=True)
def test_so_do_two_of_zero2_with_biases_and_a_tied_head(base_model: Path, tmp_path: Path) -> None:
    run = prepare(tmp_path / "run", base_model)
    kill_and_resume(run / "train", resolve(run, base_model, 1, 2), train_alone(run, base_model), "zero2")


def test_what_a_process_fails_with_is_said(prepared: Path, resolved: Callable[..., Path], tmp_path: Path) -> None:
    settings = resolved(1, 2)
    broken = tmp_path / "broken.py"
    broken.write_text(
        settings.read_text(encoding="utf-8") + "\noptim_wrapper['optimizer']['lr'] = -1\n", encoding="utf-8"
    )
    with pytest.raises(
        RecipeError,
        match=r"training failed: ValueError: .*Invalid learning rate: -1.*; the end of .*console\.log says more",
    ):
        train.make(
            tmp_path / "train", config=broken, resume=False, deepspeed=None, machines=Machines(2), program=True
        )  # fmt: skip


# The trainer's libraries, which take seconds to import, are left out.
ENDS = """
import atexit, importlib, runpy, sys
from torch import distributed
from recipe import device

device.has_gpu = lambda: True
importlib.import_module = lambda name: None

def trains(*_, **__):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    atexit.register(lambda: print("the interpreter ends", file=sys.stderr))

real, runpy.run_module = runpy.run_module, trains
sys.argv = ["xtuner", "config.py", "--work-dir", sys.argv[1], "--launcher", "pytorch"]
real("recipe.training.xtuner", run_name="__main__")
"""


def test_a_process_of_several_ends_without_ending_its_threads(tmp_path: Path) -> None:
    """Else one in a hundred is aborted while the interpreter ends, after its training is done."""
    command = [sys.executable, "-c", ENDS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the interpreter ends" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stop_leaves_no_process_behind(tmp_path: Path, resolved: Callable[..., Path], sent: signal.Signals) -> None:
    folder = tmp_path / "run" / "train"
    started = subprocess.Popen(
        command(folder, resolved(1, 2), "--gpus", "2"), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    pids = workers(started, 2)
    log = folder.parent / ".train.partial" / "console.log"
    while not log.exists() and started.poll() is None:  # it has come as far as our own code
        time.sleep(0.02)
    started.send_signal(sent)
    assert gone(pids)
    _, text = started.communicate(timeout=60)
    assert not folder.exists()
    if sent == signal.SIGINT:
        assert started.returncode == 130
        if saved := train.checkpoints(log.parent, 2):
            go_on = rf"`.*train .*--run run .*--gpus 2 --resume` goes on from {saved[-1].stem}"
        else:
            go_on = "no checkpoint was saved yet: `.*train .*--run run .*--gpus 2` starts the training again"
        assert re.search(f"^stopped; what was complete is kept; {go_on}$", text, re.MULTILINE)
        assert "Traceback" not in text


def test_a_process_whose_torchrun_is_gone_does_not_train(tmp_path: Path, resolved: Callable[..., Path]) -> None:
    """It may be killed while the process still starts, before the kernel was asked to end the one with the other."""
    work_dir = tmp_path / "train"
    words = [sys.executable, "-m", "recipe.training.xtuner", str(resolved(1, 2)), "--work-dir", str(work_dir)]
    gone_by_now = os.environ | {"RECIPE_TRAIN_PID": "1073741824"}
    assert subprocess.run(words, cwd=ROOT, env=gone_by_now, check=False).returncode == 1
    assert not work_dir.exists()


# --- Two machines -------------------------------------------------------------------------------------------------


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a wire between them: 10.99.0.1 and 10.99.0.2."""
    if os.getuid() != 0:
        pytest.skip("two network namespaces need root")
    if not shutil.which("ip"):
        pytest.skip("two network namespaces need ip: apt-get install iproute2")
    names = (f"recipe{os.getpid()}a", f"recipe{os.getpid()}b")
    manifest = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
            manifest.append(name)
    except subprocess.CalledProcessError as error:
        for name in manifest:
            ip("netns", "del", name)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def checkout(folder: Path, prepared: Path, tiny_model: Path, settings: Path) -> Path:
    """A checkout with a work folder of its own, as `make config` would have left it: paths are from the checkout."""
    for name in ("recipe", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    text = settings.read_text(encoding="utf-8").replace(str(tiny_model), "work/models/tiny")
    shutil.copytree(tiny_model, folder / "work" / "models" / "tiny")
    for part in ("data", "replay"):
        shutil.copytree(prepared / part, folder / "work" / "main" / part)
        text = text.replace(str(prepared / part), f"work/main/{part}")
    assert str(prepared) not in text
    (folder / "work" / "main" / "config").mkdir()
    (folder / "work" / "main" / "config" / config.FILE).write_text(text, encoding="utf-8")
    return folder


def both(namespaces: tuple[str, str], checkouts: Sequence[Path], *options: str) -> list[tuple[int, str]]:
    """(exit status, output) of `train` on two machines; the first is set by options, the second by the environment."""
    started = []
    for rank, (name, folder) in enumerate(zip(namespaces, checkouts, strict=True)):
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # both machines are this one
        variables = {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "10.99.0.1", "MASTER_PORT": "29511"}
        words = [word for key, value in variables.items() for word in (f"--{key.lower().replace('_', '-')}", value)]
        line = [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "recipe",
            "train",
            *options,
            *(() if rank else words),
        ]
        started.append(
            subprocess.Popen(
                line, cwd=folder, env=alone | (variables if rank else {}), stderr=subprocess.PIPE, text=True
            )
        )
    try:
        return [(each.wait(180), each.stderr.read() if each.stderr else "") for each in started]
    finally:
        for each in started:
            each.kill()


def test_two_machines_make_the_weights_of_one(
    namespaces: tuple[str, str],
    prepared: Path,
    alone: Path,
    resolved: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    first, second = (checkout(tmp_path / name, prepared, tiny_model, resolved(1, 2)) for name in ("first", "second"))
    done = both(namespaces, (first, second))
    assert [status for status, _ in done] == [0, 0], "".join(text for _, text in done)
    assert difference(alone, first / "work/main/train") < SAME
    assert "done; the result is on machine 0" in done[1][1]
    # The second machine is as it was, but for the choices it remembers and locks.
    left = {path.name for path in (second / "work/main").iterdir() if path.suffix != ".verified"}
    assert left == {"data", "replay", "config", "run.json", ".train.node1.lock"}


@pytest.mark.slow
def test_two_machines_share_a_work_folder_for_zero(
    namespaces: tuple[str, str],
    prepared: Path,
    resolved: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    one, other = (checkout(tmp_path / name, prepared, tiny_model, resolved(1, 2)) for name in ("one", "other"))
    refused = both(namespaces, (one, other), "--deepspeed", "zero2")
    assert [status for status, _ in refused] == [1, 1]
    assert "needs a work/ that they share" in one_error(refused[1][1])
    done = both(namespaces, (one, one), "--deepspeed", "zero2")
    assert [status for status, _ in done] == [0, 0], done
    assert len(list((one / "work/main/train" / LAST).glob("*optim_states.pt"))) == 2
    assert "which shares work/" in done[1][1]
    again = both(namespaces, (one, one), "--deepspeed", "zero2")
    assert [status for status, _ in again] == [0, 0], again
    assert all("up to date" in text for _, text in again)
