"""`python -m recipe`: one verb a stage, and chat, page, API and the experiments.

parser      the options of each verb, and their help; option_types: of their values
commands    what each verb does; serving_commands: chat, demo, api; experiment_commands: sweep and bench
remedies    what to do about what the operating system refuses
"""

from __future__ import annotations

import argparse
import contextvars
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import errors
from recipe.cli import remedies, streams
from recipe.cli.commands import COMMANDS
from recipe.cli.option_types import absolute_path
from recipe.cli.parser import build_parser
from recipe.cores import choose_waiting, limit_threads
from recipe.device import check_card, check_driver, has_gpu
from recipe.errors import RecipeError
from recipe.library_logging import close_bars, quieten
from recipe.paths import ROOT
from recipe.pipeline import choices, table
from recipe.pipeline.exact_commands import called_for, exact
from recipe.plain_text import flaw, misread, one_line, print_error

# Seconds after which a process that goes on after a signal to end is interrupted again: twice within what Docker waits.
INTERRUPT_AGAIN_AFTER = 4
# Verbs that compute nothing, and so need not look first how busy the cores are.
WITHOUT_TORCH = ("data", "report", "publish")


def _end(*_: object) -> None:
    """On SIGTERM or SIGHUP, which come once: interrupt, again and again, since some libraries have a bare `except:`
    around an import."""
    signal.signal(signal.SIGALRM, _end_again)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN_AFTER, INTERRUPT_AGAIN_AFTER)
    raise KeyboardInterrupt


def _end_again(*_: object) -> None:
    if sys.exc_info()[1] is None:  # else it is on its way, and what tidies up may take its time
        raise KeyboardInterrupt


def _refuse_what_is_no_text(options: dict[str, Any]) -> None:
    """Check every option, also paths: none could stand in a manifest.

    Raises:
        RecipeError: one holds half of a surrogate pair, bytes that are no UTF-8, or a control character; or the locale
            read it as another text than was typed.
    """
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str | Path):
                continue
            option, fault, wrong = f"--{name.replace('_', '-')}", flaw(str(each)), misread(str(each))
            if wrong and (fault or isinstance(each, str)):  # a path leads to its file in any locale
                raise RecipeError(f"{option}: {wrong}")
            if fault:
                raise RecipeError(f"{option} is no text: it holds {fault}; remove it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the words after `python -m recipe`; None takes those of this process.

    Returns:
        The exit status, one of those in recipe/errors.py.
    """
    options = build_parser().parse_args(arguments)
    if isinstance(getattr(options, "model", None), str) and Path(options.model).is_dir():
        options.model = str(absolute_path(options.model))
    os.chdir(ROOT)  # the resolved config's paths are relative to the checkout
    quieten()
    signal.signal(signal.SIGTERM, _end)  # also where a script had SIGINT ignored
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # a terminal that closes; `nohup` has it ignored
        signal.signal(signal.SIGHUP, _end)
    with called_for(options.work, options.run):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    """Run a verb, and say in a line how it ended where that is no success; returns the exit status."""
    try:
        limit_threads()
        if options.verb not in WITHOUT_TORCH:
            choose_waiting(gpu=has_gpu())
        _refuse_what_is_no_text(vars(options))
        streams.prepare(options)
        check_driver()
        check_card()
        contextvars.copy_context().run(COMMANDS[options.verb], options)  # what a verb sets for its stages ends with it
        choices.save(options, options.work / (options.run or ""))
    except RecipeError as error:
        close_bars()
        print_error(remedies.remedy(error.__cause__) or exact(str(error)))
        return error.exit_status
    except KeyboardInterrupt as stop:
        go_on = str(stop)
        if not go_on and options.verb == "model":
            go_on = "run it again to go on with the download"
        elif not go_on and (options.verb in table.BY_VERB or options.verb == "quickstart"):
            go_on = "run the same command again: the stopped stage begins anew"
        close_bars()
        print(f"\nstopped; what was complete is kept{go_on and '; '}{one_line(go_on)}", file=sys.stderr)
        return errors.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        if remedy := remedies.remedy(error):
            close_bars()
            print_error(remedy)
            return errors.ERROR
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return errors.SUCCESS
