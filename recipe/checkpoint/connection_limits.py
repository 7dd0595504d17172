"""Limits for every client of a hub or package index: seconds of silence, and redirects one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_REDIRECTS = 5
# Seconds to connect, and in which no byte may come. `retry` makes some tries.
CONNECT, SILENCE = 10.0, 30.0


def timeouts() -> tuple[float, float]:
    """Seconds to connect, and between two blocks of an answer, as requests takes them."""
    return min(CONNECT, SILENCE), SILENCE


@contextmanager
def limited(silence: float | None = None) -> Iterator[None]:
    """A context in which each connection of the library requests keeps to the limits, whoever opens it.

    Clients follow some redirects by themselves, so the limit of a session does not count those.

    Args:
        silence: seconds in which no byte may come, in place of SILENCE.

    Raises:
        requests.TooManyRedirects, requests.Timeout: in the context, from the request that meets the limit.
    """
    from requests import TooManyRedirects
    from requests.adapters import HTTPAdapter

    send, redirects = HTTPAdapter.send, 0
    connect, usual = timeouts()
    limits = connect, silence or usual

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

    adapter: Any = HTTPAdapter
    adapter.send = bounded
    try:
        yield
    finally:
        adapter.send = send
