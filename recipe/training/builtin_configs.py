"""XTuner's own configs, for who wants to begin with one of them."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from recipe.errors import RecipeError
from recipe.pipeline.stage import shown


def builtin_configs() -> dict[str, Path]:
    """name -> file, of all."""
    spec = find_spec("xtuner")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0]) / "configs"
    return {path.stem: path for path in root.rglob("*.py") if path.name != "__init__.py"}


def names_of_builtin(pattern: str | None) -> list[str]:
    """The names that contain `pattern`, sorted; upper and lower case are alike."""
    return sorted(name for name in builtin_configs() if (pattern or "").lower() in name.lower())


def copy_builtin(name: str, folder: Path) -> Path:
    """Copy one of the configs to `folder` for editing; returns its path there."""
    configs = builtin_configs()
    if name not in configs:
        near = difflib.get_close_matches(name, configs, n=3)
        raise RecipeError(
            f"{name or 'CFG='} is none of XTuner's configs" + (f"; did you mean {', '.join(near)}?" if near else "")
        )
    target = folder / f"{name}_copy.py"
    if target.exists():
        raise RecipeError(f"{shown(target)} is already there; remove it or copy to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    target.write_bytes(configs[name].read_bytes())
    return target
