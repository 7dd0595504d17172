"""What is set for the libraries is not taken for the user's wish, also not by a process that is started later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from recipe.paths import ROOT

CHILD = "from recipe.library_logging import OFFLINE; print(OFFLINE)"
PARENT = f"""
import subprocess, sys
from recipe.library_logging import OFFLINE, quieten
quieten()
print(OFFLINE, flush=True)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.parametrize(("wish", "offline"), [(None, "False"), ("1", "True"), ("yes", "True"), ("0", "False")])
def test_a_child_process_knows_what_the_user_wished(wish: str | None, offline: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "RECIPE_OFFLINE_BY_DEFAULT")}
    if wish is not None:
        environment["HF_HUB_OFFLINE"] = wish
    run = subprocess.run(
        [sys.executable, "-c", PARENT], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [offline, offline]
