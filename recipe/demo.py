"""Verb `demo`: the web page, and the one model behind it that all visitors share.

The page itself is recipe/page.py, which Streamlit runs anew for every visitor and click; what must outlive a click is here.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe import stage
from recipe.errors import RecipeError

PAGE = Path(__file__).with_name("page.py")
PORT = 6006
# Seconds between looks for a model that is not there yet.
LOOK_AGAIN = 3


def state_file(port: int) -> Path:
    """Where the page on `port` says how it is, for docker/healthcheck.py: {"state": "ready", …}."""
    return Path(tempfile.gettempdir()) / f"recipe-demo-{port}.json"


def newest(work: Path, run: str | None) -> Path | None:
    """The merged model of `run`, or of the run that merged last; None if there is none."""
    folders = [work / run / "merged"] if run else work.glob("*/merged")
    made = [(manifest.stat().st_mtime_ns, folder) for folder in folders if (manifest := folder / stage.MANIFEST).is_file()]  # fmt: skip
    return max(made)[1] if made else None


class Served:
    """The model behind the page. state: "loading", "ready", "missing" or "failed"; message: what to do about the last two."""

    def __init__(self, work: Path, run: str | None, port: int) -> None:
        self.work, self.run, self.port = work, run, port
        self.state, self.message = "loading", ""
        self.folder: Path | None = None
        self.loaded: Any = None
        self.tokenizer: Any = None
        self._tried: tuple[Path, int] | None = None
        self._loading = threading.Lock()
        self._speaking = threading.Lock()

    def watch(self) -> None:
        """Load the model as soon as there is one that can be loaded; for a thread of its own."""
        while self.state != "ready":
            self.load()
            time.sleep(LOOK_AGAIN)

    def load(self) -> None:
        """Load the model if there is one, unless it is loaded or failed before; other threads return at once meanwhile."""
        if self.state == "ready" or not self._loading.acquire(blocking=False):
            return
        try:
            self.folder = newest(self.work, self.run)
            if self.folder is None:
                where = stage.shown(self.work / (self.run or "RUN") / "merged")
                self._become(
                    "missing", f"no model in {where} yet: run `make quickstart NAME=小明` or `make merge` first"
                )
                return
            found = self.folder, (self.folder / stage.MANIFEST).stat().st_mtime_ns
            if found == self._tried:
                return
            self._tried = found
            self._become("loading", stage.shown(self.folder))
            from recipe import generate

            self.loaded, self.tokenizer = generate.load(self.folder)
            self._become("ready", stage.shown(self.folder))
        except RecipeError as error:
            self._become("failed", str(error))
        except Exception as error:  # the page must live to say so
            self._become("failed", f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else repr(error))  # fmt: skip
        finally:
            self._loading.release()

    def try_again(self) -> None:
        """Let `watch` load what failed once more, now that there may be more memory."""
        self._tried = None

    def _become(self, state: str, message: str) -> None:
        if (state, message) == (self.state, self.message):
            return
        self.state, self.message = state, message
        file = state_file(self.port)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"state": state, "message": message, "pid": os.getpid()}), encoding="utf-8")
        partial.replace(file)
        stage.say("demo", f"{state}: {message}")

    def reply(self, messages: Sequence[dict[str, str]], **sampling: Any) -> Iterator[str]:
        """The reply piece by piece; visitors take turns. RecipeError: the conversation does not fit the model."""
        from recipe import chat, generate

        room = self.loaded.config.max_position_embeddings - sampling["max_new_tokens"]
        fitting = chat.fit(self.tokenizer, list(messages), room)
        with self._speaking:
            yield from generate.stream(self.loaded, self.tokenizer, fitting, **sampling)


_served: Served | None = None


def served() -> Served:
    """The model behind this process's page."""
    assert _served is not None, "recipe/page.py is shown by `python -m recipe demo`"
    return _served


def run(*, work: Path, run: str | None, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM. RecipeError: the port is taken."""
    global _served
    _refuse_taken(host, port)
    _served = Served(work, run, port)
    state_file(port).unlink(missing_ok=True)  # of a page that was killed
    try:
        asyncio.run(_serve(host, port, _served))
    finally:
        state_file(port).unlink(missing_ok=True)


def _refuse_taken(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RecipeError(f"port {port} is taken: stop what listens there, or choose another with PORT={port % 65535 + 1}") from None  # fmt: skip
            raise RecipeError(f"cannot listen on {host} port {port}: {error.strerror}") from None


async def _serve(host: str, port: int, model: Served) -> None:
    from streamlit.web import bootstrap
    from streamlit.web.server import Server

    # Streamlit's own `run` would look for newer versions and for this machine's public address.
    bootstrap.load_config_options(
        {
            "server_address": host,
            "server_port": port,
            "server_headless": True,
            "server_fileWatcherType": "none",
            "browser_gatherUsageStats": False,
            "client_toolbarMode": "minimal",
        }
    )
    server = Server(str(PAGE), "")
    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    stage.say("demo", f"http://{host}:{port} (Ctrl-C stops it)")
    threading.Thread(target=model.watch, daemon=True).start()
    await server.stopped
