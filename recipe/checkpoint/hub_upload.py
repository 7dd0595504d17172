"""Uploads to Hugging Face and ModelScope through their own client libraries, alike: a new repository, and its files.

Both follow the mirror in their own environment variable (HF_ENDPOINT, MODELSCOPE_ENDPOINT) and use the token their user
logged in with, which is never printed. Nothing is retried here: the libraries do so with parts of a file.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from recipe.checkpoint import retry
from recipe.checkpoint.connection_limits import limited
from recipe.checkpoint.hub_clients import HuggingFace, ModelScope, connected
from recipe.errors import RecipeError
from recipe.pipeline.bases import PAGES

T = TypeVar("T")
# What a hub puts into a new repository by itself.
OF_A_NEW_REPOSITORY = {".gitattributes", "README.md", "configuration.json", ".gitignore"}
# Seconds that ModelScope may take to answer to a file of gigabytes; its own client waits an hour.
SILENCE = 600.0
Files = Mapping[str, Path | bytes]  # name in the repository -> file, or content


class Uploader(Protocol):
    """One hub. Errors are RecipeError, in one line.

    Attributes:
        title: the hub's name, for messages.
    """

    title: str

    def create(self, repo: str, *, private: bool, license_id: str | None, ours: bool) -> None:
        """Create a repository.

        Args:
            repo: owner/name.
            private: who sees it: the owner alone, or everybody.
            license_id: of the model; None where it is not known.
            ours: whether an earlier call filled it, so that it may exist.
        """
        ...

    def upload(self, repo: str, files: Files, stale: Collection[str], message: str) -> str:
        """Send files to a repository.

        Args:
            repo: owner/name.
            files: to send.
            stale: names that an earlier call sent and that do not belong there any more.
            message: of the commit.

        Returns:
            The address of the commit, or of the repository where the hub names none.
        """
        ...


def _calling(where: str, login: str, call: Callable[[], T]) -> T:
    """Call a hub; what goes wrong is one line. where: hub and repository. login: how to get a token."""
    try:
        return call()
    except (RecipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        status, cut = retry.failure(error)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if status == 401:
            reason = f"the token is missing or not valid any more (HTTP 401): {login}"
        elif status == 403:
            reason = f"the token may not write there (HTTP 403): take REPO= under your own name, or {login}"
        elif status == 404:
            reason = "the hub has no such owner or repository (HTTP 404): check REPO= and the mirror"
        elif status:
            reason = f"HTTP {status} ({reason}): run it again; where it stays, the hub's status page may know"
        elif cut:
            reason = f"the connection failed ({cut}): check the network, then run it again; DRY_RUN=1 needs none"
        elif not isinstance(error, (OSError, ValueError)) and not type(error).__module__.startswith("modelscope_hub"):
            raise  # a bug
        raise RecipeError(f"{where}: {reason}") from error


class HuggingFaceUpload:
    """An `Uploader` to Hugging Face."""

    title = "Hugging Face"
    login = "log in with `.venv/bin/hf auth login`, or set HF_TOKEN to a token that may write"

    def create(self, repo: str, *, private: bool, license_id: str | None, ours: bool) -> None:  # noqa: ARG002
        from huggingface_hub import HfApi, get_token

        HuggingFace("", "")  # checks its address and its token
        if get_token() is None:
            raise RecipeError(f"{self.title}: no token: {self.login}")
        where, api = f"{self.title}, {repo}", HfApi()
        with connected(retries=True):
            try:
                _calling(where, self.login, lambda: api.create_repo(repo, private=private))
            except RecipeError as error:
                if error.__cause__ is None or retry.failure(error.__cause__)[0] != 409:
                    raise
                names = _calling(where, self.login, lambda: api.list_repo_files(repo))
                _refuse_taken(where, repo, names, ours=ours)

    def upload(self, repo: str, files: Files, stale: Collection[str], message: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        where, api = f"{self.title}, {repo}", HfApi()
        with connected(retries=True):
            there = set(_calling(where, self.login, lambda: api.list_repo_files(repo))) if stale else set()
            operations = [
                *(CommitOperationAdd(name, file) for name, file in files.items()),
                *(CommitOperationDelete(name) for name in sorted(there & set(stale))),
            ]
            commit = _calling(where, self.login, lambda: api.create_commit(repo, operations, commit_message=message))
        return str(commit.commit_url)


class ModelScopeUpload:
    """An `Uploader` to ModelScope."""

    title = "ModelScope"
    login = "set MODELSCOPE_API_TOKEN to the access token of your account"

    def __init__(self) -> None:
        ModelScope("", "")  # sets what must be set before the library is imported

    def create(self, repo: str, *, private: bool, license_id: str | None, ours: bool) -> None:
        from modelscope_hub import HubApi
        from modelscope_hub.config import get_default_config
        from modelscope_hub.errors import AlreadyExistsError

        if not get_default_config().token:
            raise RecipeError(f"{self.title}: no token: {self.login}")
        where, api = f"{self.title}, {repo}", HubApi()
        visibility = "private" if private else "public"

        def create() -> bool:
            try:
                api.create_repo(repo, "model", visibility=visibility, license=license_id)
            except AlreadyExistsError:
                return False
            return True

        with limited(SILENCE):
            if _calling(where, self.login, create):
                return
            files = _calling(where, self.login, lambda: api.list_repo_files(repo, "model", revision="master"))
            _refuse_taken(where, repo, [file.path for file in files if not file.is_dir], ours=ours)

    def upload(self, repo: str, files: Files, stale: Collection[str], message: str) -> str:
        from modelscope_hub import HubApi

        where, api = f"{self.title}, {repo}", HubApi()

        def send() -> None:
            for name, file in files.items():
                api.upload_file(repo, "model", file, name, commit_message=message)
            if stale:
                listed = api.list_repo_files(repo, "model", revision="master")
                if gone := sorted({file.path for file in listed} & set(stale)):
                    api.delete_files(repo, "model", gone, commit_message=message)

        with limited(SILENCE), contextlib.redirect_stdout(io.StringIO()):  # the library prints a line a file
            _calling(where, self.login, send)
        return PAGES["modelscope"] + repo


UPLOADERS: Mapping[str, Callable[[], Uploader]] = {"hf": HuggingFaceUpload, "modelscope": ModelScopeUpload}


def _refuse_taken(where: str, repo: str, names: Collection[str], *, ours: bool) -> None:
    """RecipeError where a repository holds files that this run did not send. names: of its files."""
    if ours or set(names) <= OF_A_NEW_REPOSITORY:  # nothing but what an interrupted call left
        return
    raise RecipeError(
        f"{where}: is taken, and holds files that this run did not send ({min(set(names) - OF_A_NEW_REPOSITORY)}): "
        f"choose another name than REPO={repo}, or remove that repository"
    )
