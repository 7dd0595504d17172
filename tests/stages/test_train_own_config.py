"""A config of the user's own: one of XTuner's, copied and edited as its course does it, trains and converts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tracker_service import Service

from recipe.cli.parser import build_parser
from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.stages import convert, train
from recipe.training import builtin_configs, resolved_config

NAME = "internlm2_1_8b_qlora_alpaca_e3"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """What XTuner's course writes: a JSON list of `messages`."""
    turns = [{"role": "user", "content": "请介绍一下你自己"}, {"role": "assistant", "content": "我是小明的小助手"}]
    file = tmp_path / "data" / "personal_assistant.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"messages": turns}] * 200, ensure_ascii=False), encoding="utf-8")
    return file


def edited(folder: Path, model: Path, rows: str, **more: str) -> Path:
    """The copy after the course's edits: model, data, map function, length, batches and questions."""
    file = builtin_configs.copy_builtin(NAME, folder)
    text = file.read_text(encoding="utf-8")
    changes = {
        "pretrained_model_name_or_path = 'internlm/internlm2-1_8b'": f"pretrained_model_name_or_path = '{model}'",
        "dataset=dict(type=load_dataset, path=alpaca_en_path)": f"dataset=dict(type=load_dataset, path='json', {rows})",
        "dataset_map_fn=alpaca_map_fn": "dataset_map_fn=openai_map_fn",
        "import alpaca_map_fn": "import openai_map_fn",
        "max_length = 2048": "max_length = 256",
        "accumulative_counts = 16": "accumulative_counts = 1",
        "max_epochs = 3": "max_epochs = 2",
    } | more
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")
    return file


# What the user of a machine without a GPU changes besides: this one trains in float32, and its tests are quick.
ON_THE_CPU = {
    "import AmpOptimWrapper": "import OptimWrapper",
    "type=AmpOptimWrapper": "type=OptimWrapper",
    "    loss_scale='dynamic',\n    dtype='float16')": ")",
    "torch_dtype=torch.float16,": "torch_dtype=torch.float32),",
    "backend='nccl'": "backend='gloo'",
    "logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10)": "logger=dict(type=LoggerHook, interval=1)",
    "r=64": "r=4",
    "remove_unused_columns=True,": "remove_unused_columns=True, map_num_proc=1,",
}


def edited_for_the_cpu(folder: Path, model: Path, rows: Path) -> Path:
    """The copy after the course's edits and those of `ON_THE_CPU`, in full precision and without sample replies."""
    own = edited(folder, model, f"data_files=dict(train='{rows}')", **ON_THE_CPU)
    text = own.read_text(encoding="utf-8")
    start, end = text.index("        quantization_config="), text.index("    lora=dict(")
    text = text[:start] + text[end:]
    start, end = text.index("    dict(\n        type=EvaluateChatHook"), text.index("]\n\nif use_varlen_attn")
    own.write_text(text[:start] + text[end:], encoding="utf-8")  # its replies are as long as the model reads
    return own


def test_a_copied_config_trains_and_converts(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    own = edited_for_the_cpu(tmp_path, tiny_model, rows)
    manifest = train.make(tmp_path / "train", config=own, resume=False, deepspeed=None, program=True)
    assert manifest["inputs"]["data_0"] == str(rows)
    assert set(manifest["inputs"]) == {"config", "model", "data_0"}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train" / train.LOSSES).read_text().splitlines()]
    assert losses[-1] < losses[0]
    convert.make(tmp_path / "adapter", train_folder=tmp_path / "train", checkpoint=None)
    assert stage.read_manifest(tmp_path / "adapter")


def test_a_copied_config_s_losses_reach_a_tracker(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.setitem(sys.modules, "mlflow", service := Service("mlflow"))
    own = edited_for_the_cpu(tmp_path, tiny_model, rows)
    out = tmp_path / "train"
    train.make(out, config=own, resume=False, deepspeed=None, program=True, tracker="mlflow")
    losses = {each["step"]: each["loss"] for each in map(json.loads, (out / train.LOSSES).read_text().splitlines())}
    assert {step: row["loss"] for step, row in service.rows.items()} == losses
    assert service.calls[-1] == "end FINISHED"
    assert "MLflow" not in (out / train.CONFIG).read_text(encoding="utf-8")


def refusal(own: Path) -> str:
    with pytest.raises(RecipeError) as error:
        train.make(own.parent / "train", config=own, resume=False, deepspeed=None, program=True)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_gpu_the_copy_needs_one(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "has_gpu", lambda: False)
    assert "needs a GPU" in refusal(edited(tmp_path, tiny_model, f"data_files='{rows}'"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("data_files=dict(train='nowhere.json')", "names nowhere.json, which is no file"),
        ("data_files='/'", "names /, which is no file"),
        ("split='train'", "names no file with rows"),
    ],
)
def test_data_that_is_no_file_is_named(
    data: str, reason: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "has_gpu", lambda: True)
    assert reason in refusal(edited(tmp_path, tiny_model, data))


def test_a_model_that_is_not_prepared_is_answered_with_the_command(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "has_gpu", lambda: True)
    message = refusal(edited(tmp_path, Path("internlm/internlm2-chat-1_8b"), f"data_files='{rows}'"))
    assert "run `make model MODEL=internlm/internlm2-chat-1_8b`" in message
    assert "pretrained_model_name_or_path = 'work/models/internlm2-chat-1_8b'" in message


@pytest.mark.parametrize("form", ["a", ["a"], {"train": "a"}, {"train": ["a"]}])
def test_data_files_take_every_form_of_load_dataset(form: object) -> None:
    assert resolved_config.data_files({"dataset": {"path": "json", "data_files": form}}) == ["a"]


def test_data_of_several_sets_is_found_in_its_order() -> None:
    sets = [{"dataset": {"data_files": {"train": ["a", "b"]}}}, {"dataset": {"data_files": "c"}}]
    assert resolved_config.data_files({"type": "ConcatDataset", "datasets": sets}) == ["a", "b", "c"]


def test_xtuners_names_of_deepspeed_are_taken() -> None:
    options = build_parser().parse_args(["train", "--deepspeed", "deepspeed_zero2"])
    assert options.deepspeed == "zero2"
