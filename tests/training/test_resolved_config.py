"""A resolved config is read as data, whoever wrote it: nothing in it runs, and it names no other code than presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe.errors import RecipeError
from recipe.stages import config
from recipe.training import resolved_config
from recipe.training.without_gpu import for_cpu


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.py"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("preset", config.presets())
@pytest.mark.parametrize("cpu", [False, True])
def test_every_preset_is_read_as_mmengine_reads_it_and_names_no_other_code(
    tmp_path: Path, preset: str, *, cpu: bool
) -> None:
    from mmengine.config import Config

    resolved = config.load_preset(preset)
    config.fill(resolved, model=tmp_path, files=[tmp_path / "data" / "rows.jsonl"], seed=3)
    if cpu:
        for_cpu(resolved)
    resolved.dump(file := tmp_path / "config.py")
    read = resolved_config.read(file)
    assert read.to_dict() == Config.fromfile(file).to_dict()
    resolved_config.refuse_other_code(read, file)


def test_keys_that_are_no_identifiers_and_values_of_every_kind(tmp_path: Path) -> None:
    from mmengine.config import Config

    content = {"model": {"a-b": [1, -2.5, 1e-05, (True, None)], "c": {"d": "小明 \\ '\""}, "e": {}}}
    Config(content).dump(file := tmp_path / "config.py")
    assert resolved_config.read(file).to_dict() == content


PROGRAMS = [
    "import os\nmodel = dict()",
    "model = __import__('os').system('touch {ran}')",
    "model = dict(a=open('{ran}', 'w'))",
    "model = dict(**dict(a=1))",
    "model = dict([('a', 1)])",
    "model = [open('{ran}', 'w') for _ in 'a']",
    "open('{ran}', 'w')",
    "if open('{ran}', 'w'):\n    model = dict()",
    'model = f\'{{open("{ran}", "w")}}\'',
    "model = 'a' + 'b'",
    "model = '{{$HOME:x}}'",
    "model.llm = 1",
    "model = dict(",
    "model = " + "(" * 5000 + ")" * 5000,
    "model = '\x00'",
    "filename = 'a'",
]


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_is_refused_in_one_line_and_not_run(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text.replace("{ran}", str(tmp_path / "ran")))
    with pytest.raises(RecipeError, match=r"config\.py: is not the data that stage `config` writes") as error:
        resolved_config.read(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_text_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is not the data"):
        resolved_config.read(tmp_path / "config.py")
    with pytest.raises(RecipeError, match="no such config; run `make config` first"):
        resolved_config.read(tmp_path / "none.py")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"_base_": "other.py"}, "_base_ is no setting of a preset"),
        ({"custom_imports": {"imports": ["evil"]}}, "custom_imports is no setting of a preset"),
        ({"model": {"type": "os.system", "command": "true"}}, "type='os.system' is code that no preset uses"),
        ({"custom_hooks": [{"type": "mmengine.fileio.load", "file": "a.pkl"}]}, "'mmengine.fileio.load' is code"),
        ({"train_dataloader": {"dataset": {"dataset_map_fn": "os.system"}}}, "dataset_map_fn='os.system' is code"),
        ({"optim_wrapper": {"optimizer": {"type": "torch.optim.sgd.torch.os.system"}}}, "is code that no preset uses"),
        ({"model": {"llm": {"trust_remote_code": True}}}, "trust_remote_code is on"),
        # datasets reads a file of pandas' as a pickle, and what is no format of its own as a hub's repository.
        ({"train_dataloader": {"dataset": {"dataset": {"type": "datasets.load_dataset", "path": "pandas"}}}},
         "load_dataset with path='pandas' may run code"),
        ({"train_dataloader": {"dataset": {"type": "datasets.load_dataset", "path": "owner/name"}}},
         "load_dataset with path='owner/name'"),
        ({"default_hooks": {"logger": {"out_dir": "/"}}}, "out_dir='/' is a place"),
        ({"default_hooks": {"checkpoint": {"filename_tmpl": "../../{}"}}}, "filename_tmpl='../../{}' is a place"),
        ({"visualizer": {"vis_backends": [{"config_save_file": "../a.py"}]}}, "config_save_file='../a.py' is a place"),
    ],
)  # fmt: skip
def test_data_that_lead_the_trainer_to_other_code_are_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    from mmengine.config import Config

    with pytest.raises(RecipeError, match="CONFIG=") as error:
        resolved_config.refuse_other_code(Config(change), tmp_path / "config.py")
    assert reason in str(error.value)


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD", "bitsandbytes.optim.PagedAdamW8bit"])
def test_another_optimizer_may_be_chosen(tmp_path: Path, optimizer: str) -> None:
    from mmengine.config import Config

    resolved_config.refuse_other_code(Config({"optim_wrapper": {"optimizer": {"type": optimizer}}}), tmp_path)
