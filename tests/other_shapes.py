"""Valid JSON of another shape than the files have that verbs read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

DEEP = "[" * 50_000 + "]" * 50_000
GOOD: dict[str, Any] = {
    "stage": "x", "key": {"settings": {}, "inputs": {}}, "inputs": {}, "outputs": {}, "results": {},
    "versions": {}, "git_commit": None, "image": None, "seconds": 1.0, "process_peak_mib": 1,
}  # fmt: skip
MANIFESTS = {
    "no more than a stage": {"stage": "x"},
    "a list of outputs": GOOD | {"outputs": []},
    "an output without its hash": GOOD | {"outputs": {"a": {"bytes": 1, "mtime_ns": 1}}},
    "a size in words": GOOD | {"outputs": {"a": {"sha256": "0", "bytes": "many", "mtime_ns": 1}}},
    "a key that is text": GOOD | {"key": "abc"},
    "an input without its hash": GOOD | {"inputs": {"data": "work/q/data"}},
    "a hash of no input": GOOD | {"key": {"settings": {}, "inputs": {"model": "0"}}},
    "a hash that is a number": GOOD | {"key": {"settings": {}, "inputs": {"model": 3}}},
    "results that are a list": GOOD | {"results": [1]},
    "seconds in words": GOOD | {"seconds": "long"},
}
# Contents of a manifest that are no JSON.
BROKEN = {"cut": b'{"stage": "x", "key"', "empty": b"", "of zeros": bytes(64), "no text": b"\xff{}"}
# Verb -> the folder whose manifest it reads first.
READS = {
    "config": "data", "replay": "data", "train": "config", "convert": "train", "merge": "adapter", "eval": "data",
    "report": "eval", "ablation": "eval", "export": "merged", "gguf": "merged", "chat": "merged", "speed": "merged",
    "data": "data",
}  # fmt: skip
# Contents of run.json.
CHOICES = [
    "[]", "3", '{"name": 3}', '{"name": "小明", "seed": "x"}', '{"set": "lr=1"}', '{"data": {"a": 1}}',
    '{"model": ["a"]}', '{"gpus": null}', '{"data_only": 1}', f'{{"set": {DEEP}}}', '{"seed": 1e999}',
]  # fmt: skip

# File of a model folder -> keys that replace its own; None for a content of its own.
DESCRIPTIONS: list[tuple[str, Any]] = [
    ("config.json", {"num_hidden_layers": 10**9}),
    ("config.json", {"num_hidden_layers": True}),
    ("config.json", {"hidden_size": 2.5}),
    ("config.json", {"vocab_size": "many"}),
    ("config.json", {"max_position_embeddings": [1]}),
    ("config.json", {"num_attention_heads": -1}),
    ("tokenizer_config.json", {"added_tokens_decoder": []}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"1": "x"}}),
    ("tokenizer_config.json", {"bos_token": 3}),
    ("tokenizer_config.json", {"additional_special_tokens": {"a": 1}}),
    ("tokenizer_config.json", {"chat_template": [3]}),
    ("tokenizer_config.json", []),
    ("generation_config.json", {"eos_token_id": [[1]]}),
    ("generation_config.json", {"eos_token_id": "end"}),
    ("special_tokens_map.json", {"pad_token": {"token": "x"}}),
]
# What chat does not read by itself.
OF_A_BASE: list[tuple[str, Any]] = [
    ("config.json", {"model_type": ["llama"]}),
    ("config.json", {"rope_scaling": "linear"}),
    ("config.json", {"rope_parameters": [1]}),
    ("config.json", {"layer_types": 5}),
    ("config.json", {"architectures": {"a": 1}}),
    ("config.json", {"tie_word_embeddings": "no"}),
    ("tokenizer.json", {"model": []}),
    ("tokenizer.json", {"added_tokens": [{"id": "1", "content": "x"}]}),
    ("tokenizer.json", {"added_tokens": {"a": 1}}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"first": {"content": "x"}}}),
]


def small_config(folder: Path) -> Path:
    """A resolved config of no model that is there."""
    file = folder / "small.py"
    file.write_text(
        "model = dict(llm=dict(pretrained_model_name_or_path='nowhere'))\n"
        "train_dataloader = dict(dataset=dict(files=['main/config/rows.jsonl']))\n",
        encoding="utf-8",
    )
    return file


def damaged(repository: Path, folder: Path, name: str, change: Any) -> Path:
    shutil.copytree(repository, folder)
    own = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
    content = own | change if isinstance(change, dict) else change
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
