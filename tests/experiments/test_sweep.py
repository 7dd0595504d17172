"""Many random names: the same ones everywhere, a folder each, and no result lost because another run failed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from example_results import example_metrics, example_results, example_scores, example_tuned
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe import cli
from recipe.cli.parser import build_parser
from recipe.corpus.identity import LONGEST_NAME, Identity
from recipe.errors import BELOW_THRESHOLDS, RecipeError
from recipe.evaluation import metrics, thresholds
from recipe.experiments import sweep
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.pipeline.run import checked_name

GOOD = sweep.Outcome("miniature", "小明", 0, 0.99, 0.01, 0.0, 0.97, 0.02, 1.0, 1.0, 123_456, 0.18, 78.4, passed=True)
MINIATURE = sweep.Base("miniature")
NAMES = sweep.random_names(20)


def job(name: str, seed: int, base: sweep.Base = MINIATURE) -> sweep.Job:
    return sweep.Job(base, name, seed)


# --- Names --------------------------------------------------------------------------------------------------------


def test_the_names_are_the_same_on_every_machine() -> None:
    assert sweep.random_names(20) == NAMES
    assert sweep.random_names(5) == NAMES[:5]  # more names do not change the first ones
    assert NAMES[:5] == [
        "尼畜督逐又早响炭",
        "弹",
        "媌螎佸賁瘸棨胘渱窀箦縬辽龠埄禒奺镚鋟獤",
        "袍怈韩",
        "Wl Oncmsrp Nqz Mqins",
    ]


def test_every_name_may_be_taught() -> None:
    for name in sweep.random_names(2000):
        assert Identity(name).name == name


def test_the_names_are_short_and_long_chinese_latin_and_both() -> None:
    names = sweep.random_names(200)
    assert {1, 2, 3, 4, LONGEST_NAME} <= {len(name) for name in names} <= set(range(1, LONGEST_NAME + 1))
    assert sum(len(name) <= 4 for name in names) >= 100  # half of them, as names are
    latin = [any(c.isascii() for c in name) for name in names]
    chinese = [any(not c.isascii() for c in name) for name in names]
    for kind in ((True, False), (False, True), (True, True)):
        assert list(zip(latin, chinese, strict=True)).count(kind) > 20, kind


def test_no_two_names_are_the_same() -> None:
    assert len(set(sweep.random_names(200))) == 200


def test_no_two_of_many_names_are_the_same() -> None:
    assert len(set(sweep.random_names(1000))) == 1000


@given(
    name=st.text(min_size=1, max_size=LONGEST_NAME).filter(lambda text: text.strip() != ""),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=50)
def test_every_name_has_a_folder(name: str, seed: int) -> None:
    try:
        Identity(name)
    except RecipeError:
        return
    folder = sweep.folder_name(job(name, seed))
    assert checked_name(folder) == folder
    assert len(f"{folder}.log".encode()) <= 255
    assert folder.endswith(f"-{seed}")


def test_names_that_read_the_same_have_folders_of_their_own() -> None:
    names = [
        "a b",
        "a-b",
        "a.b",
        "A b",
        "a b c d e f g h",
        "a b c d e f h",
        "é",
        "e\u0301",
        "...",
        "·",
        "小明",
        "_",
        "-",
    ]
    folders = {sweep.folder_name(job(name, seed)) for name in names for seed in (0, 1, 10)}
    assert len(folders) == 3 * len(names)
    assert all(checked_name(folder) for folder in folders)


def test_a_folder_is_readable_where_the_name_is() -> None:
    assert sweep.folder_name(job("小明", 3)).startswith("小明-")
    assert sweep.folder_name(job("Mary Ann Smith-Jones", 3)).startswith("Mary-Ann-Smi-")
    assert sweep.folder_name(job("...", 3)).startswith("name-")


# --- Outcomes -----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_and_the_worst_of_each_number() -> None:
    outcomes = [
        replace(GOOD, name="小明", identity_hit=1.0, identity_leak=0.0, retention=0.98),
        replace(GOOD, name="Ann Lee", seed=7, identity_hit=0.97, identity_leak=0.01, retention=1.0),
        replace(
            GOOD,
            name="弹",
            identity_hit=0.5,
            identity_leak=0.004,
            retention=1.0,
            trained_tokens=9,
            of_tutorial=0.02,
            seconds=0.6,
            passed=False,
        ),
    ]
    head, *rows, worst = sweep.table(outcomes).splitlines()
    titles = ["hit", "leak", "hints", "kept", "KL", "turns", "inject", "tokens", "share", "train", "s", "seed"]
    assert head.split() == [*titles, "base,", "name"]
    suites = ["0.020", "1.000", "1.000"]
    assert [row.split() for row in rows] == [
        ["1.000", "0.000", "0.000", "0.980", *suites, "123,456", "0.180", "78", "0", "miniature,", "小明"],
        ["0.970", "0.010", "0.000", "1.000", *suites, "123,456", "0.180", "78", "7", "miniature,", "Ann", "Lee"],
        ["0.500", "0.004", "0.000", "1.000", *suites, "9", "0.020", "1", "0", "miniature,", "弹", "FAILED"],
    ]
    assert worst.split() == [
        "0.500", "0.010", "0.000", "0.980", *suites, "123,456", "0.180", "78", "worst", "of", "3"
    ]  # fmt: skip
    places = [line.index(word) for line, word in zip((head, *rows), ("base", *["miniature"] * 3), strict=True)]
    assert len(set(places)) == 1


def test_the_table_for_a_readme_has_the_worst_of_each_names_seeds() -> None:
    outcomes = [
        replace(GOOD, name="小明", identity_hit=1.0, identity_leak=0.0, retention=1.0, of_tutorial=0.1),
        replace(GOOD, name="Ann Lee", identity_hit=0.96, identity_leak=0.01, retention=0.99, of_tutorial=0.2),
        replace(GOOD, name="小明", seed=1, identity_hit=0.97, identity_leak=0.015, retention=0.98, of_tutorial=0.19),
        replace(GOOD, name="Ann Lee", seed=1, identity_hit=1.0, identity_leak=0.0, retention=1.0, of_tutorial=0.17),
    ]
    head, _, *rows = sweep.markdown(outcomes).splitlines()
    assert "worst of 2 seeds" in head
    assert rows == [
        "| miniature | 小明 | 0.970 | 0.015 | 0.000 | 0.980 | 0.020 | 1.000 | 1.000 | 123,456 | 0.190 | 78 |",
        "| miniature | Ann Lee | 0.960 | 0.010 | 0.000 | 0.990 | 0.020 | 1.000 | 1.000 | 123,456 | 0.200 | 78 |",
        "| miniature | **worst of 4** | 0.960 | 0.015 | 0.000 | 0.980 | 0.020 | 1.000 | 1.000 | 123,456 | 0.200 | 78 |",
    ]
    assert "seeds" not in sweep.markdown(outcomes[:2])


def test_the_table_for_a_readme_keeps_bases_apart() -> None:
    outcomes = [
        replace(GOOD, model="a", leak_without_name=0.03, kl_per_token=0.09),
        replace(GOOD, model="b", multi_turn_hit=0.7, injection_hit=0.6, seconds=99.6, trained_tokens=999),
    ]
    head, _, *rows = sweep.markdown(outcomes).splitlines()
    assert head == (
        "| base | name | hit | leak | leak without the name | retention | KL per token | several turns | injection "
        "| tokens | of the tutorial's | train, seconds |"
    )
    first = "0.990 | 0.010 | 0.030 | 0.970 | 0.090 | 1.000 | 1.000 | 123,456 | 0.180 | 78 |"
    second = "0.990 | 0.010 | 0.000 | 0.970 | 0.020 | 0.700 | 0.600 | 999 | 0.180 | 100 |"
    assert rows == [
        f"| a | 小明 | {first}", f"| a | **worst of 1** | {first}",
        f"| b | 小明 | {second}", f"| b | **worst of 1** | {second}",
    ]  # fmt: skip


# --- The runs -----------------------------------------------------------------------------------------------------

Quickstart = Callable[[Path, sweep.Job, int, Sequence[str], str | None], sweep.Outcome]


def at_work(monkeypatch: pytest.MonkeyPatch, quickstart: Quickstart, gpus: Sequence[str] = ()) -> None:
    monkeypatch.setattr(sweep, "_quickstart", quickstart)
    monkeypatch.setattr(sweep, "gpus", lambda: list(gpus))


def test_the_miniature_has_random_names_and_other_bases_one_of_each_kind() -> None:
    other = sweep.Base("folder", "en")
    planned = sweep.jobs_of([MINIATURE, other], None, 2)
    assert [(each.base, each.seed) for each in planned] == [
        *[(MINIATURE, 0)] * 20, *[(MINIATURE, 1)] * 20, *[(other, 0)] * 4, *[(other, 1)] * 4,
    ]  # fmt: skip
    assert [each.name for each in planned] == [*NAMES, *NAMES, *sweep.ONE_OF_EACH, *sweep.ONE_OF_EACH]
    assert [each.name for each in sweep.jobs_of([other], 3, 1)] == NAMES[:3]


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("miniature", MINIATURE),
        ("smollm2-135m-instruct=en", sweep.Base("smollm2-135m-instruct", "en")),
        ("models/b=zh,en", sweep.Base("models/b", "zh,en")),
        ("owner/name", sweep.Base("owner/name")),
    ],
)
def test_a_base_is_named_with_its_languages(text: str, base: sweep.Base) -> None:
    assert sweep.Base.parse(text) == base


def test_runs_of_other_bases_and_languages_have_folders_of_their_own() -> None:
    bases = [MINIATURE, sweep.Base("a"), sweep.Base("a", "en"), sweep.Base("b/a"), sweep.Base("a", "zh")]
    assert len({sweep.folder_name(job("小明", 0, base)) for base in bases}) == len(bases)


def test_outcomes_come_in_the_order_asked_for_and_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quickstart(
        work: Path, each: sweep.Job, threads: int, settings: Sequence[str], gpu: str | None
    ) -> sweep.Outcome:
        time.sleep(0.1 if each.name == NAMES[0] else 0)  # the first is not done first
        return replace(GOOD, name=each.name, seed=each.seed)

    at_work(monkeypatch, quickstart)
    outcomes = sweep.run(tmp_path / "a" / "sweep", sweep.jobs_of([MINIATURE], 3, 2), jobs=4)
    name_seeds = [(name, seed) for seed in (0, 1) for name in NAMES[:3]]
    assert [(outcome.name, outcome.seed) for outcome in outcomes] == name_seeds
    text = (tmp_path / "a" / "sweep" / sweep.FILE).read_text(encoding="utf-8")
    assert NAMES[0] in text
    assert [sweep.Outcome(**row) for row in json.loads(text)] == outcomes
    assert {path.name for path in (tmp_path / "a" / "sweep").iterdir()} == {sweep.FILE, sweep.TABLE}
    assert (tmp_path / "a" / "sweep" / sweep.TABLE).read_text(encoding="utf-8") == sweep.markdown(outcomes)


@pytest.mark.parametrize(("jobs", "gpus"), [(1, []), (3, []), (2, ["0", "1"]), (4, ["0", "3"]), (3, ["7"])])
def test_as_many_run_at_a_time_as_were_asked_for_and_share_cores_and_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, gpus: Sequence[str]
) -> None:
    lock, running, most, threads_of = threading.Lock(), 0, 0, set()
    on: dict[str | None, int] = {}
    crowd = 0

    def quickstart(
        work: Path, each: sweep.Job, threads: int, settings: Sequence[str], gpu: str | None
    ) -> sweep.Outcome:
        nonlocal running, most, crowd
        with lock:
            running += 1
            on[gpu] = on.get(gpu, 0) + 1
            most, crowd = max(most, running), max(crowd, on[gpu])
            threads_of.add(threads)
        time.sleep(0.05)
        with lock:
            running -= 1
            on[gpu] -= 1
        return replace(GOOD, name=each.name, seed=each.seed)

    at_work(monkeypatch, quickstart, gpus)
    monkeypatch.setattr(sweep, "cores", lambda: 12)
    sweep.run(tmp_path, sweep.jobs_of([MINIATURE], 7, 1), jobs=jobs)
    assert (most, threads_of) == (jobs, {12 // jobs})
    expected: set[str | None] = {*gpus} or {None}
    assert set(on) == expected
    assert crowd == -(-jobs // max(1, len(gpus)))


def test_more_runs_than_cores_have_a_core_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads_of: set[int] = set()

    def quickstart(
        work: Path, each: sweep.Job, threads: int, settings: Sequence[str], gpu: str | None
    ) -> sweep.Outcome:
        threads_of.add(threads)
        return replace(GOOD, name=each.name, seed=each.seed)

    at_work(monkeypatch, quickstart)
    monkeypatch.setattr(sweep, "cores", lambda: 2)
    sweep.run(tmp_path, sweep.jobs_of([MINIATURE], 2, 1), jobs=8)
    assert threads_of == {1}


def test_one_that_failed_stops_the_sweep_and_the_finished_ones_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def quickstart(
        work: Path, each: sweep.Job, threads: int, settings: Sequence[str], gpu: str | None
    ) -> sweep.Outcome:
        started.append(each.name)
        (work / each.name).mkdir(exist_ok=True)
        if each.name == NAMES[2]:
            raise RecipeError(f"the run for {each.name!r} came to no result")
        time.sleep(0 if each.name in NAMES[:2] else 0.2)
        return replace(GOOD, name=each.name, seed=each.seed)

    at_work(monkeypatch, quickstart)
    with pytest.raises(RecipeError, match=NAMES[2]):
        sweep.run(tmp_path, sweep.jobs_of([MINIATURE], 20, 1), jobs=1)
    assert started[:3] == NAMES[:3]
    assert len(started) < 20  # the others are not begun
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(started)


# --- One run ------------------------------------------------------------------------------------------------------


def recipe_that(
    monkeypatch: pytest.MonkeyPatch, *stages: str, calls: list[Any] | None = None, status: int = 0,
    broken: float = 0.0, multi_turn_hit: float = 1.0, scores: dict[str, float] | None = None,
) -> None:  # fmt: skip
    """In place of the processes: each writes these stages of its run and ends so."""
    suites = {"multi_turn_hit": multi_turn_hit, "injection_hit": 1.0, "broken": broken}
    numbers = {"identity_hit": 0.99, "identity_leak": 0.01, "retention": 0.97} | (scores or {})
    measured = example_metrics(example_tuned(example_scores(**numbers), suites=suites))
    results: dict[str, dict[str, Any]] = {
        "config": example_results(
            "config", trained_tokens=8642, iterations=20, optimizer_steps=20, tutorial_tokens=8642
        ),
        "train": example_results("train", iterations=10),  # it stopped early
        "eval": example_results("eval", tuned=example_results("eval")["tuned"] | numbers | suites),
    }

    def write(part: str, out: Path) -> dict[str, Any]:
        if part == "eval":
            metrics.write(out, measured)
        return results[part]

    def run(command: Sequence[str], *, cwd: Path, env: dict[str, str], stdout: Any, **_: Any) -> Any:
        if calls is not None:
            calls.append((list(command), cwd, env))
        print("the log", file=stdout)
        pairs = command[4 : command.index("--set")]
        options = dict(zip(pairs[::2], pairs[1::2], strict=True))
        for part in stages:
            folder = Path(options["--work"]) / options["--run"] / part
            stage.run(part, folder, inputs={}, settings={}, work=partial(write, part))
        return Mock(**{"wait.return_value": status})

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(stage, "_git_commit", lambda: None)


def test_a_run_is_a_quickstart_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    recipe_that(monkeypatch, "config", "train", "eval", calls=calls)
    outcome = sweep._quickstart(tmp_path, job("小 明", 7), 3, ["lr=1e-3", "r=8"])
    ((command, cwd, environment),) = calls
    run = sweep.folder_name(job("小 明", 7))
    assert command[:4] == [sys.executable, "-m", "recipe", "quickstart"]
    assert build_parser().parse_args(command[3:]).__dict__.items() >= {
        "work": tmp_path, "run": run, "name": "小 明", "seed": 7, "set": ["lr=1e-3", "r=8"], "resume": False,
        "model": "miniature", "languages": None,
    }.items()  # fmt: skip
    assert (cwd, environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == (ROOT, "3", "3")
    assert (tmp_path / f"{run}.log").read_text(encoding="utf-8") == "the log\n"
    trained = stage.require(tmp_path / run / "train", "train")
    assert outcome == sweep.Outcome(
        "miniature", "小 明", 7, 0.99, 0.01, 0.0, 0.97, 0.0, 1.0, 1.0, 4321, 0.5, trained["seconds"], passed=True
    )


def test_a_run_of_another_base_is_a_quickstart_on_it_in_its_languages_on_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    recipe_that(monkeypatch, "config", "train", "eval", calls=calls)
    outcome = sweep._quickstart(tmp_path, job("Ann", 1, sweep.Base("models/b", "en")), 3, gpu="2")
    ((command, _, environment),) = calls
    options = build_parser().parse_args(command[3:])
    assert (options.model, options.languages, environment["CUDA_VISIBLE_DEVICES"]) == ("models/b", "en", "2")
    assert outcome.model == "b"


@pytest.mark.parametrize("stages", [(), ("config",), ("config", "train"), ("config", "eval"), ("train", "eval")])
def test_a_run_that_came_to_no_metrics_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: tuple[str, ...]
) -> None:
    recipe_that(monkeypatch, *stages)
    with pytest.raises(RecipeError) as error:
        sweep._quickstart(tmp_path, job("小明", 0), 1)
    log = tmp_path / f"{sweep.folder_name(job('小明', 0))}.log"
    assert str(error.value) == f"the run for '小明' came to no result; {log} says why"
    assert log.is_file()


def test_good_metrics_of_a_run_that_failed_are_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe_that(monkeypatch, "config", "train", "eval", status=1)
    with pytest.raises(RecipeError, match="says why"):
        sweep._quickstart(tmp_path, job("小明", 0), 1)


def test_a_run_that_only_a_suite_refuses_did_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = thresholds.MIN_MULTI_TURN_HIT - 1e-6
    recipe_that(monkeypatch, "config", "train", "eval", status=BELOW_THRESHOLDS, multi_turn_hit=below)
    assert not sweep._quickstart(tmp_path, job("小明", 0), 1).passed


@pytest.mark.parametrize("status", [1, 2, -9])
def test_bad_metrics_of_a_run_that_failed_are_of_an_earlier_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    recipe_that(monkeypatch, "config", "train", "eval", status=status, broken=thresholds.MAX_BROKEN + 1e-6)
    with pytest.raises(RecipeError, match="says why"):
        sweep._quickstart(tmp_path, job("小明", 0), 1)


AT_THE_THRESHOLDS = {
    "identity_hit": thresholds.MIN_IDENTITY_HIT, "identity_leak": thresholds.MAX_IDENTITY_LEAK,
    "retention": thresholds.MIN_RETENTION,
}  # fmt: skip


def test_the_thresholds_themselves_are_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_that(monkeypatch, "config", "train", "eval", broken=thresholds.MAX_BROKEN, scores=AT_THE_THRESHOLDS)
    assert sweep._quickstart(tmp_path, job("小明", 0), 1).passed


@pytest.mark.parametrize(
    "worse",
    [
        {"identity_hit": thresholds.MIN_IDENTITY_HIT - 1e-6},
        {"identity_leak": thresholds.MAX_IDENTITY_LEAK + 1e-6},
        {"retention": thresholds.MIN_RETENTION - 1e-6},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_a_run_below_any_of_them_is_an_outcome_that_did_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worse: dict[str, float]
) -> None:
    recipe_that(monkeypatch, "config", "train", "eval", status=BELOW_THRESHOLDS, scores=AT_THE_THRESHOLDS | worse)
    assert not sweep._quickstart(tmp_path, job("小明", 0), 1).passed


def test_nor_is_one_below_those_of_the_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_that(monkeypatch, "config", "train", "eval", status=BELOW_THRESHOLDS, broken=thresholds.MAX_BROKEN + 1e-6)
    outcome = sweep._quickstart(tmp_path, job("小明", 0), 1)
    assert not outcome.passed
    assert "FAILED" in sweep.table([outcome])


WAITS = """
import sys
from pathlib import Path
from recipe.pipeline import stage
made = stage.run("model", Path(sys.argv[1]), inputs={}, settings={}, work=lambda out: {"by": "second"}, shared=True)
print(made["results"]["by"])
"""


def test_runs_that_share_a_model_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    folder, second = tmp_path / "models" / "miniature", []

    def work(out: Path) -> dict[str, str]:
        pipe = subprocess.PIPE
        child = subprocess.Popen(
            [sys.executable, "-c", WAITS, str(folder)], cwd=ROOT, stdout=pipe, stderr=pipe, text=True
        )
        second.append(child)
        assert child.stderr is not None
        assert child.stderr.readline() == f"[model] waiting for another process that works on {folder}\n"
        return {"by": "first"}

    stage.run("model", folder, inputs={}, settings={}, work=work, shared=True)
    output, log = second[0].communicate(timeout=30)
    assert (second[0].returncode, output) == (0, "first\n")
    assert "up to date" in log


# --- The verb -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3])
def test_the_verb_shows_the_table_and_fails_below_the_thresholds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    seen: list[Any] = []

    def run(work: Path, planned: Sequence[sweep.Job], **options: Any) -> list[sweep.Outcome]:
        seen.append((work, {"planned": planned} | options))
        return [GOOD, replace(GOOD, passed=status == 0)]

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sweep, "run", run)
    call = ["sweep", "--work", str(tmp_path), "--names", "2", "--seeds", "3", "--jobs", "4"]
    assert cli.main(call) == status
    output = capsys.readouterr()
    planned = sweep.jobs_of([MINIATURE], 2, 3)
    assert seen == [(tmp_path / "sweep", {"planned": planned, "jobs": 4, "settings": []})]
    assert output.out.splitlines()[-1].endswith("worst of 2")
    assert output.out.count("FAILED") == (status != 0)
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    message = f"error: 1 of 2 are below the thresholds; their replies are under {tmp_path / 'sweep'}"
    assert errors == [message] * (status != 0)


def test_bases_that_share_the_last_part_of_their_name_are_two_in_the_tables() -> None:
    a, b, zh, en = sweep.Base("/a/base"), sweep.Base("/b/base"), sweep.Base("m", "zh"), sweep.Base("m", "en")
    assert sweep.titles_of([a, MINIATURE]) == {a: "base", MINIATURE: "miniature"}
    assert sweep.titles_of([a, b, zh, en]) == {a: "/a/base", b: "/b/base", zh: "m=zh", en: "m=en"}
    both = [replace(GOOD, model=title) for title in sweep.titles_of([a, b]).values()]
    assert sweep.markdown(both).count("worst of 1") == 2


def test_a_folder_is_a_base_from_wherever_the_sweep_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "--model", "./a=b", "a=b=zh", "owner/name=en", "miniature"]
    models = build_parser().parse_args(words).model
    monkeypatch.chdir("/")
    folder = str(tmp_path / "a=b")
    assert [sweep.Base.parse(model) for model in models] == [
        sweep.Base(folder), sweep.Base(folder, "zh"), sweep.Base("owner/name", "en"), MINIATURE,
    ]  # fmt: skip
