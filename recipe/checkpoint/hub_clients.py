"""Hugging Face and ModelScope through their own client libraries, alike: list a revision, download one file of it.

Both resume a partial file, follow the mirror in their own environment variable (HF_ENDPOINT, MODELSCOPE_ENDPOINT) and
use the token their user logged in with. How often to try again is `recipe.checkpoint.retry`'s, so theirs is switched
off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from recipe.errors import RecipeError


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub announces it: its size, and its sha256 or, for what lies in git itself, git's own hash."""

    bytes: int
    sha256: str | None = None
    git_blob: str | None = None


class Client(Protocol):
    """One repository at one revision. Errors are the libraries' own."""

    title: str
    repo: str
    revision: str

    def listing(self) -> dict[str, RemoteFile]: ...

    def download(self, name: str, offered: RemoteFile, folder: Path) -> None: ...


class HuggingFace:
    title = "Hugging Face"

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision

    def listing(self) -> dict[str, RemoteFile]:
        from huggingface_hub import HfApi

        with _connected():
            info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True, timeout=30)
        if info.sha != self.revision:
            raise RecipeError(
                f"{self.title}, {self.repo}: asked for {self.revision}, it answered with {info.sha}; the mirror "
                f"does not "
                f"keep revisions: use another HF_ENDPOINT, or SOURCE=modelscope"
            )
        return {
            file.rfilename: RemoteFile(
                file.size or 0, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id
            )
            for file in info.siblings or ()
        }

    def download(self, name: str, offered: RemoteFile, folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        for begun in (folder / ".cache").rglob(f"*.{offered.sha256 or offered.git_blob}.incomplete"):
            if begun.stat().st_size > offered.bytes:
                begun.unlink()  # the client would ask for what lies behind the end of the file, for ever
        with _connected():
            hf_hub_download(self.repo, name, revision=self.revision, local_dir=folder)


@contextmanager
def _connected() -> Iterator[None]:
    """huggingface_hub allowed to connect, which `quieten` forbids all libraries; without its own tries, and without
    Xet.

    Xet, its other way of transfer, does not go on with a partial file and does not pass through every mirror.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import http_backoff, reset_sessions

    now = [
        (constants, "HF_HUB_OFFLINE", False),
        (constants, "HF_HUB_DISABLE_XET", True),
        (file_download, "http_backoff", partial(http_backoff, max_retries=0)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in now]
    try:
        for module, name, value in now:
            setattr(module, name, value)
        reset_sessions()  # they were opened for one or the other
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        reset_sessions()


class ModelScope:
    title = "ModelScope"

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision
        # Read when the library is imported.
        os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "ERROR")
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "0")
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "1")

    def listing(self) -> dict[str, RemoteFile]:
        from modelscope_hub import HubApi

        files = HubApi().list_repo_files(self.repo, "model", revision=self.revision)
        return {file.path: RemoteFile(file.size, file.sha256) for file in files if not file.is_dir}

    def download(self, name: str, offered: RemoteFile, folder: Path) -> None:
        from modelscope_hub import HubApi

        HubApi().download_file(
            self.repo,
            "model",
            name,
            revision=self.revision,
            local_dir=folder,
            cache_dir=folder.parent,  # where its locks go
            file_size=offered.bytes,
        )


CLIENTS: Mapping[str, Callable[[str, str], Client]] = {"hf": HuggingFace, "modelscope": ModelScope}
