"""A tokenizer is read once for folders of the same files, and anew when a file changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recipe.checkpoint.loaded_tokenizer import AUTO_TOKENIZER, build_tokenizer, load_tokenizer
from recipe.errors import RecipeError


@pytest.fixture
def folder(base_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_model, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "base"


def test_folders_of_the_same_files_share_one(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "merged")
    (tmp_path / "merged" / "manifest.json").write_text("{}")
    assert load_tokenizer(folder) is load_tokenizer(tmp_path / "merged")


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    before = load_tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    after = load_tokenizer(folder)
    assert after is not before
    assert after.model_max_length == 77


def test_settings_make_it_another(folder: Path) -> None:
    assert load_tokenizer(folder, padding_side="right").padding_side == "right"
    assert load_tokenizer(folder).padding_side == "left"


def test_what_a_config_describes_is_read_once_whichever_way_it_names_the_call(folder: Path) -> None:
    from transformers import AutoTokenizer

    named = {"type": AUTO_TOKENIZER, "pretrained_model_name_or_path": str(folder), "padding_side": "right"}
    assert build_tokenizer(named) is build_tokenizer(named | {"type": AutoTokenizer.from_pretrained})


def test_another_call_is_left_to_xtuner(folder: Path) -> None:
    described = {"type": lambda **arguments: arguments, "pretrained_model_name_or_path": str(folder)}
    assert build_tokenizer(described) == {"pretrained_model_name_or_path": str(folder)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"x": 1.5}, "merges": []}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": 3}}),
        ("tokenizer_config.json", {"tokenizer_class": ["x"]}),
    ],
)
def test_what_is_no_tokenizer_is_one_line(folder: Path, name: str, change: dict[str, Any]) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(RecipeError, match="its tokenizer cannot be read") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
