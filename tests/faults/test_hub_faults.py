"""Downloads from hubs that fail: the command ends in one line, or goes on; afterwards the same command is enough."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import REVISIONS, Fault, HubServer, in_two_shards

from recipe.paths import ROOT
from recipe.pipeline.stage import read_manifest

from .conftest import seed
from .user import Ended

TRIALS = 24
NAME = "internlm2-chat-1_8b"
SHARD = "model-00001-of-00002.safetensors"
ALWAYS = 10**6
# `python -m recipe`, with no waits between the tries.
COMMAND = (
    "import sys; from recipe.checkpoint import retry; retry._sleep = lambda _: None;"
    "from recipe.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def server(tiny_internlm2: Path, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(in_two_shards(tiny_internlm2, tmp_path / "repository")) as running:
        yield running


def faults(rng: random.Random) -> list[Fault]:
    """One to three things that go wrong, once or always."""
    chosen = []
    for _ in range(rng.randint(1, 3)):
        kind, name = rng.choice((("list", ""), ("get", SHARD), ("get", "config.json"), ("get", "")))
        fault = Fault(kind, name, times=rng.choice((1, 2, ALWAYS)))
        what = rng.choice(("status", "cut", "flip", "short", "long") if kind == "get" else ("status", "raw"))
        if what == "status":
            fault.status = rng.choice((400, 401, 403, 404, 408, 429, 500, 502, 503))
        elif what == "raw":
            fault.raw = rng.choice((b"", b"[]", b"<html>", b'{"Code": 200}', b"null", b'{"sha": 3}'))
        elif what == "cut":
            fault.cut = rng.randrange(20_000)
        else:
            fault.body = {
                "flip": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
                "short": lambda content: content[:-1],
                "long": lambda content: content + b"more",
            }[what]
        chosen.append(fault)
    return chosen


def fetch(server: HubServer, work: Path, source: str) -> Ended:
    """`make model` at this hub."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODELSCOPE_", "RECIPE_OFFLINE"))}
    clean = {k: v for k, v in clean.items() if not k.lower().endswith("_proxy")}
    own = {"HF_ENDPOINT": server.url, "MODELSCOPE_ENDPOINT": server.url, "HF_HOME": str(work / "home")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "model", "--model", NAME, "--source", source, "--work", str(work)],
        cwd=ROOT, env=clean | own | {"MODELSCOPE_HOME": str(work / "home")}, check=False, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    return Ended(done.returncode, done.stderr.replace("\r", "\n"))


def test_none_leaves_another_model(server: HubServer, tmp_path: Path, note: Callable[[str], None]) -> None:
    rng = random.Random(f"{seed()} hubs")
    refused, healed, wrong = 0, 0, []
    for number in range(TRIALS):
        source, work = ("hf", "modelscope")[number % 2], tmp_path / str(number)
        server.faults = faults(rng)
        shown = str(server.faults)
        first = fetch(server, work, source)
        refused += first.status != 0
        healed += first.status == 0
        server.faults = []
        again = fetch(server, work, source)
        folder = work / "hub" / NAME / REVISIONS[source]
        arrived = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
        other = [name for name, content in arrived.items() if server.files.get(name) != content]
        whole = again.status == 0 and read_manifest(work / "models" / NAME) is not None and not other
        if not whole or not (first.status == 0 or first.one_line):
            wrong.append(f"{source} {shown}: {first.output[-300:]} {again.output[-300:]} {other}")
    note(
        f"hubs: {TRIALS} downloads with faults, {healed} went on by themselves, {refused} one-line errors of which "
        f"{refused - len(wrong)} were healed by the same command, {len(wrong)} went wrong"
    )
    assert not wrong, "\n".join(wrong)
