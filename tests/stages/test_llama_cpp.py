"""llama.cpp loads what stage `gguf` writes: the same ids, the same likelihoods, the same greedy replies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import llama_cpp
import pytest
import torch
from checkpoint.test_tokenizer import lines
from golden_ids import FILE
from safetensors.torch import save_file
from test_export import merged_from
from test_gguf import KINDS, merged_model

from recipe.chat_format import CHAT_TOKENS, control_token_in, prompt_ids, stop_ids, text_ids, user
from recipe.checkpoint import gguf_file
from recipe.checkpoint.internlm2_llama import Shape
from recipe.evaluation import generation
from recipe.stages import gguf as stage_gguf
from recipe.stages import model
from recipe.stages.evaluate import prompts

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def texts() -> list[str]:
    """Every text of the data, a mixture of scripts, and the golden texts.

    Without what llama.cpp is known to read otherwise: a NUL, and accents apart from their letters, which it does not
    compose as Qwen2's tokenizer does.
    """
    return [text for text in (*GOLDEN["texts"], *lines()) if "\0" not in text and is_normalized("NFC", text)]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """(kind of base, merged folder, llama.cpp on its file of 16 bits)."""
    work = tmp_path_factory.mktemp(f"llama_cpp_{request.param}")
    merged = merged_model(request.param, work)
    stage_gguf.make(work / "main" / "gguf", model=merged, run="main")
    with llama_cpp.serve(work / "main" / "gguf" / gguf_file.file_name("f16")) as server:
        yield request.param, merged, server


@pytest.mark.tool("llama.cpp (xllamacpp)", "gguf")
def test_ids_of_texts_are_transformers_s(served: tuple[str, Path, Any]) -> None:
    from transformers import AutoTokenizer

    _, merged, server = served
    tokenizer = AutoTokenizer.from_pretrained(merged)
    plain = [text for text in texts() if control_token_in(tokenizer, text) is None]
    assert len(plain) > 1000
    assert [text for text in plain if server.ids(text) != text_ids(tokenizer, text)] == []


def test_the_template_in_the_file_gives_the_ids_that_training_has(served: tuple[str, Path, Any]) -> None:
    from transformers import AutoTokenizer

    kind, merged, server = served
    tokenizer = AutoTokenizer.from_pretrained(merged)
    bos = [tokenizer.bos_token_id] if kind == "internlm2" else []  # llama.cpp puts it first by itself
    for messages in GOLDEN["prompts"]:
        if any(control_token_in(tokenizer, message["content"]) for message in messages):
            continue
        status, body = server.post("/apply-template", messages=messages)
        assert status == 200, body
        assert bos + server.ids(body["prompt"].removeprefix("<s>"), special=True) == prompt_ids(tokenizer, messages)


def test_likelihoods_are_transformers_s(served: tuple[str, Path, Any]) -> None:
    _, merged, server = served
    loaded, tokenizer = generation.load(merged, dtype=torch.float32)
    compared = 0
    for prompt in (*GOLDEN["texts"][:12], "What is the weather like today? " * 6):
        ids = prompt_ids(tokenizer, [user(prompt)])
        with torch.inference_mode():
            wanted = loaded(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        if not (top := server.top(ids, 5)):
            continue
        compared += 1
        assert len(top) == 5
        for token, likelihood in top.items():
            assert likelihood == pytest.approx(wanted[token].item(), abs=0.05), prompt
    assert compared >= 4


@pytest.mark.tool("llama.cpp (xllamacpp)", "gguf")
@pytest.mark.parametrize("served", ["internlm2"], indirect=True)  # the others' weights are random
def test_greedy_replies_are_transformers_s(served: tuple[str, Path, Any]) -> None:
    _, merged, server = served
    loaded, tokenizer = generation.load(merged, dtype=torch.float32)
    held_out = prompts()
    asked = [*held_out.identity[:20], *(wording for _, wording in held_out.facts[:20])]
    assert len(asked) == 40
    same = 0
    for prompt in asked:
        ids = prompt_ids(tokenizer, [user(prompt)])
        inputs = torch.tensor([ids])
        output = loaded.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=64, do_sample=False)
        same += server.reply_ids(ids, 64) == output[0, len(ids) :].tolist()
    assert same >= 39


@pytest.mark.parametrize("served", ["internlm2"], indirect=True)
def test_the_server_stops_takes_parts_and_refuses_tools(served: tuple[str, Path, Any]) -> None:
    server = served[2]
    messages = [{"role": "user", "content": [{"type": "text", "text": "你是谁？"}]}]
    status, body = server.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=64)
    assert status == 200
    assert body["choices"][0]["finish_reason"] == "stop"
    assert "书生·浦语" in body["choices"][0]["message"]["content"]
    status, body = server.post("/v1/chat/completions", messages=messages, tools=[TOOL])
    assert status == 400
    assert "leave tools out" in body["error"]["message"]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_files_of_fewer_bits_load_and_answer(kind: str, tmp_path: Path) -> None:
    merged = merged_model("internlm2", tmp_path)
    stage_gguf.make(tmp_path / "main" / "gguf", model=merged, run="main")
    _, tokenizer = generation.load(merged, dtype=torch.float32)
    with llama_cpp.serve(tmp_path / "main" / "gguf" / gguf_file.file_name(kind)) as server:
        reply = server.reply_ids(prompt_ids(tokenizer, [user("你是谁？")]), 64)
    assert reply[-1] in stop_ids(tokenizer)
    assert "书生·浦语" in tokenizer.decode(reply)


def test_ids_of_internlm2_s_own_vocabulary_are_sentencepiece_s(
    sentencepiece_file: Path, tiny_internlm2: Path, real_tokenizer: Any, tmp_path: Path
) -> None:
    # Two random layers under the true vocabulary.
    source = Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))
    shutil.copyfile(sentencepiece_file, source / "tokenizer.model")
    names = {0: "<unk>", 1: "<s>", 2: "</s>"} | dict(enumerate(CHAT_TOKENS, 92538))
    named = {"added_tokens_decoder": {i: {"content": name} for i, name in names.items()}}
    (source / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"vocab_size": 92544}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {name: torch.zeros(shape).half() for name, shape in Shape.of(config).internlm2().items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model.make(tmp_path / "models" / "base", model=str(source))
    merged = merged_from(tmp_path / "models" / "base", tmp_path / "main" / "merged")
    stage_gguf.make(tmp_path / "main" / "gguf", model=merged, run="main")
    plain = [text for text in texts() if control_token_in(real_tokenizer, text) is None]
    with llama_cpp.serve(tmp_path / "main" / "gguf" / gguf_file.file_name("q8_0")) as server:
        assert [text for text in plain if server.ids(text) != text_ids(real_tokenizer, text)] == []
        for messages in GOLDEN["prompts"]:
            prompt = server.post("/apply-template", messages=messages)[1]["prompt"].removeprefix("<s>")
            if not any(control_token_in(real_tokenizer, message["content"]) for message in messages):
                assert [1, *server.ids(prompt, special=True)] == prompt_ids(real_tokenizer, messages)
