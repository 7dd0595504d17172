"""Limits for every client of a hub or package index: seconds of silence, bytes a second, redirects, bytes in memory."""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from recipe.errors import RecipeError

MAX_REDIRECTS = 5
# Seconds to connect, and in which no byte may come. `retry` makes some tries.
CONNECT, SILENCE = 10.0, 30.0
# As curl's --speed-time and --speed-limit: seconds of waiting in which an answer must bring so many bytes a second. An
# answer that comes a byte at a time is never silent, and would take for ever.
WINDOW, LOWEST = 60.0, 1024
# Bytes, unpacked, of an answer that a client keeps in memory: listings and what is said of an upload. Files are written
# as they come.
LARGEST = 64 * 2**20


class TooSlowError(TimeoutError):
    """An answer brings less than `LOWEST` bytes a second over `WINDOW` seconds."""


class _Watched(io.RawIOBase):
    """The answer of a server, from which reading ends where it is too slow.

    Only the time of waiting for the network counts, not that of whoever reads, nor the wait for the first byte: that
    one the limit of silence ends, and a hub may check an upload of gigabytes before it answers.

    Args:
        raw: the socket's own.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._bytes, self._seconds, self._begun = raw, 0, 0.0, False

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int | None:
        start = time.monotonic()
        count = self._raw.readinto(buffer)
        self._seconds += time.monotonic() - start if self._begun else 0.0
        self._begun = True
        self._bytes += count or 0
        if count and self._seconds >= WINDOW:
            if self._bytes < LOWEST * self._seconds:
                raise TooSlowError(f"less than {LOWEST:,} bytes a second came for {self._seconds:.0f} s")
            self._bytes, self._seconds = 0, 0.0
        return int(count) if count is not None else None

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
            super().close()


def timeouts() -> tuple[float, float]:
    """Seconds to connect, and between two blocks of an answer, as requests takes them."""
    return min(CONNECT, SILENCE), SILENCE


def _read(response: Any) -> None:
    """Read an answer into memory, as requests would. RecipeError: it is larger than `LARGEST`, as of packed zeros."""
    content = bytearray()
    for block in response.iter_content(1 << 16):
        content += block
        if len(content) > LARGEST:
            response.close()
            host = urlsplit(response.url).hostname
            raise RecipeError(
                f"{host}: sends more than {LARGEST:,} bytes where a listing of files was asked for: check the mirror, "
                f"or try the other SOURCE="
            )
    response._content, response._content_consumed = bytes(content), True


@contextmanager
def limited(silence: float | None = None) -> Iterator[None]:
    """A context in which each connection of the library requests keeps to the limits, whoever opens it.

    Clients follow some redirects by themselves, so the limit of a session does not count those.

    Args:
        silence: seconds in which no byte may come, in place of SILENCE.

    Raises:
        RecipeError: in the context, where an answer is larger than `LARGEST`.
        requests.TooManyRedirects, requests.Timeout, requests.ConnectionError: in the context, from the request that
            meets the limit; `TooSlowError` is among the causes where the answer is too slow.
    """
    from requests import Response, TooManyRedirects
    from requests.adapters import HTTPAdapter

    connect, usual = timeouts()
    limits = connect, silence or usual
    send, redirects, begin = HTTPAdapter.send, 0, http.client.HTTPResponse.begin

    def watched(self: http.client.HTTPResponse) -> None:
        if self.fp is not None and not isinstance(self.fp.raw, _Watched):
            self.fp = io.BufferedReader(_Watched(self.fp.detach()))
        begin(self)

    def bounded(self: Any, request: Any, **options: Any) -> Any:
        nonlocal redirects
        given = options.get("timeout")
        given = given if isinstance(given, tuple) else (given, given)
        within = tuple(min(one or limit, limit) for one, limit in zip(given, limits, strict=True))
        response = send(self, request, **options | {"timeout": within})
        redirects = redirects + 1 if response.is_redirect else 0
        if redirects > MAX_REDIRECTS:
            response.close()
            raise TooManyRedirects(f"more than {MAX_REDIRECTS} redirects", request=request)
        return response

    def kept(self: Any) -> bytes:
        if not self._content_consumed:
            _read(self)
        return bytes(self._content or b"")

    adapter: Any = HTTPAdapter
    answer: Any = http.client.HTTPResponse
    in_memory: Any = Response
    content = in_memory.content
    adapter.send, answer.begin, in_memory.content = bounded, watched, property(kept)
    try:
        yield
    finally:
        adapter.send, answer.begin, in_memory.content = send, begin, content
