"""A model that wants a GPU, on a machine without: said before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe import cli, device
from recipe.cli import hardware
from recipe.stages import model


@pytest.fixture(autouse=True)
def _process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb changes its process's folder and signal handlers, which here are the tests'."""
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.mark.parametrize(
    ("name", "gpu", "warned"),
    [("internlm2-chat-1_8b", False, True), ("internlm2-chat-7b", False, True), ("internlm2-chat-1_8b", True, False),
     ("miniature", False, False), ("smollm2-135m-instruct", False, False)],
)  # fmt: skip
def test_what_a_cpu_would_take_is_said_before_the_download(
    name: str, gpu: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    said: list[str] = []
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(device, "cpu_computes_bfloat16", lambda: True)
    monkeypatch.setattr(model, "make", lambda *_, **__: said.append(capsys.readouterr().err))
    assert cli.main(["model", "--work", str(tmp_path), "--model", name]) == 0
    assert ("no GPU here" in said[0]) == warned
    hours = 36 if "7b" in name else 9
    estimate = f"by an estimate of 180 GFLOP/s on each of 2 cores, a training takes about {hours} hours on this CPU"
    assert (estimate in said[0]) == warned


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


@pytest.mark.parametrize(("device", "refused"), [("cuda", True), ("tpu", True), ("cpu", False), ("auto", False)])
@pytest.mark.parametrize("verb", ["model", "quickstart"])
def test_a_device_of_the_merge_that_is_not_here_is_refused_before_the_download(
    verb: str, device: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fetched: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(model, "make", lambda *_, **__: fetched.append(device))
    words = ["--model", "smollm2-135m-instruct", "--device", device]
    words += ["--name", "小明", "--until", "model"] if verb == "quickstart" else []
    assert cli.main([verb, "--work", str(tmp_path), *words]) == refused
    assert fetched == ([] if refused else [device])
    last = capsys.readouterr().err.splitlines()[-1:]
    assert any(line.startswith(f"error: DEVICE={device}") for line in last) == refused


@pytest.mark.parametrize(
    ("words", "reason"),
    [(("--preset", "fats"), "PRESET=fats is none of fast, "), (("--set", "learning_rate=1"), "did you mean lr?"),
     (("--set", "lr=fast"), "SET: lr cannot become 'fast'"), (("--preset", "fast", "--set", "lr=0.001"), None),
     (("--set", "model.llm.quantization_config.bnb_4bit_quant_type=fp4"), None), ((), None)],
)  # fmt: skip
def test_a_preset_or_a_setting_that_does_not_exist_is_refused_before_the_download(
    words: tuple[str, ...], reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(device, "_query", lambda _: [])
    monkeypatch.setattr(model, "make", lambda *_, **__: fetched.append("model"))
    status = cli.main(["model", "--work", str(tmp_path), "--model", "smollm2-135m-instruct", *words])
    assert (status, fetched) == ((1, []) if reason else (0, ["model"]))
    assert reason is None or reason in capsys.readouterr().err


def test_the_default_presets_have_no_setting_that_the_widest_lacks() -> None:
    from recipe.stages import config

    fast, widest = ({path for path, _ in config.leaves(config.load_preset(name).to_dict())} for name in
                    ("fast", config.widest_preset("internlm2-chat-1_8b")))  # fmt: skip
    assert fast <= widest


def test_presets_that_are_named_as_without_bfloat16_are_so_and_no_others() -> None:
    from recipe.stages import config

    for preset in config.presets():
        uses = "bfloat16" in str(config.load_preset(preset).to_dict())
        assert uses != (preset in hardware.WITHOUT_BFLOAT16), preset


@pytest.mark.parametrize(
    ("parameters", "cores", "precision", "gpu", "told"),
    [(1_889_110_016, 1, "float32", False, ("100 GFLOP/s, 1,000,000 tokens", "31 hours")),
     (1_889_110_016, 4, "bfloat16", False, ("180 GFLOP/s on each of 4 cores", "4 hours")),
     (134_515_008, 2, "bfloat16", False, None), (1_889_110_016, 1, "float32", True, None)],
)  # fmt: skip
def test_how_long_a_cpu_takes_is_said_before_the_training(
    parameters: int, cores: int, precision: str, gpu: bool, told: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(hardware, "has_gpu", lambda: gpu)
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    hardware.warn_of_hours(parameters, 1_000_000, precision)
    said = capsys.readouterr().err
    if not told:
        assert said == ""
        return
    assert f"by an estimate of {told[0]}" in said
    assert f"take about {told[1]} on this CPU" in said
