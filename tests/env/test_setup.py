"""recipe/env/setup.sh on machines that lack things, acted out with stand-ins for uv and Python."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from recipe.paths import ROOT

TOOLS = ("bash", "sh", "cat", "dirname", "mkdir", "sed", "grep", "basename", "rm", "flock", "touch", "env", "chmod")
PYTHON = "#!/bin/sh\nexit {status}\n"
UV = """#!/bin/sh
echo "uv $*" >> "$CALLS"
case "$1 $2" in
"python find") [ -e "$FOUND" ] && cat "$FOUND" || exit 1 ;;
"python install") [ -n "$NETWORK" ] || exit 1; printf '%s' "$INSTALLED" > "$FOUND" ;;
"venv --quiet") mkdir -p "$5/bin"; printf '#!/bin/sh\\nexit 0\\n' > "$5/bin/python"; chmod +x "$5/bin/python" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that is the whole PATH: coreutils and nothing else."""
    import shutil

    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for tool in TOOLS:
        if tool_path := shutil.which(tool):
            (bin_ / tool).symlink_to(tool_path)
    (tmp_path / "requirements.lock").write_text("a==1 \\\n    --hash=sha256:0\n")
    (tmp_path / "requirements-dev.lock").write_text("uv==1.2.3 \\\n    --hash=sha256:0\n")
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def setup(
    machine: Path, file: Path = ROOT / "recipe/env/setup.sh", **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    calls = machine / "calls"
    variables = {
        "PATH": str(machine / "bin"), "HOME": str(machine), "CALLS": str(calls), "FOUND": str(machine / "found"),
        "INSTALLED": str(machine / "installed"), "NETWORK": "", "PYENV_ROOT": str(machine / "pyenv"),
    }  # fmt: skip
    done = subprocess.run(
        [str(file), "requirements.lock", ".venv"],
        cwd=machine, env=variables | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_a_python_on_the_path_is_taken(machine: Path) -> None:
    script(machine / "bin" / "uv", UV)
    python = script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    done, calls = setup(machine)
    assert done.returncode == 0, done.stderr
    assert f"uv venv --quiet --python {python} .venv" in calls
    assert "--require-hashes requirements.lock" in calls[-1]


def test_a_broken_one_is_passed_over_for_pyenv_s(machine: Path) -> None:
    script(machine / "bin" / "uv", UV)
    script(machine / "bin" / "python3.10", PYTHON.format(status=1))  # what pyenv's shim does outside its version
    python = script(machine / "pyenv/versions/3.10.9/bin/python3.10", PYTHON.format(status=0))
    done, calls = setup(machine)
    assert done.returncode == 0, done.stderr
    assert f"uv venv --quiet --python {python} .venv" in calls


def test_without_any_uv_installs_one(machine: Path) -> None:
    script(machine / "bin" / "uv", UV)
    python = script(machine / "installed", PYTHON.format(status=0))
    done, calls = setup(machine, NETWORK="yes")
    assert done.returncode == 0, done.stderr
    assert calls.index("uv python install 3.10") < calls.index(f"uv venv --quiet --python {python} .venv")


def test_without_any_and_without_network_it_says_what_to_do(machine: Path) -> None:
    script(machine / "bin" / "uv", UV)
    done, calls = setup(machine)
    assert done.returncode != 0
    assert "error: XTuner 0.1.17 needs Python 3.10" in done.stderr
    assert not any("venv" in call for call in calls)
    assert "UV_PYTHON_INSTALL_MIRROR" in done.stderr


def test_packages_that_cannot_be_fetched_name_the_mirror_and_the_certificates(machine: Path) -> None:
    script(machine / "bin" / "uv", UV.replace("esac", '"pip sync") exit 2 ;;\nesac'))
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    done, _ = setup(machine)
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "UV_DEFAULT_INDEX" in error
    assert "UV_SYSTEM_CERTS=1" in error


def test_ctrl_c_says_that_the_same_command_goes_on(machine: Path) -> None:
    # A terminal sends the signal to all at once; here the installer sends it to its shell, and ends by it too.
    script(machine / "bin" / "uv", UV.replace("esac", '"pip sync") kill -INT "$PPID"; kill -INT $$ ;;\nesac'))
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    done, calls = setup(machine)
    assert done.returncode == -signal.SIGINT
    assert len([call for call in calls if "pip sync" in call]) == 1
    assert done.stderr.splitlines()[-1].startswith("stopped; ")
    assert "run the same command again" in done.stderr


def test_what_takes_long_is_not_silent(tmp_path: Path) -> None:
    """The pauses take no time here, and the command ends at the third."""
    text = """
    . "$1"
    pause() { echo >>pauses; }
    command() { until [ "$(wc -l <pauses)" -ge 3 ]; do :; done; return 7; }
    touch pauses
    patiently "fetching" command
    """
    done = subprocess.run(
        ["bash", "-c", text, "bash", str(ROOT / "recipe/env/heartbeat.sh")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 7
    assert done.stderr.splitlines()[:2] == ["fetching: 10 s", "fetching: 20 s"]


def test_it_says_how_much_is_there(machine: Path) -> None:
    """The installer waits for the second beat; du is a stand-in, which counts 1.2 and 0.3 GB."""
    waits = '"pip sync") until [ -e said ]; do :; done ;;\n"cache dir") echo cache ;;\nesac'
    script(machine / "bin" / "uv", UV.replace("esac", waits))
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    script(
        machine / "bin" / "du",
        "#!/bin/sh\ncase $2 in cache) [ -e begun ] && echo 1272000 cache || echo 100000 cache; touch begun ;;\n"
        '*) [ -e begun ] && echo 300000 "$2"; [ ! -e beat ] || touch said; touch beat ;; esac\n',
    )
    text = (ROOT / "recipe/env/heartbeat.sh").read_text().replace("read -r -t 10", "read -r -t 0.05")
    copy = machine / "env"
    script(copy / "heartbeat.sh", text)
    script(copy / "setup.sh", (ROOT / "recipe/env/setup.sh").read_text())
    done, _ = setup(machine, file=copy / "setup.sh")
    assert done.returncode == 0, done.stderr
    assert "installing the 1 packages of requirements.lock into .venv (5.7 GB on disk)" in done.stderr
    assert "installing packages: 10 s, 1.2 of 5.7 GB" in done.stderr.splitlines()


def test_without_uv_the_locked_one_is_brought(machine: Path) -> None:
    uv = UV.replace("'", "'\"'\"'")
    script(
        machine / "bin" / "python3",
        f'#!/bin/sh\nmkdir -p .venv-uv/bin\ncat > .venv-uv/bin/python <<\'E\'\n#!/bin/sh\necho "pip $*" >> "$CALLS"\n'
        f"printf '%s' '{uv}' > .venv-uv/bin/uv\nchmod +x .venv-uv/bin/uv\nE\nchmod +x .venv-uv/bin/python\n",
    )
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    done, calls = setup(machine)
    assert done.returncode == 0, done.stderr
    assert calls[0].endswith("--require-hashes --requirement .venv-uv/requirements.txt")
    assert (machine / ".venv-uv/requirements.txt").read_text() == "uv==1.2.3 \\\n    --hash=sha256:0\n"
    assert "--require-hashes requirements.lock" in calls[-1]


def test_without_uv_and_python_it_says_what_to_do(machine: Path) -> None:
    done, _ = setup(machine)
    assert done.returncode != 0
    assert done.stderr.startswith("error: neither uv nor python3 is installed")


def test_the_locks_name_no_address_and_hash_everything() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "index-url" not in text
        pins = [line for line in text.splitlines() if "==" in line and not line.startswith(" ")]
        assert len(pins) > 100
        assert all(line.endswith(" \\") for line in pins)  # a hash follows
        for package in ("xtuner==0.1.17", "streamlit==1.24.0"):
            assert any(line.startswith(package) for line in pins)


def test_the_shell_scripts_are_executable() -> None:
    for name in ("recipe/env/setup.sh", "recipe/env/lock.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), name


def test_a_mirror_that_was_set_is_what_the_error_asks_to_check(machine: Path) -> None:
    script(machine / "bin" / "uv", UV + '[ "$1" != pip ] || exit 1\n')
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    index = "https://me:secret@mirror.example/simple"
    for mirror, advice in (("", "names a mirror"), (index, "check UV_DEFAULT_INDEX, which")):
        done, _ = setup(machine, UV_DEFAULT_INDEX=mirror)
        error = done.stderr.splitlines()[-1]
        assert (done.returncode, error.startswith("error: the packages could not be installed")) == (1, True)
        assert advice in error
        assert "secret" not in done.stderr


def test_compiling_is_said_when_it_begins(machine: Path) -> None:
    script(machine / "bin" / "uv", UV)
    script(machine / "bin" / "python3.10", PYTHON.format(status=0))
    done, _ = setup(machine)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "compiling the packages")
