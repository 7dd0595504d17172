from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recipe import files
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import integrity, stage


class Work:
    """Writes one text to two files and counts how often it had to."""

    def __init__(self, text: str = "result") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, out: Path) -> Mapping[str, Any]:
        self.calls += 1
        (out / "a.txt").write_text(self.text, encoding="utf-8")
        (out / "nested").mkdir(exist_ok=True)
        (out / "nested" / "b.txt").write_text(self.text * 2, encoding="utf-8")
        return {"letters": len(self.text)}


def make(folder: Path, work: Callable[[Path], Any], *, resume: bool | None = None, **settings: Any) -> stage.Manifest:
    return stage.run("demo", folder, inputs={}, settings=settings, work=work, resume=resume)


def hidden(folder: Path) -> list[str]:
    """What a stage left beside its folder, its lock aside."""
    return sorted(
        path.name for path in folder.parent.glob(f".{folder.name}.*") if path.suffix not in (".lock", ".verified")
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Once ---------------------------------------------------------------------------------------------------------


def test_the_same_again_does_no_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    first = make(tmp_path / "out", work, lr=0.1, betas=(0.9, 0.999))
    before = content(tmp_path / "out")
    capsys.readouterr()
    second = make(tmp_path / "out", work, lr=0.1, betas=(0.9, 0.999))
    assert (work.calls, second, content(tmp_path / "out")) == (1, first, before)
    assert "up to date" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"lr": 0.2}, {}, {"lr": 0.1, "seed": 0}, {"lr": None}, {"LR": 0.1}])
def test_other_settings_are_work(tmp_path: Path, settings: dict[str, Any]) -> None:
    work = Work()
    make(tmp_path / "out", work, lr=0.1)
    make(tmp_path / "out", work, **settings)
    assert work.calls == 2


def _same_size(source: Path) -> None:
    stat = source.stat()
    source.write_text("ROWS", encoding="utf-8")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("role", "change"),
    [
        pytest.param("file", lambda file: file.write_text("other rows", encoding="utf-8"), id="file"),
        pytest.param("file", _same_size, id="file of the same size and time"),
        pytest.param("folder", lambda folder: (folder / "x").write_text("other", encoding="utf-8"), id="in a folder"),
        pytest.param("folder", lambda folder: (folder / "y").write_text("", encoding="utf-8"), id="one file more"),
        pytest.param("folder", lambda folder: (folder / "x").unlink(), id="one file less"),
        pytest.param("folder", lambda folder: (folder / "x").rename(folder / "z"), id="another name"),
    ],
)
def test_changed_inputs_are_work(tmp_path: Path, role: str, change: Callable[[Path], Any]) -> None:
    file, folder, work = tmp_path / "file", tmp_path / "folder", Work()
    file.write_text("rows", encoding="utf-8")
    folder.mkdir()
    (folder / "x").write_text("text", encoding="utf-8")
    inputs = {"file": file, "folder": folder}
    stage.run("demo", tmp_path / "out", inputs=inputs, settings={}, work=work)
    change(inputs[role])
    stage.run("demo", tmp_path / "out", inputs=inputs, settings={}, work=work)
    assert work.calls == 2


def test_an_input_that_only_moved_or_aged_is_no_work(tmp_path: Path) -> None:
    work = Work()
    (tmp_path / "here").write_text("rows", encoding="utf-8")
    stage.run("demo", tmp_path / "out", inputs={"rows": tmp_path / "here"}, settings={}, work=work)
    (tmp_path / "here").rename(tmp_path / "there")
    os.utime(tmp_path / "there", (1, 1))
    stage.run("demo", tmp_path / "out", inputs={"rows": tmp_path / "there"}, settings={}, work=work)
    assert work.calls == 1


def test_another_result_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    def other(out: Path) -> None:
        (out / "c.txt").write_text("new", encoding="utf-8")

    make(tmp_path / "out", Work(), v=1)
    make(tmp_path / "out", other, v=2)
    assert sorted(content(tmp_path / "out")) == ["c.txt", stage.MANIFEST]
    assert hidden(tmp_path / "out") == []


def test_work_starts_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "left by a killed process").write_text("", encoding="utf-8")
    leftovers: list[Path] = []
    make(tmp_path / "out", lambda out: leftovers.extend(out.iterdir()))
    assert leftovers == []


# --- The manifest -------------------------------------------------------------------------------------------------


def test_the_manifest_holds_the_sha256_of_every_output(tmp_path: Path) -> None:
    manifest = make(tmp_path / "out", Work("文本"))
    written = content(tmp_path / "out")
    assert json.loads(written.pop(stage.MANIFEST)) == manifest
    expected = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in written.items()}
    assert {name: (entry["sha256"], entry["bytes"]) for name, entry in manifest["outputs"].items()} == expected
    assert sorted(expected) == ["a.txt", "nested/b.txt"]


def test_the_manifest_says_what_the_result_depends_on(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("rows", encoding="utf-8")
    inputs = {"rows": tmp_path / "rows", "code": ROOT / "recipe" / "paths.py"}
    manifest = stage.run("demo", tmp_path / "out", inputs=inputs, settings={"lr": 0.1}, work=Work())
    assert manifest["key"]["settings"] == {"lr": 0.1}
    assert manifest["key"]["inputs"]["rows"] == hashlib.sha256(b"rows").hexdigest()
    # Paths in the checkout are relative, so that the manifest is true wherever the checkout lies.
    assert manifest["inputs"] == {"rows": str(tmp_path / "rows"), "code": "recipe/paths.py"}
    assert manifest["results"] == {"letters": 6}
    assert set(stage.VERSIONED) == set(manifest["versions"])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(shutil.rmtree, id="no folder"),
        pytest.param(lambda folder: (folder / stage.MANIFEST).unlink(), id="no manifest"),
    ],
)
def test_an_incomplete_folder_is_not_taken_for_whole(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    make(tmp_path / "out", Work())
    damage(tmp_path / "out")
    with pytest.raises(RecipeError, match=r"missing or incomplete: run `make demo` first"):
        stage.require(tmp_path / "out", "demo")


@pytest.mark.parametrize("size", [100, 0], ids=["half a manifest", "an empty manifest"])
def test_a_folder_with_a_part_of_its_manifest_is_not_taken_for_whole(tmp_path: Path, size: int) -> None:
    make(tmp_path / "out", Work())
    os.truncate(tmp_path / "out" / stage.MANIFEST, size)
    with pytest.raises(RecipeError, match=r"manifest\.json: is not JSON .*copy it again"):
        stage.require(tmp_path / "out", "demo")
    with pytest.raises(RecipeError, match=r"manifest\.json: is not JSON"):
        make(tmp_path / "out", Work())


def test_the_hash_of_a_folder_is_the_same_with_and_without_its_manifest(tmp_path: Path) -> None:
    """The hashes in the manifest are a shortcut, never another answer."""
    make(tmp_path / "out", Work())
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    (tmp_path / "copy" / stage.MANIFEST).unlink()
    assert stage.content_sha256(tmp_path / "out") == stage.content_sha256(tmp_path / "copy")


def test_an_edit_in_a_stage_folder_changes_its_hash(tmp_path: Path) -> None:
    make(tmp_path / "out", Work("before"))
    before = stage.content_sha256(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("edited", encoding="utf-8")
    assert stage.content_sha256(tmp_path / "out") != before


# --- Failure and death --------------------------------------------------------------------------------------------


class Fails(Work):
    """Fails when half of its output is written."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("half")
        self.error = error

    def __call__(self, out: Path) -> Mapping[str, Any]:
        super().__call__(out)
        raise self.error


FAILURES = [ValueError("bug"), RecipeError("mend it"), OSError(28, "full"), KeyboardInterrupt(), SystemExit(143)]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_keeps_the_last_result_and_leaves_nothing_else(tmp_path: Path, error: BaseException) -> None:
    make(tmp_path / "out", Work(), v=1)
    before = content(tmp_path / "out")
    with pytest.raises(type(error)):
        make(tmp_path / "out", Fails(error), v=2)
    assert content(tmp_path / "out") == before
    assert hidden(tmp_path / "out") == []


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_first_run_that_failed_is_made_anew(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        make(tmp_path / "out", Fails(error))
    assert not (tmp_path / "out").exists()
    assert hidden(tmp_path / "out") == []
    work = Work()
    make(tmp_path / "out", work)
    assert work.calls == 1


# Runs version 2 of a result and kills itself at the moment that its second argument names.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from recipe.pipeline import stage

folder, moment = Path(sys.argv[1]), sys.argv[2]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def work(out):
    (out / "a.txt").write_text("2")
    if moment == "working":
        die()

rename, renames = Path.rename, []

def counted(self, target):
    if moment == f"rename {len(renames)}":
        die()
    renames.append(target)
    return rename(self, target)

Path.rename = counted
if moment == "hashing":
    stage.file_sha256 = die
if moment == "writing the manifest":
    os.fsync = die
if moment == "renamed":
    shutil.rmtree = lambda *_, **__: die() if len(renames) == 2 else None
stage.run("demo", folder, inputs={}, settings={"v": 2}, work=work)
"""


def _kill(folder: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("working", "1"),
        ("hashing", "1"),
        ("writing the manifest", "1"),
        ("rename 0", "1"),
        ("rename 1", "1"),
        ("renamed", "2"),
    ],
)
def test_a_killed_process_leaves_a_complete_result(tmp_path: Path, moment: str, left: str) -> None:
    """Whichever version survives is whole: asking for it is no work, and asking for the other one works."""
    folder, again = tmp_path / "out", Work("again")
    make(folder, Work("1"), v=1)
    _kill(folder, moment)
    make(folder, again, v=int(left))
    assert again.calls == 0
    assert (folder / "a.txt").read_text(encoding="utf-8") == left
    make(folder, again, v=3)
    assert (folder / "a.txt").read_text(encoding="utf-8") == "again"
    assert hidden(folder) == []


@pytest.mark.parametrize("v", [1, 2], ids=["up to date", "other settings"])
def test_what_a_killed_process_left_is_gone_at_the_next_start(tmp_path: Path, v: int) -> None:
    make(tmp_path / "out", Work(), v=1)
    for suffix in ("old", "partial"):
        (tmp_path / f".out.{suffix}").mkdir()
        (tmp_path / f".out.{suffix}" / "a.txt").touch()
    make(tmp_path / "out", Work(), v=v)
    assert hidden(tmp_path / "out") == []


def test_a_killed_first_run_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    _kill(tmp_path / "out", "rename 0")
    assert stage.read_manifest(tmp_path / "out") is None
    work = Work()
    make(tmp_path / "out", work, v=2)
    assert work.calls == 1


# --- Edited by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda file: file.write_text("edited by hand", encoding="utf-8"), id="edited"),
        pytest.param(lambda file: file.write_text("RESULT", encoding="utf-8"), id="of the same size"),
        pytest.param(lambda file: file.unlink(), id="removed"),
    ],
)
@pytest.mark.parametrize("v", [1, 2], ids=["same settings", "other settings"])
def test_an_edited_output_is_neither_used_nor_overwritten(tmp_path: Path, edit: Callable[[Path], Any], v: int) -> None:
    work = Work()
    make(tmp_path / "out", work, v=1)
    edit(tmp_path / "out" / "a.txt")
    edited = content(tmp_path / "out")
    with pytest.raises(RecipeError, match=r"a\.txt changed since `demo` wrote it: remove the folder"):
        make(tmp_path / "out", work, v=v)
    assert (work.calls, content(tmp_path / "out")) == (1, edited)


DAMAGES = [
    pytest.param(lambda file: file.write_text("RESULT", encoding="utf-8"), id="another byte"),
    pytest.param(lambda file: file.write_text("longer than before", encoding="utf-8"), id="another size"),
    pytest.param(lambda file: file.unlink(), id="removed"),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a.txt", "nested/b.txt"])
def test_what_a_stage_reads_is_what_its_maker_wrote(tmp_path: Path, damage: Callable[[Path], Any], name: str) -> None:
    make(tmp_path / "out", Work())
    stage.require(tmp_path / "out", "demo")
    damage(tmp_path / "out" / name)
    with pytest.raises(RecipeError, match=rf"{name} changed since `demo` wrote it: .* copy it again"):
        stage.require(tmp_path / "out", "demo")


def test_a_file_that_a_library_would_read_is_not_added(tmp_path: Path) -> None:
    make(tmp_path / "out", Work())
    for name in ("out-q4_k_m.gguf", ".DS_Store", "._config.json", "notes.md"):  # other tools' and people's
        (tmp_path / "out" / name).write_text("more")
    stage.require(tmp_path / "out", "demo")
    for name in ("adapter_config.json", "chat_template.jinja", "nested/c.py"):
        (tmp_path / "out" / name).write_text("{}")
        with pytest.raises(RecipeError, match=f"{name} is not of `demo`.*move it elsewhere"):
            stage.require(tmp_path / "out", "demo")
        (tmp_path / "out" / name).unlink()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content is read from now on."""
    read: list[str] = []
    file_sha256 = stage.file_sha256

    def noted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(integrity, "file_sha256", noted)
    return read


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy2], ids=["with other times", "with the same times"])
def test_a_copy_is_read_once_and_then_known(tmp_path: Path, copy: Callable[..., Any], reads: list[str]) -> None:
    make(tmp_path / "out", Work())
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=copy)
    shutil.copy2(tmp_path / ".out.verified", tmp_path / ".copy.verified")
    reads.clear()
    stage.require(tmp_path / "copy", "demo")
    assert reads == ["a.txt", "b.txt"]
    stage.require(tmp_path / "copy", "demo")
    assert stage.content_sha256(tmp_path / "copy") == stage.content_sha256(tmp_path / "out")
    assert len(reads) == 2


def test_what_a_stage_has_just_written_is_not_read_again(tmp_path: Path, reads: list[str]) -> None:
    make(tmp_path / "out", Work())
    reads.clear()
    stage.require(tmp_path / "out", "demo")
    stage.content_sha256(tmp_path / "out")
    assert not reads


def test_a_damaged_copy_with_the_same_times_is_noticed(tmp_path: Path) -> None:
    """`cp -a`, rsync and tar keep the time of modification."""
    make(tmp_path / "out", Work())
    file = tmp_path / "out" / "a.txt"
    before, content_before = file.stat(), stage.content_sha256(tmp_path / "out")
    file.write_text("RESULT", encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RecipeError, match=r"a\.txt changed since"):
        stage.require(tmp_path / "out", "demo")
    assert stage.content_sha256(tmp_path / "out") != content_before


def test_where_nobody_may_write_a_copy_is_read_once_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    make(tmp_path / "out", Work())
    (tmp_path / ".out.verified").write_text("another's")
    reads.clear()
    monkeypatch.setattr(files, "write_atomically", refuse)
    for _ in range(2):
        stage.require(tmp_path / "out", "demo")
    assert len(reads) == 2
    (tmp_path / "out" / "a.txt").write_text("RESULT", encoding="utf-8")
    with pytest.raises(RecipeError, match="changed since"):
        stage.require(tmp_path / "out", "demo")


def test_some_files_may_be_looked_at_and_such_that_nobody_wrote_are_none(tmp_path: Path) -> None:
    manifest = make(tmp_path / "out", Work())
    (tmp_path / "out" / "a.txt").unlink()
    stage.refuse_changed(tmp_path / "out", manifest, ["nested"])
    (tmp_path / "out" / "iter_9.pth").touch()
    for names in (["a.txt"], ["nested", "iter_9.pth"]):
        with pytest.raises(RecipeError, match=f"{names[-1]} changed since"):
            stage.refuse_changed(tmp_path / "out", manifest, names)


def test_an_edited_config_may_be_kept_with_config(tmp_path: Path) -> None:
    for name in ("config", "train"):
        stage.run(name, tmp_path / name, inputs={}, settings={}, work=Work())
        (tmp_path / name / "a.txt").write_text("edited", encoding="utf-8")
    with pytest.raises(RecipeError, match="CONFIG="):
        stage.run("config", tmp_path / "config", inputs={}, settings={}, work=Work())
    with pytest.raises(RecipeError) as error:  # only there is CONFIG= a remedy
        stage.run("train", tmp_path / "train", inputs={}, settings={}, work=Work())
    assert "CONFIG=" not in str(error.value)


def test_files_that_no_stage_wrote_are_not_removed(tmp_path: Path) -> None:
    """`--work ~ --run papers` must not cost anyone ~/papers/data."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(RecipeError):
        make(tmp_path / "out", Work())
    assert content(tmp_path / "out") == {"thesis.txt": b"years of work"}


def test_an_output_that_was_only_touched_is_as_it_was(tmp_path: Path) -> None:
    work = Work()
    make(tmp_path / "out", work)
    os.utime(tmp_path / "out" / "a.txt", (1, 1))
    make(tmp_path / "out", work)
    assert work.calls == 1


# --- Two at once --------------------------------------------------------------------------------------------------

SECOND = """
import sys
from pathlib import Path
from recipe import errors
from recipe.pipeline import stage
try:
    stage.run("demo", Path(sys.argv[1]), inputs={}, settings={}, work=lambda out: print("worked"))
except errors.RecipeError as error:
    print(error)
"""


def _second(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", SECOND, str(folder)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def test_a_second_process_is_told_of_the_first(tmp_path: Path) -> None:
    messages: list[str] = []
    make(tmp_path / "out", lambda out: messages.append(_second(tmp_path / "out")), v=1)
    assert messages == [
        f"another process is working on {tmp_path / 'out'}: wait for it, or choose another RUN\n",
    ]
    assert stage.require(tmp_path / "out", "demo")["key"]["settings"] == {"v": 1}  # the first went on undisturbed


def test_another_folder_beside_it_is_not_locked(tmp_path: Path) -> None:
    messages: list[str] = []
    make(tmp_path / "out", lambda out: messages.append(_second(tmp_path / "other")))
    assert messages == ["worked\n"]


def test_the_lock_ends_with_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bug"):
        make(tmp_path / "out", Fails(ValueError("bug")))
    assert _second(tmp_path / "out") == "worked\n"


# --- Stopped and resumed ------------------------------------------------------------------------------------------


class Training(Work):
    """Adds one step to a log each time, and is stopped before the third."""

    def __call__(self, out: Path) -> Mapping[str, Any]:
        self.calls += 1
        with (out / "log").open("a", encoding="utf-8") as log:
            log.write("step\n")
        steps = (out / "log").read_text(encoding="utf-8").count("step")
        if steps < 3:
            raise KeyboardInterrupt
        return {"steps": steps}


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    work = Training()
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", work, resume=resume)
        assert not (tmp_path / "out").exists()
    manifest = make(tmp_path / "out", work, resume=True)
    assert manifest["results"] == {"steps": 3}
    assert list(manifest["outputs"]) == ["log"]  # and no note of the resuming itself
    assert hidden(tmp_path / "out") == []


def test_without_resume_a_stopped_run_starts_over(tmp_path: Path) -> None:
    work = Training()
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", work, resume=False)
    assert (tmp_path / ".out.partial" / "log").read_text(encoding="utf-8") == "step\n"


def test_a_stopped_run_keeps_the_last_result(tmp_path: Path) -> None:
    make(tmp_path / "out", Work(), resume=False, v=1)
    before = content(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", Training(), resume=False, v=2)
    assert content(tmp_path / "out") == before


def test_resuming_what_nobody_stopped_is_refused(tmp_path: Path) -> None:
    work = Work()
    with pytest.raises(RecipeError, match=r"nothing to resume here; start it without RESUME: `make demo RUN=a-run`"):
        make(tmp_path / "a-run" / "out", work, resume=True)
    assert work.calls == 0


def test_resuming_what_is_complete_does_nothing(tmp_path: Path) -> None:
    work = Work()
    make(tmp_path / "out", work, resume=False)
    make(tmp_path / "out", work, resume=True)
    assert work.calls == 1


def test_resuming_with_other_settings_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    work = Training()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", work, resume=False, lr=1)
    with pytest.raises(RecipeError, match="cannot resume: data, model or settings changed since the stopped run"):
        make(tmp_path / "out", work, resume=True, lr=2)
    with pytest.raises(KeyboardInterrupt):  # with the old ones it still goes on
        make(tmp_path / "out", work, resume=True, lr=1)
    assert (tmp_path / ".out.partial" / "log").read_text(encoding="utf-8") == "step\nstep\n"


def test_what_links_of_a_copied_run_point_to_is_left_alone(tmp_path: Path) -> None:
    """A run folder from elsewhere may hold any link under the names that a stage writes to."""
    run, precious = tmp_path / "a-run", tmp_path / "precious"
    run.mkdir()
    precious.write_text("all of it", encoding="utf-8")
    (run / ".run.json.partial").symlink_to(precious)
    files.write_atomically(run / "run.json", "{}")
    assert (run / "run.json").read_text() == "{}"
    lock = run / ".out.lock"
    lock.symlink_to(precious)
    with pytest.raises(RecipeError, match=r"\.out\.lock: is a link"):
        make(run / "out", Work())
    lock.unlink()
    with pytest.raises(KeyboardInterrupt):
        make(run / "out", Training(), resume=False)
    (run / ".out.partial" / "latest").symlink_to("log")  # such as trackers make
    (run / ".out.partial" / "log.txt").symlink_to(precious)
    with pytest.raises(RecipeError, match=r"log\.txt: is a link to another place"):
        make(run / "out", Training(), resume=True)
    (run / ".out.partial" / "log.txt").unlink()
    with contextlib.suppress(KeyboardInterrupt):
        make(run / "out", Training(), resume=True)
    assert precious.read_text(encoding="utf-8") == "all of it"


def test_resuming_with_other_data_is_refused(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    for resume, text, error in ((False, "rows", KeyboardInterrupt), (True, "other rows", RecipeError)):
        rows.write_text(text, encoding="utf-8")
        with pytest.raises(error):
            stage.run("demo", tmp_path / "out", inputs={"data": rows}, settings={}, work=Training(), resume=resume)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        pytest.param(stage, "file_sha256", id="hashing the outputs"),
        pytest.param(os, "fsync", id="writing the manifest"),
    ],
)
def test_a_run_stopped_after_its_last_step_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    """Gigabytes of checkpoints take a while to hash: Ctrl-C there must not cost the training."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "out", Work(), resume=False)
    make(tmp_path / "out", Work(), resume=True)
    assert stage.read_manifest(tmp_path / "out")
