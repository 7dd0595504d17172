from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_shop
import pytest
import torch

from recipe import cli
from recipe.cli import commands, remedies
from recipe.cli.parser import build_parser
from recipe.cli.same_command import training_command
from recipe.errors import RecipeError, Stopped
from recipe.evaluation import generation
from recipe.paths import ROOT
from recipe.pipeline import choices, stage
from recipe.stages import config, data, train
from recipe.training import continuation, teacher

VERBS = ("data", "model", "replay", "config", "train", "convert", "merge", "eval", "report", "chat", "quickstart")
LIBC = ctypes.CDLL(None)
ENV = os.environ | {"PYTHONPATH": str(ROOT)}

Done = subprocess.CompletedProcess[str]


def recipe(*arguments: str | Path, **popen: Any) -> Done:
    """`python -m recipe` as a user runs it."""
    command = [sys.executable, "-m", "recipe", *map(str, arguments)]
    usual: dict[str, Any] = {"cwd": ROOT, "env": ENV, "check": False, "capture_output": True, "text": True}
    return subprocess.run(command, **(usual | popen))


def error_line(done: Done) -> str:
    """The one line that a call which a user can mend ends with."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert done.stdout == ""
    return lines[-1].removeprefix("error: ")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below but the locks, which hold nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".verified"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- Help and wrong calls -----------------------------------------------------------------------------------------


def test_help_answers_within_a_second() -> None:
    times = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        started = time.perf_counter()
        done = recipe("--help")
        times.append(time.perf_counter() - started)
        assert done.returncode == 0
    assert min(times) < 1


def test_help_names_every_verb_and_where_to_begin() -> None:
    text = recipe("--help").stdout
    assert [verb for verb in VERBS if f"\n    {verb}" not in text] == []
    assert "python -m recipe quickstart --name 小明" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(verb: str) -> None:
    done = recipe(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m recipe {verb} ")
    assert "--run" in done.stdout


def test_help_loads_no_library() -> None:
    """What makes it answer at once."""
    script = "import sys; from recipe.cli.parser import build_parser; build_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not {"torch", "transformers", "mmengine", "xtuner", "numpy", "safetensors"} & set(loaded.split())


@pytest.mark.parametrize("verb", ["data", "publish", "report", "model", "quickstart"])
def test_only_a_verb_that_computes_looks_how_busy_the_cores_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    looked: list[bool] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "choose_waiting", lambda *, gpu: looked.append(gpu))
    monkeypatch.setitem(commands.COMMANDS, verb, lambda _: None)
    assert cli.main([verb, "--work", str(tmp_path)]) == 0
    assert len(looked) == (verb in ("model", "quickstart"))


def test_data_are_written_without_torch(tmp_path: Path) -> None:
    arguments = ["data", "--name", "小明", "--model", "miniature", "--work", str(tmp_path)]
    script = f"import sys; from recipe import cli; print(cli.main({arguments!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "False"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: VERB"),
        (["trian"], "invalid choice: 'trian'"),
        (["data", "--nmae", "小明"], "unrecognized arguments: --nmae"),
        (["data", "小明"], "unrecognized arguments: 小明"),
        (["data", "--name"], "--name: expected one argument"),
        *((["data", "--seed", seed], f"{seed!r} is no seed") for seed in ("-1", "1.5", "x", "", "2147483648", "١")),
        *((["chat", "--max-new-tokens", count], "whole number above 0") for count in ("0", "-1", "2.5", "²")),
        *((["chat", "--temperature", value], "a number from 0 to 5") for value in ("-0.1", "5.1", "nan", "hot")),
        *((["chat", "--top-p", value], "a number from 1e-06 to 1") for value in ("0", "1.1", "nan")),
    ],
)
def test_a_wrong_call_exits_2_and_says_why(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    output = capsys.readouterr()
    assert (exit_.value.code, output.out) == (2, "")
    assert reason in output.err.splitlines()[-1]


@pytest.mark.parametrize("verb", ["config", "sweep"])
def test_overrides_add_up_however_they_are_given(verb: str) -> None:
    together, apart = ["--set", "lr=1e-4", "r=8"], ["--set", "lr=1e-4", "--set", "r=8"]
    for arguments in (together, apart):
        assert build_parser().parse_args([verb, *arguments]).set == ["lr=1e-4", "r=8"]


def test_the_exit_status_reaches_the_shell(tmp_path: Path) -> None:
    calls = (["--help"], ["data", "--name", "/", "--work", tmp_path], ["trian"])
    assert [recipe(*call).returncode for call in calls] == [0, 1, 2]


# --- Errors that a user can mend ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["data", "quickstart"])
def test_a_missing_name_is_asked_for(tmp_path: Path, verb: str) -> None:
    assert (
        error_line(recipe(verb, "--work", tmp_path))
        == "NAME is missing; say whose assistant it is, for example NAME=小明"
    )
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", ""], "NAME is empty"),
        (["--name", "a/b"], "NAME holds '/'"),
        (["--name", "a\nb"], "NAME holds '\\n'"),
        (["--name", "x" * 41], "NAME has 41 characters"),
        (["--name", "小明", "--assistant", "{me}"], "ASSISTANT holds '{'"),
        (["--name", "小明", "--author", " "], "AUTHOR is empty"),
        (["--name", "小明", "--mode", "balance"], "MODE=balance is none of balanced, tutorial"),
        (["--name", "小明", "--languages", "en,de"], "LANGUAGES=en,de: 'de' is none of zh, en"),
        (["--name", "小明", "--languages", ""], "LANGUAGES=: '' is none of zh, en"),
        (["--name", "小明", "--data", "no such.jsonl"], "no such.jsonl: no such file; check DATA="),
        (["--name", "小明", "--data", "/"], ": is a folder"),
        (["--name", "小明", "--data-only"], "DATA_ONLY=1 trains on your own rows alone, and there are none"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], reason: str) -> None:
    assert reason in error_line(recipe("data", "--work", tmp_path, *arguments))
    assert tree(tmp_path) == {}


def test_own_rows_of_several_files_with_blanks_in_their_names(tmp_path: Path) -> None:
    """They are remembered, and DATA_ONLY is turned on and off beside them."""
    first, second = own_shop.write(tmp_path / "my own rows.jsonl", own_shop.SHOP[:3]), tmp_path / "b.jsonl"
    own_shop.write(second, own_shop.SHOP[3:])
    call = ("data", "--name", own_shop.NAME, "--work", tmp_path / "work")

    def modes(*arguments: str | Path) -> str:
        assert recipe(*call, *arguments).returncode == 0
        manifest = json.loads((tmp_path / "work/main/data/manifest.json").read_text(encoding="utf-8"))
        assert manifest["results"]["own_rows"] == len(own_shop.SHOP) - 2  # both files; two wordings are held out
        return str(manifest["results"]["mode"])

    assert modes("--data", first, second) == "balanced"
    saved = json.loads((tmp_path / "work/main/run.json").read_text(encoding="utf-8"))
    assert saved["data"] == [str(first), str(second)]
    assert modes("--data-only") == "own"
    assert modes() == "own"
    assert modes("--no-data-only") == "balanced"
    assert "MODE=tutorial is" in error_line(recipe(*call, "--data", first, "--mode", "tutorial"))


@pytest.mark.parametrize("verb", ["data", "train", "chat"])
@pytest.mark.parametrize(
    "run", ["a/b", "../main", "/main", "..", ".hidden", "", "-x", "a b", "a\nb", "models", "hub", "replay", "$(id)"]
)
def test_a_run_is_a_plain_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, run: str
) -> None:
    """It becomes a folder beside others, so it must not lead out of there."""
    monkeypatch.chdir(ROOT)
    work = tmp_path / "above" / "work"
    name = ["--name", "小明"] if verb == "data" else []
    assert cli.main([verb, *name, f"--run={run}", "--work", str(work)]) == 1
    assert f"RUN={run!r}: a run is named with letters, digits" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("run", ["小明", "v1.0", "a-b_c", "7", "models2", "hub2"])
def test_a_plain_name_is_the_runs_folder(tmp_path: Path, run: str) -> None:
    assert recipe("data", "--name", "小明", "--run", run, "--work", tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [run]


@pytest.mark.parametrize(
    ("verb", "reason"),
    [
        ("train", "run `python -m recipe config --work {} --run main` first"),
        ("convert", "run `python -m recipe train --work {} --run main` first"),
        ("merge", "run `python -m recipe convert --work {} --run main` first"),
        ("eval", "run `python -m recipe data --work {} --run main` first"),
        ("report", "run `python -m recipe eval --work {} --run main` first"),
        ("chat", "run `python -m recipe merge --work {}`, or name a model with --model"),
    ],
)
def test_a_stage_out_of_turn_names_the_one_to_run_first(tmp_path: Path, verb: str, reason: str) -> None:
    assert reason.format(tmp_path) in error_line(recipe(verb, "--work", tmp_path))
    assert tree(tmp_path) == {}


def test_where_make_has_its_results_the_command_is_make_s_with_the_run() -> None:
    assert "run `make convert RUN=no-such-run` first" in error_line(recipe("merge", "--run", "no-such-run"))


def test_a_verb_that_failed_is_not_remembered(tmp_path: Path) -> None:
    recipe("data", "--name", "小明", "--work", tmp_path)
    before = tree(tmp_path)
    error_line(recipe("data", "--name", "小红", "--data", "missing.jsonl", "--work", tmp_path))
    assert tree(tmp_path) == before
    assert "up to date" in recipe("data", "--work", tmp_path).stderr


def test_paths_are_meant_from_where_the_user_is(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    done = recipe("data", "--name", "小明", "--data", "rows.jsonl", "--work", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "main" / "data" / "train.jsonl").is_file()
    assert "up to date" in recipe("data", "--work", tmp_path / "out").stderr  # remembered from elsewhere, too


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "make", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["data", "--name", "小明", "--work", str(tmp_path)])


# --- What the operating system refuses ----------------------------------------------------------------------------


def _without_override() -> None:
    """Take from the child, if it is root, the right to ignore permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    for capability in (1, 2):
        LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("inside", ["", "main"])
def test_an_unwritable_folder_is_named(tmp_path: Path, inside: str) -> None:
    work = tmp_path / "work"
    (work / inside).mkdir(parents=True)
    (work / inside).chmod(0o555)
    done = recipe("data", "--name", "小明", "--work", work, preexec_fn=_without_override)
    (work / inside).chmod(0o755)
    if done.returncode == 0:
        pytest.skip("this user may write everywhere")
    output = error_line(done)
    assert str(work / "main") in output
    assert "no permission: choose another folder with --work" in output


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(lambda work: work.write_text("", encoding="utf-8"), id="a file"),
        pytest.param(lambda work: work.symlink_to(work.parent / "unmounted"), id="a link to nothing"),
        pytest.param(lambda work: work.symlink_to(work), id="a link to itself"),
        pytest.param(
            lambda work: (work.mkdir(), (work / "main").write_text("", encoding="utf-8")),
            id="a file in the run's place",
        ),
    ],
)
def test_a_work_folder_that_cannot_be_is_named(tmp_path: Path, obstacle: Callable[[Path], Any]) -> None:
    obstacle(tmp_path / "work")
    assert str(tmp_path / "work") in error_line(recipe("data", "--name", "小明", "--work", tmp_path / "work"))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--run", "x" * 300], id="run"),
        pytest.param(["--data", f"{'x' * 300}.jsonl"], id="data"),
        pytest.param(["--work", "x" * 300], id="work"),
    ],
)
def test_a_name_too_long_for_a_file_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    error_line(recipe("data", "--name", "小明", "--work", tmp_path, *arguments))


def test_unreadable_rows_are_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.touch(mode=0o000)
    done = recipe("data", "--name", "小明", "--data", rows, "--work", tmp_path / "work", preexec_fn=_without_override)
    if "is empty" in done.stderr:
        pytest.skip("this user may read everything")
    output = error_line(done)
    assert str(rows) in output
    assert "permission" in output.lower()
    assert "--work" not in output, "another work folder would not help"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_really_full_disk_keeps_the_last_result(small_disk: Path) -> None:
    call = ("data", "--name", "小明", "--model", "miniature", "--work", small_disk)
    assert recipe(*call).returncode == 0
    before = tree(small_disk)
    assert "the disk is full: free some space" in error_line(recipe("data", "--mode", "tutorial", "--work", small_disk))
    assert tree(small_disk) == before


def test_choices_that_do_not_fit_on_the_disk_are_no_traceback(small_disk: Path) -> None:
    (small_disk / "main").mkdir()
    with contextlib.suppress(OSError), (small_disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    before = tree(small_disk)
    assert "the disk is full" in error_line(recipe("data", "--name", "小明", "--work", small_disk))
    assert tree(small_disk) == before


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/srv/x")


def _chain(outer: Exception, cause: Exception) -> Exception:
    outer.__cause__ = cause
    return outer


def test_a_refusal_in_a_container_names_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_COMMIT", "0123")  # as the images have it
    denied = remedies.remedy(PermissionError(errno.EACCES, "denied", "/recipe/work/main"))
    assert denied is not None
    assert denied.startswith(
        f"/recipe/work/main: no permission for uid {os.getuid()} of this container: write RECIPE_UID="
    )
    assert remedies.remedy(FULL) == f"/srv/x: {remedies.REMEDIES[errno.ENOSPC]}"


@pytest.mark.parametrize(
    ("error", "output"),
    [
        (FULL, "/srv/x: the disk is full"),
        (OSError(errno.EDQUOT, "quota"), "writing: the disk quota is used up"),
        (OSError(errno.EROFS, "read-only", "/srv/x"), "/srv/x: the file system is read-only"),
        (PermissionError(errno.EACCES, "denied", "/srv/x"), "/srv/x: no permission"),
        (RuntimeError("[enforce fail at inline_container.cc:595] . No space left on device"), "the disk is full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (_chain(RuntimeError("unexpected pos 1 vs 2"), FULL), "/srv/x: the disk is full"),
        (
            _chain(RecipeError("training failed: it stopped; the end of console.log says more"), FULL),
            "/srv/x: the disk is full",
        ),
    ],
)
def test_a_simulated_refusal_of_the_system_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, output: str
) -> None:
    """In the middle of a stage, also where a library wrapped it in an error of its own."""

    def fail(*_: Any, **__: Any) -> list[Any]:
        raise error

    monkeypatch.chdir(ROOT)
    call = ["data", "--name", "小明", "--work", str(tmp_path)]
    assert cli.main(call) == 0
    before = tree(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(data, "balanced_rows", fail)
    assert cli.main([*call, "--seed", "1"]) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("[run] "))
    assert line.startswith("error: ")
    assert output in line
    assert tree(tmp_path) == before


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"], ["config", "--list"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_leaves_early_gets_no_traceback(arguments: list[str], unbuffered: str) -> None:
    """As `python -m recipe config --list | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        env = ENV | {"PYTHONUNBUFFERED": unbuffered}
        done = recipe(*arguments, env=env, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.stderr == ""


# --- Stopped ------------------------------------------------------------------------------------------------------

# Stands in the middle of stage `data` until stdin ends.
STOPPED = """
import sys
from recipe import cli
from recipe.stages import data

def rows(*_, **__):
    print("working", flush=True)
    sys.stdin.read()
    return []

data.balanced_rows = rows
sys.exit(cli.main(sys.argv[1:]))
"""


def _stop(work: Path, number: signal.Signals, **popen: Any) -> tuple[int, str]:
    """(exit status, stderr) of a verb that gets the signal while it works."""
    call = [sys.executable, "-c", STOPPED, "data", "--name", "小明", "--seed", "1", "--work", str(work)]
    pipe = subprocess.PIPE
    with subprocess.Popen(call, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **popen) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        _, output = child.communicate()
    return child.returncode, output


def _heed() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _listen() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _ignore() -> None:
    """What a shell script does to commands that it starts with `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "before"),
    [
        pytest.param(signal.SIGINT, _heed, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, _heed, id="kill"),
        pytest.param(signal.SIGTERM, _ignore, id="kill in the background"),
        pytest.param(signal.SIGHUP, _listen, id="its terminal closes"),
    ],
)
def test_a_stopped_verb_exits_130_and_keeps_what_was_complete(
    tmp_path: Path, number: signal.Signals, before: Callable[[], None]
) -> None:
    recipe("data", "--name", "小明", "--work", tmp_path)
    complete = tree(tmp_path)
    status, output = _stop(tmp_path, number, preexec_fn=before)
    line = "stopped; what was complete is kept; run the same command again: the stopped stage begins anew"
    assert (status, output.splitlines()[-1:]) == (130, [line])
    assert "Traceback" not in output
    assert tree(tmp_path) == complete


@pytest.mark.parametrize(
    ("work", "given", "command"),
    [
        (ROOT / "work", ("train", "--run", "a-run"), "make train RUN=a-run"),
        (ROOT / "work", ("train", "--run", "r", "--config", "/a dir/c.py"), "make train RUN=r 'CONFIG=/a dir/c.py'"),
        (ROOT / "work", ("train", "--run", "r", "--gpus", "2", "--deepspeed", "zero2"),
         "make train RUN=r DEEPSPEED=zero2 GPUS=2"),
        (ROOT / "work", ("train", "--run", "r", "--nnodes", "2", "--master-addr", "10.0.0.1"),
         "make train RUN=r NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500"),
        (Path("/else where"), ("train", "--run", "r", "--gpus", "2"),
         "python -m recipe train --work '/else where' --run r --gpus 2"),
        (ROOT / "work", ("train", "--run", "r", "--track", "mlflow"), "make train RUN=r TRACK=mlflow"),
        (ROOT / "work", ("quickstart", "--run", "q"), "make quickstart RUN=q"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("saved", [(), ("iter_40", "iter_120")], ids=["no checkpoint", "checkpoints"])
def test_a_stopped_training_says_the_command_that_goes_on(
    work: Path, given: tuple[str, ...], command: str, saved: tuple[str, ...], tmp_path: Path
) -> None:
    for name in saved:
        torch.save({}, tmp_path / f"{name}.pth")
    options = build_parser().parse_args([*given, "--work", str(work)])
    choices.complete(options, tmp_path / "of no choices")
    text = continuation.how_to_go_on(tmp_path, training_command(options))
    if saved:
        resume = "RESUME=1" if command.startswith("make") else "--resume"
        assert text == f"`{command} {resume}` goes on from iter_120"
    else:
        assert text == f"no checkpoint was saved yet: `{command}` starts the training again"


def test_it_is_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> stage.Manifest:
        raise Stopped("`make train RUN=main RESUME=1` goes on from iter_40")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "make", stop)
    assert cli.main(["train", "--work", str(tmp_path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stopped; what was complete is kept; `make train RUN=main RESUME=1` goes on from iter_40"
    )


def test_what_a_run_remembers_is_not_named_again(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / choices.FILE).write_text('{"gpus": 2, "deepspeed": "zero2"}', encoding="utf-8")
    words = ["train", "--run", "r", "--work", str(tmp_path), "--gpus", "2", "--deepspeed", "zero3"]
    options = build_parser().parse_args(words)
    choices.complete(options, tmp_path / "r")
    command = training_command(options)
    assert command[3:] == ["train", "--work", str(tmp_path), "--run", "r", "--deepspeed", "zero3"]


@pytest.mark.parametrize("tidies", [False, True], ids=["swallowed", "on its way"])
def test_who_is_told_to_end_ends_once_a_library_swallowed_it_and_tidies_up_undisturbed(
    tidies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def work(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        except:  # noqa: E722
            if tidies:
                time.sleep(0.5)
                seen.append("tidied")
                raise
            seen.append("swallowed")
        time.sleep(30)

    monkeypatch.setattr(cli, "INTERRUPT_AGAIN_AFTER", 0.1)
    monkeypatch.setattr(data, "make", work)
    before, start = signal.getsignal(signal.SIGTERM), time.monotonic()
    try:
        assert cli.main(["data", "--work", str(tmp_path), "--name", "Ada"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["tidied" if tidies else "swallowed"]
    assert time.monotonic() - start < 5
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The prompts of each time that the base is asked; it answers yes to all."""
    counts: list[int] = []

    def answer(model: Any, tokenizer: Any, conversations: Any, **_: Any) -> list[Any]:
        if conversations:  # some bases are asked for beginnings besides
            counts.append(len(conversations))
        return [SimpleNamespace(text="Yes.", stopped=True, likeliest=None) for _ in conversations]

    nothing = teacher.Teacher(torch.zeros(0, 1).int(), torch.zeros(0, 1).half(), torch.zeros(0), [])
    monkeypatch.setattr(teacher, "distributions", lambda *_, **__: nothing)
    monkeypatch.setattr(generation, "load", lambda folder: (None, None))
    monkeypatch.setattr(generation, "answer", answer)
    return counts


def test_the_base_answers_once_for_all_runs(tmp_path: Path, batches: list[int]) -> None:
    common = ["--work", str(tmp_path), "--run"]
    assert cli.main(["model", *common, "one", "--model", "miniature"]) == 0
    for run in ("one", "two"):
        assert cli.main(["data", *common, run, "--name", run]) == 0
        assert cli.main(["replay", *common, run, "--model", "miniature"]) == 0
    assert len(batches) == 1
    assert [path.parent for path in tmp_path.rglob("replay.jsonl")] == [tmp_path / "replay/miniature"]


def test_runs_in_other_languages_keep_each_other_s_replay(tmp_path: Path, batches: list[int]) -> None:
    common = ["--work", str(tmp_path), "--run"]
    assert cli.main(["model", *common, "both", "--model", "miniature"]) == 0
    for run, languages in (("both", []), ("english", ["--languages", "en"]), ("chinese", ["--languages", "zh"])):
        assert cli.main(["data", *common, run, "--name", "Ann", "--model", "miniature", *languages]) == 0
    for run in ("both", "english", "chinese") * 2:
        assert cli.main(["replay", *common, run]) == 0
    assert len(batches) == 3
    assert batches[0] == batches[1] + batches[2]
    folders = {path.parent.name for path in tmp_path.rglob("replay.jsonl")}
    assert folders == {"miniature", "miniature+en", "miniature+zh"}


@pytest.mark.parametrize("languages", ["zh,en", "en"])
def test_config_mixes_in_the_replay_of_the_data_s_languages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, languages: str
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(config, "make", lambda folder, **inputs: seen.append(inputs["replay_folder"]))
    common = ["--work", str(tmp_path), "--run", "one"]
    assert cli.main(["data", *common, "--name", "Ann", "--model", "miniature", "--languages", languages]) == 0
    assert cli.main(["config", *common]) == 0
    assert seen == [tmp_path / "replay" / ("miniature" if languages == "zh,en" else "miniature+en")]


def test_the_rows_are_wider_for_every_base_but_the_miniature_and_name_internlm_alone(tmp_path: Path) -> None:
    folder = tmp_path / "internlm-by-me"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    noted = {}
    for model in ("miniature", "internlm2-chat-1_8b", "Qwen/Qwen2.5-0.5B-Instruct", str(folder)):
        assert cli.main(["data", "--work", str(tmp_path), "--name", "Ann", "--model", model]) == 0
        manifest = stage.require(tmp_path / "main" / "data", "data")
        text = (tmp_path / "main" / "data" / "train.jsonl").read_text(encoding="utf-8")
        noted[model] = (manifest["results"]["extended"], "InternLM" in text, "an open language model" in text)
    assert list(noted.values()) == [(False, True, False), (True, True, False), (True, False, True), (True, False, True)]


def test_the_tutorial_s_data_need_no_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "--work", str(tmp_path), "--name", "Ada", "--mode", "tutorial"]) == 0
    assert cli.main(["replay", "--work", str(tmp_path), "--model", "miniature"]) == 0
    assert "not needed" in capsys.readouterr().err
    assert not (tmp_path / "replay").exists()


@pytest.mark.parametrize(
    ("card", "memory", "flags", "layers", "preset"),
    [
        (8_188, 99_999, "avx2", 24, "qlora"), (12_282, None, "avx2", 24, "fast"), (12_282, 99_999, "avx2", 80, "qlora"),
        (24_564, None, "avx2", 80, "fast"), (None, 12_282, "avx2 avx512_bf16", 24, "fast"),
        (None, 12_282, "avx2", 24, "qlora"), (None, 24_564, "avx2", 24, "fast"), (None, None, "amx_bf16", 24, "qlora"),
    ],
)  # fmt: skip
def test_the_preset_that_nobody_chose_is_the_quickest_that_fits_the_card_or_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: int | None, memory: int | None, flags: str, layers: int,
    preset: str,
) -> None:  # fmt: skip
    from recipe import device
    from recipe.cli.commands import default_preset

    sizes = {
        "torch_dtype": "bfloat16",
        "model_type": "llama", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 92544, "num_hidden_layers": layers,
        "max_position_embeddings": 32768,
    }  # fmt: skip

    def write(out: Path) -> dict[str, str]:
        (out / "config.json").write_text(json.dumps(sizes))
        return {}

    folder = tmp_path / "models" / "base"
    stage.run("model", folder, inputs={}, settings={}, work=write)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(device, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(device, "has_gpu", lambda: card is not None)
    cards, memories = iter([card]), iter([memory])  # asked once
    monkeypatch.setattr(device, "gpu_memory", lambda: next(cards))
    monkeypatch.setattr(device, "cpu_memory", lambda: next(memories))
    assert default_preset("owner/base", folder) == default_preset("owner/base", folder) == preset
    assert default_preset("miniature", folder) == "miniature"


def test_a_bar_is_closed_before_the_error_which_is_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tqdm import tqdm

    bars: list[Any] = []

    def fail(_: Any) -> None:
        bars.append(tqdm(total=3, desc="train", leave=True))
        bars[0].update()
        raise RecipeError("mend it")

    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(commands.COMMANDS, "report", fail)
    assert cli.main(["report", "--work", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: mend it"


@pytest.mark.parametrize("setting", ["learning_rat=1e-4", "lr=-1", "max_iters=1"])
def test_a_wrong_setting_is_refused_before_the_base_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    assert cli.main(["quickstart", "--name", "小明", "--work", str(tmp_path), "--set", setting]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: SET")
    assert not (tmp_path / "replay").exists()
