"""The page as a service: healthy when it can answer, plain when it cannot, and shut off from everything else."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Done, fetch, wait_for

Shell = Callable[..., Done]
URL = "http://127.0.0.1:16006"


@pytest.fixture
def down(built: Shell) -> Iterator[Shell]:
    yield built
    built("docker compose down --timeout 10")


@pytest.fixture
def impatient(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """A health check that gives up at once, so that a test need not wait for its two minutes."""
    override = tmp_path / "impatient.yaml"
    check = {"interval": "1s", "start_period": "1ms", "start_interval": "1s", "retries": 1}
    override.write_text(json.dumps({"services": {"demo": {"healthcheck": check}}}), encoding="utf-8")
    return {"COMPOSE_FILE": f"{environment['COMPOSE_FILE']}:{override}"}


def state(shell: Shell, what: str) -> str:
    return shell(f"docker inspect --format '{{{{{what}}}}}' $(docker compose ps --all --quiet demo)").stdout.strip()


def test_the_page_answers_and_is_healthy_with_a_model(quickstart: Path, down: Shell) -> None:
    down("docker compose up --detach --wait --wait-timeout 120 demo")
    assert state(down, ".State.Health.Status") == "healthy"
    assert "<title>Streamlit</title>" in fetch(URL)
    assert "ready: work/quickstart/merged" in down("docker compose logs demo").stdout
    assert down("docker compose port demo 6006").stdout.strip() == "127.0.0.1:16006"
    inside = down("docker compose exec --no-TTY demo cat /proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in inside
    assert "NoNewPrivs:\t1" in inside
    assert "Uid:\t4321" in inside
    for place in ("/x", "/recipe/work/x", "/recipe/recipe/x"):
        assert down(f"docker compose exec --no-TTY demo touch {place}", check=False).returncode != 0
    started = time.monotonic()
    down("docker compose stop --timeout 30 demo")
    assert time.monotonic() - started < 10
    assert state(down, ".State.ExitCode") == "0"


def test_it_needs_no_network(quickstart: Path, built: Shell, checkout: Path) -> None:
    run = (
        f"docker run --detach --rm --network none --read-only --tmpfs /tmp:mode=1777 -v {checkout}/work:/recipe/work:ro"
    )
    name = built(f"{run} internlm2-identity-demo:test").stdout.strip()
    try:
        check = f"docker exec {name} python docker/healthcheck.py"
        wait_for(lambda: built(check, check=False).returncode == 0, 90)
    finally:
        built(f"docker stop {name}")


def test_without_a_model_page_and_log_say_what_to_run_and_it_is_not_healthy(
    down: Shell, impatient: dict[str, str], environment: dict[str, str], checkout: Path
) -> None:
    down("docker compose up --detach demo", RUN="nosuch", **impatient)
    wait_for(lambda: "<title>Streamlit</title>" in fetch(URL), 60)
    wait_for(lambda: "make quickstart" in down("docker compose logs demo").stdout, 30)
    wait_for(lambda: state(down, ".State.Health.Status") == "unhealthy", 30)
    assert state(down, ".State.Running") == "true"


def test_a_model_that_cannot_be_loaded_is_not_healthy_and_says_why(
    quickstart: Path, down: Shell, impatient: dict[str, str]
) -> None:
    broken = quickstart.parent / "broken" / "merged"
    shutil.copytree(quickstart / "merged", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    try:
        down("docker compose up --detach demo", RUN="broken", **impatient)
        wait_for(lambda: "failed: " in down("docker compose logs demo").stdout, 60)
        wait_for(lambda: state(down, ".State.Health.Status") == "unhealthy", 30)
    finally:
        shutil.rmtree(broken.parent)


def test_a_taken_port_is_one_clear_line(down: Shell) -> None:
    with socket.create_server(("127.0.0.1", 16006)):
        refused = down("make demo RUNTIME=docker", check=False)
    assert refused.returncode != 0
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: port 16006 is taken: stop what listens there, or choose another with PORT=16007"]
