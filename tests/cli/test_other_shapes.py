"""Valid JSON of another shape in any file that a verb reads: the user's command ends with one line, no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_bases
from other_shapes import BROKEN, CHOICES, DEEP, DESCRIPTIONS, MANIFESTS, OF_A_BASE, READS, damaged, small_config

from recipe import cli
from recipe.pipeline import choices, stage


@pytest.fixture(autouse=True)
def _in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test process keeps its own folder and signals, which main() sets."""
    monkeypatch.setattr("os.chdir", lambda _: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def error_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one error line of a call; a traceback would leave main() as an exception."""
    status = cli.main([str(each) for each in arguments])
    *_, last = capsys.readouterr().err.splitlines()
    assert status == 1
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize("verb", READS)
def test_a_manifest(verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "main" / READS[verb]
    folder.mkdir(parents=True)
    (folder / "file").touch()
    if verb == "train":
        shutil.copyfile(small_config(tmp_path), folder / "config.py")
    (folder / stage.MANIFEST).write_text(json.dumps(MANIFESTS[kind]), encoding="utf-8")
    name = ("--name", "小明", "--model", "miniature") if verb == "data" else ()
    line = error_line(capsys, verb, "--work", tmp_path, *name)
    assert str(folder / stage.MANIFEST) in line or verb == "train"


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("verb", READS)
def test_a_manifest_that_is_no_json_is_called_so(
    verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "main" / READS[verb]
    folder.mkdir(parents=True)
    (folder / "file").touch()
    (folder / stage.MANIFEST).write_bytes(BROKEN[kind])
    name = ("--name", "小明", "--model", "miniature") if verb == "data" else ()
    line = error_line(capsys, verb, "--work", tmp_path, *name)
    assert str(folder / stage.MANIFEST) in line
    assert "is not JSON" in line or "decode" in line
    assert "copy it again" in line


def test_the_manifest_of_another_program_is_none(tmp_path: Path) -> None:
    (tmp_path / stage.MANIFEST).write_text('{"name": "a web page", "icons": []}', encoding="utf-8")
    assert stage.read_manifest(tmp_path) is None


@pytest.mark.parametrize("content", CHOICES)
@pytest.mark.parametrize("verb", ["data", "train", "merge", "eval", "report", "gguf", "quickstart"])
def test_the_file_of_choices(verb: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / choices.FILE).write_text(content, encoding="utf-8")
    line = error_line(capsys, verb, "--run", "main", "--work", tmp_path)
    assert choices.FILE in line
    assert "remove it" in line


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bases.write(tmp_path_factory.mktemp("shapes") / "base", "qwen2")


@pytest.mark.parametrize(("name", "change"), [*DESCRIPTIONS, *OF_A_BASE])
def test_a_model_folder(
    name: str, change: Any, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(repository, tmp_path / "base", name, change)
    assert str(folder) in error_line(capsys, "model", "--work", tmp_path / "work", "--model", folder)


@pytest.mark.parametrize(("name", "change"), DESCRIPTIONS)
def test_a_folder_that_is_chatted_with(
    name: str, change: Any, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(repository, tmp_path / "base", name, change)
    line = error_line(capsys, "chat", "--work", tmp_path / "work", "--model", folder, "--prompt", "?")
    assert str(folder / name) in line


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_deep_nesting(name: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(repository, tmp_path / "base")
    (folder / name).write_text(f'{{"a": {DEEP}}}', encoding="utf-8")
    assert "nested too deeply" in error_line(capsys, "model", "--work", tmp_path / "work", "--model", folder)


@pytest.mark.parametrize(
    "changes", [{"r": "8"}, {"r": 0}, {"lora_alpha": None}, {"target_modules": 3}, {"r": [8]}, {"peft_type": ["LORA"]}]
)
def test_an_adapter(
    changes: dict[str, Any], tiny_model: Path, adapter_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(adapter_folder, tmp_path / "adapter", ignore=shutil.ignore_patterns(stage.MANIFEST))
    own = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(own | changes), encoding="utf-8")
    line = error_line(capsys, "chat", "--work", tmp_path, "--model", tiny_model, "--adapter", adapter, "--prompt", "?")
    assert str(adapter) in line
