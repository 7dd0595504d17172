"""The launch files of clusters: what they start is what the recipe takes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipe.cli.parser import build_parser
from recipe.paths import ROOT

SCRIPT = ROOT / "docker" / "slurm.sh"
# Runs its command once a node, as srun does, all at the same time.
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do SLURM_PROCID=$node "$@" & done
wait
"""
SCONTROL = """#!/bin/bash
[ "$*" = 'show hostnames node[07-08]' ] && printf 'node07\\nnode08\\n'
"""
MAKE = """#!/bin/bash
line=$(printf '%s|' make "$@" "GPUS=$GPUS" "NNODES=$NNODES" "NODE_RANK=$NODE_RANK" "AT=$MASTER_ADDR:$MASTER_PORT")
echo "$line" >> "$CALLS"  # in one piece: two nodes write here
exit "${FAIL:-0}"
"""


def job(folder: Path, *words: str, **environment: str) -> tuple[int, list[str]]:
    """(exit status, what was called) of the script as a job of two nodes with four GPUs each."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("make", MAKE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    variables = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "123456", "CALLS": str(folder / "calls")}  # fmt: skip
    plain = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(
        [SCRIPT, *words], env=plain | variables | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_a_slurm_job_prepares_once_trains_on_every_node_and_evaluates_once(tmp_path: Path) -> None:
    status, calls = job(tmp_path, "NAME=小 明", "RUN=cluster")
    assert status == 0
    words = "NAME=小 明|RUN=cluster"
    both = "GPUS=4|NNODES=2"
    assert calls[0] == f"make|config|{words}|{both}|NODE_RANK=|AT=:|"
    assert calls[1].startswith("srun --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 ")
    assert sorted(calls[2:4]) == [f"make|train|{words}|{both}|NODE_RANK={rank}|AT=node07:23456|" for rank in (0, 1)]
    assert calls[4:] == [f"make|eval|{words}|{both}|NODE_RANK=|AT=:|"]


def test_a_slurm_job_ends_with_what_fails(tmp_path: Path) -> None:
    status, calls = job(tmp_path, FAIL="3")
    assert status != 0
    assert len(calls) == 1
    assert job(tmp_path, SLURM_GPUS_ON_NODE="")[0] != 0


def test_sbatch_gives_each_node_one_task_and_the_gpus() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    assert directives["ntasks-per-node"] == "1"
    assert {"nodes", "gpus-per-node"} <= set(directives)
    before = text.split("#SBATCH")[0].splitlines()
    assert all(line.startswith("#") for line in before if line)  # sbatch reads no option after a command


# --- Kubernetes ---------------------------------------------------------------------------------------------------

CLAIM, JOB = yaml.safe_load_all((ROOT / "docker" / "pytorchjob.yaml").read_text(encoding="utf-8"))
REPLICAS: dict[str, Any] = JOB["spec"]["pytorchReplicaSpecs"]
# What the Training Operator 1.7 and later sets in every pod, of what is used here.
OPERATOR = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "8",
    "PET_NODE_RANK": "1",
    "MASTER_ADDR": "m",
    "MASTER_PORT": "23456",
}
every_replica = pytest.mark.parametrize("replica", ["Master", "Worker"])


def container(replica: str) -> dict[str, Any]:
    (one,) = REPLICAS[replica]["template"]["spec"]["containers"]
    value: dict[str, Any] = one
    return value


def test_it_is_a_pytorchjob_of_one_master_and_workers() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert set(REPLICAS) == {"Master", "Worker"}
    assert REPLICAS["Master"]["replicas"] == 1
    assert REPLICAS["Worker"]["replicas"] >= 1


@every_replica
def test_a_pods_arguments_are_the_recipes(replica: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = container(replica)
    assert pod["name"] == "pytorch"
    assert pod["image"] == "internlm2-identity-recipe:latest"
    assert "command" not in pod  # the image's own: python -m recipe
    assert 'ENTRYPOINT ["python", "-m", "recipe"]' in (ROOT / "Dockerfile").read_text()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, OPERATOR[name])
    arguments = [re.sub(r"\$\((\w+)\)", lambda match: OPERATOR[match[1]], word) for word in pod["args"]]
    options = build_parser().parse_args(arguments)
    assert options.verb == "quickstart"
    assert (options.gpus, options.nnodes, options.node_rank) == (8, 2, 1)
    assert (options.master_addr, options.master_port) == ("m", 23456)


@every_replica
def test_a_pod_gets_the_gpus_that_its_processes_use(replica: str) -> None:
    assert str(container(replica)["resources"]["limits"]["nvidia.com/gpu"]) == JOB["spec"]["nprocPerNode"]


@every_replica
def test_a_pod_is_not_root_and_may_write_to_its_volumes_alone(replica: str) -> None:
    pod, spec = container(replica), REPLICAS[replica]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    assert pod["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["volumeMounts"]}
    assert set(mounts) == {"/recipe/work", "/tmp", "/dev/shm"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes[mounts["/recipe/work"]]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
