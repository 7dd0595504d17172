"""recipe/env/audit.py says what was found, and never that nothing was where nobody was asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from recipe.env.audit import report
from recipe.paths import ROOT

WEAK = {
    "name": "torch", "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"], "aliases": [], "description": ""}],
}  # fmt: skip
SOUND = {"name": "yarl", "version": "1.25.1", "vulns": []}
SKIPPED = {"name": "xtuner", "skip_reason": "Dependency not found on PyPI"}


def test_a_weakness_is_a_row_with_what_mends_it() -> None:
    lines = report({"dependencies": [WEAK, SOUND, SKIPPED]}).splitlines()
    assert lines[0] == "Known weaknesses: 1, in 2 of 3 locked packages that the index knows."
    assert lines[-1] == "| torch | 1.0 | PYSEC-1 | 1.1, 2.0 |"


def test_no_weakness_has_no_table() -> None:
    assert report({"dependencies": [SOUND]}).splitlines() == [
        "Known weaknesses: 0, in 1 of 1 locked packages that the index knows."
    ]


def test_a_mirror_without_advisories_is_no_clean_result() -> None:
    assert report({"dependencies": [SKIPPED]}).startswith("Left out")


def test_what_cannot_be_reached_is_said_and_no_failure(tmp_path: Path) -> None:
    """Run by a Python whose folder holds a uv that fails."""
    python = tmp_path / "python"
    python.symlink_to(Path(sys.executable).resolve())
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho first >&2\necho 'error: no route to host' >&2\nexit 2\n")
    uv.chmod(0o755)
    done = subprocess.run([str(python), str(ROOT / "recipe/env/audit.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Left out: pip-audit or its database could not be reached (error: no route to host).\n"
