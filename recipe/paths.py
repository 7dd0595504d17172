"""Where the parts of the checkout lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
MINIATURE = DATA / "miniature"
