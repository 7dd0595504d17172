"""Calls to a hub with retries where waiting may help, and one clear line where it does not."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from recipe.checkpoint.connection_limits import TooSlowError
from recipe.errors import RecipeError
from recipe.pipeline.stage import say

T = TypeVar("T")
# Seconds before each new try. Where a hub says how long to wait (Retry-After), that holds, up to LONGEST.
DELAYS = (1, 2, 5, 15, 30)
LONGEST = 120
# Errors of the disk, not of the network: `recipe.cli` has their remedies.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
_sleep = time.sleep


def with_retries(call: Callable[[], T], what: str, *, progress: Callable[[], int]) -> T:
    """Call a hub; after a cut connection, 408, 416, 429 or 5xx call again, after a growing delay.

    Args:
        call: to make.
        what: for messages, such as the hub and the file.
        progress: the bytes that are here. Whenever they have grown since the last try, the tries count from 0 again,
            unless they came too slowly.

    Returns:
        What `call` returns.

    Raises:
        RecipeError: it failed for good.
        OSError: the disk failed.
    """
    tries, bytes_before = 0, progress()
    while True:
        try:
            return call()
        except RecipeError:
            raise
        except Exception as error:
            chain = _chain(error)
            if settled := _settled(chain):
                raise _failed(what, *settled) from error
            if any(isinstance(e, OSError) and e.errno in _DISK for e in chain):
                raise
            status = _first(chain, _status)
            cuts = [type(e).__name__ for e in chain if _is_connection(e)]
            if status is None and not cuts:
                if not _is_from_hub(error):
                    raise  # a bug
                reason = f"{type(error).__name__}: {_line(error)}"
                raise _failed(what, reason, "run it again; if it says so again, check the mirror") from error
            if status is not None and status not in (408, 416, 429) and status < 500:
                raise _http_error(what, status) from error
            slow = next((str(e) for e in chain if isinstance(e, TooSlowError)), None)
            if (bytes_now := progress()) > bytes_before and not slow:  # what moves too slowly would count for ever
                tries, bytes_before = 0, bytes_now
            reason = slow or (f"HTTP {status}" if status else f"the connection failed ({cuts[-1]})")
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


def _settled(chain: list[BaseException]) -> tuple[str, str] | None:
    """(reason, remedy) of a failure that waiting does not mend and no hub is to blame for; None for all others."""
    remedy = "set HTTPS_PROXY=http://host:port, or http://user:password@host:port, as it wants"
    for error in chain:
        text, kind = str(error), type(error).__name__
        if kind == "InvalidSchema" and "SOCKS" in text:
            return (
                "the proxy is a SOCKS proxy, for which PySocks would be needed",
                "set HTTPS_PROXY=http://host:port to an HTTP proxy, and unset ALL_PROXY",
            )
        # http.client says the former of a CONNECT that failed, without an attribute that has the status.
        if match := re.search(r"Tunnel connection failed: (4\d\d)", text):
            wants = ", since it wants a user and a password" if match[1] == "407" else ""
            return f"the proxy lets nothing through (HTTP {match[1]}){wants}", remedy
        if kind == "InvalidProxyURL" or "Proxy URL had unsupported scheme" in text:
            return "the address of the proxy is none", remedy
        if kind == "TooManyRedirects":
            return "it redirects in circles", "check the mirror, or try the other SOURCE="
    return ("the proxy wants a user and a password (HTTP 407)", remedy) if _first(chain, _status) == 407 else None


def failure(error: BaseException) -> tuple[int | None, str | None]:
    """What a client library's error is about.

    Args:
        error: with its causes, in which the libraries wrap the network's.

    Returns:
        (the HTTP status that the hub answered with, or None; the name of the error by which a connection failed, or
        None). Both None: the error is about neither.
    """
    chain = _chain(error)
    return _first(chain, _status), next((type(each).__name__ for each in reversed(chain) if _is_connection(each)), None)


def _failed(what: str, reason: str, remedy: str) -> RecipeError:
    return RecipeError(f"{what}: {reason}: {remedy}")


def _http_error(what: str, status: int) -> RecipeError:
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
    """The error and its causes. The libraries wrap the network's errors, several times over, even in circles."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _first(chain: list[BaseException], value_of: Callable[[BaseException], Any]) -> Any:
    return next((value for error in chain if (value := value_of(error)) is not None), None)


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


def _is_from_hub(error: BaseException) -> bool:
    """Whether a client library found the hub's answer wrong: a file of another length, a page instead of JSON."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("huggingface_hub.", "modelscope_hub."))


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else "no reason given"
