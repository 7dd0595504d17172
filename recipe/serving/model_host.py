"""The one model of a server, page or API: found, loaded once, and its state told to whoever asks."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipe import files
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import ConvertResults, MergeResults
from recipe.serving import context

if TYPE_CHECKING:
    from recipe.serving.engine import Engine, Reply, Sampling

# Seconds between looks for a model that is not there yet.
LOOK_AGAIN = 3


def state_file(port: int) -> Path:
    """Where the server on `port` says how it is, for docker/healthcheck.py: {"state": "ready", …}."""
    return Path(tempfile.gettempdir()) / f"recipe-demo-{port}.json"


def announce(verb: str, port: int, state: str, message: str) -> None:
    """Tell the log and the health check."""
    file = state_file(port)
    files.write_atomically(file, json.dumps({"state": state, "message": message, "pid": os.getpid()}))
    stage.say(verb, f"{state}: {message}")


def newest(work: Path, run: str | None) -> Path | None:
    """The merged model of `run`, or of the run that merged last; None if there is none."""
    folders = [work / run / "merged"] if run else work.glob("*/merged")
    manifest = [
        (manifest.stat().st_mtime_ns, folder) for folder in folders if (manifest := folder / stage.MANIFEST).is_file()
    ]
    return max(manifest)[1] if manifest else None


def parts(merged: Path) -> tuple[Path, Path] | None:
    """The base and the adapter that `merged` was made of, where both are still there; None otherwise."""
    adapter = merged.parent / "adapter"
    manifest, merge = stage.read_manifest(adapter), stage.read_manifest(merged)
    if not manifest or not merge:
        return None
    converted = results.of(manifest, ConvertResults)
    if converted.checkpoint_sha256 != results.of(merge, MergeResults).checkpoint_sha256:
        return None
    base = ROOT / converted.model
    return (base, adapter) if stage.read_manifest(base) else None


class ModelHost:
    """state: "loading", "ready", "missing" or "failed"; message: what to do about the last two.

    compare: load base and adapter rather than what they were merged to, so that the base can be asked as well. `alone`
    is set where that was not possible.
    """

    def __init__(self, work: Path, run: str | None, port: int, *, verb: str = "demo", compare: bool = True) -> None:
        self.work, self.run, self.port, self.verb, self.compare = work, run, port, verb, compare
        self.state, self.message = "loading", ""
        self.folder: Path | None = None
        self.engine: Engine | None = None
        self.alone = False
        self._tried: tuple[Path, int] | None = None
        self._loading = threading.Lock()

    def watch(self) -> None:
        """Load the model as soon as there is one that can be loaded; for a thread of its own."""
        while self.state != "ready":
            self.load()
            time.sleep(LOOK_AGAIN)

    def load(self) -> None:
        """Load the model if there is one, unless it is loaded or failed before; other threads return at once
        meanwhile."""
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
            candidate = self.folder, (self.folder / stage.MANIFEST).stat().st_mtime_ns
            if candidate == self._tried:
                return
            self._tried = candidate
            self._become("loading", stage.shown(self.folder))
            self.engine = self._start(self.folder)
            self._become("ready", stage.shown(self.folder))
        except RecipeError as error:
            self._become("failed", str(error))
        except Exception as error:  # the server must live to say so
            self._become("failed", _plainly(error))
        finally:
            self._loading.release()

    def _start(self, folder: Path) -> Engine:
        import torch

        from recipe.evaluation import generation
        from recipe.serving.engine import Engine

        # A core is left to the server: threads of a product wait for each other, and for one that shares its core they
        # wait long.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(torch.get_num_threads() - 1, 1))
        candidate = parts(folder) if self.compare else None
        self.alone = candidate is None
        return Engine(*(generation.load(*candidate) if candidate else generation.load(folder)))

    def try_again(self) -> None:
        """Let `watch` load what failed once more, now that there may be more memory."""
        self._tried = None

    def _become(self, state: str, message: str) -> None:
        if (state, message) == (self.state, self.message):
            return
        self.state, self.message = state, message
        announce(self.verb, self.port, state, message)

    # --- What the page asks for, here or of another server (recipe/serving/remote.py) ------------------------

    @property
    def can_compare(self) -> bool:
        return self.engine is not None and self.engine.can_compare

    @property
    def defaults(self) -> Sampling:
        assert self.engine
        return self.engine.defaults

    @property
    def longest(self) -> int:
        """Tokens that a conversation may have, reply included."""
        assert self.engine
        return self.engine.length

    def ask(self, messages: Sequence[dict[str, str]], sampling: Sampling, *, base: bool = False) -> Reply:
        """The reply to the latest turns that leave it room. RecipeError: not even the last does."""
        assert self.engine
        room = self.engine.length - sampling.max_new_tokens
        fitting = context.fit(self.engine.tokenizer, list(messages), room)
        return self.engine.reply(fitting, sampling, adapted=not base)


def _plainly(error: Exception) -> str:
    """One line about what went wrong while loading."""
    text = str(error).splitlines()[0] if str(error) else repr(error)
    if "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError):
        return f"not enough memory for the model: end what else uses it, then try again ({text})"
    return f"{type(error).__name__}: {text}" if str(error) else text


def refuse_taken(host: str, port: int, variable: str = "PORT") -> None:
    """RecipeError where nobody can listen."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RecipeError(
                    f"port {port} is taken: stop what listens there, or choose another with "
                    f"{variable}={port % 65535 + 1}"
                ) from None
            raise RecipeError(f"cannot listen on {host} port {port}: {error.strerror}") from None


def tell(port: int, run: Callable[[], None]) -> None:
    """`run` a server on `port`; no word of its state is left before or after."""
    state_file(port).unlink(missing_ok=True)  # of a server that was killed
    try:
        run()
    finally:
        state_file(port).unlink(missing_ok=True)
