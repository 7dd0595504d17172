"""Bad inputs of every kind: each call ends with one line, and without a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import other_shapes
import pytest
import small_bases

from recipe.pipeline import choices, stage

from .user import command, preload

AT_LEAST = 100
Words = list[str | Path]
# Prepares a folder; the words of the call that meets it.
Case = Callable[[Path], Words]

ROWS: list[bytes] = [
    b"", b"[]", b"null", b"{", b"[{]", b'{"a": 1}', b"plain text\n", b"\xff\xfe\x00", b"\x00" * 100, b"\x1f\x8b broken",
    b'{"messages": []}', b'{"messages": "x"}', b'{"messages": [1]}', b'{"messages": [{"role": "user"}]}',
    b'{"messages": [{"role": "nobody", "content": "x"}]}', b'{"messages": [{"role": "user", "content": 3}]}',
    b'{"messages": [{"role": "assistant", "content": "x"}]}', b'{"messages": [{"role": "user", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "{{WHO}}"}, {"role": "assistant", "content": "x"}]}',
    b'{"instruction": 3, "output": "x"}', b'{"conversations": {}}', b'{"prompt": "x"}', b'{"conversation": [[]]}',
    other_shapes.DEEP.encode(),
]  # fmt: skip
NAMES = ["", " ", "x" * 41, "a\nb", "a\tb", "\x1b[31m", "<|im_end|>", "\ud800", "{{NAME}}", "\x00"]
CALLS: list[Words] = [
    ["data", "--name", "小明", "--mode", "other"], ["data", "--name", "小明", "--seed", "-1"],
    ["data", "--name", "小明", "--seed", "x"], ["data", "--name", "小明", "--languages", "fr"],
    ["data", "--name", "小明", "--data", "/nowhere.jsonl"], ["data", "--name", "小明", "--data", "/dev/null"],
    ["data", "--name", "小明", "--data-only"], ["data"], ["data", "--name", "小明", "--run", "../x"],
    ["data", "--name", "小明", "--run", "models"], ["data", "--name", "小明", "--work", "/dev/null"],
    ["model", "--model", "/nowhere"], ["model", "--model", "../x"], ["model", "--model", "a/b/c"],
    ["model", "--model", "miniature", "--source", "nowhere"], ["model", "--model", ""],
    ["config", "--preset", "none"], ["config", "--copy", "no_such_config"], ["config", "--model", "miniature"],
    ["train"], ["train", "--config", "/nowhere.py"], ["train", "--config", "/etc/hostname"],
    ["train", "--gpus", "0"], ["train", "--gpus", "x"], ["train", "--deepspeed", "zero9"],
    ["train", "--nnodes", "2"], ["convert"], ["convert", "--checkpoint", "iter_x"], ["merge"], ["eval"], ["report"],
    ["export"], ["gguf"], ["chat", "--prompt", "?"], ["chat", "--model", "/nowhere"], ["chat", "--temperature", "x"],
    ["chat", "--adapter", "/nowhere", "--prompt", "?"], ["demo", "--port", "99999"], ["api", "--port", "x"],
    ["api", "--host", "0.0.0.0"], ["nothing"], ["train", "--nothing"], ["ablation"], ["sweep", "--names", "0"],
]  # fmt: skip


def _rows(content: bytes, suffix: str) -> Case:
    def prepare(folder: Path) -> Words:
        file = folder / f"rows{suffix}"
        file.write_bytes(content)
        return ["data", "--name", "小明", "--model", "miniature", "--data", file, "--work", folder]

    return prepare


def _call(words: Words) -> Case:
    return lambda folder: [*words, *(() if "--work" in words or words == ["nothing"] else ("--work", folder))]


def _manifest(verb: str, kind: str) -> Case:
    def prepare(folder: Path) -> Words:
        read = folder / "main" / other_shapes.READS[verb]
        read.mkdir(parents=True)
        (read / "file").touch()
        if verb == "train":
            shutil.copyfile(other_shapes.small_config(folder), read / "config.py")
        (read / stage.MANIFEST).write_text(json.dumps(other_shapes.MANIFESTS[kind]), encoding="utf-8")
        return [verb, "--work", folder, *(("--name", "小明", "--model", "miniature") if verb == "data" else ())]

    return prepare


def _choices(verb: str, content: str) -> Case:
    def prepare(folder: Path) -> Words:
        (folder / "main").mkdir()
        (folder / "main" / choices.FILE).write_text(content, encoding="utf-8")
        return [verb, "--run", "main", "--work", folder]

    return prepare


def _base(repository: Path, damage: Callable[[Path], None]) -> Case:
    def prepare(folder: Path) -> Words:
        shutil.copytree(repository, folder / "base")
        damage(folder / "base")
        return ["model", "--model", folder / "base", "--work", folder / "work"]

    return prepare


def _written(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _changed(name: str, change: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        own = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        content = own | change if isinstance(change, dict) else change
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def cases(repository: Path) -> Iterator[tuple[str, Case]]:
    """(kind, case) of every bad input."""
    for content in ROWS:
        for suffix in (".jsonl", ".json", ".jsonl.gz"):
            yield "rows", _rows(content, suffix)
    for name in NAMES:
        yield "name", _call(["data", "--name", name, "--model", "miniature"])
        yield "name", _call(["data", "--name", "小明", "--assistant", name or "\n", "--model", "miniature"])
    for words in CALLS:
        yield "call", _call(words)
    for verb in other_shapes.READS:
        for kind in other_shapes.MANIFESTS:
            yield "manifest", _manifest(verb, kind)
    for verb in ("data", "train", "merge", "eval", "report", "gguf"):
        for text in other_shapes.CHOICES:
            yield "run.json", _choices(verb, text)
    for name, change in (*other_shapes.DESCRIPTIONS, *other_shapes.OF_A_BASE):
        yield "model folder", _base(repository, _changed(name, change))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        for content in (b"", b"{", b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"):
            yield "model folder", _base(repository, _written(name, content))
    for keep in (0.0001, 0.01, 0.5, 0.99):
        yield "model folder", _base(repository, _cut("model.safetensors", keep))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bases.write(tmp_path_factory.mktemp("bad") / "base", "qwen2")


def test_each_ends_in_one_line(repository: Path, tmp_path: Path, note: Callable[[str], None]) -> None:
    preload()
    failed, tracebacks, counted = [], 0, Counter[str]()
    for kind, case in cases(repository):
        counted[kind] += 1
        (folder := tmp_path / str(counted.total())).mkdir()
        words = case(folder)
        ended = command(words, log=tmp_path / "log")
        tracebacks += "Traceback" in ended.output
        if not ended.one_line:
            failed.append(f"{kind} {words}: {ended.status} {ended.output[-400:]}")
        shutil.rmtree(folder)
    what, count = ", ".join(f"{kind} {count}" for kind, count in counted.items()), counted.total()
    note(f"bad inputs: {count} ({what}), {count - len(failed)} one-line errors, {tracebacks} tracebacks")
    assert count >= AT_LEAST
    assert not failed, "\n".join(failed)
