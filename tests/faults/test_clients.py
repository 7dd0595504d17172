"""Two hundred clients of the API at once, some of whom leave in the middle: none gets another's reply or a 5xx."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import small_endpoint

from .conftest import seed

CLIENTS = 200
SECONDS = int(os.environ.get("DURATION") or 60)
WITHIN = 120  # seconds that no reply takes
GROWTH = 30  # MiB that the second half may take more than the first
CAPITALS = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo", "Spain": "Madrid"}


@dataclass
class Outcome:
    """What the clients saw.

    Attributes:
        statuses: of all answers.
        mixed: replies that are not to the client's question.
        broken: what else went wrong, in the server's words where it had any.
        left: replies that the client did not wait for.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    mixed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    left: int = 0


def ask(url: str, country: str, *, stream: bool, leave: bool) -> str | None:
    """The reply about a country's capital; None for a client that has left."""
    body = {"model": "quickstart", "max_tokens": 40, "stream": stream}
    body["messages"] = [{"role": "user", "content": f"What is the capital of {country}?"}]
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with small_endpoint.DIRECT.open(request, timeout=WITHIN) as answer:
        if not stream:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])
        text = ""
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise ValueError(event)
                text += event["choices"][0]["delta"].get("content") or ""
                if leave and len(text) > 5:
                    return None
        return text


def crowd(url: str, seconds: float, memory: Callable[[], float]) -> tuple[Outcome, list[float]]:
    """Let all clients ask for so long. What they saw, and the memory in MiB as time went by."""
    outcome, end, lock = Outcome(), time.monotonic() + seconds, threading.Lock()

    def client(number: int) -> None:
        rng = random.Random(f"{seed()} client {number}")
        while time.monotonic() < end:
            country = rng.choice(list(CAPITALS))
            stream = rng.random() < 0.7
            status, text, reason = 200, None, ""
            try:
                text = ask(url, country, stream=stream, leave=stream and rng.random() < 0.2)
            except urllib.error.HTTPError as error:
                status = error.code
                reason = f"{status}: {error.read().decode(errors='replace')}" if status != 429 else ""
            except (OSError, ValueError) as error:
                status, reason = 0, repr(error)
            named = {capital for capital in CAPITALS.values() if text and capital in text}
            with lock:
                outcome.statuses[status] += 1
                outcome.left += status == 200 and text is None
                if reason:
                    outcome.broken.append(reason)
                elif text is not None and named != {CAPITALS[country]}:
                    outcome.mixed.append(f"{country}: {text}")

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    resident = []
    while any(thread.is_alive() for thread in threads):
        resident.append(memory())
        time.sleep(min(seconds / 40, 5))
    return outcome, resident


def resident_mib(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    match = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert match
    return int(match[1]) / 1024


def test_nothing_is_mixed_and_nothing_grows(tmp_path: Path, note: Callable[[str], None]) -> None:
    work = small_endpoint.write_served(tmp_path / "work")
    with small_endpoint.server("pass", work, tmp_path) as (process, endpoint):
        crowd(endpoint.url, SECONDS / 4, lambda: 0)  # buffers and allocators find their size
        outcome, memory = crowd(endpoint.url, SECONDS, lambda: resident_mib(process.pid))
        healthy = small_endpoint.health(endpoint.url)
    failures = sum(count for status, count in outcome.statuses.items() if status >= 500)
    half = len(memory) // 2
    note(
        f"clients: {CLIENTS} for {SECONDS} s, {outcome.statuses[200]:,} replies ({outcome.left:,} left in the middle), "
        f"{outcome.statuses[429]} x 429, {len(outcome.mixed)} mixed, {failures} x 5xx, {len(outcome.broken)} broken; "
        f"memory {max(memory[:half]):.0f} -> {max(memory[half:]):.0f} MiB"
    )
    assert not outcome.mixed, outcome.mixed[:3]
    assert not failures, (outcome.statuses, outcome.broken[:3])
    assert not outcome.broken, outcome.broken[:3]
    assert outcome.statuses[200] > CLIENTS
    assert max(memory[half:]) < max(memory[:half]) + GROWTH
    assert healthy == 200
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")
