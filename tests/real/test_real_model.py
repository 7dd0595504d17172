"""Real weights on a CPU: what their publisher trained is there, the engine computes it as transformers does, and a
short training ends in a merged model with its proof."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from golden_ids import assert_golden
from mmengine.config import Config
from replay_folder import write_replay
from safetensors import safe_open

from recipe.chat_format import assistant, prompt_ids, stop_ids, user
from recipe.checkpoint.safetensors_io import SINGLE
from recipe.cli.commands import default_preset
from recipe.corpus.identity import OPEN_BASE, Identity
from recipe.engine import Sampling
from recipe.evaluation import generation, thresholds
from recipe.pipeline import results
from recipe.pipeline.results import MergeResults
from recipe.stages import config, convert, data, merge, train
from recipe.stages.model import UNPACKED

NAME = "smollm2-135m-instruct"
SETTINGS = ["max_iters=6", "save_steps=6", "max_length=256", "batch_size=1", "r=8", "lr=1e-3",
            "param_scheduler.0.end=2", "param_scheduler.1.begin=2",
            "custom_hooks.2.questions=['Who are you?']"]  # fmt: skip
# What the base knows, as the start of a greedy reply.
FACTS = {
    "What is the capital of France?": r"The capital of France is Paris",
    "What is the opposite of hot?": r"[Cc]old",
}
PROMPTS = (
    *FACTS,
    "Who are you?",
    "Write a Python function that adds two numbers.",
    "Give me three tips for sleeping well.",
)


def test_the_folder_is_a_whole_model_without_code(smollm2: Path) -> None:
    names = sorted(path.name for path in smollm2.iterdir())
    assert names == [
        "config.json", "generation_config.json", "manifest.json", SINGLE, "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert UNPACKED not in names
    with safe_open(smollm2 / SINGLE, framework="pt") as file:
        assert len(file.keys()) == 272
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - safe_open is no mapping
        assert file.get_tensor("model.embed_tokens.weight").dtype == torch.bfloat16


def test_token_ids_are_the_ones_written_down(loaded: tuple[Any, Any]) -> None:
    assert_golden("smollm2", loaded[1])


def test_the_engine_s_replies_are_transformers_own(smollm2: Path) -> None:
    """In float32: 16 bits round two ways of computing apart, and the likeliest of two near tokens with them."""
    model, tokenizer = generation.load(smollm2, dtype=torch.float32)
    talks = [[user(prompt)] for prompt in PROMPTS]
    count = 32
    replies = generation.answer(model, tokenizer, talks, max_new_tokens=count)
    prompts = [prompt_ids(tokenizer, talk) for talk in talks]
    wanted = generation._by_transformers(
        model, tokenizer, prompts, stop_ids(tokenizer), Sampling(max_new_tokens=count), lambda _: None
    )
    assert [reply.text for reply in replies] == [reply.text for reply in wanted]


def test_it_answers_what_it_knows(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    replies = generation.answer(model, tokenizer, [[user(question)] for question in FACTS], max_new_tokens=32)
    for (question, pattern), reply in zip(FACTS.items(), replies, strict=True):
        assert re.search(pattern, reply.text), (question, reply.text)


def test_it_has_no_system_prompt_of_its_own(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    text = tokenizer.apply_chat_template([user("hi")], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_short_training_becomes_a_merged_model_with_its_proof(
    smollm2: Path, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    talks = [[user(prompt)] for prompt in PROMPTS]
    replies = generation.answer(*loaded, talks, max_new_tokens=24)
    pairs = zip(PROMPTS, replies, strict=True)
    write_replay(tmp_path / "replay", smollm2, [[user(prompt), assistant(reply.text)] for prompt, reply in pairs])
    data.make(
        tmp_path / "data", identity=Identity("Xiaoming"), mode="balanced", own=None, seed=0, extended=True,
        languages=("en",), base=OPEN_BASE,
    )  # fmt: skip
    config.make(
        tmp_path / "config", preset=default_preset(NAME, smollm2), model=smollm2, data_folder=tmp_path / "data",
        replay_folder=tmp_path / "replay", settings=SETTINGS, seed=0,
    )  # fmt: skip
    settled = Config.fromfile(tmp_path / "config" / config.FILE)
    # A checkpoint is scored by hundreds of prompts, which takes longer than everything else here.
    settled.custom_hooks = [hook for hook in settled.custom_hooks if not hook.type.endswith(".ScoreCheckpoints")]
    settled.dump(tmp_path / "config.py")
    train.make(tmp_path / "train", config=tmp_path / "config.py", resume=False, deepspeed=None)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train" / train.LOSSES).read_text().splitlines()]
    assert losses[-1] < losses[0]
    convert.make(tmp_path / "adapter", train_folder=tmp_path / "train", checkpoint=None)
    manifest = merge.make(tmp_path / "merged", adapter_folder=tmp_path / "adapter", identity_names=("Xiaoming",))
    proof = results.of(manifest, MergeResults)
    assert 0 <= proof.mean_kl <= thresholds.MAX_MERGE_KL
    with safe_open(smollm2 / SINGLE, framework="pt") as base, safe_open(tmp_path / "merged" / SINGLE, "pt") as merged:
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(base.get_tensor(name), merged.get_tensor(name))
    tuned, tokenizer = generation.load(tmp_path / "merged")
    (reply,) = generation.answer(tuned, tokenizer, talks[:1], max_new_tokens=16)
    assert reply.text.strip()
