"""A model that wants a GPU, on a machine without: said before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe import cli, device
from recipe.cli import hardware
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
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    monkeypatch.setattr(model, "make", lambda *_, **__: said.append(capsys.readouterr().err))
    assert cli.main(["model", "--work", str(tmp_path), "--model", name]) == 0
    assert ("no GPU here" in said[0]) == warned
    assert ("by an estimate of 100 GFLOP/s, 1,000 tokens of training take 2 minutes on a CPU" in said[0]) == warned


@pytest.mark.parametrize(
    ("card", "name", "preset", "refused"),
    [("Tesla T4, 7.5", "internlm2-chat-1_8b", (), True), ("Tesla T4, 7.5", "smollm2-135m-instruct", (), True),
     ("Tesla T4, 7.5", "internlm2-chat-1_8b", ("--preset", "qlora"), True),
     ("Tesla T4, 7.5", "internlm2-chat-1_8b", ("--preset", "tutorial"), False),
     ("Tesla T4, 7.5", "miniature", (), True), ("NVIDIA A10, 8.6", "internlm2-chat-1_8b", (), False),
     ("NVIDIA X, [N/A]", "internlm2-chat-1_8b", (), False)],
)  # fmt: skip
def test_a_card_without_bfloat16_is_refused_before_the_download(
    card: str, name: str, preset: tuple[str, ...], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    fetched: list[str] = []
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(device, "_query", lambda _: [card])
    monkeypatch.setattr(model, "make", lambda *_, **__: fetched.append(name))
    status = cli.main(["model", "--work", str(tmp_path), "--model", name, *preset])
    last = capsys.readouterr().err.splitlines()[-1:]
    if refused:
        assert (status, fetched) == (1, [])
        assert "Tesla T4 (compute capability 7.5) has no bfloat16" in last[0]
        assert "PRESET=tutorial, which computes in float16" in last[0]
    else:
        assert (status, fetched) == (0, [name])


def test_presets_that_are_named_as_without_bfloat16_are_so_and_no_others() -> None:
    from recipe.stages import config

    for preset in config.presets():
        uses = "bfloat16" in str(config.load_preset(preset).to_dict())
        assert uses != (preset in hardware.WITHOUT_BFLOAT16), preset


@pytest.mark.parametrize(
    ("parameters", "tokens", "gpu", "hours"),
    [(1_889_110_016, 1_000_000, False, "31 hours"), (134_515_008, 150_000, False, None),
     (1_889_110_016, 1_000_000, True, None)],
)  # fmt: skip
def test_how_long_a_cpu_takes_is_said_before_the_training(
    parameters: int, tokens: int, gpu: bool, hours: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    hardware.warn_of_hours(parameters, tokens)
    said = capsys.readouterr().err
    assert (f"take about {hours} on a CPU" in said and "by an estimate of 100 GFLOP/s" in said) if hours else said == ""
