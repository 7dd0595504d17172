"""The real images, built and run by the commands that a user types, in a copy of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipe.paths import ROOT

Done = subprocess.CompletedProcess[str]
# Whose the results are, and so who the containers run as: no user of this machine, to see that no name is needed.
USER = (4321, 4321)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would give another machine, with the changes that are not committed yet."""
    folder = tmp_path_factory.mktemp("image") / "checkout"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in names:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Names of its own for images, containers and networks, and the GPU left alone."""
    given = os.environ.get("COMPOSE_FILE", "compose.yaml:docker/compose.cpu.yaml")
    return os.environ | {
        "TAG": "test", "COMPOSE_PROJECT_NAME": f"recipe-test-{os.getpid()}", "COMPOSE_FILE": given,
        "RECIPE_UID": str(USER[0]), "RECIPE_GID": str(USER[1]), "PORT": "16006", "RUNTIME": "docker",
    }  # fmt: skip


@pytest.fixture(scope="session")
def shell(checkout: Path, environment: dict[str, str]) -> Iterator[Callable[..., Done]]:
    """Run a command line in the checkout; nothing it started is left at the end."""

    def run(command: str, *, check: bool = True, **more: str) -> Done:
        done = subprocess.run(
            ["bash", "-c", command], cwd=checkout, env=environment | more, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    (checkout / "work").mkdir(exist_ok=True)
    if os.getuid() == 0:
        os.chown(checkout / "work", *USER)
    else:
        (checkout / "work").chmod(0o777)
    yield run
    run("docker compose --profile '*' down --remove-orphans --volumes --timeout 2", check=False)


@pytest.fixture(scope="session")
def built(shell: Callable[..., Done]) -> Callable[..., Done]:
    """`shell`, once the images are there."""
    shell("make build")
    return shell


@pytest.fixture(scope="session")
def quickstart(built: Callable[..., Done], checkout: Path) -> Path:
    """The folder of a quickstart that ran in the container."""
    built("make quickstart NAME=小明")
    # Before another test builds again: the same sources then make another image of the same name.
    image = built("docker image inspect --format '{{.Id}}' internlm2-identity-recipe:test").stdout.strip()
    (checkout.parent / "image").write_text(image, encoding="utf-8")
    return checkout / "work" / "quickstart"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def wait_for(what: Callable[[], bool], seconds: float) -> float:
    """How long it took until `what()` was true, in seconds."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        try:
            if what():
                return time.monotonic() - start
        except OSError:
            pass
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")
