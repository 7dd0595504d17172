"""A hub on this machine that takes uploads in Hugging Face's protocol and ModelScope's."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any
from urllib.parse import urlsplit

from local_server import Handler, LocalServer

TOKEN = "a-token-that-nobody-may-see"
OWNER = "alice"


class UploadServer(LocalServer):
    """repos: of each repository the files, by name. created: what each was created with. status: of the next calls."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.status: dict[str, int] = {}  # part of a path -> the status that it is answered with; 307 leads to itself
        self.pause = 0.0  # seconds before the answer to a file
        self.requests: list[str] = []
        super().__init__(_Handler)


class _Handler(Handler):
    server: UploadServer

    def answer(self, content: Any, status: int = 200) -> None:
        location = {"Location": self.path} if status == 307 else {}
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **location})

    def begin(self) -> tuple[str, bytes] | None:
        """(path, body); None where the request was answered with the status that a test wants."""
        path = urlsplit(self.path).path
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.requests.append(path)
        for part, status in self.server.status.items():
            if part in path:
                self.answer({"error": "as the test wants it", "Message": "as the test wants it"}, status)
                return None
        return path, body

    def do_GET(self) -> None:
        if (begun := self.begin()) is None:
            return
        if match := re.fullmatch(r"/api/models/(.+)/tree/main", begun[0]):
            files = self.server.repos[match[1]].items()
            self.answer([{"type": "file", "path": name, "size": len(c), "oid": "0" * 40} for name, c in files])
        elif match := re.fullmatch(r"/api/v1/models/(.+)/repo/files", begun[0]):
            files = self.server.repos[match[1]].items()
            listed = [{"Name": name, "Path": name, "Type": "blob", "Size": len(c)} for name, c in files]
            self.answer({"Code": 200, "Success": True, "Data": {"Files": listed}})
        else:
            self.answer({"error": f"no {begun[0]}"}, 404)

    def do_PUT(self) -> None:
        if (begun := self.begin()) is not None:
            time.sleep(self.server.pause)
            self.server.blobs[begun[0].rpartition("/")[2]] = begun[1]
            self.answer({"Code": 200, "Success": True, "Data": {}})

    def do_POST(self) -> None:
        if (begun := self.begin()) is None:
            return
        path, body = begun
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.create(f"{asked['organization']}/{asked['name']}", asked, {"error": "You already created this model"})
        elif path == "/api/v1/models":
            asked = json.loads(body)
            self.create(f"{asked['Path']}/{asked['Name']}", asked, {"Code": 10010101001, "Message": "exists"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/.+/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                each | {"actions": {"upload": {"href": f"{self.server.url}/blob/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"objects": objects, "Code": 200, "Success": True, "Data": {"objects": objects}})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])
        elif match := re.fullmatch(r"/api/v1/repos/models/(.+)/commit/master", path):
            for action in json.loads(body)["actions"]:
                self.act(self.server.repos[match[1]], action)
            self.answer({"Code": 200, "Success": True, "Data": {}})
        else:
            self.answer({"error": f"no {path}"}, 404)

    def create(self, repo: str, asked: dict[str, Any], exists: dict[str, Any]) -> None:
        if repo in self.server.repos:
            self.answer(exists, 409)
            return
        self.server.repos[repo], self.server.created[repo] = {".gitattributes": b""}, asked
        self.answer({"url": f"{self.server.url}/{repo}", "Code": 200, "Success": True, "Data": {}})

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repos[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.answer(
            {"success": True, "commitOid": "c" * 40, "commitUrl": f"{self.server.url}/{repo}/commit/{'c' * 40}"}
        )

    def act(self, files: dict[str, bytes], action: dict[str, Any]) -> None:
        if action["action"] == "delete":
            del files[action["path"]]
        elif action["type"] == "lfs":
            files[action["path"]] = self.server.blobs[action["sha256"]]
        else:
            files[action["path"]] = base64.b64decode(action["content"])
