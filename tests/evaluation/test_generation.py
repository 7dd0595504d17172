"""Replies do not depend on what else is asked, and end where the model ends them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.chat_format import prompt_ids, stop_ids
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.evaluation.generation import Reply

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


def test_more_prompts_than_a_batch_are_answered_in_order(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    expected = generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=4)
    monkeypatch.setattr(generation, "BATCH", 2)
    assert generation.answer(model, tokenizer, CONVERSATIONS, max_new_tokens=4) == expected


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
