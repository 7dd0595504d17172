"""A user's command in a forked process, which has the libraries loaded, and its death at a file-system event."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe import cli
from recipe.corpus import knowledge
from recipe.evaluation import checkpoint_selection
from recipe.evaluation.scoring import Prompts
from recipe.stages import replay

# Of Python's audit events (PEP 578) those that change a file system; each comes before the change.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# What takes a command seconds to import.
LIBRARIES = (
    "bitsandbytes", "gguf", "mmengine.runner", "peft", "transformers.models.llama.modeling_llama", "xtuner.dataset",
    "xtuner.engine", "xtuner.model", "recipe.report", "recipe.stages.config", "recipe.stages.convert",
    "recipe.stages.data", "recipe.stages.evaluate", "recipe.stages.export", "recipe.stages.gguf", "recipe.stages.merge",
    "recipe.stages.model", "recipe.stages.train", "recipe.training.hooks", "recipe.training.fast",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; -9 where it was killed.
        output: what it wrote to stderr.
        events: changes to the file system under its work folder, where they were counted.
    """

    status: int
    output: str
    events: int = 0

    @property
    def one_line(self) -> bool:
        """Whether it ended with an error that a user can mend: one line, the last, and no traceback."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(python -m recipe \w+|python -m recipe)?:? ?error: ", line)]
        return self.status in (1, 2) and len(errors) == 1 and lines[-1] == errors[0] and "Traceback" not in self.output


def preload() -> None:
    """Import here, once, what every command would."""
    for name in LIBRARIES:
        importlib.import_module(name)


def nothing() -> None:
    """No change."""


def smaller() -> None:
    """Fewer prompts: a random model answers each at full length."""
    selection = checkpoint_selection.prompts()
    few = Prompts(selection.identity[:2], selection.facts[:2])
    changes: list[tuple[Any, str, Any]] = [
        (checkpoint_selection, "prompts", lambda **_: few),
        (replay, "replay_prompts", lambda **options: knowledge.replay_prompts(**options)[:8]),
        (replay, "replay_parts", lambda **options: knowledge.replay_parts(**options)[:8]),
        (replay, "MAX_NEW_TOKENS", 8),
    ]
    for module, name, value in changes:
        setattr(module, name, value)


def command(
    words: Sequence[str | Path],
    *,
    log: Path,
    change: Callable[[], None] = nothing,
    watched: Path | None = None,
    kill_at: int = 0,
) -> Ended:
    """Run `python -m recipe WORDS`.

    Args:
        words: after `python -m recipe`.
        log: a file for what it writes.
        change: made in the forked process before the command starts.
        watched: a folder whose changes are counted.
        kill_at: the process kills itself (SIGKILL) before that change, counted from 1; 0 lets it end.
    """
    log.unlink(missing_ok=True)
    count = log.with_suffix(".count")
    count.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) == 0:
        _be_the_command([str(word) for word in words], log, count, change, watched, kill_at)
    _, status = os.waitpid(child, 0)
    events = int(count.read_text()) if count.is_file() else 0
    output = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return Ended(os.waitstatus_to_exitcode(status), output, events)


def _be_the_command(
    words: list[str], log: Path, count: Path, change: Callable[[], None], watched: Path | None, kill_at: int
) -> None:
    """In the forked process, which never returns from here."""
    status = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        os.dup2(file, 2)
        sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        change()
        events = _count_changes(watched, kill_at) if watched else [0]
        try:
            status = cli.main(words)
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
        count.write_text(str(events[0]))
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _count_changes(folder: Path, kill_at: int) -> list[int]:
    """A list of one number, the changes so far; the process dies before change `kill_at`."""
    events, inside = [0], str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (flags or 0) & WRITES:
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(inside):
            events[0] += 1
            if events[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return events
