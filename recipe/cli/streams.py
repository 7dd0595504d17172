"""Whether the output can show what a verb prints, looked at before the verb works for minutes or hours."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys

from recipe.cli import remedies
from recipe.errors import RecipeError
from recipe.pipeline import choices
from recipe.pipeline.stage import say

# Lines and tables are in both languages, whatever the names of the run.
BOTH_LANGUAGES = "报告 report"
# Of the run's choices, those that stand in what is printed.
NAMES = ("name", "assistant", "author")


def prepare(options: argparse.Namespace) -> None:
    """Have no verb end at a character that the output lacks, after its work: such a character is shown as \\uXXXX.

    What a script reads, the one reply of `chat --prompt`, is not rewritten so: it ends with an error.

    Raises:
        RecipeError: the output of a conversation cannot show Chinese, nor so the prompt.
    """
    lacking = next(filter(None, (_lacking(stream, options) for stream in (sys.stdout, sys.stderr))), None)
    if options.verb == "chat":
        if lacking and options.prompt is None:
            raise RecipeError(f"{remedies.remedy(lacking)}")
        if options.prompt is not None:
            return
    elif lacking and not options.after:  # of several verbs of one `make`, the first says it
        shown = lacking.object[lacking.start : lacking.end].encode("ascii", "backslashreplace").decode()
        say("run", f"what the output lacks is shown as {shown}: {remedies.remedy(lacking)}")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _lacking(stream: object, options: argparse.Namespace) -> UnicodeEncodeError | None:
    """What keeps a stream from showing the verb's own words and the run's names."""
    if not isinstance(stream, io.TextIOWrapper):  # of a test or a notebook
        return None
    chosen = {}
    with contextlib.suppress(RecipeError):  # which the verb itself says
        chosen = choices.read(options.work / (options.run or "") / choices.FILE)
    names = [getattr(options, name, None) or chosen.get(name) or "" for name in NAMES]
    try:
        " ".join([BOTH_LANGUAGES, options.run or "", *names]).encode(stream.encoding)
    except UnicodeEncodeError as error:
        return error
    return None
