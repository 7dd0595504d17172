"""A hub on this machine that holds the tiny model, and both client libraries pointed at it."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import REPOS, HubServer, in_two_shards

from recipe.checkpoint import hub_clients, retry


@pytest.fixture(scope="session")
def repository(tiny_internlm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tiny model as its hub holds it: in two shards, with Python and other files that are nobody's business."""
    return in_two_shards(tiny_internlm2, tmp_path_factory.mktemp("hub") / "repository")


@pytest.fixture
def server(repository: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer(dict(repository)) as running:
        yield running


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between the tries, none of them waited for."""
    waited: list[float] = []
    monkeypatch.setattr(retry, "_sleep", waited.append)
    return waited


@pytest.fixture
def connect(
    server: HubServer, sleeps: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Points both client libraries at the server, as their environment variables do when a process starts."""
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    hub_clients.ModelScope("a/b", "c")  # sets what must be set before the library is imported
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    file_download = importlib.import_module("huggingface_hub.file_download")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda _: None))  # after a cut
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    download = importlib.import_module("modelscope_hub._download")
    monkeypatch.setattr(download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.0)  # after content with another checksum
    config = importlib.import_module("modelscope_hub.config")
    config.set_default_config(None)
    return lambda: config.set_default_config(None)


@pytest.fixture(params=tuple(REPOS))
def source(request: pytest.FixtureRequest, connect: Callable[[], None]) -> str:
    return str(request.param)
