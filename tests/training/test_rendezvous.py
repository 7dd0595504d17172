"""How several machines agree, acted out in one process over a store on this machine."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from recipe.errors import RecipeError
from recipe.training import rendezvous
from recipe.training.rendezvous import Machines, Worker, hosting, joining, watching

KEY: dict[str, dict[str, Any]] = {
    "settings": {"processes": 2, "deepspeed": None},
    "inputs": {"config": "a", "model": "b", "data_0": "c"},
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rendezvous, "PATIENCE", 20.0)
    monkeypatch.setattr(rendezvous, "LINGER", 5.0)
    monkeypatch.setattr(rendezvous, "POLL", 0.02)
    # As the command line does: what another machine's failure sends is Ctrl-C.
    monkeypatch.setattr(rendezvous, "signal", SimpleNamespace(SIGTERM=signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script may have had ignored
    yield
    signal.signal(signal.SIGINT, before)


def start_worker(port: int, act: Callable[[Worker], Any]) -> tuple[threading.Thread, list[Any]]:
    """Another machine in a thread; what it got, or the error it ended with."""
    outcomes: list[Any] = []

    def run() -> None:
        try:
            with joining(Machines(1, 2, 1, "127.0.0.1", port)) as other:
                outcomes.append(act(other))
        except RecipeError as error:
            outcomes.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcomes


def first(port: int, nodes: int = 2) -> Machines:
    return Machines(1, nodes, 0, "127.0.0.1", port)


def coordinate(port: int, error: type[BaseException] | None = None) -> None:
    """The first machine, up to the plan, and how it then ends."""
    with hosting(first(port)) as store:
        assert store
        store.agree(KEY, {"resume": "iter_4.pth"})
        if error:
            raise error


def test_the_same_training_gets_the_plan_and_the_verdict(port: int) -> None:
    def act(other: Worker) -> Any:
        plan = other.plan(KEY)
        other.ready()
        other.end()
        return plan

    thread, outcomes = start_worker(port, act)
    coordinate(port)
    thread.join(20)
    assert outcomes == [{"resume": "iter_4.pth"}]


@pytest.mark.parametrize(
    ("part", "name", "value", "difference"),
    [("inputs", "data_0", "x", "data_0"), ("settings", "processes", 4, r"processes \(4 there, 2 here\)"),
     ("inputs", "data_1", "x", "data_1")],
)  # fmt: skip
def test_another_training_is_refused_on_both(port: int, part: str, name: str, value: Any, difference: str) -> None:
    other = KEY | {part: KEY[part] | {name: value}}
    thread, outcomes = start_worker(port, lambda each: each.plan(other))
    with pytest.raises(RecipeError, match=f"machine 1 would not train on the same: {difference};"):
        coordinate(port)
    thread.join(20)
    assert str(outcomes[0]).startswith("machine 0 stopped: machine 1 would not train on the same")


def test_what_is_complete_there_is_not_waited_for(port: int) -> None:
    thread, outcomes = start_worker(port, lambda each: each.plan(KEY))
    with hosting(first(port)):
        pass
    thread.join(20)
    assert outcomes == [None]


def test_a_failure_or_a_stop_of_the_first_is_every_machines(port: int) -> None:
    def act(other: Worker) -> None:
        other.plan(KEY)
        other.ready()
        other.end()

    thread, outcomes = start_worker(port, act)
    with pytest.raises(KeyboardInterrupt):
        coordinate(port, KeyboardInterrupt)
    thread.join(20)
    assert str(outcomes[0]) == "machine 0 stopped: it was interrupted"


def test_a_failure_of_another_machine_ends_the_wait_for_it(port: int) -> None:
    def act(other: Worker) -> None:
        other.plan(KEY)
        other.ready()
        time.sleep(0.5)
        raise RecipeError("no memory")

    thread, outcomes = start_worker(port, act)
    with hosting(first(port)) as store:
        assert store
        store.agree(KEY, {})
        with pytest.raises(RecipeError, match=r"^machine 1 stopped: no memory$"), watching(store.store):
            time.sleep(20)
    thread.join(20)
    assert str(outcomes[0]) == "no memory"


def test_processes_that_fail_for_want_of_another_machine_s_are_not_to_blame(port: int) -> None:
    def act(other: Worker) -> None:
        other.plan(KEY)
        other.ready()
        with watching(other.store):
            raise RecipeError("the log says why") from ConnectionError()

    thread, outcomes = start_worker(port, act)
    with pytest.raises(KeyboardInterrupt):
        coordinate(port, KeyboardInterrupt)
    thread.join(20)
    assert str(outcomes[0]) == "machine 0 stopped: it was interrupted"


def test_a_machine_that_cannot_follow_the_plan_ends_the_first(port: int) -> None:
    def act(other: Worker) -> None:
        other.plan(KEY)
        raise RecipeError("no shared folder")

    thread, outcomes = start_worker(port, act)
    with pytest.raises(RecipeError, match=r"^machine 1 stopped: no shared folder$"):
        coordinate(port)
    thread.join(20)
    assert str(outcomes[0]) == "no shared folder"


def test_who_does_not_come_is_waited_for_in_vain(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    monkeypatch.setattr(rendezvous, "LINGER", 0.1)
    with pytest.raises(RecipeError, match="start the same on every machine"):
        Worker(Machines(1, 2, 1, "127.0.0.1", port))
    with pytest.raises(RecipeError, match="start the same on every machine"):
        coordinate(port)


def test_a_taken_port_and_a_foreign_address_are_told(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        with pytest.raises(RecipeError, match=f"{port} is taken: choose another MASTER_PORT"), hosting(first(port)):
            pass
    with pytest.raises(RecipeError, match="no such host"), hosting(Machines(1, 2, 0, "nowhere.invalid", port)):
        pass


def test_without_an_address_nobody_is_met() -> None:
    with hosting(Machines(1, 2)) as store:
        assert store is None
    with hosting(Machines(8)) as store:
        assert store is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [((1, 2, 2, "a"), "NODE_RANK=2 is none of 0 to NNODES - 1"), ((1, 1, 1, "a"), "NODE_RANK=1"),
     ((1, 2, 1, None), "MASTER_ADDR")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(wrong: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Machines(*wrong)


def test_gloo_listens_where_the_first_machine_is() -> None:
    assert Machines(2).interface() == "lo"
    assert Machines(1, 2, 0, "127.0.0.1").interface() == "lo"


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "cores", lambda: 9)
    for name in ("THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    for gpus, threads in ((4, "2"), (64, "1")):
        with rendezvous.environment(Machines(gpus)):
            assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == (threads, threads)
            assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
    assert not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & set(os.environ)


@pytest.mark.parametrize(
    ("chosen", "openmp", "mkl"),
    [
        ({"OMP_NUM_THREADS": "9", "MKL_NUM_THREADS": "9"}, "2", "2"),  # of a quota, for one process
        ({"OMP_NUM_THREADS": "3"}, "3", "3"),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "1"}, "3", "1"),
        ({"THREADS": "9", "OMP_NUM_THREADS": "9", "MKL_NUM_THREADS": "9"}, "9", "9"),
        ({"THREADS": "5", "OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": "5"}, "5", "5"),
    ],
)
def test_the_user_s_number_of_threads_is_each_process_s(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], openmp: str, mkl: str
) -> None:
    monkeypatch.setattr(rendezvous, "cores", lambda: 9)
    for name in ("THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    with rendezvous.environment(Machines(4)):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == (openmp, mkl)
    assert {name: os.environ.get(name) for name in chosen} == chosen
