"""llama.cpp's own converter takes the folders as they are, and llama.cpp says what the recipe's model says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest
import torch
from golden_ids import FILE
from test_export import merged_from
from tools_table import CONVERTER

from recipe.chat_format import control_token_in, prompt_ids, text_ids, user
from recipe.evaluation import generation
from recipe.paths import MINIATURE
from recipe.stages import export, model

TEXTS = json.loads(FILE.read_text(encoding="utf-8"))["texts"]
pytestmark = pytest.mark.skipif(
    not CONVERTER.is_dir(), reason="llama.cpp's converter is not here: make tools-table brings it"
)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("converter")
    model.make(work / "models" / "base", model=str(MINIATURE))
    return merged_from(work / "models" / "base", work / "main" / "merged")


def assert_converts(folder: Path, merged: Path, file: Path) -> None:
    """The converter makes a file of `folder` whose ids and greedy reply are those of the merged model."""
    command = [sys.executable, str(CONVERTER / "convert_hf_to_gguf.py"), str(folder), "--outfile", str(file)]
    done = subprocess.run([*command, "--outtype", "f16"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, tokenizer = generation.load(merged, dtype=torch.float32)
    texts = [text for text in TEXTS if "\0" not in text and control_token_in(tokenizer, text) is None]
    assert len(texts) > 10
    ids = torch.tensor([prompt_ids(tokenizer, [user("Who are you?")])])
    output = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    with llama_cpp.serve(file) as server:
        assert [text for text in texts if server.ids(text) != text_ids(tokenizer, text)] == []
        assert server.reply_ids(ids[0].tolist(), 40) == output[0, ids.shape[1] :].tolist()


@pytest.mark.tool("llama.cpp's converter (llama-cpp-python)", "merged")
def test_the_merged_folder_converts_to_the_same_model(merged: Path, tmp_path: Path) -> None:
    assert_converts(merged, merged, tmp_path / "model.gguf")


@pytest.mark.tool("llama.cpp's converter (llama-cpp-python)", "export")
def test_the_export_converts_to_the_same_model(merged: Path, tmp_path: Path) -> None:
    export.make(tmp_path / "export", model=merged)
    assert_converts(tmp_path / "export", merged, tmp_path / "model.gguf")
