"""Verb `api`: an OpenAI-style server over the engine, for programs. On tornado, which Streamlit brings along.

`endpoints` answers the requests. docs/adr/0012 says why it is not `transformers serve`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path

from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.plain_text import flaw
from recipe.serving.endpoints import MAX_BODY, READ_BODY, application, drain
from recipe.serving.listener import LimitedServer, is_loopback
from recipe.serving.model_host import ModelHost, check_port, run_server

ORIGIN = re.compile(r"https?://[^/\s*@?#]+")  # scheme, host and port alone, as browsers send it
DRAIN = 5  # seconds in which a server that stops tells its clients so; Docker waits ten


def run(*, work: Path, run: str | None, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. API_KEY and API_ORIGINS, see `endpoints.application`, come from the environment.

    Args:
        work: the folder of all runs.
        run: whose merged model answers; None is the run that merged last.
        host, port: where to listen.

    Raises:
        RecipeError: the port is taken, others could reach it and there is no API_KEY, or the engine has failed.
    """
    key = os.environ.get("API_KEY") or None
    if key and (fault := flaw(key)):
        raise RecipeError(f"API_KEY holds {fault}: choose another key")
    if key is None and not is_loopback(host):
        raise RecipeError(f"API_KEY is missing: others can reach {host}, so choose a key and set it in the environment")
    origins = os.environ.get("API_ORIGINS", "").replace(",", " ").split()
    for origin in origins:
        if not ORIGIN.fullmatch(origin) or flaw(origin):
            raise RecipeError(f"API_ORIGINS: {origin} is no origin, which is like https://chat.example.com: mend it")
    check_port(host, port, "API_PORT")
    model_host = ModelHost(work, run, port, verb="api", compare=False)
    run_server(port, lambda: asyncio.run(_serve(host, port, model_host, key, origins)))


async def _serve(host: str, port: int, model_host: ModelHost, key: str | None, origins: list[str]) -> None:
    endpoints = application(model_host, key, origins)
    server = LimitedServer(endpoints, keep=MAX_BODY, max_body_size=READ_BODY)
    server.listen(port, host)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    model_host.on_failure = lambda: loop.call_soon_threadsafe(stopped.set)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    stage.say("api", f"http://{host}:{port}/v1 (Ctrl-C stops it)")
    threading.Thread(target=model_host.watch, daemon=True).start()
    await stopped.wait()
    server.stop()
    if model_host.engine:
        await asyncio.to_thread(model_host.engine.close)
    await drain(endpoints, DRAIN)
    await server.close_all_connections()
    model_host.raise_failure()
