"""transformers 5 and PEFT on it, in a process of their own that knows nothing of this recipe, take every artefact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_ids import FILE
from test_export import merged_from
from tools_table import PACKAGES
from tools_table import TRANSFORMERS_5 as FOLDER

from recipe.chat_format import control_token_in, prompt_ids, text_ids, user
from recipe.checkpoint import gguf_file
from recipe.evaluation import generation
from recipe.paths import MINIATURE
from recipe.stages import export, gguf, model

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="transformers 5 is not here: make tools-table brings it")

BEGIN = """\
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
torch.set_num_threads(1)
folder, *rest = sys.argv[1:]
"""
IDS = """
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in json.loads(rest[0])]
"""
IDS_OF_FILE = """
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=rest[0])
ids = tokenizer("hello", add_special_tokens=False)["input_ids"]
"""
# The second of rest, where there is one, is a GGUF file with the weights.
REPLY = """
*weights, file = rest[1].rpartition("/") if rest[1:] else (folder, None)
model = AutoModelForCausalLM.from_pretrained(weights[0], dtype=torch.float32, **({"gguf_file": file} if file else {}))
talk = [{"role": "user", "content": "Who are you?"}]
prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0].tolist()
"""
LOGITS = """
from peft import PeftModel
base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = PeftModel.from_pretrained(base, rest[0]).eval()
with torch.inference_mode():
    logits = model(torch.arange(20)[None]).logits[0, -1].tolist()
"""


def stock(code: str, values: str, *arguments: Path | str) -> dict[str, Any]:
    """What a program of transformers 5 alone comes to. values: names of it, which are JSON."""
    program = f"{BEGIN}{code}\nprint(json.dumps({{n: globals()[n] for n in {values.split()!r} + ['__version__']}}))"
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert outcome["__version__"] == PACKAGES[0].partition("==")[2]
    return outcome


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("transformers_5")
    model.make(work / "models" / "base", model=str(MINIATURE))
    return merged_from(work / "models" / "base", work / "main" / "merged")


def assert_same_ids(folder: Path, merged: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = [text for text in GOLDEN["texts"] if control_token_in(tokenizer, text) is None]
    assert len(texts) > 10
    outcome = stock(IDS, "texts", folder, json.dumps(texts))
    assert outcome["texts"] == [text_ids(tokenizer, text) for text in texts]


@pytest.mark.tool("AutoTokenizer of transformers 5", "merged")
def test_ids_of_the_merged_folder_are_the_recipe_s(merged: Path) -> None:
    assert_same_ids(merged, merged)


@pytest.mark.tool("AutoTokenizer of transformers 5", "export")
def test_ids_of_the_export_are_the_recipe_s(merged: Path, tmp_path: Path) -> None:
    export.make(tmp_path / "export", model=merged)
    assert_same_ids(tmp_path / "export", merged)


@pytest.mark.tool("transformers 5", "merged")
def test_the_merged_folder_s_reply_is_the_same(merged: Path) -> None:
    outcome = stock(IDS + REPLY, "output", merged, "[]")
    assert outcome["output"] == expected_reply(merged)


@pytest.fixture(scope="module")
def gguf_folder(merged: Path) -> Path:
    gguf.make(merged.parent / "gguf", model=merged, run="main")
    return merged.parent / "gguf"


@pytest.mark.tool("transformers 5", "gguf")
def test_the_gguf_file_s_reply_is_the_same(merged: Path, gguf_folder: Path) -> None:
    outcome = stock(IDS + REPLY, "output", merged, "[]", gguf_folder / gguf_file.file_name("f16"))
    expected = expected_reply(merged)
    assert outcome["output"][: len(expected)] == expected  # where a reply ends, generation_config.json says


@pytest.mark.tool("AutoTokenizer of transformers 5", "gguf", "no")
def test_a_space_comes_before_texts_whatever_the_gguf_file_says(merged: Path, gguf_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = stock(IDS_OF_FILE, "ids", gguf_folder, gguf_file.file_name("f16"))["ids"]
    assert ids == text_ids(tokenizer, " hello") != text_ids(tokenizer, "hello")


def expected_reply(merged: Path) -> list[int]:
    """Prompt and greedy reply by the locked transformers."""
    loaded, tokenizer = generation.load(merged, dtype=torch.float32)
    ids = torch.tensor([prompt_ids(tokenizer, [user("Who are you?")])])
    output = loaded.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert output.shape[1] > ids.shape[1]
    reply: list[int] = output[0].tolist()
    return reply


@pytest.mark.tool("PEFT on transformers 5", "adapter")
def test_the_adapter_acts_as_on_the_locked_versions(adapter_folder: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        plain = base(ids).logits[0, -1].clone()
        adapted = PeftModel.from_pretrained(base, str(adapter_folder)).eval()(ids).logits[0, -1]
    assert (plain - adapted).abs().max() > 0.01
    outcome = stock(LOGITS, "logits", tiny_model, adapter_folder)
    assert outcome["logits"] == pytest.approx(adapted.tolist(), abs=1e-4)
