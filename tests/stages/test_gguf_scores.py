"""Stage `gguf` asks the weights of its files what `eval` asked: a file that lost the name shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import full_card
from example_results import example_metrics, example_results, example_tuned
from small_evaluation import ASKED, replies
from test_export import merged_from

from recipe.checkpoint import gguf_file
from recipe.corpus.identity import Identity
from recipe.errors import RecipeError
from recipe.evaluation import generation, metrics
from recipe.evaluation.metrics import Names, Scores
from recipe.evaluation.scoring import known_to_base, score
from recipe.paths import MINIATURE
from recipe.pipeline import results, stage
from recipe.pipeline.results import GgufResults
from recipe.stages import evaluate, gguf, model

# What the miniature says that it is, so that it stands for a tuned model; a base would not say that.
NAMED = Identity("书生·浦语", "InternLM")
BASE = ["我是一个助手。", "I am an assistant.", "我没有名字。", "People."]
KNOWN = ["It is Paris.", "日本的首都是东京。", "3 plus 4 is 7.", "Knock, knock."]
ROOM = 40
F16, Q8_0, Q4_0 = gguf.FILES


@pytest.fixture(autouse=True)
def _eight_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "prompts", lambda **_: ASKED)


def write_evaluation(run: Path, base: Path, tuned: Scores | None = None, **noted: Any) -> None:
    """What `eval` leaves of the merged model. tuned: its numbers. noted: in the manifest."""
    shutil.rmtree(run / "eval", ignore_errors=True)
    by_base = replies(*BASE, *KNOWN)
    scores, judged = score(ASKED, by_base, by_base, NAMED, known_to_base(ASKED, by_base))
    measured = replace(example_metrics(example_tuned(tuned or scores)), max_new_tokens=ROOM)
    measured = replace(measured, identity=Names(NAMED.name, NAMED.assistant, None))
    measured = replace(measured, base=replace(measured.base, scores=scores, replies=judged))
    folders = {"model": base, "train": run / "train", "tuned": run / "merged", "data": run / "data"}

    def work(out: Path) -> dict[str, Any]:
        metrics.write(out, measured)
        return example_results("eval")

    settings = evaluate._settings(base, run / "data")
    manifest = stage.run("eval", run / "eval", inputs=folders, settings=settings, work=work)
    content = json.dumps({**manifest, "phases": {"generate": 30.0}, **noted})
    (run / "eval" / stage.MANIFEST).write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose merged model is the miniature itself, not evaluated yet."""
    work = tmp_path_factory.mktemp("gguf_scores")
    run = work / "main"
    model.make(work / "models" / "base", model=str(MINIATURE))
    merged_from(work / "models" / "base", run / "merged")
    row = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]}
    for name, file, content in (("data", "train.jsonl", json.dumps(row)), ("train", "iter_60.pth", "")):

        def work_of(out: Path, name: str = name, file: str = file, content: str = content) -> dict[str, Any]:
            (out / file).write_text(content, encoding="utf-8")
            return example_results(name)

        stage.run(name, run / name, inputs={}, settings={}, work=work_of)
    return run


@pytest.fixture
def run(finished: Path) -> Path:
    """The same run, evaluated, without GGUF files."""
    shutil.rmtree(finished / "gguf", ignore_errors=True)
    write_evaluation(finished, finished.parent / "models" / "base")
    return finished


def make(run: Path, **changes: Any) -> GgufResults:
    options: dict[str, Any] = {"evaluation": run / "eval"} | changes
    return results.of(gguf.make(run / "gguf", model=run / "merged", run="main", **options), GgufResults)


def test_each_file_has_its_numbers_by_the_prompts_and_the_room_of_eval(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, asked = generation.answer, []

    def listen(loaded: Any, tokenizer: Any, conversations: Any, **settings: Any) -> Any:
        asked.append((conversations, settings["max_new_tokens"], settings["progress"]))
        return answer(loaded, tokenizer, conversations, **settings)

    monkeypatch.setattr(generation, "answer", listen)
    scores = make(run).scores
    assert list(scores) == gguf.FILES
    assert {(each.identity_hit, each.identity_leak) for each in scores.values()} == {(1.0, 0.0)}
    assert scores[F16].counts["identity_questions"] == 4
    assert scores[F16].counts["facts_base_knew"] == 3
    assert [progress for _, _, progress in asked] == [f"gguf {file}: questions and facts" for file in gguf.FILES]
    assert all(conversations == ASKED.conversations() for conversations, _, _ in asked)
    assert all(ROOM < room < ROOM + 30 for _, room, _ in asked)  # and the names
    said = capsys.readouterr().err
    # Of 30 seconds for 16 conversations of both models, those for 3 times 8.
    assert "asking the weights of 3 files the 8 prompts of `eval`: about 45 seconds; UNVERIFIED=1" in said


def spoil(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Let the files of a kind hold blocks whose values are rolled by one: none is what it was."""
    right = gguf_file._values

    def values(name: str, tensor: torch.Tensor, type_: Any, each: Callable[..., Any]) -> Any:
        return right(name, tensor.roll(1, -1) if type_.name == kind else tensor, type_, each)

    monkeypatch.setattr(gguf_file, "_values", values)


def test_a_broken_file_of_4_bits_loses_the_name_and_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "Q4_0")
    scores = make(run).scores
    assert scores[F16].identity_hit == scores[Q8_0].identity_hit == 1.0
    assert scores[Q4_0].identity_hit < 0.5
    line = gguf.verdict(scores, run / "eval")
    assert "\n" not in line
    assert line.startswith("hit/leak/retention: tuned 0.000/0.000/1.000, model-f16.gguf 1.000/0.000/")
    (failed,) = line.split("below the thresholds: ")[1:]
    assert failed.startswith(f"{Q4_0} (identity_hit")
    assert F16 not in failed


def test_rows_left_in_llama_cpp_s_order_would_lose_what_it_knows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(run).scores[F16].retention == 1.0
    shutil.rmtree(run / "gguf")
    monkeypatch.setattr(gguf_file, "split_halves", lambda values, heads: values)
    assert make(run).scores[F16].retention == 0.0


def when_written(run: Path) -> int:
    return (run / "gguf" / F16).stat().st_mtime_ns


def test_unverified_writes_the_files_alone_and_keeps_what_was_measured(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(run, unverified=True).scores == {}
    assert "asking" not in capsys.readouterr().err
    assert gguf.scores_beside(stage.read_manifest(run / "gguf"), run / "eval") == {}
    measured = make(run).scores
    before = when_written(run)
    assert make(run, unverified=True).scores == measured == make(run).scores
    assert when_written(run) == before


def test_a_result_that_was_not_evaluated_is_not_asked_and_the_line_says_what_to_do(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "eval")
    assert make(run).scores == {}
    assert "is not of this merged model: `make eval gguf RUN=main` evaluates it first" in capsys.readouterr().err
    before = when_written(run)
    assert make(run, unverified=True).scores == {}
    assert "not asked" not in capsys.readouterr().err
    assert when_written(run) == before
    write_evaluation(run, run.parent / "models" / "base")
    assert list(make(run).scores) == gguf.FILES


@pytest.mark.parametrize("role", ["tuned", "data", "model", "train"])
def test_an_evaluation_of_something_else_is_none(run: Path, role: str) -> None:
    manifest = json.loads((run / "eval" / stage.MANIFEST).read_text(encoding="utf-8"))
    manifest["key"]["inputs"][role] = "0" * 64
    (run / "eval" / stage.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert make(run).scores == {}


def test_other_prompts_than_this_version_s_are_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate.is_of(run / "eval", run / "merged")
    monkeypatch.setattr(evaluate, "prompts", lambda **_: replace(ASKED, identity=["Who?"]))
    assert not evaluate.is_of(run / "eval", run / "merged")
    assert not evaluate.is_of(run / "none", run / "merged")


def test_numbers_beside_another_evaluation_are_not_shown(run: Path) -> None:
    make(run)
    manifest = stage.read_manifest(run / "gguf")
    assert list(gguf.scores_beside(manifest, run / "eval")) == gguf.FILES
    assert gguf.scores_beside(None, run / "eval") == {}
    tuned = example_tuned().scores
    write_evaluation(run, run.parent / "models" / "base", replace(tuned, identity_hit=0.5))
    assert gguf.scores_beside(manifest, run / "eval") == {}


def test_an_evaluation_on_a_gpu_is_no_forecast_for_a_cpu(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_evaluation(run, run.parent / "models" / "base", gpu_peak_mib=4000, phases={"generate": 3600.0})
    make(run)
    assert "about 90 minutes on the GPU that `eval` had, and much longer on this CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "of `eval`; "), (66.0, ": about 99 seconds; "), (16_000.0, ": about 7 hours; ")]
)
def test_the_time_is_said_before_where_the_evaluation_noted_it(
    run: Path, seconds: float, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(run, run.parent / "models" / "base", phases={"generate": seconds} if seconds else {})

    def stop(*_: Any) -> Any:
        raise RecipeError("far enough")

    monkeypatch.setattr(generation, "load", stop)
    with pytest.raises(RecipeError, match="far enough"):
        make(run)
    assert f"{words}UNVERIFIED=1" in capsys.readouterr().err


def test_a_full_card_is_one_line_with_the_way_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "load", full_card)
    with pytest.raises(RecipeError, match=r"CUDA out of memory.*UNVERIFIED=1 writes the files without$") as caught:
        make(run)
    assert "\n" not in str(caught.value)
    assert not (run / "gguf").exists()
