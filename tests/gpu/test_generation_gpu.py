"""`generation.answer` on a real GPU: the replies of `generate` in float32, captured steps kept for a load, memory
free afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.chat_format import prompt_ids, stop_ids
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.corpus.knowledge import conversation, replay_prompts
from recipe.device import has_gpu
from recipe.engine import Sampling
from recipe.evaluation import generation
from recipe.evaluation.generation import Reply
from recipe.stages import model as model_stage
from recipe.training.fast.model import FusedLlama

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")]

TALKS = [conversation(prompt) for prompt in replay_prompts(extended=False)]
FEW = TALKS[::20]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "miniature"
    model_stage.make(folder, model="miniature")
    return folder


def by_transformers(model: Any, tokenizer: Any, talks: Any, count: int) -> list[Reply]:
    prompts = [prompt_ids(tokenizer, talk) for talk in talks]
    return generation._by_transformers(
        model, tokenizer, prompts, stop_ids(tokenizer), Sampling(max_new_tokens=count), lambda _: None
    )


def with_adapter(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
    return get_peft_model(model, config)


def no_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_by_transformers", lambda *_: pytest.fail("not by the engine"))


def same(one: list[Reply], other: list[Reply]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def test_replies_are_those_of_generate_and_come_sooner(miniature: Path) -> None:
    model, tokenizer = generation.load(miniature, dtype=torch.float32)
    seconds: dict[str, float] = {}
    replies: dict[str, list[Reply]] = {}
    ways: dict[str, Callable[[], list[Reply]]] = {
        "generate": lambda: by_transformers(model, tokenizer, TALKS, 64),
        "engine": lambda: generation.answer(model, tokenizer, TALKS, max_new_tokens=64),
    }
    for way, generate in ways.items():
        for _ in range(2):  # the second finds its kernels compiled and its steps captured
            started = time.perf_counter()
            replies[way] = generate()
            seconds[way] = time.perf_counter() - started
    assert same(replies["engine"], replies["generate"]) == 1
    tokens = sum(len(tokenizer(reply.text)["input_ids"]) for reply in replies["engine"])
    print("\n" + ", ".join(f"{way} {tokens / seconds[way]:,.0f} tokens/s" for way in seconds))
    assert seconds["engine"] < seconds["generate"]


def test_other_bases_with_the_adapter_on_and_off(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = generation.load(base_model, dtype=torch.float32)
    model = with_adapter(model).eval()
    tuned = by_transformers(model, tokenizer, FEW, 24)
    with model.disable_adapter():
        base = by_transformers(model, tokenizer, FEW, 24)
    assert tuned != base
    no_generate(monkeypatch)
    assert generation.answer(model, tokenizer, FEW, max_new_tokens=24) == tuned
    with model.disable_adapter():
        assert generation.answer(model, tokenizer, FEW, max_new_tokens=24) == base


def test_steps_are_captured_once_a_load_and_their_memory_is_given_back(miniature: Path) -> None:
    model, tokenizer = generation.load(miniature)
    generation.answer(model, tokenizer, TALKS, max_new_tokens=32)
    generation.release()  # libraries keep their workspaces, once
    before = torch.cuda.memory_allocated()
    generation.answer(model, tokenizer, TALKS, max_new_tokens=32)
    graphs = generation._kept[model].generator.scheduler.graphs
    assert graphs is not None
    captured = dict(graphs.captured)
    assert len(captured) > 3
    generation.answer(model, tokenizer, TALKS, max_new_tokens=32)
    assert graphs.captured == captured
    assert torch.cuda.memory_allocated() > before
    del graphs, captured
    generation.release()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


@pytest.mark.parametrize("bits", [4, 32])
def test_a_model_in_training_generates_between_steps(
    miniature: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    options = {"quantization_config": quantised} if bits == 4 else {}
    tokenizer = generation.load(miniature)[1]

    def build() -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(miniature, dtype=torch.float32, **options)
        return with_adapter(loaded.to("cuda") if bits == 32 else loaded).train()

    model, untouched = build(), build()
    with generation.evaluating(untouched):
        expected = by_transformers(untouched, tokenizer, FEW, 40)
    no_generate(monkeypatch)
    for fused in (False, True):
        if fused:
            fast = FusedLlama(model, fp8=False)
            assert fast.layers
        before = torch.cuda.memory_allocated()
        with generation.evaluating(model):
            found = generation.answer(model, tokenizer, FEW, max_new_tokens=40)
        # bitsandbytes' kernels for 4 bits sum in another order: now and then that decides between two words.
        assert same(found, expected) >= (1 if bits == 32 else 0.95)
        assert torch.cuda.memory_allocated() <= before + (1 << 20)
