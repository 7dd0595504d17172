"""manifest.json of a complete stage folder: its shape, and how it is read. `recipe.pipeline.stage` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.errors import RecipeError
from recipe.files import parse_json
from recipe.paths import shown
from recipe.records import ShapeError, from_json

MANIFEST = "manifest.json"
Manifest = dict[str, Any]


@dataclass(frozen=True)
class _Output:
    sha256: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Key:
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class _Shape:
    """What a stage writes."""

    stage: str
    key: _Key
    inputs: Mapping[str, str]
    outputs: Mapping[str, _Output]
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    git_commit: str | None
    image: str | None
    seconds: float
    process_peak_mib: int
    phases: Mapping[str, float] = field(default_factory=dict)
    gpu_peak_mib: int | None = None

    def __post_init__(self) -> None:
        if differing := set(self.inputs) ^ set(self.key.inputs):
            raise ShapeError(f"has {min(differing)[:40]!r} in one of inputs and key.inputs, not in both")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete stage folder.

    Args:
        folder: of a stage, or any other.

    Returns:
        None where there is none: no such file, or another program's of that name.

    Raises:
        RecipeError: it is no JSON, or a stage's, which lacks something or has it of another type. No stage leaves a
            part of one: it is on the disk before the folder has its name.
    """
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or "stage" not in manifest:
            return None
        from_json(_Shape, manifest)
        return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # ShapeError, and what is no text or no JSON
        raise RecipeError(
            f"{shown(folder / MANIFEST)}: {error}: it is not as a stage writes it; remove {shown(folder)} to make it "
            f"anew, or copy it again where a copy was damaged"
        ) from None


def input_of(manifest: Manifest, role: str) -> tuple[str, str]:
    """(path, sha256) of an input in a manifest. RecipeError: its stage had no such input."""
    path, sha256 = manifest["inputs"].get(role), manifest["key"]["inputs"].get(role)
    if path is None or sha256 is None:
        name = manifest["stage"]
        raise RecipeError(
            f"the manifest of stage `{name}` lacks inputs.{role}: remove the stage's folder and run `make {name}` again"
        )
    return path, sha256
