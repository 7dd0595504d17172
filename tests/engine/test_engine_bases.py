"""The engine on bases of the Llama and Qwen2 layouts: tied heads, biases, byte-level tokenizers, scaled rotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_serving import CONVERSATIONS, OutputIds, assert_no_half_character, by_transformers, greedy

from recipe.chat_format import prompt_ids
from recipe.engine import Engine, Sampling
from recipe.engine.decoder import Decoder, PromptChunk
from recipe.errors import RecipeError
from recipe.evaluation import generation

# At most 512 tokens are read.
TALKS = [talk for talk in CONVERSATIONS if len(str(talk)) < 300]


def write_adapter(base: Path, folder: Path) -> Path:
    """A PEFT adapter of random weights on all projections."""
    from peft import LoraConfig, get_peft_model

    from recipe.checkpoint.linear_layers import LINEAR_LAYERS

    model, _ = generation.load(base)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_token_for_token_what_transformers_says_alone_and_together(
    base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = OutputIds(monkeypatch)
    wanted = [by_transformers(base_model, talk, 24) for talk in TALKS]
    with Engine(*generation.load(base_model), slots=4) as engine:
        alone = [outputs.of(greedy(engine, talk)[0]) for talk in TALKS]
        together = greedy(engine, *TALKS, *reversed(TALKS))
    assert alone == wanted
    assert [outputs.of(reply) for reply in together] == [*wanted, *reversed(wanted)]
    assert len({tuple(ids) for ids in wanted}) > 1


def test_adapter_and_base_speak_in_one_batch_as_peft_does_apart(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = write_adapter(base_model, tmp_path / "adapter")
    model, tokenizer = generation.load(base_model, adapter)
    tuned = [by_transformers(model, talk, 12, tokenizer) for talk in TALKS]
    with model.disable_adapter():
        base = [by_transformers(model, talk, 12, tokenizer) for talk in TALKS]
    assert tuned != base
    outputs = OutputIds(monkeypatch)
    with Engine(model, tokenizer) as engine:
        sampling = Sampling(max_new_tokens=12)
        replies = [engine.reply(talk, sampling, adapted=adapted) for talk in TALKS for adapted in (True, False)]
        for reply in replies:
            reply.join()
    both = [outputs.of(reply) for reply in replies]
    assert (both[::2], both[1::2]) == (tuned, base)
    # The weights were not copied but are views of the engine's, biases included, and the model still works.
    assert by_transformers(model, TALKS[1], 12, tokenizer) == tuned[1]


def test_a_reply_ends_with_each_of_the_base_s_stop_tokens(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = generation.load(base_model)
    names = ["<|im_end|>"] if base_model.name == "llama" else ["<|im_end|>", "<|endoftext|>"]
    with Engine(model, tokenizer) as engine:
        assert engine.scheduler.stops == set(tokenizer.convert_tokens_to_ids(names))
        for stop in engine.scheduler.stops:
            monkeypatch.setattr(
                engine.scheduler.sampler, "choose", lambda logits, *_, stop=stop, **__: torch.full((len(logits),), stop)
            )
            (reply,) = greedy(engine, TALKS[0])
            assert (reply.text, reply.ended, reply.completion_tokens) == ("", "stop", 0)


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
]  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_scaled_rotations_are_transformers_at_any_length(kind: str, scaling: dict[str, Any]) -> None:
    model = small_bases.random_model(kind, rope_scaling=scaling)
    ids = torch.arange(200) * 7 % 400
    with torch.inference_mode():
        wanted = {length: model(ids[None, :length]).logits[0, -1] for length in (3, 200)}
        decoder = Decoder(model, slots=1, length=512)
        for length, logits in wanted.items():
            actual = decoder.prefill([PromptChunk(0, ids[:length].tolist(), 0)])[0]
            torch.testing.assert_close(actual, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
def test_other_biases_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="biases on queries, keys and values alone"):
        Decoder(small_bases.random_model("llama", **changes), slots=1, length=8)


@given(text=st.text(max_size=40) | st.text("aé你𠮷🦊👩‍🚀é \n�", max_size=20))
@settings(max_examples=300)
def test_no_half_character_is_ever_told(base_tokenizer: Any, text: str) -> None:
    assert_no_half_character(base_tokenizer, text)


def test_the_answers_of_evaluation_are_the_engine_s(base_model: Path) -> None:
    """`generation.answer` pads on the left, with a token that the base itself pads with."""
    model, tokenizer = generation.load(base_model)
    answers = generation.answer(model, tokenizer, TALKS, max_new_tokens=16)
    with Engine(model, tokenizer) as engine:
        replies = greedy(engine, *TALKS, count=16)
    assert [(answer.text, answer.stopped) for answer in answers] == [(r.text, r.ended == "stop") for r in replies]
    assert {len(prompt_ids(tokenizer, talk)) for talk in TALKS} != {len(prompt_ids(tokenizer, TALKS[0]))}
