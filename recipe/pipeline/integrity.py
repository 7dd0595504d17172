"""Whether the files of a stage's folder are what the stage wrote.

The manifest has the sha256 of each. A file is read once: what was found to be the manifest's is known afterwards by its
size and times, which are kept beside the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.errors import RecipeError
from recipe.files import parse_json
from recipe.paths import shown
from recipe.pipeline.hashing import file_sha256
from recipe.pipeline.manifest import MANIFEST, Manifest, read_manifest

# A tokenizer's, a model's or an adapter's, and programs; not what people and their tools may lay beside, such as .gguf.
READ_WHERE_FOUND = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".pt", ".pth", ".py")
KEY = ".key.json"  # in a work folder: what a stopped run was working on


def stage_files(folder: Path) -> Iterator[Path]:
    """What a stage has written, or writes, to a folder; sorted."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MANIFEST, KEY))


def refuse_changed(folder: Path, manifest: Manifest, only: Sequence[str] | None = None) -> None:
    """RecipeError where files of a complete folder are gone or are not what its stage wrote.

    Args:
        folder, manifest: of the stage.
        only: files and folders in it to look at; None for all outputs.
    """
    outputs = manifest["outputs"]
    if only is not None:
        outputs = {name: entry for name, entry in outputs.items() if {name, name.partition("/")[0]} & set(only)}
    unwritten = set(only or ()) - {part for name in outputs for part in (name, name.partition("/")[0])}
    with verified_files(folder) as verified:
        changed = sorted(unwritten) + [
            name for name, entry in outputs.items() if not _is(folder / name, name, entry, verified)
        ]
    if not changed and only is None and (added := _added(folder, outputs)):
        raise RecipeError(
            f"{shown(folder)}: {', '.join(added[:3])} is not of `{manifest['stage']}`, and would be read as if "
            f"it were: move it elsewhere"
        )
    if changed:
        names = ", ".join(changed[:3])
        raise RecipeError(
            f"{shown(folder)}: {names} changed since `{manifest['stage']}` wrote it: remove the folder "
            f"to make it anew, or copy it again where a copy was damaged"
            + (", or keep your edit with CONFIG=your-copy.py" if manifest["stage"] == "config" else "")
        )


def _added(folder: Path, outputs: Collection[str]) -> list[str]:
    """Files of a kind that libraries read wherever it lies, and that the folder's stage did not write."""
    names = (path.relative_to(folder).as_posix() for path in stage_files(folder) if path.suffix in READ_WHERE_FOUND)
    return [name for name in names if name not in outputs and not Path(name).name.startswith(".")]


def refuse_another_base(folder: Path, base: Path, sha256: str | None, verb: str) -> None:
    """Refuse what was made on another base than lies there now.

    Args:
        folder: what was made.
        base: the folder of the base.
        sha256: `content_sha256` of the base that it was made on.
        verb: of the stage that makes it anew.

    Raises:
        RecipeError: the base is another one.
    """
    if content_sha256(base) != sha256:
        raise RecipeError(
            f"{shown(folder)} was made on another base than {shown(base)} holds now: bring that base back with "
            f"`make model`, or run `make {verb}` again"
        )


def content_sha256(path: Path) -> str:
    """The sha256 of a file, or of the names and hashes of a folder's files.

    In a complete stage folder, files that were found to be the manifest's keep the hash written there: so gigabytes
    of weights are read once and a file edited by hand is noticed.
    """
    if path.is_file():
        return file_sha256(path)
    recorded = (read_manifest(path) or {}).get("outputs", {})
    lines = []
    with verified_files(path) as verified:
        for file in stage_files(path):
            name = file.relative_to(path).as_posix()
            same = name in recorded and _is(file, name, recorded[name], verified)
            lines.append(f"{recorded[name]['sha256'] if same else file_sha256(file)}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is(file: Path, name: str, entry: Mapping[str, Any], verified: dict[str, list[Any]]) -> bool:
    """Whether a file is the one of a manifest's entry, by its content, which is read once: see `verified_files`."""
    if not file.is_file() or (stat := file.stat()).st_size != entry["bytes"]:
        return False
    if verified.get(name) == (stamp := stamp_of(entry["sha256"], stat)):
        return True
    if file_sha256(file) != entry["sha256"]:
        return False
    if stamp_of(entry["sha256"], file.stat()) == stamp:  # else somebody writes to it just now
        verified[name] = stamp
    return True


def stamp_of(sha256: str, stat: os.stat_result) -> list[Any]:
    """What a file looks like whose content was read. The time of its last change (ctime) is the system's alone: whoever
    copies a file or writes to it can give it any time of modification, and `cp -a` and rsync do."""
    return [sha256, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


_unwritten: dict[Path, dict[str, list[Any]]] = {}  # folder -> what `verified_files` could not write down


@contextlib.contextmanager
def verified_files(folder: Path) -> Iterator[dict[str, list[Any]]]:
    """The stamp of each file of a folder whose content was found to be its manifest's, to be added to.

    It is kept beside the folder; where nobody may write there, in this process.
    """
    file = folder.parent / f".{folder.name}.verified"
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or another's
        content = {}
    before = (content if isinstance(content, dict) else {}) | _unwritten.get(folder, {})
    after = dict(before)
    try:
        yield after
    finally:
        if after != before:
            try:
                files.write_atomically(file, json.dumps(after))
            except OSError:
                _unwritten[folder] = after
