"""What the servers of the tests, which stand for others' servers, have in common."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def free_port() -> int:
    """A port of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def server_environment(temporary: Path, **changes: str) -> dict[str, str]:
    """The environment of a server's own process: on the CPU, without this machine's proxies and endpoints."""
    own = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    own = {key: value for key, value in own.items() if key != "API_KEY" and not key.startswith("OPENAI_")}
    return own | {"TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | changes


class LocalServer(ThreadingHTTPServer):
    """Answers at a free port of this machine, from when it is made until `stop` or the end of its `with` block.

    Args:
        handler: of each connection.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open between requests, and logs nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, status: int, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Send a whole answer. `headers` come after Content-Length, or in its place; HEAD gets no body."""
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
