"""A stage: work that turns inputs and settings into one folder, once.

A folder is complete if and only if it holds manifest.json. The work is done in a hidden folder beside it, which takes
its place by rename when the manifest is written, so that a stage killed at any moment leaves the last complete result
untouched and nothing that a later stage would take for whole. The manifest names everything the result depends on; run
again with the same inputs and settings, a stage says so and does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

from recipe import json_reader
from recipe.errors import RecipeError
from recipe.files import not_through_links, parse_json
from recipe.paths import ROOT
from recipe.paths import shown as shown
from recipe.pipeline import phases
from recipe.pipeline.exact_commands import exact
from recipe.pipeline.hashing import file_sha256 as file_sha256
from recipe.pipeline.integrity import KEY, stage_files, stamp_of, verified_files
from recipe.pipeline.integrity import content_sha256 as content_sha256
from recipe.pipeline.integrity import refuse_another_base as refuse_another_base
from recipe.pipeline.integrity import refuse_changed as refuse_changed
from recipe.pipeline.manifest import MANIFEST as MANIFEST
from recipe.pipeline.manifest import Manifest as Manifest
from recipe.pipeline.manifest import input_of as input_of
from recipe.pipeline.manifest import read_manifest as read_manifest
from recipe.plain_text import one_line
from recipe.records import to_json

# The packages whose version can change a result.
VERSIONED = ("xtuner", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "mmengine", "sentencepiece")


def require(folder: Path, target: str) -> Manifest:
    """The manifest of a folder that another stage must have made, once the files are found to be what that stage wrote.

    RecipeError names the `make` target that makes it.
    """
    manifest = complete(folder, target)
    refuse_changed(folder, manifest)
    return manifest


def complete(folder: Path, target: str) -> Manifest:
    """The manifest as `require` gives it, for who compares the folder's content by itself."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise RecipeError(f"{shown(folder)} is missing or incomplete: run `make {target}` first")
    return manifest


def read_json(path: Path, shape: type | None = None) -> dict[str, Any]:
    """The object in a JSON file of a model folder. RecipeError names the file. shape: a dataclass that it must fit."""
    try:
        return json_reader.read(path, dict[str, Any], "download the file again", shape=shape)
    except FileNotFoundError:
        raise RecipeError(f"{shown(path)}: missing; is the model folder complete?") from None


def key_of(inputs: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a result depends on, as it stands in the manifest."""
    return {
        "settings": json.loads(json.dumps(settings)),  # what comes back out of a manifest
        "inputs": {role: content_sha256(path) for role, path in inputs.items()},
    }


_several_machines: ContextVar[bool] = ContextVar("_several_machines", default=False)


def wait_for_locks() -> None:
    """Let every stage of this context wait for a folder that another process holds, instead of refusing to start."""
    _several_machines.set(True)


@contextlib.contextmanager
def _locked(name: str, folder: Path, *, shared: bool) -> Iterator[None]:
    """Hold the folder's lock, which the kernel drops when the process ends, however it ends. shared: wait for it.

    Where several machines run the same, they may share the folder: then too. NNODES is torchrun's variable for that.
    """
    shared = shared or _several_machines.get() or os.environ.get("NNODES", "1") not in ("", "1")
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f".{folder.name}.lock"
    if file.is_symlink():  # as a copied run folder may hold it
        raise RecipeError(f"{shown(file)}: is a link, and what it points to is no lock: remove it")
    with open(file, "a", opener=not_through_links) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if not shared:
                raise RecipeError(
                    f"another process is working on {shown(folder)}: wait for it, or choose another RUN"
                ) from None
            say(name, f"waiting for another process that works on {shown(folder)}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def working_on(name: str, run_folder: Path) -> contextlib.AbstractContextManager[None]:
    """A context that holds a run for work between its stages, so that `make clean` leaves the run alone.

    Args:
        name: of the work.
        run_folder: of the run.

    Raises:
        RecipeError: as the context is entered, where another process does the same.
    """
    return _locked(name, run_folder / name, shared=False)


def run(
    name: str,
    folder: Path,
    *,
    inputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    work: Callable[[Path], Any],
    resume: bool | None = None,
    shared: bool = False,
) -> Manifest:
    """Make `folder` by calling `work` with an empty folder to write to, unless it already holds this very result.

    inputs: files and folders that the result depends on, by role. settings: plain values that it depends on.
    work: returns what is worth knowing about the result, a class of `pipeline.results` or a dict of plain values or
        None; it lands in the manifest under "results".
    resume: None where a stage always starts anew; otherwise a stopped run's folder is kept, and True goes on with it.
    shared: several runs use this folder, so where another process works on it, wait; otherwise that is a RecipeError.
    """
    with _locked(name, folder, shared=shared):
        old, partial = (folder.parent / f".{folder.name}.{suffix}" for suffix in ("old", "partial"))
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        if resume is None:
            shutil.rmtree(partial, ignore_errors=True)
        key = key_of(inputs, settings)
        manifest = read_manifest(folder)
        if manifest is None and folder.exists() and any(folder.iterdir()):
            raise RecipeError(f"{shown(folder)} holds files that no stage wrote: move them away, or choose another RUN")
        if manifest:
            refuse_changed(folder, manifest)
        if manifest and manifest["key"] == key:
            phases.take()  # of this stage, which are not the next one's
            say(name, f"up to date: {shown(folder)}")
            return manifest
        _prepare(name, partial, key, resume)
        started = time.monotonic()
        try:
            returned = work(partial)
            results = to_json(returned or {})
            manifest = _manifest(name, partial, key, inputs, results, time.monotonic() - started)
        except BaseException:
            if resume is None:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        (folder / KEY).unlink(missing_ok=True)
        with verified_files(folder) as verified:  # the manifest's hashes are of what has just been written
            verified.clear()
            for output, entry in manifest["outputs"].items():
                verified[output] = stamp_of(entry["sha256"], (folder / output).stat())
        shutil.rmtree(old, ignore_errors=True)
        say(name, f"{shown(folder)} ({manifest['seconds']:.1f} s)")
        return manifest


@contextlib.contextmanager
def helping(name: str, folder: Path, rank: int) -> Iterator[Path]:
    """A work folder for machine `rank`, which helps the first one to make `folder`: gone if all went well."""
    own = folder.with_name(f"{folder.name}.node{rank}")
    with _locked(name, own, shared=False):
        partial = own.parent / f".{own.name}.partial"
        _prepare(name, partial, {}, None)
        yield partial
        shutil.rmtree(partial)


def _prepare(name: str, partial: Path, key: Mapping[str, Any], resume: bool | None) -> None:
    """An empty work folder or, to resume, the one that a stopped run of the same inputs and settings left."""
    noted, again = partial / KEY, f"`make {name} RUN={partial.parent.name}`"
    if resume and partial.exists():
        _refuse_links_elsewhere(partial)
        try:
            same = parse_json(noted.read_text(encoding="utf-8")) == key
        except (OSError, ValueError):
            same = False
        if not same:
            raise RecipeError(
                f"{name}: cannot resume: data, model or settings changed since the stopped run; start over without "
                f"RESUME: {again}"
            )
        return
    if resume:
        raise RecipeError(f"{name}: nothing to resume here; start it without RESUME: {again}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if resume is not None:
        noted.write_text(json.dumps(key), encoding="utf-8")


def _refuse_links_elsewhere(partial: Path) -> None:
    """RecipeError where what a stopped run left would be written to another place, as in a folder that was copied."""
    own = partial.resolve()
    for path in [partial, *partial.rglob("*")]:
        if path.is_symlink() and not (path != partial and path.resolve().is_relative_to(own)):
            raise RecipeError(f"{shown(path)}: is a link to another place, which would be written to: remove it")


def _manifest(
    name: str,
    partial: Path,
    key: Mapping[str, Any],
    inputs: Mapping[str, Path],
    results: Mapping[str, Any],
    seconds: float,
) -> Manifest:
    outputs = {}
    for file in stage_files(partial):
        stat = file.stat()
        entry = {"sha256": file_sha256(file), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        outputs[file.relative_to(partial).as_posix()] = entry
    manifest: Manifest = {
        "stage": name,
        "key": key,
        "inputs": {role: shown(path) for role, path in inputs.items()},
        "outputs": outputs,
        "results": results,
        "versions": {package: metadata.version(package) for package in VERSIONED},
        "git_commit": _git_commit(),
        "image": os.environ.get("RECIPE_IMAGE"),
        "seconds": round(seconds, 3),
        "phases": phases.take(),
        "process_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    peak = results.get("gpu_peak_mib") or 0  # of processes that the stage has started
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        peak = max(peak, torch.cuda.max_memory_allocated() // 2**20)
    if peak:
        manifest["gpu_peak_mib"] = peak
    with (partial / MANIFEST).open("w", encoding="utf-8") as written:
        json.dump(manifest, written, ensure_ascii=False, indent=2)
        written.flush()
        os.fsync(written.fileno())
    return manifest


def _git_commit() -> str | None:
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError):
        answer = subprocess.run(git, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return os.environ.get("RECIPE_COMMIT")


def say(name: str, text: str) -> None:
    """One line of progress for the user. text: may hold what rows, models or hubs say."""
    print(f"[{name}] {one_line(exact(text))}", file=sys.stderr, flush=True)
