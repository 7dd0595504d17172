"""Threads follow the quota of the container, and THREADS before all; they sleep where others use the cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recipe import control_groups, cores
from recipe.errors import RecipeError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen cores, control groups in a folder, and no variable set."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(control_groups, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(control_groups, "MEMBERSHIP", tmp_path / "self")
    for name in (cores.THREADS, *cores.LIBRARIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("membership", "files", "count"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # docker run --cpus 2
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {}, 16),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, 4),  # of a slice around it
        ("0::/a/b\n", {"a/b/cpu.max": "6400000 100000\n"}, 16),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3),  # the path of another namespace
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ("0::/\n", {"cpu.max": "rubbish"}, 16),
    ],
)
def test_cores_are_those_that_the_control_groups_grant(
    machine: Path, membership: str, files: dict[str, str], count: int
) -> None:
    write(machine / "self", membership)
    for name, text in files.items():
        write(machine / "fs" / name, text)
    assert cores.cores() == count
    cores.limit_threads()
    assert [os.environ.get(name) for name in cores.LIBRARIES] == [str(count) if count < 16 else None] * 2


def test_without_control_groups_all_cores_are_there(machine: Path) -> None:
    assert cores.cores() == 16


def test_threads_comes_first_and_then_what_openmp_was_told(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "self", "0::/\n")
    write(machine / "fs/cpu.max", "200000 100000\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    cores.limit_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS")) == ("5", None)
    monkeypatch.setenv("THREADS", " 7 ")
    cores.limit_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("7", "7")


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "٣", "4097", "9" * 20])
def test_threads_is_a_number(machine: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("THREADS", text)
    with pytest.raises(RecipeError, match=f"THREADS={text} is no number of threads"):
        cores.limit_threads()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores, and a file in place of /proc/loadavg; nothing is set for OpenMP."""
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(cores, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(cores, "INTERVAL", 0)
    for name in (cores.WAIT_POLICY, cores.SPIN_COUNT):
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    return tmp_path / "loadavg"


@pytest.mark.parametrize(
    ("line", "gpu", "asleep"),
    [
        ("9.87 5.00 1.00 2/900 4321\n", False, False),  # this process and one other; what ran before does not count
        ("0.00 0.00 0.00 3/900 4321\n", False, True),
        ("0.00 0.00 0.00 1/900 4321\n", True, True),
        ("rubbish", False, True),
        (None, False, True),
    ],
)
def test_threads_sleep_where_others_use_the_cores(running: Path, line: str | None, gpu: bool, asleep: bool) -> None:
    if line is not None:
        write(running, line)
    cores.choose_waiting(gpu=gpu)
    chosen = [os.environ.get(name) for name in (cores.WAIT_POLICY, cores.SPIN_COUNT)]
    assert chosen == (["PASSIVE", None] if asleep else [None, cores.SPINS])


@pytest.mark.parametrize("name", [cores.WAIT_POLICY, cores.SPIN_COUNT])
def test_what_the_user_set_for_waiting_stays(running: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "7")
    cores.choose_waiting(gpu=True)
    others = {cores.WAIT_POLICY, cores.SPIN_COUNT} - {name}
    assert os.environ[name] == "7"
    assert not others & set(os.environ)
