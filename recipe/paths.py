"""Where the parts of the checkout lie, and how a path is shown."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
MINIATURE = DATA / "miniature"


def shown(path: Path) -> str:
    """The path as a user would type it from the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
