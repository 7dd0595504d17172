"""Which machines have a GPU, and that a driver too old for the locked torch is told in one line before any work."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe import cli, control_groups, device
from recipe.errors import RecipeError
from recipe.paths import ROOT

CDLL = ctypes.CDLL
SetDriver = Callable[[int | None], list[str]]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev of its own, empty, for a process from which no GPU is hidden."""
    monkeypatch.setattr(device, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


@pytest.fixture
def set_driver(dev: Path, monkeypatch: pytest.MonkeyPatch) -> SetDriver:
    """Installs a GPU with a driver that serves the CUDA of this number, 12080 for 12.8, or with none; returns what is
    loaded."""
    (dev / "nvidiactl").touch()
    loaded: list[str] = []

    def install(version: int | None) -> list[str]:
        class Libcuda:
            def cuDriverGetVersion(self, place: Any) -> int:  # noqa: N802
                assert version is not None
                place._obj.value = version
                return 0

        def load(name: str, *arguments: Any, **keywords: Any) -> Any:
            if name != "libcuda.so.1":
                return CDLL(name, *arguments, **keywords)
            loaded.append(name)
            if version is None:
                raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
            return Libcuda()

        monkeypatch.setattr(ctypes, "CDLL", load)
        return loaded

    return install


@pytest.mark.parametrize("file", ["nvidiactl", "dxg"])
def test_the_driver_s_file_is_a_gpu(dev: Path, file: str) -> None:
    assert not device.has_gpu()
    (dev / file).touch()
    assert device.has_gpu()


@pytest.mark.parametrize(
    ("visible", "usable"), [("", False), ("-1", False), ("0", True), ("1,0", True), ("GPU-8932f937", True)]
)
def test_a_gpu_may_be_hidden_from_the_process(
    dev: Path, monkeypatch: pytest.MonkeyPatch, visible: str, usable: bool
) -> None:
    (dev / "nvidiactl").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.has_gpu() is usable


@pytest.mark.parametrize("version", [13000, 13010, 14000])
def test_a_driver_that_serves_the_locked_torch_is_fine(set_driver: SetDriver, version: int) -> None:
    loaded = set_driver(version)
    device.check_driver()
    assert loaded


@pytest.mark.parametrize(
    ("version", "supported"), [(12080, "CUDA 12.8,"), (12090, "CUDA 12.9,"), (11040, "CUDA 11.4,")]
)
def test_an_older_one_is_refused_with_the_driver_to_install(
    set_driver: SetDriver, version: int, supported: str
) -> None:
    set_driver(version)
    with pytest.raises(RecipeError) as error:
        device.check_driver()
    message = str(error.value)
    assert "\n" not in message
    assert f"it serves {supported} and 13.0 is needed: install driver {device.DRIVER} or newer" in message
    assert "CUDA_VISIBLE_DEVICES=" in message


def test_a_gpu_without_its_library_is_told(set_driver: SetDriver) -> None:
    set_driver(None)
    with pytest.raises(RecipeError, match=r"not the driver's libcuda\.so\.1: install the driver .*Container Toolkit"):
        device.check_driver()


@pytest.mark.parametrize("version", [12080, None])
def test_a_hidden_gpu_needs_no_driver(
    set_driver: SetDriver, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    loaded = set_driver(version)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device.check_driver()
    assert loaded == []


def test_a_machine_without_a_gpu_needs_none_either(set_driver: SetDriver, dev: Path) -> None:
    loaded = set_driver(None)
    (dev / "nvidiactl").unlink()
    device.check_driver()
    assert loaded == []


@pytest.mark.parametrize("verb", [["data", "--name", "小明"], ["quickstart", "--name", "小明"], ["demo"], ["sweep"]])
def test_no_verb_works_on_an_old_driver(
    set_driver: SetDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
) -> None:
    monkeypatch.chdir(ROOT)
    set_driver(12080)
    assert cli.main([*verb, "--work", str(tmp_path / "work")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: the NVIDIA driver is too old")
    assert device.DRIVER in line
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_needs_no_driver(set_driver: SetDriver, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    loaded = set_driver(12080)
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    output = capsys.readouterr()
    assert (exit_.value.code, output.err, loaded) == (0, "", [])
    assert output.out.startswith("usage: python -m recipe")


def test_the_cuda_asked_for_is_the_one_torch_was_built_for() -> None:
    if torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA")
    assert torch.version.cuda == ".".join(map(str, device.CUDA))


def test_the_image_stands_on_the_same_cuda() -> None:
    (tag,) = re.findall(
        r"^ARG CUDA_IMAGE=nvidia/cuda:([\d.]+)-", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE
    )
    assert tuple(map(int, tag.split(".")[:2])) == device.CUDA


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readme_names_the_driver(name: str) -> None:
    assert device.DRIVER in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("README.md", "compute capability {}]"),
        ("README.zh-CN.md", "计算能力 {}]"),
        ("docs/gpus.md", "capability {} (RTX 30"),
    ],
)
def test_the_lowest_card_is_named(name: str, words: str) -> None:
    assert words.format(device.BFLOAT16) in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (["Tesla V100-SXM2-16GB, 7.0"], True),
        (["NVIDIA A10, 8.6", "Tesla P40, 6.1"], True),
        (["Tesla T4, 7.5"], False),
        (["NVIDIA RTX 5090, 12.0"], False),
        (["NVIDIA X, [N/A]"], False),
        ([], False),
    ],
)
def test_a_card_without_kernels_is_refused(answer: list[str], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_query", lambda _: answer)
    if not refused:
        device.check_card()
        return
    with pytest.raises(RecipeError, match=r"the locked torch has kernels from 7\.5 on"):
        device.check_card()


def test_the_oldest_generation_is_that_of_the_locked_torch() -> None:
    import torch

    flags = torch._C._cuda_getArchFlags()
    if not flags:
        pytest.skip("this torch was built without CUDA")
    oldest = min(int(flag.removeprefix("sm_")) for flag in flags.split() if flag.startswith("sm_"))
    assert f"{oldest // 10}.{oldest % 10}" == device.CAPABILITY


@pytest.mark.parametrize(
    ("lines", "computes"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: avx512_bf16\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),  # Arm
        ("", False),
        (None, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    lines: str | None, computes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "CPU", tmp_path / "cpuinfo")
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    assert device.cpu_computes_bfloat16() is computes
    assert device.cpu_precision("bfloat16") == ("bfloat16" if computes else "float32")
    for stored in ("float16", "float32", None):
        assert device.cpu_precision(stored) == "float32"


@pytest.mark.parametrize(
    ("available", "limits", "memory"),
    [
        ("MemTotal: 9\nMemAvailable:   8388608 kB\n", {}, 8192),
        ("MemAvailable:   8388608 kB\n", {"memory.max": "4294967296"}, 4096),  # docker run --memory 4g
        ("MemAvailable:   8388608 kB\n", {"memory.max": "max"}, 8192),
        ("MemAvailable:   8388608 kB\n", {"memory.max": "99999999999"}, 8192),
        ("MemAvailable:   8388608 kB\n", {"memory.limit_in_bytes": "1073741824"}, 1024),
        ("MemFree: 9 kB\n", {}, None),
        ("MemAvailable:\n", {}, None),
        (None, {}, None),
    ],
)
def test_a_cpu_has_what_is_free_within_the_limits_of_the_container(
    available: str | None, limits: dict[str, str], memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(control_groups, "ROOT", tmp_path)
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "self")
    (tmp_path / "self").write_text("0::/\n")
    if available is not None:
        (tmp_path / "meminfo").write_text(available)
    for name, text in limits.items():
        (tmp_path / name).write_text(text)
    assert device.cpu_memory() == memory


@pytest.fixture
def nvidia_smi(dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs an nvidia-smi with this body in a machine that has a GPU."""
    (dev / "nvidiactl").touch()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def install(body: str) -> None:
        (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / "nvidia-smi").chmod(0o755)

    return install


def test_an_nvidia_smi_that_hangs_is_said_and_not_waited_for(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ANSWER", 0.2)
    nvidia_smi("trap '' TERM; sleep 60 & wait")
    start = time.monotonic()
    with pytest.raises(RecipeError, match=r"nvidia-smi does not answer within 0\.2 seconds, so the driver hangs: "):
        device.check_card()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("body", ["echo NVIDIA-SMI has failed; exit 9", "exit 1", "printf '\\377\\n'", "echo , , ,"])
def test_an_nvidia_smi_that_fails_says_nothing_of_a_gpu(body: str, nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(body)
    device.check_card()
    assert (device.gpus(), device.gpu_memory(), device.card_without_bfloat16()) == ([], None, None)
    device.check_gpus(8)


def test_more_processes_than_gpus_are_refused_before_anything_is_fetched(
    nvidia_smi: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvidia_smi("printf '81559\\n81559\\n'")
    device.check_gpus(2)
    with pytest.raises(RecipeError, match="GPUS=3: this machine has 2: choose GPUS=2 or fewer"):
        device.check_gpus(3)
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr(cli, "check_driver", lambda: None)
    words = ["quickstart", "--name", "小明", "--model", "owner/name", "--gpus", "3", "--work", str(tmp_path / "work")]
    assert cli.main(words) == 1
    assert "GPUS=3: this machine has 2" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "work" / "hub").exists()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(RecipeError, match="has 1 that CUDA_VISIBLE_DEVICES leaves"):
        device.check_gpus(2)
