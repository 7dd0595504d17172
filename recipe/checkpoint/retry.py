"""Trying again where waiting may help, and one clear line where it does not."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from recipe.errors import RecipeError
from recipe.pipeline.stage import say

T = TypeVar("T")
# Seconds before each new try. A hub that says how long to wait (Retry-After) is obeyed up to the limit.
DELAYS = (1, 2, 5, 15, 30)
LONGEST = 120
# What the disk refuses is not the network's doing: the command line knows the remedy.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
_sleep = time.sleep


def patiently(act: Callable[[], T], what: str, *, progress: Callable[[], int]) -> T:
    """What `act` returns. After a cut connection, 429 or 5xx it is called again, after a growing delay.

    progress: the bytes that are here; as long as they grow from try to try, patience starts anew. RecipeError: it
    failed for good, with what to do about it.
    """
    tries, before = 0, progress()
    while True:
        try:
            return act()
        except RecipeError:
            raise
        except Exception as error:
            chain = _chain(error)
            if any(isinstance(e, OSError) and e.errno in _DISK for e in chain):
                raise
            status = _first(chain, _status)
            cuts = [type(e).__name__ for e in chain if _is_connection(e)]
            if status is None and not cuts:
                if not _is_hubs(error):
                    raise  # a bug
                reason = f"{type(error).__name__}: {_line(error)}"
                raise _failed(what, reason, "run it again; if it says so again, check the mirror") from error
            if status is not None and status not in (408, 416, 429) and status < 500:
                raise _refused(what, status) from error
            if (now := progress()) > before:
                tries, before = 0, now
            reason = f"HTTP {status}" if status else f"the connection failed ({cuts[-1]})"
            if tries == len(DELAYS):
                raise _failed(
                    what,
                    f"{reason}, {tries + 1} times in a row",
                    "check the network or try the other SOURCE=, then run it again: it goes on where it stopped",
                ) from error
            delay = max(DELAYS[tries], min(_first(chain, _retry_after) or 0, LONGEST))
            tries += 1
            say("model", f"{what}: {reason}; trying again in {delay:g} s ({tries} of {len(DELAYS)})")
            _sleep(delay)


def _failed(what: str, reason: str, remedy: str) -> RecipeError:
    return RecipeError(f"{what}: {reason}: {remedy}")


def _refused(what: str, status: int) -> RecipeError:
    if status in (401, 403):
        remedy = (
            "the hub wants a token, or its firewall refuses: log in with the hub's client, or try the other SOURCE="
        )
    elif status == 404:
        remedy = "the hub has no such repository, revision or file: check the mirror, or try the other SOURCE="
    else:
        remedy = "the hub refuses: check the mirror, or try the other SOURCE="
    return _failed(what, f"HTTP {status}", remedy)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from: the libraries wrap the network's errors, several times over, even in circles."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _first(chain: list[BaseException], look: Callable[[BaseException], Any]) -> Any:
    return next((value for error in chain if (value := look(error)) is not None), None)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _retry_after(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    value = getattr(error, "retry_after", None) or getattr(response, "headers", {}).get("Retry-After")
    try:
        return float(value) if value is not None else None
    except ValueError:  # a date; no hub sends one
        return None


def _is_connection(error: BaseException) -> bool:
    from requests import exceptions

    cut = (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError)
    return isinstance(error, (*cut, ConnectionError, TimeoutError))


def _is_hubs(error: BaseException) -> bool:
    """Whether a client library says that the hub answered something odd: a file of another length, a page for JSON."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("huggingface_hub.", "modelscope_hub."))


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no reason given"
