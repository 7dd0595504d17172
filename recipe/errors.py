"""The exceptions that a user is meant to read, and how a call of `python -m recipe` ends."""

SUCCESS = 0
# An error that a user can mend, said in one line. Python ends so too after a traceback, which is a bug of this project.
ERROR = 1
# The work was done, and the result is below the thresholds. 2 is argparse's, for a wrong call.
BELOW_THRESHOLDS = 3
# Ctrl-C or SIGTERM, by the shell's convention of 128 + SIGINT.
INTERRUPTED = 130
# The reader of the output has gone, 128 + SIGPIPE.
BROKEN_PIPE = 141


class RecipeError(Exception):
    """What is wrong, where, and what to do about it, in one line.

    `python -m recipe` prints the message without a traceback and exits with `exit_status`. Every other exception is a
    bug of this project and keeps its traceback.
    """

    exit_status = ERROR


class BelowThresholdsError(RecipeError):
    """The work was done and its result is not good enough."""

    exit_status = BELOW_THRESHOLDS


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the message says how to go on."""
