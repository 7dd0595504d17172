"""The image of the stages: what it is made of, and that a run in it is the same as a run without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any
from uuid import uuid4

import pytest

from recipe.device import DRIVER
from recipe.paths import ROOT

from .conftest import USER, Done

Shell = Callable[..., Done]


def inspect(shell: Shell, image: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(shell(f"docker image inspect {image}").stdout)[0]["Config"]
    return described


@pytest.mark.parametrize("target", ["recipe", "demo"])
def test_an_image_is_labelled_runs_as_nobody_and_holds_no_secret(built: Shell, target: str) -> None:
    config = inspect(built, f"internlm2-identity-{target}:test")
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python", "-m", "recipe"]
    assert config["Labels"]["org.opencontainers.image.version"] == "test"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not [
        name for name in config["Env"] if any(word in name for word in ("TOKEN", "PASSWORD", "SECRET", "INDEX"))
    ]
    history = built(f"docker history --no-trunc --format '{{{{.CreatedBy}}}}' internlm2-identity-{target}:test").stdout
    assert "://" not in history.replace("docker-image://", "")
    listing = (
        f"docker run --rm --network none --entrypoint find internlm2-identity-{target}:test /recipe /home "
        f"-not -user root"
    )
    assert built(listing).stdout == ""
    outside = f"docker run --rm --network none --entrypoint ls internlm2-identity-{target}:test -A /recipe"
    expected = {"recipe": {"LICENSE", "data", "recipe", "work"}, "demo": {"LICENSE", "docker", "recipe", "work"}}
    assert set(built(outside).stdout.split()) == expected[target]


def test_it_explains_itself_and_refuses_what_it_does_not_know(built: Shell) -> None:
    assert "quickstart" in built("docker run --rm --network none internlm2-identity-recipe:test").stdout
    refused = built("docker run --rm --network none internlm2-identity-recipe:test nonsense", check=False)
    assert refused.returncode == 2
    assert "invalid choice" in refused.stderr


def test_there_is_a_compiler_for_triton(built: Shell) -> None:
    script = """
echo '#include <Python.h>' > /tmp/a.c
gcc -fsyntax-only -I"$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" /tmp/a.c && g++ --version
"""
    image = "internlm2-identity-recipe:test"
    built(f"docker run --rm --network none --entrypoint bash {image} -ec {quote(script)}")


def test_nothing_changed_means_nothing_is_built_and_a_change_of_source_reaches_its_own_layers_alone(
    built: Shell, checkout: Path
) -> None:
    def build() -> tuple[float, str]:
        start = time.monotonic()
        log = built("docker/compose.sh --progress plain build recipe demo")
        return time.monotonic() - start, log.stdout + log.stderr

    def ran(log: str) -> list[str]:
        """The steps that did work: BuildKit numbers each and says CACHED of those that did none."""
        steps = {line.split()[0]: line for line in log.splitlines() if "] RUN" in line or "] COPY" in line}
        cached = {line.split()[0] for line in log.splitlines() if line.endswith("CACHED")}
        return [line for number, line in steps.items() if number not in cached]

    build()
    seconds, log = build()
    print(f"nothing changed: {seconds:.1f} s")
    assert ran(log) == []
    source = checkout / "recipe" / "paths.py"
    text = source.read_text(encoding="utf-8")
    try:
        # Never seen before: of one change made twice, by an earlier run of this test, the engine still holds the
        # layers.
        source.write_text(f"{text}# {uuid4()}\n", encoding="utf-8")
        seconds, log = build()
    finally:
        source.write_text(text, encoding="utf-8")
    print(f"source changed: {seconds:.1f} s")
    assert ran(log)
    assert not [line for line in ran(log) if "uv pip" in line or "apt-get" in line]
    assert seconds < 60  # 20 on a machine that does nothing else; with the packages it would be minutes


def test_a_quickstart_in_the_container_ends_at_the_weights_of_one_outside(quickstart: Path) -> None:
    subprocess.run(
        ["make", "quickstart", "NAME=小明", "RUNTIME=local"], cwd=ROOT, check=True, capture_output=True,
        # As many threads as in the container: sums in another order end in other last bits.
        env={k: v for k, v in os.environ.items() if k not in ("COMPOSE_FILE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")},
    )  # fmt: skip
    runs = (quickstart, ROOT / "work" / "quickstart")
    adapters = [json.loads((run / "adapter/manifest.json").read_text())["outputs"] for run in runs]
    assert len({outputs["adapter_model.safetensors"]["sha256"] for outputs in adapters}) == 1
    metrics = [json.loads((run / "eval/metrics.json").read_text())["tuned"] for run in runs]
    assert metrics[0] == metrics[1]


def test_results_belong_to_the_user_and_tell_the_image(quickstart: Path, checkout: Path) -> None:
    files = list(quickstart.rglob("*"))
    assert files
    assert {(path.stat().st_uid, path.stat().st_gid) for path in files} == {USER}
    image = (checkout.parent / "image").read_text(encoding="utf-8")
    assert image.startswith("sha256:")
    assert json.loads((quickstart / "merged/manifest.json").read_text())["image"] == image


def test_what_triton_compiled_is_there_for_the_next_container(built: Shell) -> None:
    run = "docker/compose.sh run --rm --no-deps --entrypoint sh recipe -c"
    built(f"{run} 'mkdir /tmp/.triton/of-the-first && echo compiled > /tmp/.triton/of-the-first/kernel'")
    assert built(f"{run} 'cat /tmp/.triton/of-the-first/kernel'").stdout.strip() == "compiled"


def test_a_second_run_finds_its_work_done(quickstart: Path, built: Shell) -> None:
    again = built("make quickstart NAME=小明")
    assert again.stderr.count("up to date") == 9  # every stage, the model included


def test_a_stage_has_no_network_and_nothing_to_write_to_but_its_results(built: Shell) -> None:
    script = """
import socket, pathlib
for place in ('/recipe/x', '/recipe/recipe/x', '/opt/venv/x', '/x'):
    try: pathlib.Path(place).write_text('x')
    except OSError as error: assert error.errno in (13, 30), error
    else: raise SystemExit(place)
pathlib.Path('/tmp/x').write_text('x')
pathlib.Path('/recipe/work/x').write_text('x')
pathlib.Path('/recipe/work/x').unlink()
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
assert int(status['CapEff'], 16) == 0 and int(status['CapPrm'], 16) == 0, status['CapEff']
assert status['NoNewPrivs'].strip() == '1'
assert status['Uid'].split()[0] == '4321', status['Uid']
assert [name for _, name in socket.if_nameindex()] == ['lo'], socket.if_nameindex()
"""
    built(f"docker/compose.sh run --rm --no-TTY --entrypoint python recipe -c {quote(script)}")


def test_data_from_outside_the_checkout_is_read_where_it_is(built: Shell, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    own = tmp_path / "my own rows.jsonl"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am Ada's assistant."}]}
    own.write_text(json.dumps(row) + "\n", encoding="utf-8")
    built('make data RUN=own NAME=Ada DATA="$OWN"', OWN=str(own))
    refused = built("make data RUN=own NAME=Ada DATA=/nowhere.jsonl", check=False)
    assert "error: " in refused.stderr
    assert "/nowhere.jsonl" in refused.stderr


def test_a_folder_that_may_not_be_written_to_is_one_clear_line(built: Shell, checkout: Path) -> None:
    other = checkout / "work" / "locked"
    other.mkdir()
    other.chmod(0o555)
    try:
        refused = built("docker/compose.sh stage data --run locked --name Ada", check=False)
    finally:
        shutil.rmtree(other)
    assert refused.returncode == 1
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "permission" in errors[0]
    assert "Traceback" not in refused.stderr


def test_an_old_driver_on_the_host_is_one_clear_line(built: Shell, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    source = "int cuDriverGetVersion(int *version) { *version = 12080; return 0; }"
    (tmp_path / "cuda.c").write_text(source)
    mount = f"-v {tmp_path}:/fake --user {os.getuid()}:{os.getgid()}"
    built(
        f"docker run --rm {mount} --entrypoint gcc internlm2-identity-recipe:test -shared -fPIC /fake/cuda.c -o "
        f"/fake/libcuda.so.1"
    )
    refused = built(
        f"docker run --rm --network none -v {tmp_path}:/fake:ro -e LD_LIBRARY_PATH=/fake --device "
        f"/dev/null:/dev/nvidiactl "
        "internlm2-identity-recipe:test train", check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "CUDA 12.8" in refused.stderr
    assert DRIVER in refused.stderr


def test_ctrl_c_stops_a_stage_within_ten_seconds(built: Shell, environment: dict[str, str], checkout: Path) -> None:
    running = subprocess.Popen(
        ["docker/compose.sh", "stage", "quickstart", "--run", "stopped", "--name", "Ada"],
        cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    name = ""
    deadline = time.monotonic() + 60
    while not name and time.monotonic() < deadline:
        listed = built("docker ps --quiet --filter label=com.docker.compose.service=recipe "
                       f"--filter label=com.docker.compose.project={environment['COMPOSE_PROJECT_NAME']}")  # fmt: skip
        name = listed.stdout.strip()
        time.sleep(0.5)
    time.sleep(5)
    start = time.monotonic()
    built(f"docker stop --timeout 30 {name}")
    assert time.monotonic() - start < 10
    running.communicate(timeout=20)
    assert running.returncode != 0
