"""Verb `export`: InternLM2's own layout again, bit for bit what the base came in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipe import export, model, stage
from recipe.errors import RecipeError
from recipe.paths import MINIATURE


def merged_from(base: Path, folder: Path) -> Path:
    """What stage `merge` leaves, of an adapter that changed nothing."""

    def work(out: Path) -> dict[str, Any]:
        for file in base.iterdir():
            if file.is_file() and file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)
        return {}

    stage.run("merge", folder, inputs={"model": base}, settings={}, work=work)
    return folder


@pytest.fixture(scope="module", params=["tiny", "miniature"])
def there_and_back(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a repository in InternLM2's format, its merged Llama model, the export of that)."""
    source = MINIATURE if request.param == "miniature" else request.getfixturevalue("tiny_internlm2")
    work = tmp_path_factory.mktemp("export")
    base = work / "models" / "base"
    model.make(base, model=str(source))
    merged = merged_from(base, work / "main" / "merged")
    export.make(work / "main" / "export", model=merged)
    return source, merged, work / "main" / "export"


def test_every_weight_comes_back_bit_for_bit(there_and_back: tuple[Path, Path, Path]) -> None:
    source, _, out = there_and_back
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].view(torch.int16).equal(tensor.view(torch.int16)), name


def test_config_and_tokenizer_are_internlm2s_and_name_no_code(there_and_back: tuple[Path, Path, Path]) -> None:
    source, _, out = there_and_back
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    original = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert config == {key: value for key, value in original.items() if key != "attn_implementation"}
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    named = {
        i: token["content"]
        for i, token in json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))[
            "added_tokens_decoder"
        ].items()
    }
    theirs = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    assert named == {i: token["content"] for i, token in theirs.items()}
    assert not list(out.rglob("*.py"))
    for file in out.glob("*.json"):
        if file.name != stage.MANIFEST:
            assert "auto_map" not in file.read_text(encoding="utf-8")


def test_the_export_is_a_model_for_stage_model(there_and_back: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, merged, out = there_and_back
    exported = Path(shutil.copytree(out, tmp_path / "exported"))
    again = tmp_path / "models" / "again"
    model.make(again, model=str(exported))
    before, after = load_file(merged / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].view(torch.int16).equal(after[name].view(torch.int16)) for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert json.loads((again / name).read_bytes()) == json.loads((merged / name).read_bytes()), name


def test_transformers_takes_the_exported_tokenizer_without_code(there_and_back: tuple[Path, Path, Path]) -> None:
    from transformers import AutoTokenizer

    _, merged, out = there_and_back
    text = "你好 hello <|im_end|>"
    ours, theirs = (AutoTokenizer.from_pretrained(f, trust_remote_code=False) for f in (out, merged))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(ours) == len(theirs)


def test_a_base_that_brought_no_tokenizer_model_is_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    (source / stage.MANIFEST).unlink()
    base = tmp_path / "models" / "base"
    model.make(base, model=str(source))  # in Llama's format: tokenizer.json alone
    merged = merged_from(base, tmp_path / "main" / "merged")
    manifest = export.make(tmp_path / "main" / "export", model=merged)
    assert manifest["results"]["tokenizer_model"] is False
    assert not (tmp_path / "main" / "export" / "tokenizer.model").exists()
    assert "came without tokenizer.model" in capsys.readouterr().err


def test_without_a_merged_model_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="make merge"):
        export.make(tmp_path / "export", model=tmp_path / "merged")
