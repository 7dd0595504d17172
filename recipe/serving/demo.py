"""Verb `demo`: the web page, and the one model behind it that all visitors share.

The page itself is recipe/serving/page, which Streamlit runs anew for every visitor and click. What must outlive a click
is here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

from recipe.pipeline import stage
from recipe.serving.model_host import ModelHost, check_port, run_server
from recipe.serving.remote import Remote

PAGE = Path(__file__).parent / "page" / "app.py"
PORT = 6006

_model_host: ModelHost | Remote | None = None


def model_host() -> ModelHost | Remote:
    """The model behind this process's page."""
    assert _model_host is not None, "recipe/serving/page is shown by `python -m recipe demo`"
    return _model_host


def run(*, work: Path, run: str | None, host: str, port: int) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Where OPENAI_BASE_URL is set, that endpoint answers, with OPENAI_API_KEY, and no model is loaded.

    Args:
        work: the folder of all runs.
        run: whose merged model answers; None is the run that merged last.
        host, port: where to listen.

    Raises:
        RecipeError: the port is taken, or the engine has failed.
    """
    global _model_host
    check_port(host, port)
    endpoint = os.environ.get("OPENAI_BASE_URL")
    model = Remote(endpoint, os.environ.get("OPENAI_API_KEY"), port) if endpoint else ModelHost(work, run, port)
    _model_host = model
    run_server(port, lambda: asyncio.run(_serve(host, port, model)))


async def _serve(host: str, port: int, model: ModelHost | Remote) -> None:
    from streamlit.web import bootstrap
    from streamlit.web.server import Server

    # Streamlit's own `run` would look for newer versions and for this machine's public address.
    bootstrap.load_config_options(
        {
            "server_address": host,
            "server_port": port,
            "server_headless": True,
            "server_fileWatcherType": "none",
            "server_maxUploadSize": 1,
            "browser_gatherUsageStats": False,
            "client_toolbarMode": "minimal",
            # One run of the page at a time for each visitor. The next begins when the last has noticed the click, and
            # continues its reply. By default the last would end with the exception that says that a visitor left.
            "runner_fastReruns": False,
        }
    )
    server = Server(str(PAGE), "")
    await server.start()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    stage.say("demo", f"http://{host}:{port} (Ctrl-C stops it)")
    model.on_failure = lambda: loop.call_soon_threadsafe(server.stop)
    threading.Thread(target=model.watch, daemon=True).start()
    await server.stopped
    model.raise_failure()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Leave out that a visitor left while something was sent to him: Streamlit does not wait for the outcome."""
    from tornado.websocket import WebSocketClosedError

    if not isinstance(context.get("exception"), WebSocketClosedError):
        loop.default_exception_handler(context)
