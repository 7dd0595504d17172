"""Hugging Face and ModelScope through their own client libraries, alike: list a revision, download one file of it.

Both resume a partial file, follow the mirror in their own environment variable (HF_ENDPOINT, MODELSCOPE_ENDPOINT) and
use the token their user logged in with. Retries are `recipe.checkpoint.retry`'s, so the libraries' own are switched
off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from recipe.checkpoint.connection_limits import limited
from recipe.errors import RecipeError


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub announces it.

    Attributes:
        bytes: its size.
        sha256: of its content; None where the hub does not announce it.
        git_blob: git's own hash of it, for files that lie in git itself.
    """

    bytes: int
    sha256: str | None = None
    git_blob: str | None = None


class Client(Protocol):
    """One repository at one revision of a hub. Errors are the libraries' own.

    Attributes:
        title: the hub's name, for messages.
        repo, revision: which repository, and which commit of it.
        license: of the repository, known after `listing`; None where the hub does not say.
    """

    title: str
    repo: str
    revision: str
    license: str | None

    def commit(self) -> str:
        """The commit that the revision names, or the revision itself where the hub does not say."""
        ...

    def listing(self) -> dict[str, RemoteFile]:
        """The files of the revision, by name."""
        ...

    def download(self, name: str, remote: RemoteFile, folder: Path) -> None:
        """Download a file into the folder, going on with a partial one.

        Args:
            name: of the file in the repository.
            remote: the file's entry in `listing`.
            folder: where it goes, under the same name.
        """
        ...


# Addresses that an error shows; what other variables hold is a package index.
EXAMPLES = {"HF_ENDPOINT": "https://hf-mirror.com"}


def refuse_without_scheme(variable: str) -> None:
    """RecipeError where an environment variable holds an address that does not begin as one."""
    address = os.environ.get(variable)
    if address and not re.match(r"https?://[^/]", address):
        public = re.split("[?#]", address.rpartition("@")[2])[0]  # without a password, or a key of the query
        raise RecipeError(
            f"{variable}: {public!r} is no address: write it with its scheme, as "
            f"{variable}={EXAMPLES.get(variable, 'https://pypi.org/simple')}"
        )


def refuse_no_token(variable: str) -> None:
    """RecipeError where an environment variable holds a token that no header of a request can carry."""
    token = os.environ.get(variable, "").strip()
    position = next((i for i, character in enumerate(token, 1) if not "!" <= character <= "~"), None)
    if position:
        raise RecipeError(
            f"{variable} holds a character at position {position} that no token has: set it as the hub gave it"
        )


@dataclass
class _Bounded:
    """A file that takes no more bytes than a hub announced.

    Attributes:
        file: to write.
        limit: in bytes.
    """

    file: BinaryIO
    limit: int

    def write(self, block: bytes) -> int:
        if self.file.tell() + len(block) > self.limit:
            raise MoreThanAnnouncedError(f"more than the announced {self.limit:,} bytes came")
        return self.file.write(block)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class MoreThanAnnouncedError(RecipeError):
    """A hub sends more bytes of a file than its listing says."""


class HuggingFace:
    """A `Client` of Hugging Face."""

    title = "Hugging Face"

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision
        refuse_without_scheme("HF_ENDPOINT")
        refuse_no_token("HF_TOKEN")
        self.license: str | None = None

    def commit(self) -> str:
        from huggingface_hub import HfApi

        with connected():
            commit = HfApi().model_info(self.repo, revision=self.revision, timeout=30).sha
        if not isinstance(commit, str):
            raise TypeError("the answer names no commit")
        return commit

    def listing(self) -> dict[str, RemoteFile]:
        from huggingface_hub import HfApi

        with connected():
            info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True, timeout=30)
        if info.sha != self.revision:
            raise RecipeError(
                f"{self.title}, {self.repo}: asked for {self.revision}, it answered with {info.sha}; the mirror "
                f"does not keep revisions: use another HF_ENDPOINT, or SOURCE=modelscope"
            )
        named = (info.card_data or {}).get("license")
        self.license = named if isinstance(named, str) else None
        return {
            file.rfilename: RemoteFile(
                file.size or 0, file.lfs.sha256 if file.lfs else None, None if file.lfs else file.blob_id
            )
            for file in info.siblings or ()
        }

    def download(self, name: str, remote: RemoteFile, folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        for partial_file in (folder / ".cache").rglob(f"*.{remote.sha256 or remote.git_blob}.incomplete"):
            if partial_file.stat().st_size > remote.bytes:
                partial_file.unlink()  # the client would request bytes after the end of the file, for ever
        with connected(limit=remote.bytes):
            hf_hub_download(self.repo, name, revision=self.revision, local_dir=folder)


@contextmanager
def connected(limit: int | None = None, *, retries: bool = False) -> Iterator[None]:
    """A context in which huggingface_hub may connect, which `quieten` forbids to all libraries; afterwards it may not.

    In it the library does not use Xet: this protocol does not go on with a partial file, and does not pass through
    every mirror.

    Args:
        limit: the bytes of the file that is downloaded.
        retries: whether the library may repeat a request by itself.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import http_backoff, reset_sessions

    patches: list[tuple[Any, str, Any]] = [
        (constants, "HF_HUB_OFFLINE", False),
        (constants, "HF_HUB_DISABLE_XET", True),
    ]
    if limit is not None:
        http_get = file_download.http_get

        def bounded(url: str, temp_file: BinaryIO, **options: Any) -> None:
            # Its own tries would multiply with those of `retry`.
            http_get(url, _Bounded(temp_file, limit), **options | {"_nb_retries": 0})

        patches.append((file_download, "http_get", bounded))
    if not retries:
        patches.append((file_download, "http_backoff", partial(http_backoff, max_retries=0)))
    originals = [(module, name, getattr(module, name)) for module, name, _ in patches]
    try:
        for module, name, value in patches:
            setattr(module, name, value)
        reset_sessions()  # an open session keeps the setting that it was opened with
        with limited():
            yield
    finally:
        for module, name, value in originals:
            setattr(module, name, value)
        reset_sessions()


class ModelScope:
    """A `Client` of ModelScope."""

    title = "ModelScope"

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision
        refuse_no_token("MODELSCOPE_API_TOKEN")
        self.license: str | None = None  # the client's listing has none
        # The library reads them when it is imported.
        os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "ERROR")
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_MAX_RETRIES", "0")
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "1")

    def commit(self) -> str:
        return self.revision  # the client names no commits; this hub announces the sha256 of every file instead

    def listing(self) -> dict[str, RemoteFile]:
        from modelscope_hub import HubApi

        with limited():
            files = HubApi().list_repo_files(self.repo, "model", revision=self.revision)
        return {file.path: RemoteFile(file.size, file.sha256) for file in files if not file.is_dir}

    def download(self, name: str, remote: RemoteFile, folder: Path) -> None:
        from modelscope_hub import HubApi

        with limited():
            HubApi().download_file(
                self.repo,
                "model",
                name,
                revision=self.revision,
                local_dir=folder,
                cache_dir=folder.parent,  # where its locks go
                file_size=remote.bytes,
            )
