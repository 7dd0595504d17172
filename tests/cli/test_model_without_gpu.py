"""A model that wants a GPU, on a machine without: said before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe import cli
from recipe.cli import commands
from recipe.stages import model


@pytest.mark.parametrize(
    ("name", "gpu", "warned"),
    [("internlm2-chat-1_8b", False, True), ("internlm2-chat-7b", False, True), ("internlm2-chat-1_8b", True, False),
     ("miniature", False, False), ("smollm2-135m-instruct", False, False)],
)  # fmt: skip
def test_what_a_cpu_would_take_is_said_before_the_download(
    name: str, gpu: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    said: list[str] = []
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(commands, "has_gpu", lambda: gpu)
    monkeypatch.setattr(model, "make", lambda *_, **__: said.append(capsys.readouterr().err))
    assert cli.main(["model", "--work", str(tmp_path), "--model", name]) == 0
    assert ("no GPU here" in said[0]) == warned
