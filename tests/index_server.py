"""A package index on this machine that speaks the simple repository API, as JSON or as HTML, and cuts connections."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading

from local_server import Handler, LocalServer

JSON = {"Content-Type": "application/vnd.pypi.simple.v1+json"}


class IndexServer(LocalServer):
    """A package index.

    Attributes:
        project: the one project that it has.
        files: its files by name.
        raw: the JSON that it answers with, in place of its listing.
        html: whether it has no JSON, as some mirrors, so that sizes are not announced.
        cuts: after how many bytes of a body the next answers with a file end.
        drip: the beginning of a path whose answer comes a byte at a time, until something happens.
        silent: what it waits for before it answers under that beginning of a path, in place of an answer.
        loop: the beginning of the paths that redirect to themselves.
        requests: path and Range of everything that was asked for.
    """

    def __init__(self, project: str, files: dict[str, bytes]) -> None:
        self.project, self.files = project, files
        self.html = False
        self.raw: bytes | None = None
        self.cuts: list[int] = []
        self.silent: tuple[str, threading.Event] | None = None
        self.drip: tuple[str, threading.Event] | None = None
        self.loop: str | None = None
        self.requests: list[tuple[str, str | None]] = []
        self.announced = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        super().__init__(_Handler)

    @property
    def url(self) -> str:
        return f"{super().url}/simple"

    def downloads(self) -> list[tuple[str, str | None]]:
        """Path and Range of the requests for files."""
        return [request for request in self.requests if request[0].startswith("/packages/")]


class _Handler(Handler):
    server: IndexServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.command == "GET":
            self.server.requests.append((self.path, self.headers.get("Range")))
        if self.server.silent and self.path.startswith(self.server.silent[0]):
            self.server.silent[1].wait(60)
            self.close_connection = True
        elif self.server.drip and self.path.startswith(self.server.drip[0]):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not self.server.drip[1].wait(0.02):
                self.wfile.write(b" ")
            self.close_connection = True
        elif self.server.loop and self.path.startswith(self.server.loop):
            self.send(302, headers={"Location": self.path})
        elif self.path == f"/simple/{self.server.project}/":
            self.send_listing()
        elif (name := self.path.removeprefix("/packages/")) in self.server.files:
            self.send_file(self.server.files[name])
        else:
            self.send(404, b"no such page")

    def send_listing(self) -> None:
        if self.server.raw is not None:
            self.send(200, self.server.raw, JSON)
            return
        entries = [(name, f"../../packages/{name}", self.server.announced[name]) for name in self.server.files]
        if self.server.html:
            links = "".join(f'<a href="{url}#sha256={digest}">{name}</a><br>\n' for name, url, digest in entries)
            self.send(200, f"<html><body>{links}</body></html>".encode(), {"Content-Type": "text/html"})
            return
        assert JSON["Content-Type"] in self.headers["Accept"]
        listed = [
            {"filename": name, "url": url, "hashes": {"sha256": digest}, "size": len(self.server.files[name])}
            for name, url, digest in entries
        ]
        self.send(200, json.dumps({"files": listed}).encode(), JSON)

    def send_file(self, content: bytes) -> None:
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
        body = content[start:]
        if self.command == "HEAD" or not self.server.cuts:
            self.send(status, body)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cuts.pop(0)])
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
