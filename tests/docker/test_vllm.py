"""What the service `vllm` starts in vLLM's image, and the copies on Kubernetes: acted out with a stand-in for vLLM."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_server import Handler, LocalServer

from recipe.paths import ROOT

SCRIPT = ROOT / "docker" / "vllm_serve.py"
STAND_IN = "#!/bin/sh\nprintf '%s\\n' \"$@\"\n"
Done = subprocess.CompletedProcess[str]


def write(file: Path, content: Any, at: int = 1_000_000_000) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    os.utime(file, (at, at))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with work/ of two runs, of which `new` merged last, and a PATH that holds the stand-in."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vllm").write_text(STAND_IN)
    (tmp_path / "bin" / "vllm").chmod(0o755)
    work = tmp_path / "work"
    write(work / "models" / "base" / "manifest.json", {})
    for at, run in enumerate(("old", "new")):
        write(work / run / "merged" / "manifest.json", {}, 1_000_000_000 + at)
        write(work / run / "adapter" / "manifest.json", {"results": {"model": "work/models/base"}})
        write(work / run / "adapter" / "adapter_config.json", {"r": 64})
    return tmp_path


def serve(checkout: Path, *arguments: str, key: str = "secret") -> Done:
    return subprocess.run(
        [sys.executable, "-I", SCRIPT, *arguments], cwd=checkout, check=False, capture_output=True, text=True,
        env={"PATH": f"{checkout / 'bin'}:/usr/bin:/bin", "VLLM_API_KEY": key},
    )  # fmt: skip


def arguments(done: Done) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def one_error(done: Done) -> str:
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(("given", "run"), [("", "new"), ("old", "old")])
def test_the_merged_model_of_a_run_is_served_under_its_name(checkout: Path, given: str, run: str) -> None:
    done = serve(checkout, f"--run={given}", "--adapter=", "--options=")
    assert arguments(done) == [
        "serve", str(checkout / "work" / run / "merged"), "--served-model-name", run,
        "--port", "8000", "--max-model-len", "auto",
    ]  # fmt: skip
    assert done.stderr.startswith("vllm serve /")  # what was started is in the log
    assert "secret" not in done.stderr


@pytest.mark.parametrize(("rank", "most"), [(64, "64"), (8, "8"), (48, "64"), (128, "128"), (1000, "1000")])
def test_base_and_adapter_are_served_with_room_for_its_rank(checkout: Path, rank: int, most: str) -> None:
    write(checkout / "work" / "new" / "adapter" / "adapter_config.json", {"r": rank})
    assert arguments(serve(checkout, "--run=new", "--adapter=1"))[:8] == [
        "serve", str(checkout / "work" / "models" / "base"), "--served-model-name", "base", "--enable-lora",
        "--lora-modules", f"new={checkout / 'work' / 'new' / 'adapter'}", "--max-lora-rank",
    ]  # fmt: skip
    assert arguments(serve(checkout, "--run=new", "--adapter=1"))[8] == most


def test_a_run_that_is_called_as_its_base_does_not_hide_it(checkout: Path) -> None:
    (checkout / "work" / "new").rename(checkout / "work" / "base")
    assert arguments(serve(checkout, "--run=base", "--adapter=1"))[3] == "base-base"


def test_more_options_come_last_and_are_split_as_a_shell_does(checkout: Path) -> None:
    done = serve(checkout, "--options=--data-parallel-size 2 --chat-template 'a b'")
    assert arguments(done)[-4:] == ["--data-parallel-size", "2", "--chat-template", "a b"]


@pytest.mark.parametrize("options", ["--run=old", "--run=", "--health"])
def test_without_a_key_or_a_server_it_fails(checkout: Path, options: str) -> None:
    done = serve(checkout, options, key="")
    if options == "--health":
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    else:
        assert one_error(done).startswith("error: API_KEY is missing: ")


def test_what_is_not_there_is_one_line_with_what_to_do(checkout: Path) -> None:
    assert "work/typo/merged/manifest.json cannot be read" in one_error(serve(checkout, "--run=typo"))
    (checkout / "work" / "models" / "base" / "manifest.json").unlink()
    line = one_error(serve(checkout, "--run=new", "--adapter=1"))
    assert line.endswith("run `make model RUN=new`, or unset VLLM_ADAPTER")
    for run in ("old", "new"):
        (checkout / "work" / run / "merged" / "manifest.json").unlink()
    assert "run `make merge` first" in one_error(serve(checkout, "--run="))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "[]"), ("manifest.json", '{"results": 3}'), ("manifest.json", "[" * 100_000),
        ("adapter_config.json", "null"), ("adapter_config.json", '{"r": "many"}'), ("adapter_config.json", '{"r": 0}'),
    ],
)  # fmt: skip
def test_json_of_another_shape_is_one_line(checkout: Path, name: str, content: str) -> None:
    (checkout / "work" / "new" / "adapter" / name).write_text(content, encoding="utf-8")
    line = one_error(serve(checkout, "--run=new", "--adapter=1"))
    assert name in line
    assert line.endswith("RUN=new` again")


def test_options_with_an_open_quote_are_one_line(checkout: Path) -> None:
    assert "VLLM_ARGS cannot be split" in one_error(serve(checkout, "--run=new", "--options=--chat-template 'a"))


@pytest.mark.parametrize("status", [200, 503])
def test_it_is_healthy_where_vllm_says_so(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Vllm(Handler):
        def do_GET(self) -> None:
            self.send(status if self.path == "/health" else 404)

    script = runpy.run_path(str(SCRIPT), run_name="vllm_serve")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with LocalServer(Vllm) as vllm:
        monkeypatch.setitem(script["healthy"].__globals__, "PORT", vllm.server_port)
        assert script["healthy"]() is (status == 200)


# --- Kubernetes ---------------------------------------------------------------------------------------------------

SERVICE, DEPLOYMENT = yaml.safe_load_all((ROOT / "docker" / "vllm-replicas.yaml").read_text(encoding="utf-8"))
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["vllm"]


def test_the_copies_are_compose_s_vllm() -> None:
    assert COMPOSE["image"] == f"${{VLLM_IMAGE:-{CONTAINER['image']}}}"
    compose = dict(entry.split("=", 1) for entry in COMPOSE["environment"] if "=" in entry)
    pod = {variable["name"]: variable.get("value") for variable in CONTAINER["env"]}
    assert pod == compose | {"VLLM_API_KEY": None}


def test_the_copies_are_started_as_the_script_starts_one(checkout: Path) -> None:
    (checkout / "work" / "new").rename(checkout / "work" / "cluster")
    script = ["vllm", *(word.replace(str(checkout), "/recipe") for word in arguments(serve(checkout, "--run=cluster")))]
    assert [*CONTAINER["command"], *CONTAINER["args"]] == script


def test_the_copies_are_several_behind_one_name() -> None:
    assert DEPLOYMENT["spec"]["replicas"] > 1
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"] == DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["ports"] == [{"port": 8000, "targetPort": CONTAINER["ports"][0]["name"]}]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(CONTAINER)
    assert POD["enableServiceLinks"] is False


def test_a_copy_is_not_root_reads_the_results_and_has_its_key_from_a_secret() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in CONTAINER["volumeMounts"]}
    assert mounts == {"/recipe/work": True, "/tmp": False, "/dev/shm": False}
    (key,) = [variable for variable in CONTAINER["env"] if variable["name"] == "VLLM_API_KEY"]
    assert "secretKeyRef" in key["valueFrom"]
    claim = next(volume for volume in POD["volumes"] if volume["name"] == "work")["persistentVolumeClaim"]["claimName"]
    job = (ROOT / "docker" / "pytorchjob.yaml").read_text(encoding="utf-8")
    assert claim == next(yaml.safe_load_all(job))["metadata"]["name"]
