"""The API as a service: with a key it answers who has it, without one it does not start."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Done

Shell = Callable[..., Done]
URL = "http://127.0.0.1:18000"


@pytest.fixture
def api(built: Shell) -> Iterator[Shell]:
    def run(command: str, *, check: bool = True, **more: str) -> Done:
        return built(command, check=check, API_PORT="18000", **more)

    yield run
    run("docker compose --profile api down --timeout 10")


def complete(key: str) -> str:
    body = {"model": "quickstart", "messages": [{"role": "user", "content": "你是谁？"}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{URL}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: str = json.loads(answer.read())["choices"][0]["message"]["content"]
    return content


def test_who_has_the_key_is_answered(quickstart: Path, api: Shell) -> None:
    api("docker compose up --detach --wait --wait-timeout 120 api", API_KEY="secret", RUN="quickstart")
    assert "小明" in complete("secret")
    with pytest.raises(urllib.error.HTTPError) as caught:
        complete("wrong")
    assert caught.value.code == 401
    assert api("docker compose port api 8000").stdout.strip() == "127.0.0.1:18000"


def test_without_a_key_it_does_not_start(built: Shell, api: Shell) -> None:
    refused = api("docker/compose.sh up api", check=False, API_KEY="")
    assert refused.returncode != 0
    assert "error: API_KEY is missing" in refused.stderr
    by_hand = api("docker compose run --rm api", check=False, API_KEY="")
    assert by_hand.returncode == 1
    assert "API_KEY is missing" in by_hand.stderr
    ended = api("timeout 60 docker compose up --no-color api", check=False, API_KEY="")
    assert (ended.stdout + ended.stderr).count("API_KEY is missing") == 1  # it is not started again
