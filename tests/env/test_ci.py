"""What .ci/run installs for the tests: each thing where it is missing, whatever else is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from recipe.paths import ROOT

# What the script needs of the system itself.
TOOLS = ("bash", "cat", "dirname", "env")


@pytest.mark.parametrize(
    ("there", "installed"),
    [
        (("ip", "chromium", "openssl"), ["nginx-light"]),
        (("ip", "google-chrome", "nginx", "openssl"), []),
        (("chromium", "nginx"), ["iproute2", "openssl"]),
        (("ip", "nginx", "openssl"), ["chromium fonts-noto-cjk"]),
    ],
)
@pytest.mark.parametrize("user", ["0", "1000"])
def test_each_package_is_installed_where_it_is_missing(
    user: str, there: tuple[str, ...], installed: list[str], tmp_path: Path
) -> None:
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    for tool in TOOLS:
        (programs / tool).symlink_to(str(shutil.which(tool)))
    bodies = dict.fromkeys(("make", *there), "") | {"docker": "exit 1", "id": f"echo {user}"}
    bodies["apt-get"] = f'echo "$*" >>{calls}\n[ "$1" != update ]'  # a mirror that is away is no reason to stop
    for name, body in bodies.items():
        (programs / name).write_text(f"#!{shutil.which('bash')}\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        [tmp_path / ".ci" / "run"], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    words = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
    packages = [line.rpartition("--no-install-recommends ")[2] for line in words if line != "update -qq"]
    assert packages == (installed if user == "0" else [])
