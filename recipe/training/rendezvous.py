"""The processes of a training, one per GPU, on one machine or several; and how several machines agree on it.

torchrun starts the processes and connects them, but does not check that the machines run the same training. The first
machine, the coordinator, therefore holds a store at MASTER_ADDR:MASTER_PORT, which torchrun's processes use afterwards.
Each other machine, a worker, publishes there what it would train on. The coordinator answers with a plan or an error,
and at the end with the outcome. A machine that fails publishes its error. So none waits for one that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from recipe.cores import LIBRARIES, THREADS, cores
from recipe.errors import RecipeError
from recipe.pipeline.stage import say
from recipe.plain_text import print_error
from recipe.training.xtuner import PARENT

# Seconds. The machines arrive one by one: one of them may have to download a model first.
PATIENCE = 3600.0
# Seconds for which the coordinator waits at the end until every worker has read the outcome.
LINGER = 30.0
POLL = 0.2


@dataclass(frozen=True)
class Machines:
    """The machines of a training.

    gpus: processes on each machine.
    nodes, rank, address, port: torchrun's --nnodes, --node-rank, --master-addr and --master-port.
    """

    gpus: int = 1
    nodes: int = 1
    rank: int = 0
    address: str | None = None
    port: int = 29500

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.nodes:
            raise RecipeError(f"NODE_RANK={self.rank} is none of 0 to NNODES - 1, which is {self.nodes - 1}")
        if self.rank and not self.address:
            raise RecipeError(f"NODE_RANK={self.rank}: say with MASTER_ADDR where machine 0 is")

    @property
    def processes(self) -> int:
        return self.gpus * self.nodes

    @property
    def endpoint(self) -> str:
        return f"{self.address}:{self.port}"

    def torchrun(self) -> list[str]:
        """torchrun's options for these machines."""
        # Not SIGINT, which torchrun would forward: at Ctrl-C the processes get SIGTERM, which ends them without a
        # traceback.
        signals = "--signals-to-handle=SIGTERM,SIGHUP,SIGQUIT"
        each = [f"--nnodes={self.nodes}", f"--nproc-per-node={self.gpus}", signals]
        if self.nodes == 1:
            return [*each, "--standalone", "--local-addr=127.0.0.1"]
        return [*each, f"--node-rank={self.rank}", f"--master-addr={self.address}", f"--master-port={self.port}"]

    def interface(self) -> str | None:
        """The network interface towards the first machine. Gloo must listen there but defaults to the host's name."""
        import fcntl
        import struct

        if self.nodes == 1:
            return "lo"
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.address, self.port))  # sends nothing
            local_address = probe.getsockname()[0]
            if local_address.startswith("127.") and self.address not in ("127.0.0.1", "localhost"):
                return None  # machine 0's own name, which /etc/hosts has for itself: not where the others are
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # an interface without an address
                    reply = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                    if socket.inet_ntoa(reply[20:24]) == local_address:
                        return name
        return None


ALONE = Machines()


class Coordinator:
    """The first machine's side of the store.

    Raises:
        RecipeError: MASTER_ADDR is unknown or not of this machine, or MASTER_PORT is taken.
    """

    def __init__(self, machines: Machines) -> None:
        from torch.distributed import DistNetworkError, TCPStore

        self.others = range(1, machines.nodes)
        self.endpoint = machines.endpoint
        _resolve(machines)
        try:
            self.store = TCPStore(
                machines.address, machines.port, is_master=True, wait_for_workers=False, multi_tenant=True,
                timeout=timedelta(seconds=LINGER),
            )  # fmt: skip
        except DistNetworkError as error:
            reason = "is taken: choose another MASTER_PORT, the same on every machine"
            if "EADDRINUSE" not in str(error):
                reason = "is not this machine: MASTER_ADDR must be an address of the one with NODE_RANK=0"
            raise RecipeError(f"{self.endpoint} {reason}") from None

    def agree(self, key: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Wait for every worker, check its key, send the plan, and wait until every worker is ready.

        The wait is here because torchrun, which would wait too, ignores Ctrl-C meanwhile.

        Args:
            key: settings and inputs of this machine's training.
            plan: what the workers need to follow it.

        Raises:
            RecipeError: a worker would train on something else, has failed, or does not arrive.
        """
        names = [f"here/{rank}" for rank in self.others]
        _until(lambda: self.store.check(names), f"{len(names)} other machine(s) to come to {self.endpoint}")
        for rank, name in zip(self.others, names, strict=True):
            if differing := _differing(key, json.loads(self.store.get(name))):
                raise RecipeError(
                    f"machine {rank} would not train on the same: {differing}; call it with the same settings, and "
                    f"copy the run's folder under work/ there, or share work/"
                )
        self.store.set("plan", json.dumps(plan))
        ready = [f"ready/{rank}" for rank in self.others]
        _until(lambda: self.store.check(ready) or _any_set(self.store, "failed"), "the other machines to begin")
        if _any_set(self.store, "failed"):
            raise RecipeError(self.store.get("failed").decode())

    def end(self, error: str | None) -> None:
        """Publish the outcome, and wait at most LINGER until every worker has read it."""
        with contextlib.suppress(Exception):  # the result of this machine stands, whatever happens here
            if error is not None and not _any_set(self.store, "failed"):
                self.store.set("failed", f"machine 0 stopped: {error}")
            self.store.set("end", "")
            self.store.wait([f"left/{rank}" for rank in self.others], timedelta(seconds=LINGER))


@contextlib.contextmanager
def hosting(machines: Machines) -> Iterator[Coordinator | None]:
    """The coordinator while a training on several machines runs; None on one machine, or without MASTER_ADDR."""
    if machines.nodes == 1 or not machines.address:
        yield None
        return
    coordinator = Coordinator(machines)
    try:
        yield coordinator
    except BaseException as error:
        coordinator.end(_reason(error))
        raise
    coordinator.end(None)


class Worker:
    """Another machine's side of the store. RecipeError: the coordinator does not answer within PATIENCE."""

    def __init__(self, machines: Machines) -> None:
        from torch.distributed import TCPStore

        self.machines = machines
        _until(self._answers, f"machine 0 to answer at {machines.endpoint}")
        self.store = TCPStore(
            machines.address, machines.port, is_master=False, wait_for_workers=False, multi_tenant=True,
            timeout=timedelta(seconds=LINGER),
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.machines.address, self.machines.port), timeout=5).close()
        except OSError:
            return False
        return True

    def plan(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Fetch the coordinator's plan.

        Args:
            key: settings and inputs of this machine's training.

        Returns:
            The plan, or None where the coordinator has the result already.

        Raises:
            RecipeError: there is no plan.
        """
        self.store.set(f"here/{self.machines.rank}", json.dumps(key))
        _until(lambda: _any_set(self.store, "plan", "end"), f"the other machines to come to {self.machines.endpoint}")
        if _any_set(self.store, "plan"):
            plan: dict[str, Any] = json.loads(self.store.get("plan"))
            return plan
        self.end()
        return None

    def ready(self) -> None:
        """Publish that this machine can follow the plan."""
        self.store.set(f"ready/{self.machines.rank}", "")

    def end(self) -> None:
        """Wait for the coordinator's outcome. RecipeError: a machine failed."""
        _until(lambda: _any_set(self.store, "end"), "machine 0 to finish")
        if _any_set(self.store, "failed"):
            raise RecipeError(self.store.get("failed").decode())


@contextlib.contextmanager
def joining(machines: Machines) -> Iterator[Worker]:
    """The worker while a training runs; if this machine fails, its error is published in the store."""
    worker = Worker(machines)
    try:
        yield worker
    except BaseException as error:
        with contextlib.suppress(Exception):
            if not _any_set(worker.store, "failed"):
                worker.store.set("failed", f"machine {machines.rank} stopped: {_reason(error)}")
        raise
    finally:
        with contextlib.suppress(Exception):
            worker.store.set(f"left/{machines.rank}", "")


@contextlib.contextmanager
def watching(store: Any) -> Iterator[None]:
    """End this machine's processes when another machine fails, for which they would wait forever.

    Args:
        store: of a Coordinator or a Worker; None where there is no other machine.

    Raises:
        RecipeError: another machine's error.
    """
    if store is None:
        yield
        return
    finished, reasons = threading.Event(), []

    def watch() -> None:
        while not finished.wait(5 * POLL):
            try:
                if _any_set(store, "failed"):
                    reasons.append(store.get("failed").decode())
            except RecipeError as error:
                reasons.append(str(error))
            if reasons:
                time.sleep(LINGER / 10)  # this machine may be about to raise an error of its own
                if not finished.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C would
                if not finished.wait(LINGER):  # the main thread waits where Python handles no signal
                    print_error(reasons[0])
                    os._exit(1)  # the kernel then ends its child processes; see recipe/training/xtuner.py
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if reasons:
            raise RecipeError(reasons[0]) from None
        raise
    except RecipeError as error:
        finished.set()
        # The processes may have failed because another machine did, whose error may arrive in a moment.
        if error.__cause__ is not None:
            deadline = time.monotonic() + LINGER / 10
            while time.monotonic() < deadline:
                if _any_set(store, "failed"):
                    raise RecipeError(store.get("failed").decode()) from None
                time.sleep(POLL)
        raise
    finally:
        finished.set()


def _any_set(store: Any, *names: str) -> bool:
    """Whether one of the names is set. RecipeError: the coordinator does not answer any more."""
    try:
        return any(store.check([name]) for name in names)
    except Exception:  # the store's own errors, which differ by how the connection was lost
        raise RecipeError("machine 0 is gone without a word") from None


def _reason(error: BaseException) -> str:
    return "it was interrupted" if isinstance(error, KeyboardInterrupt) else str(error)


def _resolve(machines: Machines) -> None:
    try:
        socket.getaddrinfo(machines.address, machines.port)
    except OSError:
        raise RecipeError(f"MASTER_ADDR={machines.address}: no such host") from None


def _until(reached: Callable[[], bool], what: str) -> None:
    """Poll, so that Ctrl-C works, until `reached`. RecipeError after PATIENCE."""
    began, announced = time.monotonic(), False
    while not reached():
        waited = time.monotonic() - began
        if waited > PATIENCE:
            raise RecipeError(f"waited {waited / 60:.0f} minutes for {what}: start the same on every machine")
        if waited > 2 and not announced:
            say("train", f"waiting for {what}")
            announced = True
        time.sleep(POLL)


def _differing(own_key: Mapping[str, Any], other_key: Mapping[str, Any]) -> str:
    """The names of the settings and inputs that differ between two machines."""
    names = []
    for part in ("settings", "inputs"):
        one, other = own_key[part], other_key[part]
        names += [
            f"{name} ({other.get(name)} there, {one.get(name)} here)" if part == "settings" else name
            for name in sorted({*one, *other})
            if one.get(name) != other.get(name)
        ]
    return ", ".join(names)


@contextlib.contextmanager
def environment(machines: Machines) -> Iterator[None]:
    """Set what torchrun's processes need, unless the user did: each one's share of the cores, Gloo's interface."""
    before = os.environ.copy()
    os.environ[PARENT] = str(os.getpid())
    for name in LIBRARIES:  # MKL goes by OpenMP's number where it has none of its own
        chosen = before.get(name) or before.get(LIBRARIES[0])
        by_default = chosen in (None, str(cores())) and not before.get(THREADS)  # cores(): what a quota came to
        os.environ[name] = str(max(1, cores() // machines.gpus)) if by_default else str(chosen)
    if interface := machines.interface():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
