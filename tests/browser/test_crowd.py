"""Many visitors at once, some of whom leave in the middle, on one miniature behind the API."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Server

VISITORS = 50
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
CAPITALS = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Spain": "Madrid"}


def ask(api: Server, question: str, *, leave: bool) -> str:
    """The reply to a visitor's question; or what was said when he left, half the way."""
    body = {
        "model": "quickstart",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "max_tokens": 40,
    }
    sent = urllib.request.Request(
        f"{api.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    text = ""
    with DIRECT.open(sent, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += event["choices"][0]["delta"].get("content", "")
                if leave and len(text) > 5:
                    return text
    return text


def crowd(api: Server, seconds: float) -> tuple[int, list[str], list[float]]:
    """(replies heard, what went wrong, memory in MiB as time went by)."""
    end = time.monotonic() + seconds
    answers = [0] * VISITORS
    wrong: list[str] = []
    memory: list[float] = []

    def visitor(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            country, capital = rng.choice(list(CAPITALS.items()))
            leave = rng.random() < 0.2
            try:
                answer = ask(api, f"What is the capital of {country}?", leave=leave)
            except Exception as error:
                wrong.append(repr(error))
                return
            if not leave and (capital not in answer or any(c in answer for c in CAPITALS.values() if c != capital)):
                wrong.append(f"{country}: {answer}")
            answers[number] += 1

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(api.memory)
        time.sleep(min(seconds / 40, 5))
    assert min(answers) > 0
    return sum(answers), wrong, memory


@pytest.mark.parametrize("seconds", [16, pytest.param(600, marks=pytest.mark.slow)], ids=["short", "ten minutes"])
def test_fifty_visitors_hear_their_own_without_error_or_growth(
    seconds: float, serve: Callable[..., Server], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = serve("api", "--work", str(work), "--run", "quickstart")
    crowd(api, seconds / 4)  # buffers and allocators find their size
    answers, wrong, memory = crowd(api, seconds)
    with capsys.disabled():
        print(f"\n{VISITORS} visitors, {seconds:g} s: {answers} replies, {memory[0]:.0f} -> {memory[-1]:.0f} MiB")
    assert not wrong, wrong[:3]
    half = len(memory) // 2
    assert max(memory[half:]) < max(memory[:half]) + 30
    assert json.loads(DIRECT.open(f"{api.url}/health", timeout=10).read())["state"] == "ready"
