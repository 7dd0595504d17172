"""The API's endpoints in this process, on a free port, and how tests call them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from local_server import free_port, server_environment

from recipe.engine import Engine, Reply
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.serving import endpoints
from recipe.serving.listener import LimitedServer
from recipe.serving.model_host import ModelHost

HELLO: Any = [{"role": "user", "content": "你是谁？"}]
ASK: dict[str, Any] = {"model": "quickstart", "messages": HELLO}
WITHIN = 60  # seconds that nothing here takes
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Endpoint:
    url: str
    port: int
    model_host: ModelHost

    @property
    def engine(self) -> Engine:
        assert self.model_host.engine
        return self.model_host.engine

    def client(self, key: str = "none") -> openai.OpenAI:
        # Without the proxies of this machine.
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(trust_env=False)
        )

    def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", content, sent)
        try:
            with DIRECT.open(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def listen(model_host: ModelHost, key: str | None = None, origins: Sequence[str] = ()) -> Iterator[Endpoint]:
    """The endpoint of this process on a free port."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []

    async def start() -> None:
        port = free_port()
        LimitedServer(
            endpoints.application(model_host, key, origins), keep=endpoints.MAX_BODY, max_body_size=endpoints.READ_BODY
        ).listen(port, "127.0.0.1")
        ready.append(port)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not ready:
        time.sleep(0.01)
    yield Endpoint(f"http://127.0.0.1:{ready[0]}", ready[0], model_host)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def replies_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Reply]:
    """The replies that an engine starts from now on."""
    replies: list[Reply] = []
    start = engine.start

    def keep(*args: Any, **options: Any) -> Reply:
        replies.append(start(*args, **options))
        return replies[-1]

    monkeypatch.setattr(engine, "start", keep)
    return replies


def idle(engine: Engine) -> bool:
    end = time.monotonic() + 10
    while engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    return not engine.busy


def health(url: str, path: str = "/health") -> int:
    try:
        with DIRECT.open(url + path, timeout=WITHIN) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def write_served(work: Path) -> Path:
    """The work folder, whose run `quickstart` is now the miniature."""
    from recipe.stages import model

    model.make(work / "models" / "miniature", model="miniature")

    def write(out: Path) -> None:
        for file in (work / "models" / "miniature").iterdir():
            if file.is_file() and file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)

    stage.run("merge", work / "quickstart" / "merged", inputs={}, settings={}, work=write)
    return work


# --- The process --------------------------------------------------------------------------------------------------

# The command, after a change to what it does.
COMMAND = "{change}; import sys; from recipe.cli import main; sys.exit(main(sys.argv[1:]))"


@contextlib.contextmanager
def stream(url: str, **options: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a streamed reply."""
    body = json.dumps(ASK | {"stream": True} | options).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=WITHIN) as answer:
        yield (json.loads(line[6:]) for line in answer if line.startswith(b"data: {"))


@contextlib.contextmanager
def server(
    change: str, work: Path, tmp_path: Path, verb: str = "api", **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Endpoint]]:
    """`python -m recipe api`, or another verb, changed, once it answers. environment: besides `server_environment`."""
    port = free_port()
    own = server_environment(tmp_path, **environment)
    command = [sys.executable, "-c", COMMAND.format(change=change), verb, "--port", str(port), "--work", str(work)]
    url = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + WITHIN
            while time.monotonic() < end and process.poll() is None:
                with contextlib.suppress(OSError):
                    if health(url, "/_stcore/health" if verb == "demo" else "/health") == 200:
                        break
                time.sleep(0.1)
            yield process, Endpoint(url, port, ModelHost(work, None, port))
        finally:
            process.kill()
