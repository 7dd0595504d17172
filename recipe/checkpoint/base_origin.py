"""Where a base comes from: its repository, revision, licence and languages, for the cards of what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.languages import LANGUAGES, parse_languages
from recipe.pipeline import bases, results, stage
from recipe.pipeline.results import ModelResults

# The embedded miniature is this project's own work: pyproject.toml.
MINIATURE_LICENSE = "apache-2.0"


@dataclass(frozen=True)
class BaseOrigin:
    """A base, as `base_origin` finds it.

    Attributes:
        folder: of the converted base.
        name: for people.
        repo: owner/name at the hub; None where the base lies at no hub.
        revision: commit, tag or branch there; None where it is not known.
        license: identifier of the weights' licence; None where it is not known.
        languages: that the base speaks.
        internlm2: whether `repo` holds InternLM2's own layout, which the adapter does not fit.
        copied_from: repository or package and revision of a copy that was tuned in place of `repo`; None otherwise.
        hub: where `repo` lies, "hf" or "modelscope".
    """

    folder: Path
    name: str
    repo: str | None
    revision: str | None
    license: str | None
    languages: Sequence[str]
    internlm2: bool
    copied_from: str | None = None
    hub: str = "hf"

    @property
    def page(self) -> str:
        """The address of `repo`."""
        return f"{bases.PAGES[self.hub]}{self.repo}"


def base_origin(folder: Path, source: str = "hf") -> BaseOrigin:
    """What is known of the base in a folder of stage `model`.

    Args:
        folder: of the stage.
        source: the hub whose repository is meant, "hf" or "modelscope", where the base lies at several.

    Raises:
        RecipeError: the folder is no complete one.
    """
    manifest = stage.complete(folder, "model")
    noted = results.of(manifest, ModelResults)
    pinned = bases.find(noted.model)
    repo, revision, copied_from = noted.repository, noted.revision, None
    hub = manifest["key"]["settings"].get("source", "hf")
    if pinned:
        hub = source if source in pinned.hubs else "hf"
        place = pinned.hubs.get(hub)
        fetched = next((each for each, other in pinned.hubs.items() if other.repo == noted.repository), hub)
        if place and fetched not in pinned.same_files(hub):
            copied_from = f"{noted.repository} {noted.revision}"
        if place is None or place.repo != noted.repository:
            repo, revision = (place.repo, place.revision) if place else (None, None)
    license_id = pinned.license if pinned else noted.license
    return BaseOrigin(
        folder=folder,
        name=(repo or Path(noted.model).name).rpartition("/")[2],
        repo=repo,
        revision=revision,
        license=MINIATURE_LICENSE if noted.model == "miniature" else license_id,
        languages=parse_languages(pinned.languages) if pinned and pinned.languages else LANGUAGES,
        internlm2=noted.format == "internlm2",
        copied_from=copied_from,
        hub=hub,
    )
