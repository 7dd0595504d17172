"""Fetching the model with the hubs' own client libraries, from a hub on this machine that fails in every known way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gzip
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hub_server import REPOS, REVISIONS, Fault, HubServer, sha256
from local_server import Handler, LocalServer

from recipe.checkpoint import connection_limits, hub, hub_clients, retry
from recipe.cli import remedies
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import bases
from recipe.pipeline.stage import read_manifest
from recipe.stages import model

SOURCES = ("hf", "modelscope")
NAME = "internlm2-chat-1_8b"
SHARD = "model-00001-of-00002.safetensors"
PADDING = 24 << 20  # more than the ten megabytes that huggingface_hub reads before it writes anything
NEVER = 10**6


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., hub.Downloaded]:
    (tmp_path / "models").mkdir()

    def go(source: str, *, offline: bool = False, pinned: bases.PinnedModel | None = None) -> hub.Downloaded:
        pinned = pinned or bases.find(NAME)
        assert pinned
        record = tmp_path / "models" / f"{NAME}.lock.json"
        return hub.fetch(pinned, tmp_path / "hub", record=record, source=source, offline=offline)

    return go


Fetch = Callable[..., hub.Downloaded]


def error_message(fetch: Fetch, source: str, **more: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(RecipeError) as caught:
        fetch(source, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


def record_of(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "models" / f"{NAME}.lock.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def pinned_files(server: HubServer) -> set[str]:
    pinned = bases.find(NAME)
    assert pinned
    return {*pinned.required, *pinned.optional} & set(server.files)


def test_the_whole_model_arrives_and_nothing_else_is_asked_for(
    source: str, server: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    download = fetch(source)
    assert (download.repo, download.revision) == (REPOS[source], REVISIONS[source])
    assert download.folder == tmp_path / "hub" / NAME / REVISIONS[source]
    contents = {path.name: path.read_bytes() for path in download.folder.iterdir() if path.is_file()}
    assert contents == {name: server.files[name] for name in pinned_files(server)}
    assert {request.name for request in server.requests_for("get")} == pinned_files(server)
    assert not list(download.folder.rglob("*.py"))
    files = record_of(tmp_path)[source][REVISIONS[source]]
    assert files == {
        name: {"bytes": len(server.files[name]), "sha256": sha256(server.files[name])} for name in pinned_files(server)
    }


def test_what_is_complete_is_used_without_a_connection(source: str, server: HubServer, fetch: Fetch) -> None:
    first = fetch(source)
    server.requests.clear()
    assert fetch(source) == first
    assert fetch(source, offline=True) == first
    # The other hub would hold the same weights: what is here is enough.
    assert fetch(next(other for other in SOURCES if other != source), offline=True) == first
    assert server.requests == []


def test_stage_model_converts_what_was_fetched(
    source: str, server: HubServer, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "models" / NAME
    manifest = model.make(out, model=REPOS[source], source=source)
    assert manifest["results"] | {"repository": REPOS[source], "revision": REVISIONS[source]} == manifest["results"]
    expected = load_file(tiny_model / "model.safetensors")
    converted = {name: t for file in out.glob("*.safetensors") for name, t in load_file(file).items()}
    assert converted.keys() == expected.keys()
    assert all(converted[name].equal(expected[name]) for name in expected)
    # The download may go, and the model be asked for by its other names: it is made, and nobody is asked.
    shutil.rmtree(tmp_path / "hub")
    server.requests.clear()
    for name in (NAME, *REPOS.values()):
        assert model.make(out, model=name) == manifest
    assert server.requests == []


def test_a_cut_connection_goes_on_where_it_stopped(source: str, server: HubServer, fetch: Fetch) -> None:
    server.faults = [Fault("get", SHARD, cut=40_000)]
    folder = fetch(source).folder
    first, second = server.requests_for("get", SHARD)
    assert first.range is None
    assert second.range
    assert 0 < int(second.range.removeprefix("bytes=").rstrip("-")) <= 40_000
    assert first.sent + second.sent <= len(server.files[SHARD]) + 4096
    assert (folder / SHARD).read_bytes() == server.files[SHARD]


def test_a_line_that_is_cut_again_and_again_arrives_as_long_as_it_moves(
    source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    # More cuts than there are tries: each brought some bytes.
    server.faults = [Fault("get", SHARD, cut=8192, times=len(retry.DELAYS) + 3)]
    folder = fetch(source).folder
    assert (folder / SHARD).read_bytes() == server.files[SHARD]


def test_a_hub_that_goes_down_is_given_up_and_the_next_run_goes_on(
    source: str, server: HubServer, fetch: Fetch, sleeps: list[float], tmp_path: Path
) -> None:
    server.faults = [Fault("get", SHARD, cut=40_000), Fault("get", SHARD, status=503, times=NEVER)]
    message = error_message(fetch, source)
    assert "HTTP 503, 6 times in a row" in message
    assert "goes on where it stopped" in message
    assert record_of(tmp_path) == {}
    assert not (tmp_path / "hub" / NAME / REVISIONS[source] / SHARD).exists()
    small = len([r for r in server.requests_for("get") if r.name != SHARD])
    server.faults = []
    server.requests.clear()
    folder = fetch(source).folder
    assert (folder / SHARD).read_bytes() == server.files[SHARD]
    (again,) = server.requests_for("get", SHARD)
    assert again.range
    assert again.sent < len(server.files[SHARD]) - 30_000
    assert len(server.requests_for("get")) == len(pinned_files(server)) - small, "what was complete came again"


@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "no such repository"), (401, "token"), (403, "token"), (400, "refuses")]
)
@pytest.mark.parametrize("kind", ["list", "get"])
def test_a_refusal_is_final(
    status: int,
    remedy: str,
    kind: str,
    source: str,
    server: HubServer,
    fetch: Fetch,
    sleeps: list[float],
    tmp_path: Path,
) -> None:
    server.faults = [Fault(kind, status=status, times=NEVER)]
    message = error_message(fetch, source)
    assert f"HTTP {status}" in message
    assert remedy in message
    assert REPOS[source] in message
    assert sleeps == []
    assert len(server.requests_for(kind)) == 1
    assert record_of(tmp_path) == {}


@pytest.mark.parametrize("change", [{"repo": "nobody/nothing"}, {"revision": "f" * 40}])
def test_an_unknown_repository_or_revision_is_said(
    change: dict[str, Any], source: str, fetch: Fetch, sleeps: list[float]
) -> None:
    pinned = bases.find(NAME)
    assert pinned
    gone = {key: dataclasses.replace(place, **change) for key, place in pinned.hubs.items()}
    message = error_message(fetch, source, pinned=dataclasses.replace(pinned, hubs=gone))
    assert "HTTP 404" in message
    assert next(iter(change.values()))[:12] in message
    assert sleeps == []


@pytest.mark.parametrize("kind", ["list", "get"])
@pytest.mark.parametrize(("retry_after", "waited"), [("7", 7), ("100000", retry.LONGEST), (None, 1), ("soon", 1)])
def test_a_hub_that_is_asked_too_often_gets_its_time(
    kind: str, retry_after: str | None, waited: float, source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    server.faults = [Fault(kind, status=429, headers={"Retry-After": retry_after} if retry_after else {})]
    fetch(source)
    assert sleeps == [waited]


@pytest.mark.parametrize("status", [429, 500, 502])
@pytest.mark.parametrize("kind", ["list", "get"])
def test_patience_ends(
    status: int, kind: str, source: str, server: HubServer, fetch: Fetch, sleeps: list[float], tmp_path: Path
) -> None:
    server.faults = [Fault(kind, status=status, times=NEVER)]
    assert f"HTTP {status}, 6 times in a row" in error_message(fetch, source)
    assert sleeps == list(retry.DELAYS)
    assert len(server.requests_for(kind)) == 6
    assert record_of(tmp_path) == {}


def test_a_hub_that_is_not_there_is_said(source: str, server: HubServer, fetch: Fetch, sleeps: list[float]) -> None:
    server.stop()
    assert "the connection failed (ConnectionRefusedError), 6 times in a row" in error_message(fetch, source)
    assert sleeps == list(retry.DELAYS)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "body", [flipped, lambda content: content[:-100], lambda content: content + b"more"], ids=["flip", "short", "long"]
)
@pytest.mark.parametrize("name", [SHARD, "config.json"])
def test_other_content_than_announced_is_never_kept(
    body: Callable[[bytes], bytes], name: str, source: str, server: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    server.faults = [Fault("get", name, times=NEVER, body=body)]
    assert name in error_message(fetch, source)
    assert record_of(tmp_path) == {}
    assert not (tmp_path / "hub" / NAME / REVISIONS[source] / name).exists()
    # And a healthy hub mends it.
    server.faults = []
    assert (fetch(source).folder / name).read_bytes() == server.files[name]


def test_a_hub_that_changes_a_revision_is_refused(source: str, server: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    folder = fetch(source).folder
    before = record_of(tmp_path)
    (folder / "config.json").unlink()
    server.files[SHARD] = flipped(server.files[SHARD])
    server.requests.clear()
    message = error_message(fetch, source)
    assert SHARD in message
    assert f"{NAME}.lock.json" in message
    assert server.requests_for("get") == []
    assert record_of(tmp_path) == before


def test_a_small_file_that_the_hub_changed_is_refused_too(
    source: str, server: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    # Hugging Face announces no sha256 for what lies in git: it shows when the file is here.
    folder = fetch(source).folder
    (folder / "config.json").unlink()
    server.files["config.json"] = server.files["config.json"] + b"\n"
    assert "config.json" in error_message(fetch, source)
    assert not (folder / "config.json").exists()


def test_a_pinned_sha256_holds_from_the_first_download(source: str, server: HubServer, fetch: Fetch) -> None:
    pinned = bases.find(NAME)
    assert pinned
    right = {SHARD: sha256(server.files[SHARD]), "config.json": sha256(server.files["config.json"])}
    for name in right:
        message = error_message(fetch, source, pinned=dataclasses.replace(pinned, sha256=right | {name: "0" * 64}))
        assert name in message
    assert fetch(source, pinned=dataclasses.replace(pinned, sha256=right))
    # And for a download that was complete before the sha256 was pinned.
    message = error_message(fetch, source, pinned=dataclasses.replace(pinned, sha256={SHARD: "0" * 64}))
    assert SHARD in message


@pytest.mark.parametrize("spoil", ["flip", "lose", "cut"])
def test_a_file_that_changed_on_disk_is_fetched_again_and_no_other(
    spoil: str, source: str, server: HubServer, fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fetch(source).folder / SHARD
    content = file.read_bytes()
    file.unlink()
    if spoil != "lose":
        file.write_bytes(flipped(content) if spoil == "flip" else content[:1000])
    server.requests.clear()
    message = error_message(fetch, source, offline=True)
    assert "OFFLINE=1" in message
    assert server.requests == []
    fetch(source)
    assert {request.name for request in server.requests_for("get")} == {SHARD}
    assert f"{SHARD} missing or not as recorded" in capsys.readouterr().err
    assert file.read_bytes() == content


def test_offline_makes_no_connection(source: str, server: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    message = error_message(fetch, source, offline=True)
    assert "OFFLINE=1 allows no connection" in message
    assert server.requests == []
    assert record_of(tmp_path) == {}


def test_a_disk_that_is_too_small_is_said_before_the_download(
    source: str, server: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(len(server.files[name]) for name in pinned_files(server))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * total - 1))
    assert "free some space" in error_message(fetch, source)
    assert server.requests_for("get") == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * total))
    fetch(source)


def test_a_disk_that_fills_up_meanwhile_is_no_riddle(
    source: str, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if (process := subprocess.run(mount, check=False, capture_output=True, text=True)).returncode:
        pytest.skip(f"no file system can be mounted here: {process.stderr.strip()}")
    try:
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # as if it filled up after the check
        pinned = bases.find(NAME)
        assert pinned
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the library makes of it
            hub.fetch(pinned, disk / "hub", record=tmp_path / "record.json", source=source, offline=False)
        assert "the disk is full" in (remedies.remedy(caught.value) or "")
        assert not (tmp_path / "record.json").exists()
        assert not (disk / "hub" / NAME / REVISIONS[source] / SHARD).exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_mirror_that_ignores_revisions_is_refused(
    connect: Callable[[], None], server: HubServer, fetch: Fetch
) -> None:
    server.commit = "0" * 40
    assert "does not keep revisions" in error_message(fetch, "hf")
    assert server.requests_for("get") == []


def test_a_repository_without_the_weights_is_refused(source: str, server: HubServer, fetch: Fetch) -> None:
    del server.files[SHARD]
    assert f"holds no {SHARD}" in error_message(fetch, source)
    assert server.requests_for("get") == []


def test_files_that_are_not_needed_may_be_missing(source: str, server: HubServer, fetch: Fetch) -> None:
    del server.files["special_tokens_map.json"]
    assert not (fetch(source).folder / "special_tokens_map.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"hf": {"x": {"config.json": {}}}}', '{"hf": 3}'])
def test_a_record_that_cannot_be_read_is_not_forgotten(
    content: str, source: str, server: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    (tmp_path / "models" / f"{NAME}.lock.json").write_text(content, encoding="utf-8")
    assert "cannot be read" in error_message(fetch, source)
    assert server.requests == []


def test_the_pinned_model_is_found_by_its_names_alone() -> None:
    assert NAME in bases.names()
    names = set()
    for name in (NAME, *REPOS.values()):
        pinned = bases.find(name)
        assert pinned
        names.add(pinned.name)
        assert {key: (place.repo, place.revision) for key, place in pinned.hubs.items()} == {
            key: (REPOS[key], REVISIONS[key]) for key in SOURCES
        }
        assert not [file for file in (*pinned.required, *pinned.optional) if file.endswith((".py", ".bin"))]
    assert names == {NAME}
    for name in ("miniature", "internlm2-chat-70b", "nobody/internlm2-chat-1_8b", "", "."):
        assert bases.find(name) is None


@pytest.mark.parametrize("answer", [b"<html>Log in first</html>", b"{}", b"[]", b"null", b'{"Data": 3, "sha": 3}'])
def test_a_page_in_the_place_of_a_listing_is_said(
    answer: bytes, source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    server.faults = [Fault("list", raw=answer, times=NEVER)]
    message = error_message(fetch, source)
    assert REPOS[source] in message
    assert any(part in message for part in ("no listing", "check the mirror", "holds no config.json", "keep revisions"))
    assert server.requests_for("get") == []


@pytest.mark.parametrize(
    "siblings",
    [
        [{"rfilename": "config.json", "size": "many", "blobId": "0" * 40}],
        [{"rfilename": "config.json", "size": -1, "blobId": "0" * 40}],
        [{"rfilename": "config.json", "size": 1, "blobId": 5}],
        [{"rfilename": "config.json", "size": 1, "blobId": "../../x"}],
        [{"rfilename": 5, "size": 1, "blobId": "0" * 40}],
        [{"rfilename": "config.json", "size": 1, "lfs": {"sha256": [], "size": 1, "pointerSize": 1}}],
        ["config.json"],
        3,
    ],
)
def test_a_listing_of_another_shape_is_said(
    siblings: Any, source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    content: dict[str, Any] = {"id": REPOS["hf"], "sha": REVISIONS["hf"], "siblings": siblings}
    if source == "modelscope":
        text = json.dumps(siblings)
        for theirs, ours in (("rfilename", "Path"), ("size", "Size"), ("blobId", "Sha256"), ("lfs", "Sha256")):
            text = text.replace(f'"{theirs}"', f'"{ours}"')
        content = {"Code": 200, "Data": {"Files": json.loads(text)}}
    server.faults = [Fault("list", raw=json.dumps(content).encode(), times=NEVER)]
    message = error_message(fetch, source)
    assert any(part in message for part in ("no listing", "check the mirror", "holds no config.json"))
    assert server.requests_for("get") == []


def test_an_error_of_the_program_stays_one(sleeps: list[float]) -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        retry.with_retries(broken, "what", progress=lambda: 0)
    assert sleeps == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_disk_refuses_is_passed_on(number: int, sleeps: list[float]) -> None:
    def full() -> None:
        raise OSError(number, os.strerror(number), "/x")

    with pytest.raises(OSError, match="/x"):
        retry.with_retries(full, "what", progress=lambda: 0)
    assert sleeps == []


@pytest.fixture
def silence(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What a silent hub waits for, at the end of the test; the clients wait for a moment."""
    monkeypatch.setattr(connection_limits, "SILENCE", 0.2)
    over = threading.Event()
    yield over
    over.set()


@pytest.mark.parametrize("kind", ["list", "get"])
def test_a_hub_that_sends_nothing_is_given_up(
    kind: str, source: str, server: HubServer, fetch: Fetch, sleeps: list[float], silence: threading.Event
) -> None:
    server.faults = [Fault(kind, silent=silence, times=NEVER)]
    message = error_message(fetch, source)
    assert "imeout" in message
    assert "check the network or try the other SOURCE=" in message
    assert len(sleeps) == len(retry.DELAYS)


def test_a_hub_that_falls_silent_in_the_middle_of_a_file_is_given_up_and_the_next_run_goes_on(
    source: str, server: HubServer, fetch: Fetch, sleeps: list[float], silence: threading.Event
) -> None:
    server.faults = [Fault("get", SHARD, cut=8192, wait=silence), Fault("get", SHARD, cut=0, wait=silence, times=NEVER)]
    message = error_message(fetch, source)
    assert "goes on where it stopped" in message
    server.faults = []
    assert (fetch(source).folder / SHARD).read_bytes() == server.files[SHARD]


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "WINDOW", 0.3)


def test_a_listing_beyond_any_size_is_not_kept_in_memory(
    source: str, server: HubServer, fetch: Fetch, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "modelscope":
        pytest.skip("its client reads the connection itself, and gives a listing a time")
    monkeypatch.setattr(connection_limits, "LARGEST", 1 << 17)
    server.faults = [Fault("list", raw=b" " * (1 << 18))]
    assert "sends more than 131,072 bytes where a listing of files was asked for" in error_message(fetch, source)
    assert (server.requests_for("get"), sleeps) == ([], [])
    fetch(source)  # files may be larger


def test_what_a_listing_unpacks_to_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Packed(Handler):
        def do_GET(self) -> None:
            self.send(200, gzip.compress(bytes(1 << 20)), {"Content-Encoding": "gzip"})

    monkeypatch.setattr(connection_limits, "LARGEST", 1 << 19)
    with LocalServer(Packed) as packed, connection_limits.limited():
        address = f"http://127.0.0.1:{packed.server_port}/"
        with pytest.raises(RecipeError, match=r"127\.0\.0\.1: sends more than"):
            requests.get(address, timeout=5)
        with requests.get(address, timeout=5, stream=True) as response:  # to a file
            assert sum(map(len, response.iter_content(1 << 16))) == 1 << 20
        with requests.get(address, timeout=5, stream=True) as response, pytest.raises(RecipeError, match="sends more"):
            response.json()


@pytest.mark.usefixtures("short_window")
@pytest.mark.parametrize("kind", ["list", "get"])
def test_a_hub_that_sends_a_byte_now_and_then_is_given_up(
    kind: str, source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    server.faults = [Fault(kind, drip=0.02, cut=0, times=NEVER)]
    message = error_message(fetch, source)
    assert "less than 1,024 bytes a second came for 0 s, 6 times in a row: check the network or try the" in message
    assert len(sleeps) == len(retry.DELAYS)


@pytest.mark.usefixtures("short_window", "sleeps")
def test_the_part_of_a_file_that_came_too_slowly_is_kept_and_the_next_run_goes_on(
    source: str, padded: HubServer, tmp_path: Path, fetch: Fetch
) -> None:
    half = 12 << 20
    server = padded
    server.faults = [
        Fault("get", SHARD, drip=0.02, cut=half),
        Fault("get", SHARD, drip=0.02, cut=0, times=NEVER),
    ]
    message = error_message(fetch, source)
    assert "less than 1,024 bytes a second" in message
    assert "run it again: it goes on where it stopped" in message
    parts = [file for file in (tmp_path / "hub").rglob("*") if file.is_file() and file.stat().st_size >= 10_000_000]
    assert len(parts) == 1
    server.faults = []
    before = len(server.requests_for("get", SHARD))
    assert (fetch(source).folder / SHARD).read_bytes() == server.files[SHARD]
    assert all(request.range for request in server.requests_for("get", SHARD)[before:])


@pytest.mark.usefixtures("short_window")
def test_a_reader_that_takes_its_time_is_no_slow_hub(source: str, server: HubServer) -> None:
    import requests

    with connection_limits.limited(), requests.get(f"{server.url}/cdn/{SHARD}", stream=True, timeout=5) as answer:
        content = b""
        for block in answer.iter_content(1 << 12):
            content += block
            time.sleep(0.05)
    assert content == server.files[SHARD]


@pytest.mark.parametrize("kind", ["list", "head", "get"])
def test_redirects_without_end_are_said(
    kind: str, source: str, server: HubServer, fetch: Fetch, sleeps: list[float]
) -> None:
    server.faults = [Fault(each, loop=True, times=NEVER) for each in {kind, "get" if kind == "head" else kind}]
    message = error_message(fetch, source)
    assert "redirects in circles" in message
    assert sleeps == []
    assert len(server.requests) < 3 + 2 * connection_limits.MAX_REDIRECTS  # the listing, and each kind's redirects


def connection_settings() -> tuple[bool, bool, Any]:
    """What `connected` changes in huggingface_hub: whether it is offline, whether without Xet, and its retries."""
    constants = importlib.import_module("huggingface_hub.constants")
    file_download = importlib.import_module("huggingface_hub.file_download")
    return constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET, file_download.http_backoff


@pytest.mark.parametrize("error", [None, ConnectionError("cut"), KeyboardInterrupt()], ids=repr)
def test_hugging_face_s_settings_are_put_back_also_after_an_error(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    before = connection_settings()
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), hub_clients.connected():
        offline, without_xet, http_backoff = connection_settings()
        assert not offline
        assert without_xet
        assert http_backoff.keywords == {"max_retries": 0}
        if error:
            raise error
    assert connection_settings() == before


# --- As a user runs it ---------------------------------------------------------------------------------------------


@pytest.fixture
def padded(server: HubServer, tmp_path: Path) -> HubServer:
    """A shard large enough to be stopped in: with a buffer that the conversion leaves out."""
    import torch
    from safetensors.torch import load, save

    buffer = {"model.layers.0.attention.rotary_emb.inv_freq": torch.zeros(PADDING // 4)}
    server.files[SHARD] = save(load(server.files[SHARD]) | buffer, {"format": "pt"})
    return server


def command(server: HubServer, work: Path, source: str, **environment: str) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE_", "RECIPE_OFFLINE"))}
    own = {
        "HF_ENDPOINT": server.url,
        "MODELSCOPE_ENDPOINT": server.url,
        "HF_HOME": str(work),
        "MODELSCOPE_HOME": str(work),
    }
    arguments = ["model", "--model", NAME, "--source", source, "--work", str(work)]
    return subprocess.Popen(
        [sys.executable, "-m", "recipe", *arguments],
        cwd=ROOT, env=clean | own | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.02)


@pytest.mark.parametrize("source", SOURCES)
def test_stopped_in_the_middle_the_process_that_waited_goes_on(source: str, padded: HubServer, tmp_path: Path) -> None:
    work, go_on = tmp_path / "work", threading.Event()
    padded.faults = [Fault("get", SHARD, cut=PADDING - (4 << 20), wait=go_on)]
    first = command(padded, work, source)
    second = None
    try:
        until(lambda: any(r.sent == PADDING - (4 << 20) for r in padded.requests_for("get", SHARD)))
        until(lambda: any(p.stat().st_size >= 10 << 20 for p in (work / "hub").rglob("*.incomplete")))
        requests = len(padded.requests)
        second = command(padded, work, source)
        assert second.stderr
        # A machine without a GPU is warned before.
        assert "waiting for another process" in next(line for line in second.stderr if "no GPU here" not in line)
        assert len(padded.requests) == requests
        assert not (work / "models" / f"{NAME}.lock.json").exists()
        assert read_manifest(work / "models" / NAME) is None
        first.send_signal(signal.SIGINT)
        errors = first.communicate(timeout=60)[1]
        assert first.returncode == 130, errors
        assert "Traceback" not in errors
        assert "go on with the download" in errors
        errors = second.communicate(timeout=60)[1]
        assert second.returncode == 0, errors
    finally:
        go_on.set()
        for process in (first, second):
            if process:
                process.kill()
                process.wait()
    _, resumed = padded.requests_for("get", SHARD)
    assert resumed.range
    assert resumed.sent <= len(padded.files[SHARD]) - (10 << 20)
    assert read_manifest(work / "models" / NAME)


@pytest.mark.parametrize("source", SOURCES)
def test_offline_by_the_libraries_own_variable(source: str, server: HubServer, tmp_path: Path) -> None:
    process = command(server, tmp_path / "work", source, HF_HUB_OFFLINE="1")
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "allows no connection" in errors
    assert server.requests == []


@pytest.mark.parametrize(
    "address",
    ["hf-mirror.com", "//hf-mirror.com", "https://", "me:secret@mirror", "mirror?key=secret", "mirror#secret"],
)
def test_an_endpoint_without_its_scheme_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(RecipeError, match="write it with its scheme, as HF_ENDPOINT=https://") as error:
        hub_clients.HuggingFace("a/b", "c")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("token", ["hf_密码", "hf_se cret", "hf_secret\x1b", "hf_secret\nX-A: b", "hf_secret\udcff"])
@pytest.mark.parametrize(
    ("variable", "client"),
    [("HF_TOKEN", hub_clients.HuggingFace), ("MODELSCOPE_API_TOKEN", hub_clients.ModelScope)],
)
def test_a_token_that_no_request_can_carry_is_refused_and_not_shown(
    variable: str, client: Any, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, token)
    with pytest.raises(RecipeError, match=f"{variable} holds a character at position .* that no token has") as error:
        client("a/b", "c")
    assert "hf_" not in str(error.value)
    monkeypatch.setenv(variable, " hf_right\n")  # as from a file
    client("a/b", "c")


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_an_index_without_its_scheme_is_answered_with_an_index(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "pypi.example")
    with pytest.raises(RecipeError, match=f"as {variable}=https://pypi.org/simple$"):
        hub_clients.refuse_without_scheme(variable)


def test_a_socks_proxy_without_its_library_is_said(sleeps: list[float]) -> None:
    from requests.exceptions import InvalidSchema

    def through_socks() -> None:
        raise InvalidSchema("Missing dependencies for SOCKS support.")

    with pytest.raises(RecipeError, match="HTTPS_PROXY=http://host:port"):
        retry.with_retries(through_socks, "hub", progress=lambda: 0)
    assert sleeps == []


@pytest.mark.parametrize(
    ("status", "proxy", "reason"),
    [
        (407, "http://{}", r"the proxy lets nothing through \(HTTP 407\), since it wants a user and a password"),
        (403, "http://{}", r"the proxy lets nothing through \(HTTP 403\)"),
        (0, "somebody:secret@{}", "the address of the proxy is none"),
        (0, "ftp://somebody:secret@{}", "the address of the proxy is none"),
    ],
)
def test_a_proxy_that_refuses_or_is_none_is_said_at_once_with_its_variable(
    status: int, proxy: str, reason: str, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proxy(Handler):
        def do_CONNECT(self) -> None:
            self.send(status)

    for name in ("https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with LocalServer(Proxy) as server, connection_limits.limited():
        monkeypatch.setenv("HTTPS_PROXY", proxy.format(f"127.0.0.1:{server.server_port}"))
        with pytest.raises(RecipeError, match=f"hub: {reason}: set HTTPS_PROXY=http://host:port") as error:
            retry.with_retries(lambda: requests.get("https://hub.example", timeout=5), "hub", progress=lambda: 0)
    assert "secret" not in str(error.value)
    assert sleeps == []


def test_no_more_bytes_are_written_than_announced(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        bounded = hub_clients._Bounded(file, 5)
        assert bounded.write(b"12345") == 5
        with pytest.raises(RecipeError, match="more than the announced 5 bytes"):
            bounded.write(b"6")
    assert (tmp_path / "x").read_bytes() == b"12345"


def test_that_the_first_download_is_trusted_is_said_once(
    source: str, server: HubServer, fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = bases.find(NAME)
    assert pinned
    pinned = dataclasses.replace(pinned, sha256={})
    fetch(source, pinned=pinned)
    assert capsys.readouterr().err.count("this first download is trusted") == 1
    fetch(source, pinned=pinned)
    assert "trusted" not in capsys.readouterr().err
