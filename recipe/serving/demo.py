"""Verb `demo`: the web page, and the one model behind it that all visitors share.

The page itself is recipe/serving/page, which Streamlit runs anew for every visitor and click. What must outlive a click
is here.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.plain_text import printable
from recipe.serving.listener import HostRouter, LimitedServer
from recipe.serving.model_host import ModelHost, check_port, run_server
from recipe.serving.remote import Remote

if TYPE_CHECKING:
    from streamlit.runtime.uploaded_file_manager import UploadedFileManager, UploadedFileRec

# A name of DNS, or an address of IPv4; other addresses need not be named.
HOST = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?", re.ASCII | re.IGNORECASE)
BASE_PATH = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*", re.ASCII | re.IGNORECASE)
PAGE = Path(__file__).parent / "page" / "app.py"
# Files of a visitor that wait for his page to read them, and of all visitors.
UPLOADS, ALL_UPLOADS = 2, 64

_model_host: ModelHost | Remote | None = None


def model_host() -> ModelHost | Remote:
    """The model behind this process's page."""
    assert _model_host is not None, "recipe/serving/page is shown by `python -m recipe demo`"
    return _model_host


def run(*, work: Path, run: str | None, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM.

    STREAMLIT_SERVER_BASE_URL_PATH is the path below which the page is, as a proxy in front of it may have it.

    Where OPENAI_BASE_URL is set, that endpoint answers, with OPENAI_API_KEY, and no model is loaded. PAGE_HOSTS has the
    names by which the page is reached, besides addresses, localhost and this machine's own name.

    Args:
        work: the folder of all runs.
        run: whose merged model answers; None is the run that merged last.
        host, port: where to listen.

    Raises:
        RecipeError: the port is taken, a variable holds no name or no path, or the engine has failed.
    """
    global _model_host
    check_port(host, port)
    names, base_path = _page_names(), _base_path()
    endpoint = os.environ.get("OPENAI_BASE_URL")
    model = Remote(endpoint, os.environ.get("OPENAI_API_KEY"), port) if endpoint else ModelHost(work, run, port)
    _model_host = model
    run_server(port, lambda: asyncio.run(_serve(host, port, model, names, base_path)))


def _page_names() -> list[str]:
    """The names in PAGE_HOSTS. RecipeError: one is none that a browser sends."""
    names = os.environ.get("PAGE_HOSTS", "").replace(",", " ").split()
    for name in names:
        if not HOST.fullmatch(name):
            raise RecipeError(
                f"PAGE_HOSTS: {printable(name)} is no name of a host: write it without scheme, port and path, as "
                f"PAGE_HOSTS=chat.example.com"
            )
    return names


def _base_path() -> str:
    """The path below which the page is, without slashes around it. RecipeError: it is none."""
    path = os.environ.get("STREAMLIT_SERVER_BASE_URL_PATH", "").strip("/")  # read by Streamlit's own command alone
    if path and not BASE_PATH.fullmatch(path):  # Streamlit makes a regular expression of it
        raise RecipeError(
            f"STREAMLIT_SERVER_BASE_URL_PATH: {printable(path)} is no path: take letters, digits, '-', '_' and '/', "
            f"such as /chat"
        )
    return path


async def _serve(host: str, port: int, model: ModelHost | Remote, names: list[str], base: str) -> None:
    from streamlit.web import bootstrap

    # Streamlit's own `run` would look for newer versions and for this machine's public address.
    bootstrap.load_config_options(
        {
            "server_address": host,
            "server_port": port,
            "server_baseUrlPath": base,
            "server_headless": True,
            "server_fileWatcherType": "none",
            "server_maxUploadSize": 1,
            "server_maxMessageSize": 4,
            "browser_gatherUsageStats": False,
            "client_toolbarMode": "minimal",
            # One run of the page at a time for each visitor. The next begins when the last has noticed the click, and
            # continues its reply. By default the last would end with the exception that says that a visitor left.
            "runner_fastReruns": False,
        }
    )
    server = _page_server(names)
    await server.start()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    stage.say("demo", f"http://{host}:{port}{base and '/' + base} (Ctrl-C stops it)")
    model.on_failure = lambda: loop.call_soon_threadsafe(server.stop)
    threading.Thread(target=model.watch, daemon=True).start()
    await server.stopped
    model.raise_failure()


def _page_server(names: list[str]) -> Any:
    """Streamlit's server, behind a listener that checks hosts, also by `names`, and limits connections."""
    from streamlit.web.server import Server, browser_websocket_handler

    # Streamlit compares an origin with this machine's public address, for which it asks a server on the internet, while
    # all visitors wait. HostRouter has compared it before.
    browser_websocket_handler.is_url_from_allowed_origins = lambda url: True  # type: ignore[attr-defined]  # noqa: ARG005

    class PageServer(Server):
        """Streamlit's own but for what listens."""

        async def start(self) -> None:
            from streamlit import config

            router = HostRouter(self._create_app(), names)
            most = config.get_option("server.maxUploadSize") << 20
            listening = LimitedServer(router, keep=most, max_buffer_size=most)
            listening.listen(config.get_option("server.port"), config.get_option("server.address"))
            keep_few_uploads(self._runtime.uploaded_file_mgr)
            await self._runtime.start()

        def stop(self) -> None:
            # Streamlit's own prints first, which fails where nobody reads the output any more: the page would go on.
            self._runtime.stop()

    return PageServer(str(PAGE), "")


def keep_few_uploads(manager: UploadedFileManager) -> None:
    """Let Streamlit drop the oldest files that visitors have sent; it keeps all of them until a visitor leaves."""
    kept: list[tuple[str, str]] = []  # session and uploader, the oldest first
    add_file = manager.add_file

    def add(session_id: str, widget_id: str, file: UploadedFileRec) -> UploadedFileRec:
        uploader = session_id, widget_id
        manager._remove_files(*uploader)  # the page's takes one file
        kept[:] = [*(each for each in kept if each != uploader), uploader]
        own = [each for each in kept if each[0] == session_id]
        for oldest in own[:-UPLOADS] or kept[:-ALL_UPLOADS]:
            manager._remove_files(*oldest)
            kept.remove(oldest)
        return add_file(session_id, widget_id, file)

    manager.add_file = add  # type: ignore[method-assign]


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out that a visitor left while something was sent to him: Streamlit does not wait for the outcome."""
    from tornado.websocket import WebSocketClosedError

    if not isinstance(context.get("exception"), WebSocketClosedError):
        loop.default_exception_handler(context)
