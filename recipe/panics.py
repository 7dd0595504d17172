"""A panic of a library in Rust (tokenizers, safetensors) as an error that can be handled.

PyO3 derives its PanicException from BaseException, beside KeyboardInterrupt. So no `except Exception` sees a panic: a
thread in which one comes ends without a word. https://pyo3.rs has it under pyo3::panic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from recipe.errors import RecipeError


class PanicError(RecipeError):
    """A library in Rust panicked."""


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """A context, or a decorator, in which a panic is a PanicError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3 gives it no module that could be imported
            raise
        raise PanicError(
            f"the model's tokenizer or weights make a library panic ({' '.join(str(error).split())}): its "
            f"tokenizer.json is damaged or of another version of tokenizers; fetch the model again"
        ) from None
