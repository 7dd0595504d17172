"""What computes here, a GPU or the CPU, and in which precision, asked without importing torch, which takes seconds."""

import ctypes
import os
import re
import subprocess
from pathlib import Path

from recipe import control_groups
from recipe.errors import RecipeError

# The locked torch is built for CUDA 13.0, which any driver from this one on serves: NVIDIA's CUDA 13.0 release notes,
# table 3. `recipe/env/doctor.sh` reads the driver's version from here.
CUDA = (13, 0)
DRIVER = "580.65.06"
# The oldest generation that the locked torch has kernels for (Turing), and the oldest that computes in bfloat16
# (Ampere), as every preset but `tutorial` does: NVIDIA's compute capabilities. `recipe/env/doctor.sh` reads both.
CAPABILITY = "7.5"
BFLOAT16 = "8.0"
# Instructions that multiply bfloat16, by their names in Linux's arch/x86/include/asm/cpufeatures.h.
CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
# What may compute, as XTuner's --device names it; auto is the GPU where there is one.
DEVICES = ("auto", "cpu", "cuda")
# Seconds in which nvidia-smi must answer: a machine of eight GPUs without the persistence mode takes ten.
ANSWER = 30
CPU, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def has_gpu() -> bool:
    """Whether there is a GPU for this process: NVIDIA's driver on Linux, or WSL's, and not hidden from it."""
    driver = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return driver and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def check_device(device: str) -> None:
    """RecipeError where a device that a user chose is none of `DEVICES`, or is a GPU and there is none."""
    if device not in DEVICES:
        raise RecipeError(f"DEVICE={device} is none of {', '.join(DEVICES)}")
    if device == "cuda" and not has_gpu():
        raise RecipeError(
            "DEVICE=cuda: there is no NVIDIA GPU here, or CUDA_VISIBLE_DEVICES hides it: DEVICE=cpu, or no DEVICE at "
            "all, takes the CPU"
        )


def gpus() -> list[str]:
    """The GPUs for this process, as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",") if has_gpu() else []
    return [str(i) for i in range(len(_gpu_sizes()))]


def gpu_memory() -> int | None:
    """The memory of the smallest GPU in MiB, as nvidia-smi tells it; None where it tells nothing."""
    return min(_gpu_sizes(), default=None)


def cpu_memory() -> int | None:
    """The memory in MiB that this process could still take: the machine's, within the limits of its control groups.

    Source: Linux, Documentation/filesystems/proc.rst (MemAvailable), and the files memory.max of version 2 of control
    groups and memory.limit_in_bytes of version 1. None where the machine does not tell.
    """
    try:
        lines = MEMORY.read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    limits = [limit for folder in control_groups.folders("memory") if (limit := _memory_limit(folder)) is not None]
    return min([available, *limits])


def _memory_limit(folder: Path) -> int | None:
    """The MiB that one control group grants; None without a limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((folder / name).read_text(encoding="utf-8")) >> 20
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _gpu_sizes() -> list[int]:
    """The memory of each GPU of the machine, in MiB."""
    return [int(line) for line in _query("memory.total") if line.isdigit()]


def _query(what: str) -> list[str]:
    """A line of nvidia-smi's answer for each GPU; none where there is no GPU, or no nvidia-smi.

    Raises:
        RecipeError: it does not answer.
    """
    if not has_gpu():
        return []
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
    except OSError:
        return []
    try:
        output, _ = process.communicate(timeout=ANSWER)
    except subprocess.TimeoutExpired:
        process.kill()  # and no wait: where the driver hangs, a process of its does not end either
        raise RecipeError(
            f"nvidia-smi does not answer within {ANSWER} seconds, so the driver hangs: look into `dmesg`, restart the "
            f"machine, or hide the GPU with CUDA_VISIBLE_DEVICES= to work without it"
        ) from None
    return [line.strip() for line in output.splitlines()]


def check_gpus(count: int) -> None:
    """RecipeError where a machine has fewer GPUs than the processes that GPUS= has train on it, one a GPU."""
    there = gpus()
    if there and count > len(there):
        hidden = " that CUDA_VISIBLE_DEVICES leaves" if os.environ.get("CUDA_VISIBLE_DEVICES") else ""
        raise RecipeError(f"GPUS={count}: this machine has {len(there)}{hidden}: choose GPUS={len(there)} or fewer")


def check_card() -> None:
    """RecipeError where a GPU is older than what the locked torch has kernels for: the first kernel would fail."""
    for line in _query("name,compute_cap"):
        name, _, capability = line.rpartition(", ")
        if re.fullmatch(r"\d+\.\d+", capability) and _version(capability) < _version(CAPABILITY):
            raise RecipeError(
                f"{name} has compute capability {capability}, and the locked torch has kernels from {CAPABILITY} on: "
                f"use a newer card ({BFLOAT16} for bfloat16: RTX 30, A10, A100 and later), or hide it with "
                f"CUDA_VISIBLE_DEVICES= to work without"
            )


def card_without_bfloat16() -> str | None:
    """The name and compute capability of the first GPU that does not compute in bfloat16; None where all do."""
    for line in _query("name,compute_cap"):
        name, _, capability = line.rpartition(", ")
        if re.fullmatch(r"\d+\.\d+", capability) and _version(capability) < _version(BFLOAT16):
            return f"{name} (compute capability {capability})"
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def cpu_computes_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; without them it takes longer than float32."""
    try:
        lines = CPU.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not CPU_BFLOAT16.isdisjoint(flags.split())


def cpu_precision(stored: str | None) -> str:
    """In which precision a model computes on the CPU: its own bfloat16 where the CPU has that, and else float32.

    Args:
        stored: the precision of its weights, as config.json names it; None where it does not.
    """
    return "bfloat16" if stored == "bfloat16" and cpu_computes_bfloat16() else "float32"


def check_driver() -> None:
    """RecipeError where there is a GPU but not the driver that the locked torch needs: torch would go on without it."""
    if not has_gpu():
        return
    hide = "or hide the GPU with CUDA_VISIBLE_DEVICES= to work without it"
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise RecipeError(
            "there is an NVIDIA GPU but not the driver's libcuda.so.1: install the driver "
            f"(in a container: the NVIDIA Container Toolkit, on the host), {hide}"
        ) from None
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))  # 1000 * major + 10 * minor, and needs no cuInit
    version_found = (version.value // 1000, version.value % 1000 // 10)
    if version_found < CUDA:
        raise RecipeError(
            f"the NVIDIA driver is too old: it serves CUDA {version_found[0]}.{version_found[1]}, and "
            f"{CUDA[0]}.{CUDA[1]} is needed: "
            f"install driver {DRIVER} or newer (nvidia-smi shows which one is there), {hide}"
        )
