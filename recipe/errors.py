"""The one exception that a user is meant to read."""


class RecipeError(Exception):
    """What is wrong, where, and what to do about it, in one line.

    `python -m recipe` prints the message without a traceback and exits with status 1 (of a subclass, as recipe/cli/exit_codes.py says); every other exception is a bug of
    this project and keeps its traceback.
    """


class BelowThresholdsError(RecipeError):
    """The work was done and its result is not good enough, which has an exit status of its own."""
