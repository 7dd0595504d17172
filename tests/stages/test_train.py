"""XTuner's trainer under stage `train`, on the tiny model: what it leaves, and that a stop loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from replay_folder import write_replay
from safetensors.torch import load_file, save_file
from tracker_service import Service

from recipe.checkpoint import finite, lora
from recipe.corpus.identity import Identity
from recipe.errors import RecipeError
from recipe.evaluation import checkpoint_selection
from recipe.evaluation.scoring import Prompts
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.stages import config, data, train
from recipe.training import resolved_config, xtuner
from recipe.training.sizes import LIKELIEST, TEACHER_FILE

SETTINGS = ["max_iters=12", "save_steps=4", "batch_size=1", "max_length=256", "r=4", "lr=1e-2",
"param_scheduler.0.end=2",
            "param_scheduler.1.begin=2"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_questions() -> Iterator[None]:
    """Of what scores a checkpoint: a random model answers each at full length."""
    selection = checkpoint_selection.prompts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_selection, "prompts", lambda **_: Prompts(selection.identity[:2], selection.facts[:2]))
        yield


@pytest.fixture(scope="module")
def prepared(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with data, replay and a resolved config for twelve iterations of the tiny model.

    Not in 4 bits, whose CPU kernel wants more columns than it has; test_pipeline trains the miniature so.
    """
    run = tmp_path_factory.mktemp("run")
    data.make(run / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0)

    answer = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    write_replay(run / "replay", tiny_model, [answer])  # a random model has none
    config.make(
        run / "config", preset="lora", model=tiny_model, data_folder=run / "data", replay_folder=run / "replay",
        settings=SETTINGS, seed=0,
    )  # fmt: skip
    return run


def fit(run: Path, out: str, **options: Any) -> stage.Manifest:
    options = {"resume": False, "deepspeed": None} | options
    return train.make(run / out, config=run / "config" / config.FILE, **options)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            "training failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.; "
            "SET='batch_size=1' and PRESET=qlora need less memory, and `make config` predicts how much",
        ),
        (RuntimeError("a kernel failed"), "training failed: a kernel failed; the end of "),
        (KeyError("lr"), "training failed: KeyError: 'lr'; the end of "),
        (ValueError(), "training failed: ValueError:; the end of "),
        (ValueError("x" * 1000), f"training failed: ValueError: {'x' * 188}…; the end of "),
    ],
)
def test_what_it_fails_with_is_said_in_one_line(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(xtuner, "run", fail)
    with pytest.raises(RecipeError) as caught:
        fit(prepared, "failed")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (prepared / "failed").exists()


def sign_anew(folder: Path) -> None:
    """Have the manifest of a stage's folder say what its files hold now."""
    manifest = json.loads((folder / stage.MANIFEST).read_text(encoding="utf-8"))
    for name, entry in manifest["outputs"].items():
        file = folder / name
        entry |= {"sha256": stage.file_sha256(file), "bytes": file.stat().st_size, "mtime_ns": file.stat().st_mtime_ns}
    (folder / stage.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_base_that_is_no_numbers_is_named_and_not_lr(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, tensor: str
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    spoilt = load_file(base / "model.safetensors")
    spoilt[tensor].view(-1)[3] = value
    save_file(spoilt, base / "model.safetensors", {"format": "pt"})
    sign_anew(base)
    stage.require(base, "model")  # nobody but its values tells
    data.make(tmp_path / "data", identity=Identity("小明"), mode="tutorial", own=None, n=500, seed=0)
    config.make(
        tmp_path / "config", preset="tutorial", model=base, data_folder=tmp_path / "data",
        replay_folder=tmp_path / "replay", settings=["max_length=256"], seed=0,
    )  # fmt: skip
    monkeypatch.setattr(xtuner, "run", lambda _, **__: pytest.fail("it trained"))
    with pytest.raises(
        RecipeError, match=rf"base/model.safetensors: {tensor} holds .*remove .*/base and run `make mod"
    ):
        fit(tmp_path, "train")
    assert not (tmp_path / "train").exists()


def test_distributions_of_the_base_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    file = tmp_path / "replay" / TEACHER_FILE
    file.parent.mkdir()
    log_probs = torch.full((5, LIKELIEST), -2.0, dtype=torch.float16)
    for spoilt, refused in ((log_probs, False), (log_probs / 0, True)):
        save_file({"counts": torch.tensor([5]), "log_probs": spoilt}, file)
        with pytest.raises(RecipeError, match=r"log_probs .*make replay") if refused else contextlib.nullcontext():
            finite.refuse_untrainable(tmp_path / "model", file)


@pytest.fixture(scope="module")
def trained(prepared: Path) -> stage.Manifest:
    return fit(prepared, "train")


def weights(folder: Path, name: str) -> dict[str, Any]:
    return lora.read_checkpoint(folder / name)


def test_it_leaves_checkpoints_losses_replies_and_tensorboard(prepared: Path, trained: stage.Manifest) -> None:
    folder = prepared / "train"
    assert trained["results"]["checkpoints"] == ["iter_4.pth", "iter_8.pth", "iter_12.pth"]
    assert list(checkpoint_selection.read(folder)) == ["iter_4", "iter_8", "iter_12"]
    assert trained["results"]["best"] == "iter_12"  # which learnt nothing worth a name, like the others, but last
    losses = [json.loads(line) for line in (folder / train.LOSSES).read_text().splitlines()]
    assert [record["step"] for record in losses] == list(range(1, 13))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.2
    assert "## Step 12" in (folder / "replies.md").read_text(encoding="utf-8")
    assert list(folder.glob("*/vis_data/events.out.tfevents.*"))


def test_the_learning_rate_rises_then_falls_to_nearly_nothing(prepared: Path, trained: stage.Manifest) -> None:
    rates = [json.loads(line)["lr"] for line in (prepared / "train" / train.LOSSES).read_text().splitlines()]
    peak = rates.index(max(rates))
    assert 0 < peak <= 3
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.1 * max(rates)


def test_nothing_but_the_adapter_is_trained_and_all_of_it(prepared: Path, trained: stage.Manifest) -> None:
    tensors = weights(prepared / "train", "iter_12.pth")
    assert len(tensors) == 2 * 2 * 7  # A and B, two layers, seven linear modules each
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())


def test_the_same_seed_gives_the_same_weights(prepared: Path, trained: stage.Manifest) -> None:
    fit(prepared, "again")
    first, second = (weights(prepared / folder, "iter_12.pth") for folder in ("train", "again"))
    assert all((first[name] == second[name]).all() for name in first)


def test_a_tracker_gets_every_loss_and_score_and_the_result_is_the_same(
    prepared: Path, trained: stage.Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.setitem(sys.modules, "mlflow", service := Service("mlflow"))
    fit(prepared, "tracked", tracker="mlflow")
    lines = (prepared / "tracked" / train.LOSSES).read_text().splitlines()
    losses = {each["step"]: each["loss"] for each in map(json.loads, lines)}
    assert {step: row["loss"] for step, row in service.rows.items()} == losses
    assert [step for step, row in service.rows.items() if "score/hit" in row] == [4, 8, 12]
    assert all({"score/leak", "score/retention"} <= set(service.rows[step]) for step in (4, 8, 12))
    assert service.calls[-1] == "end FINISHED"
    first, second = (weights(prepared / folder, "iter_12.pth") for folder in ("train", "tracked"))
    assert all((first[name] == second[name]).all() for name in first)
    config_of = [(prepared / folder / train.CONFIG).read_bytes() for folder in ("train", "tracked")]
    assert config_of[0] == config_of[1]

    service.rows.clear()
    fit(prepared, "tracked", tracker="mlflow")  # not asked for twice, and says so
    assert service.rows == {}
    assert "TRACK=mlflow: nothing was trained just now, so nothing is logged there" in capsys.readouterr().err
    fit(prepared, "tracked")
    assert "up to date" in capsys.readouterr().err


def test_killed_and_resumed_it_ends_where_it_would_have(prepared: Path, trained: stage.Manifest) -> None:
    code = (
        "import sys; from pathlib import Path; from recipe.stages import train, config; run = Path(sys.argv[1]);"
        "train.make(run / 'killed', config=run / 'config' / config.FILE,"
        " resume=False, deepspeed=None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(prepared)], cwd=ROOT, stderr=subprocess.DEVNULL)
    partial = prepared / ".killed.partial"
    deadline = time.monotonic() + 240
    while not train.checkpoints(partial) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (prepared / "killed").exists()
    with pytest.raises(RecipeError, match="settings changed"):
        fit(prepared, "killed", resume=True, deepspeed="zero2")
    fit(prepared, "killed", resume=True)
    first, second = (weights(prepared / folder, "iter_12.pth") for folder in ("train", "killed"))
    assert all(first[name].allclose(second[name], atol=1e-6) for name in first)
    steps = [json.loads(line)["step"] for line in (prepared / "killed" / train.LOSSES).read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_checkpoint_cut_short_is_not_taken(prepared: Path, trained: stage.Manifest, tmp_path: Path) -> None:
    whole = (prepared / "train" / "iter_8.pth").read_bytes()
    (tmp_path / "iter_8.pth").write_bytes(whole)
    (tmp_path / "iter_12.pth").write_bytes(whole[: len(whole) // 2])
    assert [path.name for path in train.checkpoints(tmp_path)] == ["iter_8.pth"]


def changed_config(run: Path, folder: Path, old: str, new: str) -> Path:
    """The run's config with `new` in place of `old`, as a file of `folder`."""
    text = (run / "config" / config.FILE).read_text(encoding="utf-8")
    assert old in text
    (folder / "config.py").write_text(text.replace(old, new), encoding="utf-8")
    return folder / "config.py"


def test_a_failed_training_fails_and_says_why(prepared: Path, tmp_path: Path) -> None:
    broken = changed_config(prepared, tmp_path, "batch_size=1", "batch_size=0")
    with pytest.raises(
        RecipeError, match=r"training failed: ValueError: batch_size should be .*console\.log says more"
    ):
        train.make(tmp_path / "train", config=broken, resume=False, deepspeed=None)
    assert "ValueError: batch_size" in (tmp_path / ".train.partial" / "console.log").read_text(encoding="utf-8")
    assert not (tmp_path / "train").exists()


def test_a_tracker_learns_that_a_training_failed(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.setitem(sys.modules, "mlflow", service := Service("mlflow"))
    broken = changed_config(prepared, tmp_path, "batch_size=1", "batch_size=0")
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101_000000")  # both begin in the same second
    for tracker in (None, "mlflow"):
        with pytest.raises(RecipeError, match="training failed"):
            train.make(tmp_path / "train", config=broken, resume=False, deepspeed=None, tracker=tracker)
    assert service.calls[-1] == "end FAILED"


def test_a_config_of_before_the_folders_is_refused_in_one_line(prepared: Path, tmp_path: Path) -> None:
    older = changed_config(prepared, tmp_path, "recipe.training.", "recipe.")
    with pytest.raises(
        RecipeError, match=r"config\.py: was written by an older version, recipe\.hooks is .*make config"
    ):
        train.make(tmp_path / "train", config=older, resume=False, deepspeed=None)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("name", ["config.yaml", "config.json", "config.txt"])
def test_a_config_of_ones_own_is_a_py_file(prepared: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("model: !!python/object/apply:os.system ['true']", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"CONFIG= takes a \.py file"):
        train.make(tmp_path / "train", config=tmp_path / name, resume=False, deepspeed=None, program=True)


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise SystemExit", "1 / 0", "model = dict()"])
def test_a_config_of_ones_own_that_ends_or_fails_is_no_success(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"own\.py: cannot be read as an XTuner config"):
        train.make(tmp_path / "train", config=tmp_path / "own.py", resume=False, deepspeed=None, program=True)


@pytest.mark.parametrize("code", [0, None, 1, "bad arguments"])
def test_a_trainer_that_ends_the_process_has_failed(prepared: Path, monkeypatch: pytest.MonkeyPatch, code: Any) -> None:
    def end(_: Any, **__: Any) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(xtuner, "run", end)
    with pytest.raises(RecipeError, match="training failed: SystemExit"):
        fit(prepared, "ended")
    assert not (prepared / "ended").exists()


def test_a_program_in_a_runs_folder_is_not_run(prepared: Path, tmp_path: Path) -> None:
    text = (prepared / "config" / config.FILE).read_text(encoding="utf-8")
    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{text}", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not the data that stage `config` writes"):
        train.make(tmp_path / "train", config=tmp_path / "config.py", resume=False, deepspeed=None)
    assert not (tmp_path / "ran").exists()


def test_of_a_program_the_result_keeps_what_it_came_to(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (prepared / "config" / config.FILE).read_text(encoding="utf-8")
    (tmp_path / "own.py").write_text(f"rank = 2 + 2\n{text}model['lora']['r'] = rank\n", encoding="utf-8")
    monkeypatch.setattr(train, "_launch", lambda *_, **__: None)
    monkeypatch.setattr(train, "_tidy", lambda _: None)
    train.make(tmp_path / "train", config=tmp_path / "own.py", resume=False, deepspeed=None, program=True)
    assert resolved_config.read(tmp_path / "train" / train.CONFIG).model.lora.r == 4


def test_a_loss_that_is_not_finite_fails(tmp_path: Path) -> None:
    (tmp_path / "t" / "vis_data").mkdir(parents=True)
    (tmp_path / "t" / "vis_data" / "scalars.json").write_text('{"loss": NaN, "step": 1}\n')
    (tmp_path / "iter_1.pth").mkdir()
    with pytest.raises(RecipeError, match="lower lr"):
        train._tidy(tmp_path)


def test_unknown_deepspeed_and_missing_config_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="DEEPSPEED=zero9 is none of"):
        fit(prepared, "other", deepspeed="zero9")
    with pytest.raises(RecipeError, match="no such config"):
        train.make(tmp_path / "t", config=tmp_path / "none.py", resume=False, deepspeed=None)


def test_deepspeed_trains_and_its_checkpoint_converts(prepared: Path, tmp_path: Path) -> None:
    once = changed_config(prepared, tmp_path, "interval=4", "interval=12")  # scored in a process with all prompts
    train.make(prepared / "zero", config=once, resume=False, deepspeed="zero2")
    assert list(checkpoint_selection.read(prepared / "zero")) == ["iter_12"]
    tensors = weights(prepared / "zero", "iter_12.pth")
    assert len(tensors) == 2 * 2 * 7
    assert all(tensor.abs().max() > 0 for tensor in tensors.values())
