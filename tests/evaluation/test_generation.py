"""Replies do not depend on what else is asked, and end where the model ends them."""

from __future__ import annotations

import contextlib
import gc
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.chat_format import prompt_ids, stop_ids
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.corpus.knowledge import conversation as messages_of
from recipe.corpus.knowledge import replay_prompts
from recipe.engine import Sampling, memory
from recipe.engine.decoder import Decoder
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.evaluation.generation import Reply
from recipe.stages import evaluate
from recipe.training.fast.model import FusedLlama, _keep_layout

QUESTIONS = [
    "你好",
    "What is the capital of France, and what do people eat there?",
    "3+4=?",
    "a",
    "请你介绍一下你自己" * 4,
]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS] + [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
]
Loaded = tuple[Any, Any]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Loaded:
    return generation.load(tiny_model)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model that has learnt to end what it says."""
    from recipe.stages import model

    folder = tmp_path_factory.mktemp("models") / "miniature"
    model.make(folder, model="miniature")
    return generation.load(folder)


def greedy(model: Any, tokenizer: Any, conversation: list[dict[str, str]], count: int) -> list[int]:
    """The ids of the greedy reply by the definition: the whole text read anew for every id, no cache, no padding."""
    ids, stops = prompt_ids(tokenizer, conversation), stop_ids(tokenizer)
    output_ids: list[int] = []
    with torch.inference_mode():
        while len(output_ids) < count and not set(output_ids) & set(stops):
            output_ids.append(model(torch.tensor([ids + output_ids]), use_cache=False).logits[0, -1].argmax().item())
    return output_ids


@pytest.mark.parametrize("which", ["loaded", "miniature"])
def test_a_batch_answers_as_one_by_one(which: str, request: pytest.FixtureRequest) -> None:
    # Prompts of unequal length are padded on the left, which must not show.
    model, tokenizer = request.getfixturevalue(which)
    together = generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=12)
    alone = [generation.answer(model, tokenizer, [c], max_new_tokens=12)[0] for c in CONVERSATIONS]
    assert together == alone
    assert len({reply.text for reply in together}) > 1  # so an order mixed up would show


def test_a_reply_is_what_greedy_decoding_defines(loaded: Loaded) -> None:
    model, tokenizer = loaded
    replies = generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8)
    expected = [tokenizer.decode(greedy(model, tokenizer, c, 8), skip_special_tokens=True) for c in CONVERSATIONS]
    assert [reply.text for reply in replies] == expected


def by_transformers(model: Any, tokenizer: Any, talks: Any, count: int, **options: Any) -> list[Reply]:
    """The replies of `generate`, which the engine's are to be."""
    prompts, sampling = [prompt_ids(tokenizer, talk) for talk in talks], Sampling(max_new_tokens=count, **options)
    return generation._by_transformers(model, tokenizer, prompts, stop_ids(tokenizer), sampling, lambda _: None)


def no_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a reply comes from the engine."""
    monkeypatch.setattr(generation, "_by_transformers", lambda *_: pytest.fail("not by the engine"))


@pytest.mark.parametrize("engine", [True, False])
def test_more_prompts_than_a_batch_are_answered_in_order(
    loaded: Loaded, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    expected = generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=4)
    generation.release()
    monkeypatch.setattr("recipe.evaluation.by_transformers.BATCH", 2)
    monkeypatch.setitem(memory.MOST_SLOTS, "cpu", 2)
    if engine:
        no_generate(monkeypatch)
        assert generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=4) == expected
    else:
        assert by_transformers(model, tokenizer, CONVERSATIONS, 4) == expected


def with_adapter(model: Any) -> Any:
    """The model with LoRA of random weights, in training."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LoraConfig(r=4, lora_alpha=16, target_modules=list(LINEAR_LAYERS), init_lora_weights=False)
        return get_peft_model(model, config).train()


def test_replay_and_evaluation_get_the_replies_of_generate(miniature: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token for token in float32, with an adapter on and off, on a part of all prompts."""
    model, tokenizer = miniature
    asked = evaluate.prompts().conversations()
    deep = [*asked[0], {"role": "assistant", "content": "我是书生·浦语。"}, *asked[9]]
    talks: list[Any] = [*map(messages_of, replay_prompts(extended=False)[::12]), *asked[::12], deep]
    base = by_transformers(model, tokenizer, talks, 64)
    adapted = with_adapter(generation.load(Path(model.config._name_or_path))[0]).eval()
    tuned = by_transformers(adapted, tokenizer, talks, 64)
    assert sum(a != b for a, b in zip(base, tuned, strict=True)) > len(talks) / 2
    no_generate(monkeypatch)
    assert generation.answer(model, tokenizer, talks, max_new_tokens=64) == base
    assert generation.answer(adapted, tokenizer, talks, max_new_tokens=64) == tuned
    with adapted.disable_adapter():
        assert generation.answer(adapted, tokenizer, talks, max_new_tokens=64) == base
    assert generation.answer(adapted, tokenizer, talks, max_new_tokens=64) == tuned


def four_bits(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.float32)
    _keep_layout(model)
    return model


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("fast", [True, False])
def test_a_model_in_training_generates_at_each_checkpoint(
    miniature: Loaded, fast: bool, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `generate` says of the same weights; before the first step, after some, and with nothing kept between."""
    tokenizer, folder = miniature[1], Path(miniature[0].config._name_or_path)
    model, untouched = (with_adapter(four_bits(folder) if bits == 4 else generation.load(folder)[0]) for _ in range(2))
    talks = evaluate.prompts().conversations()[::20]
    fused: list[FusedLlama] = []
    replies = []
    for steps in range(3):
        if steps:
            with torch.no_grad():
                for one, other in zip(model.parameters(), untouched.parameters(), strict=True):
                    if one.requires_grad:
                        for parameter in (one, other):
                            parameter.mul_(1.1)
            if fast and not fused:
                fused.append(FusedLlama(model, fp8=False))  # as at the first batch, after the base was asked
        with generation.evaluating(untouched):
            expected = by_transformers(untouched, tokenizer, talks, 40)
        with monkeypatch.context() as only, generation.evaluating(model):
            no_generate(only)
            replies.append(generation.answer(model, tokenizer, talks, max_new_tokens=40))
            assert generation._kept
        assert not generation._kept
        assert replies[-1] == expected
    assert replies[0] != replies[1] != replies[2]
    assert model.training


def test_what_the_engine_does_not_compute_is_generated_by_transformers(
    loaded: Loaded, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    expected = by_transformers(model, tokenizer, CONVERSATIONS, 8)
    asked: list[int] = []
    by = generation._by_transformers

    def listen(*arguments: Any) -> list[Reply]:
        asked.append(len(arguments[2]))
        return by(*arguments)

    monkeypatch.setattr(generation, "_by_transformers", listen)
    trained = generation.load(tiny_model)[0].requires_grad_(True)  # its weights may lie in an optimizer's buffers
    sharded = generation.load(tiny_model)[0]
    next(sharded.model.layers[0].mlp.up_proj.parameters()).ds_id = 1
    for other in (trained, sharded):
        assert generation.answer(other, tokenizer, CONVERSATIONS, max_new_tokens=8) == expected
    longest = max(len(prompt_ids(tokenizer, talk)) for talk in CONVERSATIONS)
    monkeypatch.setattr(model.config, "max_position_embeddings", longest + 7)
    assert generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8) == expected
    assert asked == [len(CONVERSATIONS)] * 3
    monkeypatch.setattr(model.config, "max_position_embeddings", longest + 8)
    assert generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8) == expected
    assert len(asked) == 3


def test_the_cache_is_kept_for_the_next_call_until_another_model_is_loaded(tiny_model: Path) -> None:
    def generator() -> Any:
        return generation._kept[model].generator

    model, tokenizer = generation.load(tiny_model)
    generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8)
    first = weakref.ref(generator())
    generation.answer(model, tokenizer, CONVERSATIONS[:2], max_new_tokens=4)
    assert generator() is first()
    generation.answer(model, tokenizer, CONVERSATIONS * 5, max_new_tokens=4)  # more than it has slots
    assert first() is None  # freed at once, without the garbage collector
    second = weakref.ref(generator())
    down = model.model.layers[0].mlp.down_proj.weight
    down.data = down.data.clone()
    generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=4)
    assert second() is None
    assert generator().decoder.layers[0].down.weight.data_ptr() == down.data_ptr()
    third = weakref.ref(generator())
    generation.load(tiny_model)
    assert third() is None


def test_a_model_that_goes_takes_its_cache_along(tiny_model: Path) -> None:
    model, tokenizer = generation.load(tiny_model)
    generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=2)
    del model
    gc.collect()
    assert not generation._kept


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_fails_leaves_no_unfinished_replies_behind(
    loaded: Loaded, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    expected = generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "decode", fail)
        with pytest.raises(error):
            generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8)
    assert generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=8) == expected


def test_sampled_replies_follow_the_seed(miniature: Loaded) -> None:
    model, tokenizer = miniature
    talks = CONVERSATIONS[:3] * 2
    one, again, other = (
        generation.answer(model, tokenizer, talks, max_new_tokens=30, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    assert one[:3] != one[3:]  # the same questions: each has random numbers of its own
    more = generation.answer(model, tokenizer, [*talks, *talks], max_new_tokens=30, temperature=1.5, seed=1)
    assert more[: len(talks)] == one
    assert generation.answer(model, tokenizer, talks, max_new_tokens=30, temperature=0.8, top_p=1e-6) == (
        generation.answer(model, tokenizer, talks, max_new_tokens=30)
    )


def test_no_prompts_have_no_replies(loaded: Loaded) -> None:
    assert generation.answer(*loaded, [], max_new_tokens=4) == []


@pytest.mark.parametrize("which", [0, 1], ids=["<|im_end|>", "</s>"])
def test_a_reply_ends_at_a_stop_token(tiny_model: Path, which: int) -> None:
    """The third token of a reply is made a stop token: its row of the output head and the stop token's change
    places."""
    model, tokenizer = generation.load(tiny_model)
    for conversation in CONVERSATIONS:
        output_ids = greedy(model, tokenizer, conversation, 6)
        if output_ids[2] not in output_ids[:2]:
            break
    stop = stop_ids(tokenizer)[which]
    with torch.no_grad():
        head = model.lm_head.weight
        head[[output_ids[2], stop]] = head[[stop, output_ids[2]]]
    # A longer prompt beside it, which goes on: its reply must not be cut, nor what follows the stop be told.
    reply, other = generation.answer(model, tokenizer, [conversation, CONVERSATIONS[-1]], max_new_tokens=6)
    assert reply == Reply(tokenizer.decode(output_ids[:2]), stopped=True)
    assert generation.answer(model, tokenizer, [CONVERSATIONS[-1]], max_new_tokens=6) == [other]


def test_a_reply_that_runs_into_the_limit_is_no_stopped_one(loaded: Loaded) -> None:
    model, tokenizer = loaded
    conversation = CONVERSATIONS[0]
    assert not set(stop_ids(tokenizer)) & set(greedy(model, tokenizer, conversation, 5))
    (reply,) = generation.answer(model, tokenizer, [conversation], max_new_tokens=5)
    assert not reply.stopped


def test_the_miniature_ends_its_replies(miniature: Loaded) -> None:
    replies = generation.answer(*miniature, CONVERSATIONS[:1] + CONVERSATIONS[2:3], max_new_tokens=60)
    assert all(reply.stopped and reply.text for reply in replies)


def test_evaluating_gives_the_model_back_as_it_was(loaded: Loaded) -> None:
    model, _ = loaded
    model.train()
    model.config.use_cache = False
    with contextlib.suppress(KeyboardInterrupt), generation.evaluating(model):
        assert (model.training, model.config.use_cache) == (False, True)
        raise KeyboardInterrupt
    assert (model.training, model.config.use_cache) == (True, False)
    model.eval()
    model.config.use_cache = True


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "internlm2"}', encoding="utf-8")


@pytest.mark.parametrize("damage", [nothing, no_folder, no_weights, half_the_weights, unknown_type])
def test_a_folder_without_a_model_is_refused(damage: Callable[[Path], None], tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    with pytest.raises(RecipeError) as caught:
        generation.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no adapter"):
        generation.load(tiny_model, tmp_path)


def test_a_loaded_model_is_ready_to_answer(loaded: Loaded) -> None:
    model, _ = loaded
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32  # the precision for a CPU
