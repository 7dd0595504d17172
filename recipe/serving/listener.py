"""How page and API listen: who sends or reads nothing holds nothing up, and a name that leads here is checked."""

from __future__ import annotations

import contextlib
import ipaddress
import resource
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.ioloop import PeriodicCallback
from tornado.iostream import IOStream
from tornado.routing import Router
from tornado.web import Application, RequestHandler

from recipe.pipeline import stage
from recipe.plain_text import printable

# Seconds in which a request must have come, for which a connection stays without one, and for which it stays while
# nothing is read of what was answered.
SILENCE = 30
# Seconds between two looks at who reads. Where descriptors are short, who read nothing for so long makes room.
LOOK = 2
# File descriptors that connections leave to the process: its files, its GPU, its own event loop.
RESERVED = 64
# Connections of one process at most, however many descriptors it may have.
MOST = 4096
# Refusals of a page that its log holds, and characters of each: the names in them come from outside.
REFUSALS, LONGEST = 20, 200


class LimitedServer(HTTPServer):
    """An HTTP server that closes the connection that has been silent for longest where there are too many.

    Without it, accepting fails as soon as the file descriptors are used up, and tornado tries again at once, for ever.
    After those that send nothing it closes those that read nothing, whose answers tornado would keep without end.

    Args:
        request_callback: of tornado's HTTPServer.
        keep: bytes of a body that are kept; where more come, a few more than `keep` are.
        options: of tornado's HTTPServer.
    """

    def initialize(self, request_callback: Any, *, keep: int, **options: Any) -> None:  # type: ignore[override]
        super().initialize(request_callback, idle_connection_timeout=SILENCE, body_timeout=SILENCE, **options)
        self._keep = keep
        self._silent: dict[IOStream, None] = {}  # no whole request came since the last response; the oldest first
        self._readers: dict[IOStream, _Reader] = {}
        self._look = PeriodicCallback(self._close_unread, LOOK * 1000)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if not self._look.is_running():
            self._look.start()
        while _descriptors_are_short() and (oldest := next(iter(self._silent), None) or self._unread()):
            self._silent.pop(oldest, None)
            oldest.close()
        if _descriptors_are_short():
            stream.close()
        else:
            self._readers[stream] = _Reader(stream)
            super().handle_stream(stream, address)

    def stop(self) -> None:
        self._look.stop()
        super().stop()

    def _unread(self) -> IOStream | None:
        """The connection that has read nothing for longest, if for long enough."""
        unread = [reader for reader in self._readers.values() if not reader.stream.closed() and reader.waits > LOOK]
        return max(unread, key=lambda reader: reader.waits).stream if unread else None

    def _close_unread(self) -> None:
        for stream, reader in list(self._readers.items()):
            if stream.closed():
                del self._readers[stream]
            elif reader.look() > SILENCE:
                stream.close()

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        assert isinstance(server_conn, HTTP1ServerConnection)
        stream = server_conn.stream
        self._silent[stream] = None
        delegate = super().start_request(server_conn, request_conn)
        return _Watched(delegate, self._keep, lambda: self._silent.pop(stream, None))

    def on_close(self, server_conn: object) -> None:
        assert isinstance(server_conn, HTTP1ServerConnection)
        self._silent.pop(server_conn.stream, None)
        super().on_close(server_conn)


class _Reader:
    """How long a client has read nothing of what waits for it.

    Args:
        stream: to the client.

    Attributes:
        waits: seconds, as of the last look; 0 where nothing waits.
    """

    def __init__(self, stream: IOStream) -> None:
        self.stream, self.waits = stream, 0.0
        self._sent, self._since = -1, 0.0

    def look(self) -> float:
        """See how long it is now."""
        sent, now = self.stream._total_write_done_index, time.monotonic()
        if not self.stream.writing() or sent != self._sent:
            self._sent, self._since = sent, now
        self.waits = now - self._since
        return self.waits


class _Watched(HTTPMessageDelegate):
    """Hands a request on, says when all of it has come, and drops what of its body is beyond `keep`."""

    def __init__(self, delegate: HTTPMessageDelegate, keep: int, on_whole: Callable[[], object]) -> None:
        self._delegate, self._keep, self._on_whole = delegate, keep, on_whole
        self._received = 0

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> Any:
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Any:
        dropped = self._received > self._keep
        self._received += len(chunk)
        return None if dropped else self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._on_whole()
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


def _descriptors_are_short() -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if limit == resource.RLIM_INFINITY else min(limit - RESERVED, MOST)
    return sum(1 for _ in Path("/dev/fd").iterdir()) > most


# --- Names --------------------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether a host name leads to this machine wherever it is used."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class HostRouter(Router):
    """Answers requests that come by a name of this server, from its own pages, and refuses the others.

    A page of another site can make its own name lead here (DNS rebinding), or call here from a visitor's browser.
    An address is no such name: only the machine that has it answers to it.

    Args:
        application: answers.
        names: by which the server is reached, besides addresses, localhost and the machine's own name.
    """

    def __init__(self, application: Application, names: Collection[str]) -> None:
        self._application = application
        self._names = {name.lower() for name in names}
        self._own = self._names | {"localhost", socket.gethostname().lower()}
        self._logged: set[str] = set()

    def find_handler(self, request: HTTPServerRequest, **_: Any) -> HTTPMessageDelegate | None:
        why = self.refusal(request)
        if why:
            self._log(why)
        application = Application([(".*", _Refused, {"why": why})], log_function=lambda _: None) if why else None
        return (application or self._application).find_handler(request)

    def _log(self, why: str) -> None:
        """Log a refusal once: behind a proxy that rewrites `Host` the visitor sees a page that waits and no reason."""
        if why not in self._logged and len(self._logged) < REFUSALS:
            self._logged.add(why)
            with contextlib.suppress(OSError):  # nobody reads the log any more
                stage.say("demo", f"refused: {printable(why)[:LONGEST]}")

    def refusal(self, request: HTTPServerRequest) -> str | None:
        """Why a request is not answered; None where it is."""
        host = request.host_name.lower().strip("[]")
        if not (host in self._own or _is_address(host)):
            return f"there is no page by the name {host} here: open it by its address, or set PAGE_HOSTS={host}"
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        site = _host_of(origin)
        if site == host or site in self._names:
            return None
        return f"a page of {site or 'another site'} calls here: to let it, set PAGE_HOSTS={site or 'NAME'}"


class _Refused(RequestHandler):
    """Answers 403 to whatever is asked."""

    def initialize(self, why: str) -> None:
        self.why = why

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self.why + "\n")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_of(origin: str) -> str:
    try:
        return (urlsplit(origin).hostname or "").lower()
    except ValueError:
        return ""
