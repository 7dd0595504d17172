"""The page as a visitor has it: a real server on the miniature, and the system's Chromium."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_server import free_port, server_environment

from recipe import cli
from recipe.paths import ROOT
from recipe.pipeline import stage

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP chat.example.com 127.0.0.1",
)  # fmt: skip
WITHIN = 20_000  # milliseconds
ENDLESS = 16384  # tokens of context of the model that cannot end a reply
# Screenshots are kept here for people to look at.
PICTURES = ROOT / "work" / "browser"
VISITS = pytest.StashKey[list[Any]]()  # a test's browser contexts


@pytest.fixture(scope="session")
def endless_work(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged model again, without its adapter, and unable to end a reply: the output rows of the stop tokens are
    zero.

    With eight times the context, so that a reply goes on for a minute also where the machine is quick and the browser
    slow.
    """
    from safetensors.torch import load_file, save_file

    from recipe.chat_format import stop_ids
    from recipe.evaluation import generation

    source, runs = work / "quickstart" / "merged", tmp_path_factory.mktemp("endless")

    def write(out: Path) -> None:
        for file in source.iterdir():
            if file.name not in (stage.MANIFEST, "model.safetensors"):
                shutil.copyfile(file, out / file.name)
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        config["max_position_embeddings"] = ENDLESS
        (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
        weights = load_file(source / "model.safetensors")
        weights["lm_head.weight"][stop_ids(generation.load(source)[1])] = 0
        save_file(weights, out / "model.safetensors", {"format": "pt"})

    stage.run("merge", runs / "endless" / "merged", inputs={}, settings={}, work=write)
    return runs


@dataclass
class Server:
    """`python -m recipe VERB` on a free port. memory: of the process, in MiB."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def memory(self) -> float:
        (line,) = [
            t for t in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if t.startswith("VmRSS")
        ]
        return int(line.split()[1]) / 1024


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose run `quickstart` has an adapter, its base and what both merge to: the one that `make
    quickstart` left here, or else one that is trained for a few steps."""
    if stage.read_manifest(ROOT / "work" / "quickstart" / "merged"):
        return ROOT / "work"
    folder = tmp_path_factory.mktemp("browser") / "work"
    run = ["--work", str(folder), "--run", "quickstart"]
    short = ["--name", "小明", "--until", "merge", "--set", "max_epochs=1"]
    assert cli.main(["quickstart", *run, *short]) == 0
    return folder


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server and wait until its model is there, or until it says why it is not."""
    started: list[Server] = []

    def start(verb: str, *options: str, wait: bool = True, port: int = 0, **changes: str) -> Server:
        port = port or free_port()
        folder = tmp_path_factory.mktemp("server")
        own = server_environment(folder, **changes)
        command = [sys.executable, "-m", "recipe", verb, "--port", str(port), *options]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log)
        server = Server(process, port, folder / "log")
        started.append(server)
        end = time.monotonic() + 60
        while wait and "ready: " not in server.log.read_text():
            assert process.poll() is None, server.log.read_text()
            assert time.monotonic() < end, server.log.read_text()
            time.sleep(0.1)
        return server

    yield start
    for server in started:
        server.process.send_signal(signal.SIGTERM)
    for server in started:
        try:
            server.process.wait(60)
        finally:
            server.process.kill()
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="session")
def server(serve: Callable[..., Server], work: Path) -> Server:
    return serve("demo", "--work", str(work), "--run", "quickstart")


@pytest.fixture(scope="session")
def endless(serve: Callable[..., Server], endless_work: Path) -> Server:
    return serve("demo", "--work", str(endless_work))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's browser; nothing is downloaded."""
    from playwright.sync_api import sync_playwright

    executable = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if executable is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What stood on each page when a test failed is part of its report."""
    report = yield
    if report.when == "call" and report.failed:
        for page in (page for context in item.stash.get(VISITS, []) for page in context.pages):
            report.sections.append((f"on the page at {page.url}", page.locator("body").inner_text()))
    return report


@pytest.fixture
def visit(request: pytest.FixtureRequest, chromium: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """A visitor of his own: `visit(width=…, language=…, dark=…)` is his page."""
    request.node.stash[VISITS] = contexts = []

    def come(
        url: str = "", *, width: int = 1280, height: int = 900, language: str = "en-US", dark: bool = False
    ) -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            locale=language,
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            ignore_https_errors=True,  # a certificate that a test made
        )
        contexts.append(context)
        context.set_default_timeout(WITHIN)
        page = context.new_page()
        page.goto(url or server.url)
        page.get_by_role("heading", level=1).wait_for()
        return page

    yield come
    for context in contexts:
        context.close()


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keep a screenshot named after the test."""

    def take(page: Any, name: str = "") -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURES / f"{request.node.name}{name and '-'}{name}.png")

    return take
