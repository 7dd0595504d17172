"""The one exception that a user is meant to read."""


class RecipeError(Exception):
    """What is wrong, where, and what to do about it, in one line.

    `python -m recipe` prints the message without a traceback and exits with status 1; every other exception is a bug of
    this project and keeps its traceback.
    """
