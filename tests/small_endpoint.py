"""The API's endpoints in this process, on a free port, and how tests call them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from recipe.engine import Engine
from recipe.serving import api, endpoints
from recipe.serving.model_host import ModelHost

HELLO: Any = [{"role": "user", "content": "你是谁？"}]
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


def listen(model_host: ModelHost, key: str | None = None) -> Iterator[Endpoint]:
    """The endpoint of this process on a free port."""
    from tornado.httpserver import HTTPServer

    loop = asyncio.new_event_loop()
    ready: list[int] = []

    async def start() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        HTTPServer(endpoints.application(model_host, key), max_body_size=api.MAX_BODY).listen(port, "127.0.0.1")
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


def idle(engine: Engine) -> bool:
    end = time.monotonic() + 10
    while engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    return not engine.busy
