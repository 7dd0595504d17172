"""`make audit`: the known weaknesses of the versions in requirements.lock, in Markdown.

pip-audit asks PyPI, which shows the Python Packaging Advisory Database. This is a report: it ends with 0 whatever it
finds, also where no database can be reached. A mirror of the index that has no advisories counts as not reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# --disable-pip: the lock is complete and has hashes, so nothing is resolved or installed.
COMMAND = (
    *("tool", "run", "--quiet", "--from", "pip-audit==2.10.1", "pip-audit", "--progress-spinner", "off"),
    *("--disable-pip", "--require-hashes", "--requirement", "requirements.lock", "--format", "json"),
)


def report(answer: Mapping[str, Any]) -> str:
    """What pip-audit found, for people.

    Args:
        answer: pip-audit's JSON.
    """
    packages = answer["dependencies"]
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return "Left out: the index that was asked has no advisories."
    weaknesses = [(package, weakness) for package in audited for weakness in package["vulns"]]
    lines = [
        f"Known weaknesses: {len(weaknesses)}, in {len(audited)} of {len(packages)} locked packages that the index "
        f"knows."
    ]
    if weaknesses:
        lines += ["", "| package | version | weakness | mended in |", "|---|---|---|---|"]
    lines += [
        f"| {package['name']} | {package['version']} | {weakness['id']} | {', '.join(weakness['fix_versions'])} |"
        for package, weakness in weaknesses
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "uv"), *COMMAND], cwd=ROOT, capture_output=True, text=True, check=False
    )
    try:
        print(report(json.loads(done.stdout)))
    except ValueError:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]
        print(f"Left out: pip-audit or its database could not be reached ({reason}).")


if __name__ == "__main__":
    main()
