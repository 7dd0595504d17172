"""A hub on this machine that speaks Hugging Face's protocol and ModelScope's, and fails when told to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from local_server import NO_HEADERS, Handler, LocalServer

REPOS = {"hf": "internlm/internlm2-chat-1_8b", "modelscope": "Shanghai_AI_Laboratory/internlm2-chat-1_8b"}
# A repository that data/models does not name, at both hubs, and their default branches.
OTHER = "Some-One/tiny.chat-model"
BRANCHES = {"hf": "main", "modelscope": "master"}
REVISIONS = {"hf": "ecccbb5c87079ad84e5788baa55dd6e21a9c614d", "modelscope": "v1.1.0"}


@dataclass
class Request:
    """What a client asked for. kind: list, head (of a file) or get. sent: bytes of the body that went out."""

    kind: str
    name: str
    range: str | None
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of this kind for this file (any, where empty)."""

    kind: str
    name: str = ""
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # this, in the place of a listing
    cut: int | None = None  # the connection ends after that many bytes of the body
    body: Callable[[bytes], bytes] | None = None  # other content than announced
    wait: threading.Event | None = None  # with cut: not before this happens
    silent: threading.Event | None = None  # not a byte before this happens, then the connection ends
    loop: bool = False  # a redirect to the same address
    drip: float | None = None  # seconds between two bytes of the answer, after `cut` of them where it is set


class HubServer(LocalServer):
    """files: what the repository holds. Everything that is asked for is in `requests`."""

    stopped = False

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.commit = REVISIONS["hf"]
        self.license: str | None = None  # of the repository's card, which Hugging Face's listing holds
        self.lock = threading.Lock()
        super().__init__(_Handler)

    def stop(self) -> None:
        self.stopped = True
        super().stop()

    def requests_for(self, kind: str, name: str = "") -> list[Request]:
        return [r for r in list(self.requests) if r.kind == kind and (not name or r.name == name)]

    def fault(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.kind == request.kind and fault.name in ("", request.name):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


def in_two_shards(model: Path, folder: Path) -> dict[str, bytes]:
    """A model as its hub holds it: in two shards, with Python and other files that are nobody's business.

    Args:
        model: a folder with its weights in one file.
        folder: where it is written to, not there yet.

    Returns:
        The content of each file by name.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    assert torch.is_tensor(tensors[names[0]])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    for name in ("modeling_internlm2.py", "README.md", "pytorch_model.bin"):
        (folder / name).write_text("raise SystemExit('this must never be fetched')\n", encoding="utf-8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def large(name: str) -> bool:
    """Whether a hub keeps the file outside of git, behind a redirect to another host."""
    return name.endswith((".safetensors", ".model"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(Handler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        repo = "|".join(map(re.escape, (*REPOS.values(), OTHER)))
        if match := re.fullmatch(r"/cdn/(.+)", path):
            self.send_file(unquote(match[1]), at_cdn=True)
        elif match := re.fullmatch(rf"/api/models/({repo})/revision/(.+)", path):
            self.hf_listing(match[2], query)
        elif match := re.fullmatch(rf"/({repo})/resolve/([^/]+)/(.+)", path):
            if self.has_revision(match[2], "hf"):
                self.send_file(unquote(match[3]), at_cdn=False, hf=True)
        elif path == "/api/v1/repos/internalAccelerationInfo":
            self.send_json({"Code": 200, "Data": {}})
        elif match := re.fullmatch(rf"/api/v1/models/({repo})/repo/files", path):
            self.modelscope_listing(query["Revision"][0])
        elif match := re.fullmatch(rf"/api/v1/models/({repo})/repo", path):
            if self.has_revision(query["Revision"][0], "modelscope"):
                self.send_file(query["FilePath"][0], at_cdn=False)
        else:
            self.record_request("list")
            self.send_json({"error": "Repository not found", "Code": 404}, 404, {"X-Error-Code": "RepoNotFound"})

    def record_request(self, kind: str, name: str = "") -> Request:
        request = Request(kind, name, self.headers.get("Range"))
        self.server.requests.append(request)
        return request

    def has_revision(self, revision: str, source: str) -> bool:
        if revision in (REVISIONS[source], BRANCHES[source]):
            return True
        self.send_json({"error": "no such revision", "Code": 404}, 404, {"X-Error-Code": "RevisionNotFound"})
        return False

    def send_json(self, content: Any, status: int = 200, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def failed(self, request: Request) -> bool:
        """Whether the request met a fault that is an answer in itself."""
        self.met = self.server.fault(request)
        if self.met and self.met.silent:
            self.met.silent.wait(60)
            self.close_connection = True
            return True
        if self.met and self.met.drip is not None and request.kind == "list":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.drip_bytes(b" " * 100000, self.met.drip)
            return True
        if self.met and self.met.loop:
            self.send_json({}, 302, {"Location": self.path})
            return True
        if self.met and self.met.status:
            self.send_json(
                {"error": "as the test wants it", "Code": self.met.status}, self.met.status, self.met.headers
            )
            return True
        if self.met and self.met.raw is not None:
            self.send(200, self.met.raw)
            return True
        return False

    def drip_bytes(self, content: bytes, seconds: float) -> None:
        """Send a byte at a time until the client goes away, or the server ends."""
        for at in range(len(content)):
            if self.server.stopped:
                break
            self.wfile.write(content[at : at + 1])
            time.sleep(seconds)
        self.close_connection = True

    def hf_listing(self, revision: str, query: dict[str, list[str]]) -> None:
        if self.failed(self.record_request("list")) or not self.has_revision(unquote(revision), "hf"):
            return
        assert query.get("blobs") or revision in BRANCHES.values(), "sizes come only with ?blobs=true"
        siblings = []
        for name, content in self.server.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_blob(content)}
            if large(name):
                entry["lfs"] = {"size": len(content), "sha256": sha256(content), "pointerSize": 134}
            siblings.append(entry)
        listed: dict[str, Any] = {
            "id": REPOS["hf"],
            "sha": self.server.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }
        if self.server.license:
            listed["cardData"] = {"license": self.server.license}
        self.send_json(listed)

    def modelscope_listing(self, revision: str) -> None:
        if self.failed(self.record_request("list")) or not self.has_revision(revision, "modelscope"):
            return
        files = [
            {"Name": name, "Path": name, "Type": "blob", "Size": len(content), "Sha256": sha256(content)}
            for name, content in self.server.files.items()
        ]
        self.send_json({"Code": 200, "Data": {"Files": files}, "Success": True})

    def send_file(self, name: str, *, at_cdn: bool, hf: bool = False) -> None:
        if name not in self.server.files:
            self.record_request("get", name)
            self.send_json({"error": "Entry not found", "Code": 404}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = self.server.files[name]
        about = {"X-Repo-Commit": self.server.commit, "ETag": f'"{git_blob(content)}"'} if hf else {}
        redirected = large(name) and not at_cdn
        if not redirected or self.command == "HEAD":
            request = self.record_request("head" if self.command == "HEAD" else "get", name)
            if self.failed(request):
                return
        if redirected:
            if hf:
                about |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
            location = f"http://localhost:{self.server.server_port}/cdn/{quote(name)}"
            self.send(302, headers=about | {"Location": location})
            return
        if self.command == "HEAD":
            self.send(200, content, about)
            return
        self.send_body(request, content, about)

    def send_body(self, request: Request, content: bytes, about: dict[str, str]) -> None:
        fault = self.met
        if fault and fault.body:
            content = fault.body(content)
        start, status = 0, 200
        if request.range and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)):
            start, status = int(match[1]), 206
            if start >= len(content):
                self.send_json({}, 416, {"Content-Range": f"bytes */{len(content)}"})
                return
            about |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for key, value in (about | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        end = len(content) if fault is None or fault.cut is None else min(start + fault.cut, len(content))
        for at in range(start, end, 1 << 16):
            block = content[at : min(at + (1 << 16), end)]
            self.wfile.write(block)
            request.sent += len(block)
        if fault and fault.drip is not None:
            self.drip_bytes(content[end:], fault.drip)
        elif fault and fault.cut is not None:
            if fault.wait:
                fault.wait.wait(60)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
