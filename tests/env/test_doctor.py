"""recipe/env/doctor.sh on machines that lack things, acted out with stand-ins for docker, nvidia-smi and df."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipe import device
from recipe.paths import ROOT

TOOLS = ("bash", "sleep", "dirname", "sed", "sort", "head", "timeout", "grep", "awk", "id", "env", "cat")
LIBC = ctypes.CDLL(None)
# What a machine with an engine, compose, a GPU with its container toolkit and a large disk answers.
DOCKER = """#!/bin/sh
case "$*" in
"version --format"*) printf '%s\\n' "${ENGINE-28.5.2}"; [ -n "${ENGINE-28.5.2}" ] ;;
"compose version --short") printf '%s\\n' "${COMPOSE-2.40.3}"; [ -n "${COMPOSE-2.40.3}" ] ;;
"info --format {{.DockerRootDir}}")
  if [ -z "${ENGINE-28.5.2}" ]; then printf "$WITHOUT_ENGINE"; exit 1; fi
  printf '%s\\n' "${ROOT_DIR-/var/lib/docker}" ;;
"info --format"*) printf '%s\\n' "${RUNTIMES-{\\"nvidia\\":{},\\"runc\\":{}\\}}"; exit "${INFO_STATUS-0}" ;;
"image inspect"*) [ -n "$IMAGE" ] ;;
*) echo "unexpected: docker $*" >&2; exit 99 ;;
esac
"""
NVIDIA_SMI = """#!/bin/sh
case "$*" in
-L) [ -z "$HANGS" ] || exec sleep 60; [ -n "${DRIVER-580.95.05}" ] && echo "GPU 0: NVIDIA A10" ;;
--query-gpu=name,driver_version,memory.total*) printf '%s\\n' "NVIDIA A10, ${DRIVER-580.95.05}, ${MEMORY-23028}" ;;
--query-gpu=name,compute_cap*) printf '%s\\n' "NVIDIA A10, ${CAPABILITY-8.6}" ;;
*) echo "unexpected: nvidia-smi $*" >&2; exit 99 ;;
esac
"""
DF = """#!/bin/sh
[ "$1" = -Pk ] && [ -n "${FREE_GB-500}" ] || exit 1
printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n'
case "$2" in .) free=${FREE_GB-500} ;; *) free=${DOCKER_FREE_GB-500} ;; esac
case "$2" in . | / | "${ROOT_DIR-/var/lib/docker}") ;; *) exit 1 ;; esac
printf '/dev/sda1 1 1 %s 1%% /\\n' "$((free * 1048576))"
"""
Doctor = Callable[..., "Findings"]


class Findings:
    """What the doctor printed: finding -> (ok, note or BAD; what it found; the fix)."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.stderr == ""
        self.status = done.returncode
        self.head, *lines = done.stdout.splitlines()
        self.of: dict[str, tuple[str, str, str]] = {}
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith(" "):
                assert line.strip().startswith("-> "), line
                continue
            grade, what, text = line[:6].strip(), line[6:18].strip(), line[18:].strip()
            assert grade in ("ok", "note", "BAD"), line
            assert after.lstrip().startswith("-> ") is (grade != "ok"), line
            self.of[what] = (grade, text, after.strip().removeprefix("-> ") if grade != "ok" else "")

    def bad(self) -> list[str]:
        return [what for what, (grade, _, _) in self.of.items() if grade == "BAD"]

    def notes(self) -> list[str]:
        return [what for what, (grade, _, _) in self.of.items() if grade == "note"]


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with nothing but the doctor and what it reads, beside a folder that is the whole PATH."""
    checkout, bin_ = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "recipe" / "env").mkdir(parents=True)
    bin_.mkdir()
    for tool in TOOLS:
        if findings := shutil.which(tool):
            (bin_ / tool).symlink_to(findings)
    for name, text in (("docker", DOCKER), ("nvidia-smi", NVIDIA_SMI), ("df", DF)):
        script(bin_ / name, text)
    shutil.copyfile(ROOT / "recipe" / "device.py", checkout / "recipe" / "device.py")
    text = (ROOT / "recipe" / "env" / "doctor.sh").read_text(encoding="utf-8")
    for here, there in {"/var/run/docker.sock": str(tmp_path / "docker.sock"), "timeout 30": "timeout 3"}.items():
        assert here in text
        text = text.replace(here, there)
    script(checkout / "recipe/env/doctor.sh", text)
    (checkout / "requirements.lock").touch()
    return checkout


def without_override() -> None:
    """Take from the child, if it is root, the right to ignore permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    for capability in (1, 2):
        LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def skip_if_writable(path: Path) -> None:
    probe = ["bash", "-c", '[ -w "$0" ]', str(path)]
    if subprocess.run(probe, check=False, preexec_fn=without_override).returncode == 0:
        pytest.skip("this user may write everywhere")


@pytest.fixture
def doctor(checkout: Path, port: int) -> Doctor:
    """Examines the machine; its variables are the stand-ins' answers, None for a command that is not installed."""

    def examine(runtime: str = "docker", **machine: str | int | None) -> Findings:
        bin_ = checkout.parent / "bin"
        for name in [name for name, value in machine.items() if value is None]:
            (bin_ / name.replace("_", "-")).unlink()
        answers = {name: str(value) for name, value in machine.items() if value is not None}
        return Findings(
            subprocess.run(
                [str(checkout / "recipe/env/doctor.sh"), runtime],
                cwd="/", env={"PATH": str(bin_), "IMAGE": "built", "PORT": str(port)} | answers,
                capture_output=True, text=True, check=False, preexec_fn=without_override,
            )
        )  # fmt: skip

    return examine


def test_a_machine_that_has_everything_is_told_so(doctor: Doctor, port: int) -> None:
    findings = doctor()
    assert (findings.status, findings.bad(), findings.notes()) == (0, [], [])
    assert findings.head == "RUNTIME=docker"
    assert {what: text for what, (_, text, _) in findings.of.items()} == {
        "engine": "Docker 28.5.2",
        "compose": "docker compose 2.40.3",
        "driver": "580.95.05",
        "gpu memory": "NVIDIA A10, 23028 MiB",
        "disk": "500 GB free in .",
        "docker disk": "500 GB free in /var/lib/docker",
        "image": "internlm2-identity-recipe:latest",
        "work": "results can be written to work/",
        "port": f"{port} is free for make demo",
    }


def test_without_docker_the_stages_run_locally(doctor: Doctor) -> None:
    findings = doctor("local", docker=None)
    assert (findings.status, findings.bad()) == (0, [])
    assert findings.of["engine"][:2] == ("note", "docker is not installed")
    assert findings.of["engine"][2].startswith("needed for containers alone: https://docs.docker.com/")
    assert "RUNTIME=local" not in findings.of["engine"][2]
    assert findings.of["compose"][0] == "note"
    assert not {"image", "docker disk", "gpu docker"} & set(findings.of)


def test_without_docker_they_cannot_run_in_it(doctor: Doctor) -> None:
    findings = doctor("docker", docker=None, nvidia_smi=None)
    assert findings.status == 1
    assert {"engine", "compose"} <= set(findings.bad())
    assert "RUNTIME=local" in findings.of["engine"][2]


@pytest.mark.parametrize(("runtime", "grade", "status"), [("docker", "BAD", 1), ("local", "note", 0)])
@pytest.mark.parametrize(
    ("machine", "what", "text", "fix"),
    [
        ({"ENGINE": ""}, "engine", "the Docker engine does not answer", "systemctl start docker"),
        ({"ENGINE": "24.0.9"}, "engine", "Docker 24.0.9 is too old", "Docker 25 or newer"),
        ({"ENGINE": "9.1"}, "engine", "Docker 9.1 is too old", "Docker 25 or newer"),
        ({"COMPOSE": ""}, "compose", "docker compose is not installed", "docker-compose-plugin"),
        ({"COMPOSE": "2.24.3"}, "compose", "docker compose 2.24.3 is too old", "2.24.4 or newer"),
        ({"COMPOSE": "v2.9.0"}, "compose", "docker compose v2.9.0 is too old", "2.24.4 or newer"),
    ],
)
def test_what_is_missing_is_bad_only_where_it_is_needed(
    doctor: Doctor, runtime: str, grade: str, status: int, machine: dict[str, str], what: str, text: str, fix: str
) -> None:
    findings = doctor(runtime, **machine)
    assert findings.of[what][:2] == (grade, text)
    assert fix in findings.of[what][2]
    assert findings.status == status


@pytest.mark.parametrize(
    "machine",
    [
        {"ENGINE": "25.0.0"},
        {"ENGINE": "28.5.2+dfsg4"},
        {"ENGINE": "100.0"},
        {"COMPOSE": "2.24.4"},
        {"COMPOSE": "v2.24.4"},
        {"COMPOSE": "5.0.1"},
        {"COMPOSE": "2.40.3+ds1-0ubuntu1"},
    ],
    ids=str,
)
def test_versions_from_the_oldest_that_will_do_are_fine(doctor: Doctor, machine: dict[str, str]) -> None:
    assert doctor(**machine).bad() == []


def test_an_engine_that_one_may_not_talk_to_is_told_apart(doctor: Doctor, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "docker.sock"))
        (tmp_path / "docker.sock").chmod(0o000)
        skip_if_writable(tmp_path / "docker.sock")
        findings = doctor(ENGINE="")
    grade, text, fix = findings.of["engine"]
    assert (grade, text) == ("BAD", "you may not talk to the Docker engine")
    assert fix.startswith("sudo usermod -aG docker ")
    assert "log in again" in fix


# --- The GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [{"nvidia_smi": None}, {"DRIVER": ""}], ids=["no nvidia-smi", "no GPU"])
@pytest.mark.parametrize("runtime", ["docker", "local"])
def test_no_gpu_is_worth_a_note(doctor: Doctor, runtime: str, machine: dict[str, str | None]) -> None:
    findings = doctor(runtime, **machine)
    assert (findings.status, findings.of["gpu"][0]) == (0, "note")
    assert device.DRIVER in findings.of["gpu"][2]
    assert not {"driver", "gpu memory", "gpu docker"} & set(findings.of)


def test_a_driver_that_hangs_is_bad_and_not_waited_for(doctor: Doctor) -> None:
    findings = doctor("local", HANGS="1")
    assert (findings.status, findings.bad()) == (1, ["gpu"])
    assert findings.of["gpu"][1:] == (
        "nvidia-smi does not answer", "the driver hangs: look into dmesg, and restart the machine",
    )  # fmt: skip


@pytest.mark.parametrize("runtime", ["docker", "local"])
@pytest.mark.parametrize("version", ["535.183.01", "575.57.08", "580.65.05", "99.9"])
def test_a_driver_older_than_the_recipe_s_is_bad(doctor: Doctor, runtime: str, version: str) -> None:
    findings = doctor(runtime, DRIVER=version)
    assert (findings.status, findings.bad()) == (1, ["driver"])
    assert findings.of["driver"][1].startswith(f"{version} is too old for CUDA {'.'.join(map(str, device.CUDA))}")
    assert findings.of["driver"][2] == f"install driver {device.DRIVER} or newer"


@pytest.mark.parametrize("version", [device.DRIVER, "580.105.08", "1000.1"])
def test_that_driver_and_newer_ones_are_fine(doctor: Doctor, version: str) -> None:
    assert doctor(DRIVER=version).of["driver"] == ("ok", version, "")


def test_the_driver_asked_for_is_the_recipe_s(doctor: Doctor, checkout: Path) -> None:
    text = (checkout / "recipe" / "device.py").read_text(encoding="utf-8")
    (checkout / "recipe" / "device.py").write_text(text.replace(device.DRIVER, "600.1"), encoding="utf-8")
    assert doctor(DRIVER="599.9").of["driver"][2] == "install driver 600.1 or newer"


@pytest.mark.parametrize(("memory", "grade"), [(6144, "BAD"), (7499, "BAD"), (7500, "ok"), (8188, "ok"), (81559, "ok")])
def test_a_card_must_hold_the_model(doctor: Doctor, memory: int, grade: str) -> None:
    findings = doctor(MEMORY=memory)
    assert (findings.of["gpu memory"][0], findings.status) == (grade, int(grade == "BAD"))
    assert findings.of["gpu memory"][1].startswith("NVIDIA A10")


@pytest.mark.parametrize(
    ("capability", "grade"),
    [("6.1", "BAD"), ("7.0", "BAD"), ("7.5", "note"), ("8.0", "ok"), ("8.6", "ok"), ("10.0", "ok"), ("12.0", "ok")],
)
def test_a_card_must_be_of_a_generation_that_torch_has_kernels_for(doctor: Doctor, capability: str, grade: str) -> None:
    findings = doctor(CAPABILITY=capability)
    assert (findings.of.get("gpu kernels", ("ok",))[0], findings.status) == (grade, int(grade == "BAD"))


def test_a_card_that_tells_no_memory_is_no_error(doctor: Doctor) -> None:
    assert doctor(MEMORY="[N/A]").status == 0


def test_docker_that_knows_no_gpu_is_bad_and_only_there(doctor: Doctor) -> None:
    findings = doctor("docker", RUNTIMES='{"runc":{}}')
    assert (findings.status, findings.bad()) == (1, ["gpu docker"])
    assert "NVIDIA Container Toolkit" in findings.of["gpu docker"][2]
    assert doctor("local", RUNTIMES='{"runc":{}}').bad() == []


def test_a_gpu_that_docker_finds_through_cdi_is_fine(doctor: Doctor) -> None:
    assert doctor(RUNTIMES='{"runc":{}} ["/etc/cdi"] [{"Source":"cdi","ID":"nvidia.com/gpu=0"}]').bad() == []


def test_a_docker_that_knows_no_cdi_yet_may_have_the_nvidia_runtime(doctor: Doctor, checkout: Path) -> None:
    script(
        checkout.parent / "bin" / "docker",
        DOCKER.replace(
            '"info --format"*)',
            '*DiscoveredDevices*) printf \'{"nvidia":{}} \'; echo "template: can\'t evaluate field" >&2; exit 1 ;;\n'
            '"info --format"*)',
        ),
    )
    assert doctor(ENGINE="27.5.1").bad() == []


# --- Disk, packages, results, port --------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["docker", "local"])
def test_a_disk_that_is_too_small_for_the_packages_is_bad(doctor: Doctor, runtime: str) -> None:
    findings = doctor(runtime, FREE_GB=5)
    assert (findings.status, findings.bad(), findings.of["disk"][1]) == (1, ["disk"], "5 GB free in .")
    assert doctor(runtime, FREE_GB=6).bad() == []


def test_a_disk_that_is_too_small_for_the_images_is_bad(doctor: Doctor) -> None:
    findings = doctor(DOCKER_FREE_GB=19)
    assert (findings.status, findings.bad()) == (1, ["docker disk"])
    assert "docker system df" in findings.of["docker disk"][2]
    assert doctor(DOCKER_FREE_GB=20).bad() == []


def test_docker_s_own_folder_is_looked_at(doctor: Doctor) -> None:
    assert doctor(ROOT_DIR="/mnt/docker").of["docker disk"][1].endswith("free in /mnt/docker")


def test_a_disk_that_tells_nothing_is_no_error(doctor: Doctor) -> None:
    findings = doctor(FREE_GB="")
    assert (findings.status, findings.of["disk"][0]) == (0, "note")


def test_without_an_engine_the_root_disk_is_looked_at(doctor: Doctor) -> None:
    assert doctor(ENGINE="", WITHOUT_ENGINE=r"\n").of["docker disk"][1] == "500 GB free in /"


def test_an_image_that_is_not_built_is_worth_a_note(doctor: Doctor) -> None:
    findings = doctor(IMAGE="")
    assert (findings.status, findings.notes()) == (0, ["image"])
    assert "make build" in findings.of["image"][2]


def test_packages_that_are_not_installed_or_older_than_the_lock_are_worth_a_note(
    doctor: Doctor, checkout: Path
) -> None:
    stamp = checkout / ".venv" / ".installed"
    assert doctor("local").of["lock"][:2] == ("note", "nothing is installed yet")
    stamp.parent.mkdir()
    stamp.touch()
    os.utime(checkout / "requirements.lock", (1, 1))
    findings = doctor("local")
    assert (findings.status, findings.of["lock"][0]) == (0, "ok")
    os.utime(stamp, (0, 0))
    assert doctor("local").of["lock"][0] == "note"
    assert "make setup" in doctor("local").of["lock"][2]


@pytest.mark.parametrize("runtime", ["docker", "local"])
def test_results_that_cannot_be_written_are_bad(doctor: Doctor, checkout: Path, runtime: str) -> None:
    (checkout / "work").mkdir()
    assert doctor(runtime).bad() == []
    (checkout / "work").chmod(0o555)
    skip_if_writable(checkout / "work")
    findings = doctor(runtime)
    assert (findings.status, findings.bad()) == (1, ["work"])
    assert re.fullmatch(r"sudo chown -R \S+ work", findings.of["work"][2])


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_that_is_taken_is_worth_a_note_with_the_next_one(doctor: Doctor, listener: int) -> None:
    findings = doctor(PORT=listener)
    assert (findings.status, findings.notes()) == (0, ["port"])
    assert f"port {listener} already" in findings.of["port"][1]
    assert f"PORT={listener + 1}" in findings.of["port"][2]
