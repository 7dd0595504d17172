"""The one model of a server, page or API: loaded once, as soon as it exists; its state published for health checks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recipe import files
from recipe.corpus.identity import Identity, read_identity
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.exact_commands import exact
from recipe.pipeline.results import ConvertResults, DataResults, MergeResults
from recipe.serving import context

if TYPE_CHECKING:
    from recipe.engine import Engine, Reply, Sampling

# Seconds between two searches for a model that does not exist yet.
LOOK_AGAIN = 3


def state_file(port: int) -> Path:
    """The file with the state of the server on `port`, for docker/healthcheck.py: {"state": "ready", …}."""
    return Path(tempfile.gettempdir()) / f"recipe-{os.getuid()}" / f"recipe-demo-{port}.json"


def _own_folder(folder: Path) -> None:
    """Make the folder of state files, under a name that others may guess, in a place where others may write.

    RecipeError: it is a link, another user's, or one that others may write to.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise RecipeError(f"{folder}: is not this user's own folder (mode 700): remove it, or set TMPDIR to another")


def announce(verb: str, port: int, state: str, message: str) -> None:
    """Publish a server's state to the log and to the health check.

    Args:
        verb: of the server, for the log.
        port: where it listens.
        state: "loading", "ready", "missing" or "failed".
        message: the model, or what is wrong.
    """
    file = state_file(port)
    try:
        _own_folder(file.parent)
        files.write_atomically(file, json.dumps({"state": state, "message": message, "pid": os.getpid()}))
    except OSError as error:  # the server goes on, and its health check fails
        _say(verb, f"{file} cannot be written ({error.strerror}), so the health check fails: make room there")
    _say(verb, f"{state}: {message}")


def announce_anyway(verb: str, port: int, state: str, message: str) -> None:
    """`announce` for a server that runs already: it must live to answer, or to end its requests with an error."""
    try:
        announce(verb, port, state, message)
    except RecipeError as error:
        _say(verb, f"{state}: {message}")
        _say(verb, f"the health check fails: {error}")


def _say(verb: str, text: str) -> None:
    """`stage.say`, also where nobody reads the log any more."""
    with contextlib.suppress(OSError):
        stage.say(verb, text)


def newest_merged(work: Path, run: str | None) -> Path | None:
    """The folder of the merged model of `run`, or of the run that merged last; None where there is none."""
    folders = [work / run / "merged"] if run else work.glob("*/merged")
    complete = [
        (manifest.stat().st_mtime_ns, folder) for folder in folders if (manifest := folder / stage.MANIFEST).is_file()
    ]
    return max(complete)[1] if complete else None


def base_and_adapter(merged: Path) -> tuple[Path, Path] | None:
    """The folders of the base and the adapter whose sum `merged` is; None where either is gone or has changed."""
    merge = stage.read_manifest(merged)
    adapter = merged.parent / "adapter"
    try:
        manifest = stage.read_manifest(adapter)
        if not manifest or not merge:
            return None
        converted = results.of(manifest, ConvertResults)
        if converted.checkpoint_sha256 != results.of(merge, MergeResults).checkpoint_sha256:
            return None
        base = ROOT / converted.model
        there = stage.read_manifest(base) is not None and stage.content_sha256(base) == converted.base_sha256
    except RecipeError as error:  # a damaged copy; the merged model is whole without it
        stage.say("demo", f"the page has no base to compare with: {error}")
        return None
    return (base, adapter) if there else None


def identity_of(merged: Path) -> Identity | None:
    """Who the merged model of a run is; None where no row said so, or the rows were written after the merge."""
    data = merged.parent / "data"
    try:
        manifest = stage.read_manifest(data)
        if manifest is None or not results.of(manifest, DataResults).identity_taught:
            return None
        merged_at, rows_at = ((folder / stage.MANIFEST).stat().st_mtime_ns for folder in (merged, data))
        return read_identity(data) if rows_at <= merged_at else None
    except RecipeError as error:
        stage.say("demo", f"the page has no assistant's name: {error}")
        return None


class ModelHost:
    """Finds and loads the model of a server.

    Args:
        work: the folder of all runs.
        run: whose merged model it is; None is the run that merged last.
        port: of the server.
        verb: of the server, for the log.
        compare: load base and adapter rather than the merged model, so that the base can answer as well.

    Attributes:
        state: "loading", "ready", "missing" or "failed".
        message: the model; or what to do, where it is missing or failed.
        folder: of the merged model.
        merged_at: when it was merged, in seconds since 1970; the folder may go while the model is served.
        identity: of the assistant, where the run's rows taught one.
        engine: once the state is "ready".
        alone: whether base and adapter were wanted and not there.
        on_failure: called in the engine's thread when the engine has failed for good, so that the server ends.
        failed: whether it has.
    """

    def __init__(self, work: Path, run: str | None, port: int, *, verb: str = "demo", compare: bool = True) -> None:
        self.work, self.run, self.port, self.verb, self.compare = work, run, port, verb, compare
        self.state, self.message = "loading", ""
        self.folder: Path | None = None
        self.merged_at = 0
        self.identity: Identity | None = None
        self.engine: Engine | None = None
        self.alone = False
        self.on_failure: Callable[[], object] = lambda: None
        self.failed = False
        self._tried: tuple[Path, int] | None = None
        self._loading = threading.Lock()

    def watch(self) -> None:
        """Load the model as soon as there is one that can be loaded; for a thread of its own."""
        while self.state != "ready" and not self.failed:
            self.load()
            time.sleep(LOOK_AGAIN)

    def load(self) -> None:
        """Load the model if there is one, unless it is loaded or failed before.

        While a thread is in here, others return at once.
        """
        if self.state == "ready" or self.failed or not self._loading.acquire(blocking=False):
            return
        try:
            self.folder = newest_merged(self.work, self.run)
            if self.folder is None:
                where = stage.shown(self.work / (self.run or "RUN") / "merged")
                other = newest_merged(self.work, None) if self.run else None
                has_one = f"; RUN={other.parent.name} has one" if other else ""
                missing = f"no model in {where} yet: run `make quickstart NAME=小明` or `make merge` first{has_one}"
                self._become("missing", exact(missing, self.work, self.run))
                return
            candidate = self.folder, (self.folder / stage.MANIFEST).stat().st_mtime_ns
            if candidate == self._tried:
                return
            self._tried = candidate
            self.merged_at = candidate[1] // 10**9
            self.identity = identity_of(self.folder)
            self._become("loading", stage.shown(self.folder))
            self.engine = self._start(self.folder)
            if not self.failed:
                self._become("ready", stage.shown(self.folder))
        except RecipeError as error:
            self._become("failed", exact(str(error), self.work, self.run or self.label))
        except Exception as error:  # the server must live to say so
            self._become("failed", _one_line(error))
        finally:
            self._loading.release()

    def _start(self, folder: Path) -> Engine:
        import torch

        from recipe.engine import Engine
        from recipe.evaluation import generation

        # A core is left to the server. The threads of a matrix product wait for each other, and long for one that has
        # to share its core.
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(torch.get_num_threads() - 1, 1))
        candidate = base_and_adapter(folder) if self.compare else None
        self.alone = candidate is None
        loaded = generation.load(*candidate) if candidate else generation.load(folder)
        return Engine(*loaded, on_failure=self._fail)

    def _fail(self, error: Exception) -> None:
        """Take note that the engine has failed, before its replies end."""
        self.failed = True
        try:
            self._become("failed", f"the engine failed and the server ends: start it again ({_one_line(error)})")
        finally:  # whatever fails meanwhile, the server ends and is started again
            self.on_failure()

    def raise_failure(self) -> None:
        """Raise RecipeError where the engine has failed: a server that ends by that exits with an error."""
        if self.failed:
            raise RecipeError(self.message)

    def try_again(self) -> None:
        """Let `watch` load once more a model that failed, now that there may be more memory."""
        self._tried = None

    def _become(self, state: str, message: str) -> None:
        if (state, message) == (self.state, self.message):
            return
        self.state, self.message = state, message
        announce_anyway(self.verb, self.port, state, message)

    # --- For the page, which takes `remote.Remote` as well ------------------------------------------------------------

    @property
    def label(self) -> str:
        """The run whose model it is, for the page: the folder's path says nothing to a visitor."""
        return self.folder.parent.name if self.folder else ""

    def title(self, language: str) -> str:
        """What the assistant is called in a language, for the page."""
        if self.identity is None:
            return "InternLM2"
        return self.identity.assistant or self.identity.me(language)

    @property
    def can_compare(self) -> bool:
        """Whether the base can answer beside the tuned model."""
        return self.engine is not None and self.engine.can_compare

    @property
    def defaults(self) -> Sampling:
        """The sampling of the model's own generation_config.json."""
        assert self.engine
        return self.engine.defaults

    @property
    def longest(self) -> int:
        """Tokens that a conversation may have, reply included."""
        assert self.engine
        return self.engine.length

    def ask(self, messages: Sequence[dict[str, str]], sampling: Sampling, *, base: bool = False) -> Reply:
        """Start the reply to the latest turns that leave room for it.

        Args:
            messages: the conversation, as `recipe.chat_format` takes it.
            sampling: how tokens are chosen, and where the reply ends.
            base: let the base answer, without the adapter.

        Returns:
            The reply, which grows.

        Raises:
            RecipeError: not even the last turn leaves room.
        """
        assert self.engine
        room = self.engine.length - sampling.max_new_tokens
        fitting = context.fit(self.engine.tokenizer, list(messages), room)
        return self.engine.reply(fitting, sampling, adapted=not base)


def _one_line(error: Exception) -> str:
    """What went wrong while loading."""
    text = str(error).splitlines()[0] if str(error) else repr(error)
    if "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError):
        return f"not enough memory for the model: end what else uses it, then try again ({text})"
    return f"{type(error).__name__}: {text}" if str(error) else text


def check_port(host: str, port: int, variable: str = "PORT") -> None:
    """Check that a server can listen.

    Args:
        host, port: where.
        variable: of the Makefile, which chooses another port.

    Raises:
        RecipeError: it cannot.
    """
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


def run_server(port: int, run: Callable[[], None]) -> None:
    """Call `run`, a server on `port`, and remove the file with its state before and after."""
    _own_folder(state_file(port).parent)
    state_file(port).unlink(missing_ok=True)  # of a server that was killed
    try:
        run()
    finally:
        state_file(port).unlink(missing_ok=True)
