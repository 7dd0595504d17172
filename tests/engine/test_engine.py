"""The engine says what transformers says, to each visitor his own, whoever else is there; and stops when nobody
listens."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_serving import CONVERSATIONS, WITHIN, OutputIds, assert_no_half_character, by_transformers, greedy

from recipe.chat_format import prompt_ids, text_ids
from recipe.engine import Engine, Reply, Sampling, memory, scheduler
from recipe.engine.decoder import Decoder, PromptChunk
from recipe.engine.engine import Stream
from recipe.engine.sampling import Sampler
from recipe.engine.sequence import Sequence as EngineSequence
from recipe.engine.slots import SAVED_TOKENS_PER_SLOT, SlotManager
from recipe.engine.text import Text
from recipe.errors import RecipeError
from recipe.evaluation import generation


@pytest.fixture(scope="module")
def miniature_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recipe.stages import model

    folder = tmp_path_factory.mktemp("models") / "miniature"
    model.make(folder, model="miniature")
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Engine]:
    with Engine(*generation.load(tiny_model), slots=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def miniature(miniature_folder: Path) -> Iterator[Engine]:
    with Engine(*generation.load(miniature_folder)) as engine:
        yield engine


def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Grows by a pass over prompts each time: how many tokens of each it read."""
    read: list[list[int]] = []
    original = Decoder.prefill

    def count(self: Decoder, chunks: Sequence[PromptChunk]) -> Any:
        read.append([len(chunk.ids) for chunk in chunks])
        return original(self, chunks)

    monkeypatch.setattr(Decoder, "prefill", count)
    return read


# --- The same as transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tiny", "miniature"])
def test_token_for_token_what_transformers_says_alone_and_together(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = request.getfixturevalue(which)
    folder = request.getfixturevalue({"tiny": "tiny_model", "miniature": "miniature_folder"}[which])
    outputs = OutputIds(monkeypatch)
    expected = [by_transformers(folder, conversation, 24) for conversation in CONVERSATIONS]
    alone = [outputs.of(greedy(engine, conversation)[0]) for conversation in CONVERSATIONS]
    together = greedy(engine, *CONVERSATIONS, *reversed(CONVERSATIONS))  # more than the tiny one's slots: some wait
    assert alone == expected
    assert [outputs.of(reply) for reply in together] == [*expected, *reversed(expected)]
    assert len({tuple(ids) for ids in expected}) > 1


def test_a_repetition_penalty_is_transformers(tiny: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = OutputIds(monkeypatch)
    plain = tiny.reply(CONVERSATIONS[1], Sampling(max_new_tokens=20))
    fined = tiny.reply(CONVERSATIONS[0], Sampling(max_new_tokens=20, repetition_penalty=1.3))
    plain.join()
    fined.join()
    assert outputs.of(fined) == by_transformers(tiny_model, CONVERSATIONS[0], 20, repetition_penalty=1.3)
    assert outputs.of(fined) != by_transformers(tiny_model, CONVERSATIONS[0], 20)
    assert outputs.of(plain) == by_transformers(tiny_model, CONVERSATIONS[1], 20)


def test_adapter_and_base_speak_in_one_batch_as_peft_does_apart(
    tiny_model: Path, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = generation.load(tiny_model, adapter_folder)
    tuned = [by_transformers(model, c, 12, tokenizer) for c in CONVERSATIONS]
    with model.disable_adapter():
        base = [by_transformers(model, c, 12, tokenizer) for c in CONVERSATIONS]
    assert tuned != base
    outputs = OutputIds(monkeypatch)

    def ids_of(replies: list[Reply]) -> list[list[int]]:
        for reply in replies:
            reply.join()
        return [outputs.of(reply) for reply in replies]

    with Engine(model, tokenizer) as engine:
        assert engine.can_compare
        sampling = Sampling(max_new_tokens=12)
        alternating = ids_of(
            [engine.reply(c, sampling, adapted=adapted) for c in CONVERSATIONS for adapted in (True, False)]
        )
        assert alternating[::2] == tuned
        assert alternating[1::2] == base
        # The same conversation by the other, one after another: what its slot holds is of no use.
        for adapted in (False, True, False):
            assert ids_of([engine.reply(CONVERSATIONS[1], sampling, adapted=adapted)]) == [(base, tuned)[adapted][1]]
    # The weights were not copied but are views of the engine's, and the model still works.
    assert by_transformers(model, CONVERSATIONS[1], 12, tokenizer) == tuned[1]


def test_long_conversations_grow_past_every_window(tiny: Engine, tiny_model: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(scheduler, "MIN_WINDOW", 64)
    monkeypatch.setitem(scheduler.PREFILL_TOKENS, "cpu", 7)  # a prompt in many parts
    outputs = OutputIds(monkeypatch)
    tiny.scheduler.stops, stops = set(), tiny.scheduler.stops
    try:
        (reply,) = greedy(tiny, CONVERSATIONS[0], count=200)
    finally:
        tiny.scheduler.stops = stops
    output_ids = outputs.of(reply)
    assert len(output_ids) == 200
    model, tokenizer = generation.load(tiny_model)
    ids = prompt_ids(tokenizer, CONVERSATIONS[0])
    with torch.inference_mode():
        logits = model(torch.tensor([ids + output_ids])).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == output_ids


def test_short_prompts_are_read_together_and_a_long_one_holds_nobody_up(tiny: Engine, monkeypatch: Any) -> None:
    monkeypatch.setitem(scheduler.PREFILL_TOKENS, "cpu", 40)
    conversations = CONVERSATIONS[: tiny.decoder.slots]
    alone = [greedy(tiny, conversation)[0].text for conversation in conversations]
    tiny.scheduler.slots = SlotManager(tiny.decoder.slots)  # no prefix is cached
    read = passes(monkeypatch)
    with tiny._work:  # all of them are there when the engine looks
        together = [tiny.reply(conversation, Sampling(max_new_tokens=24)) for conversation in conversations]
    for reply in together:
        reply.join()
    assert [reply.text for reply in together] == alone
    assert max(map(sum, read)) == 40
    assert sum(map(sum, read)) == sum(len(prompt_ids(tiny.tokenizer, conversation)) for conversation in conversations)
    assert max(map(len, read)) > 1  # prompts in a pass


def test_a_conversation_that_goes_on_is_not_read_anew(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = passes(monkeypatch)
    first = [{"role": "user", "content": "tell me about 小明 " * 5}]
    (reply,) = greedy(tiny, first)
    whole = sum(map(sum, read))
    read.clear()
    (again,) = greedy(tiny, first)
    assert sum(map(sum, read)) == 1
    assert again.text == reply.text
    read.clear()
    greedy(tiny, [{"role": "user", "content": "x" + first[0]["content"]}])
    assert sum(map(sum, read)) > whole - 10


# --- Sampling -----------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_reply_whoever_else_speaks(tiny: Engine) -> None:
    def ask(seed: int | None) -> Reply:
        return tiny.reply(CONVERSATIONS[0], Sampling(max_new_tokens=12, temperature=1.5, seed=seed))

    def text(reply: Reply) -> str:
        reply.join()
        return reply.text

    alone = text(ask(7))
    crowd = [ask(seed) for seed in (1, 7, 2, 7)] + [tiny.reply(CONVERSATIONS[3], Sampling(max_new_tokens=30))]
    texts = [text(reply) for reply in crowd]
    assert texts[1] == texts[3] == alone
    assert len({text(ask(None)) for _ in range(4)}) > 1


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=12), temperature=st.floats(0.1, 3), top_p=st.floats(0.01, 1),
    draw=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
@settings(max_examples=300)
def test_a_token_is_drawn_from_the_nucleus_in_its_shares(
    logits: list[float], temperature: float, top_p: float, draw: float
) -> None:
    sampler = Sampler(1, len(logits), torch.device("cpu"))
    sampler.set(0, Sampling(temperature=temperature, top_p=top_p), [])
    sampler.draw[0] = draw
    (chosen,) = sampler.choose(torch.tensor([logits]), slice(0, 1), plain=False).tolist()
    likely, order = (torch.tensor(logits) / sampler.temperature[0]).softmax(0).sort(descending=True, stable=True)
    nucleus = int((likely.cumsum(0) - likely < sampler.top_p[0]).sum())
    shares = likely[:nucleus].double().cumsum(0) / likely[:nucleus].double().sum()
    rank = order.tolist().index(chosen)
    assert rank < nucleus
    before = float(shares[rank - 1]) if rank else 0.0
    assert before - 1e-5 <= draw <= float(shares[rank]) + 1e-5


@given(
    rows=st.lists(st.lists(st.integers(-4, 4), min_size=9, max_size=9), min_size=1, max_size=4),
    top_p=st.sampled_from([0.3, 0.9, 1.0]), top_k=st.sampled_from([0, 2, 5, 9]), min_p=st.sampled_from([0.0, 0.2]),
    few=st.integers(1, 9), temperatures=st.lists(st.sampled_from([0.0, 0.7, 2.0]), min_size=4, max_size=4),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)  # fmt: skip
@settings(max_examples=500)
def test_looking_at_the_likeliest_first_draws_the_same_tokens(
    rows: list[list[int]], top_p: float, top_k: int, min_p: float, few: int, temperatures: list[float],
    draws: list[float],
) -> None:  # fmt: skip
    """Many of the logits are equal: then the order of the tokens decides."""
    slots = len(rows)
    chosen = []
    for count in (few, 9):
        sampler = Sampler(slots, 9, torch.device("cpu"))
        for slot in range(slots):
            sampler.set(slot, Sampling(temperature=temperatures[slot], top_p=top_p, top_k=top_k, min_p=min_p), [])
            sampler.draw[slot] = draws[slot]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recipe.engine.sampling.FEW", count)
            chosen.append(sampler.choose(torch.tensor(rows).float(), slice(0, slots), plain=False).tolist())
    assert chosen[0] == chosen[1]


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=12), top_p=st.floats(0.01, 1), top_k=st.integers(0, 14),
    min_p=st.floats(0, 1), draw=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
@settings(max_examples=300)
def test_top_k_and_min_p_are_transformers(
    logits: list[float], top_p: float, top_k: int, min_p: float, draw: float
) -> None:
    """One of the tokens that transformers' warpers leave; which of them, the test above checks for the nucleus."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    sampler = Sampler(1, len(logits), torch.device("cpu"))
    sampler.set(0, Sampling(temperature=1.0, top_p=top_p, top_k=top_k, min_p=min_p), [])
    sampler.draw[0] = draw
    (chosen,) = sampler.choose(torch.tensor([logits]), slice(0, 1), plain=False).tolist()
    scores = torch.tensor([logits])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    # Rounding decides about tokens at the very edge, which may go either way.
    nucleus = TopPLogitsWarper(min(top_p + 1e-5, 1.0))(None, scores)
    likely = MinPLogitsWarper(max(min_p - 1e-5, 0.0))(None, torch.tensor([logits]))
    for left in (nucleus, likely):  # of logits that are equal but for rounding either may be chosen
        assert logits[chosen] >= float(left[torch.isfinite(left)].min()) - 1e-5


# --- Text ---------------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=40) | st.text("aé你𠮷🦊👩‍🚀é \n�", max_size=20))
@settings(max_examples=300)
def test_no_half_character_is_ever_told(tokenizer: Any, text: str) -> None:
    assert_no_half_character(tokenizer, text)


@given(content=st.lists(st.sampled_from([0x41, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0xA6, 0x8A, 0xFF]), max_size=40))
@settings(max_examples=300)
def test_bytes_that_are_no_character_hold_nothing_up_for_ever(tokenizer: Any, content: list[int]) -> None:
    stream, waiting, text = Text(tokenizer), 0, ""
    for byte in content:
        piece = stream.add(tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>"))
        waiting = 0 if piece else waiting + 1
        assert waiting < 16
        text += piece
    text += stream.end()
    try:
        assert text == bytes(content).decode("utf-8")
    except UnicodeDecodeError:
        assert "�" in text


@given(text=st.text("ab<|", max_size=30), stops=st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3))
@settings(max_examples=300)
def test_a_stop_text_and_what_follows_is_not_told(tokenizer: Any, text: str, stops: list[str]) -> None:
    stream, emitted = Text(tokenizer, stops), ""
    for token in text_ids(tokenizer, text):
        emitted += stream.add(token)
        if stream.stopped:
            break
    emitted += stream.end()
    ends = [text.find(stop) for stop in stops if stop in text]
    if ends:
        assert stream.stopped
        assert text.startswith(emitted)
        assert not any(stop in emitted for stop in stops)
    else:
        assert emitted == text


def test_a_reply_ends_at_its_stop_text(miniature: Engine) -> None:
    (whole,) = greedy(miniature, CONVERSATIONS[0], count=60)
    assert whole.ended == "stop"
    stop = whole.text[3:5]
    reply = miniature.reply(CONVERSATIONS[0], Sampling(stop=(stop,)))
    reply.join()
    assert (reply.text, reply.ended) == (whole.text[: whole.text.index(stop)], "stop")


# --- Ends ---------------------------------------------------------------------------------------------------------


def test_the_model_s_own_end_and_the_limit_are_told_apart(miniature: Engine) -> None:
    (reply,) = greedy(miniature, CONVERSATIONS[0], count=60)
    assert reply.ended == "stop"
    assert not any(token in reply.text for token in ("<|im_end|>", "</s>"))
    (cut,) = greedy(miniature, CONVERSATIONS[0], count=3)
    assert (cut.ended, cut.completion_tokens) == ("length", 3)
    assert reply.text.startswith(cut.text)
    assert cut.prompt_tokens == len(prompt_ids(miniature.tokenizer, CONVERSATIONS[0]))


def test_a_conversation_ends_where_the_model_s_memory_does(tiny_model: Path) -> None:
    with Engine(*generation.load(tiny_model), slots=2, length=128) as engine:
        engine.scheduler.stops = set()
        long = [{"role": "user", "content": "a b " * 30}]
        needed = len(prompt_ids(engine.tokenizer, long))
        replies = greedy(engine, long, CONVERSATIONS[0], count=500)
        assert [r.ended for r in replies] == ["length", "length"]
        assert needed + replies[0].completion_tokens == 128
        with pytest.raises(RecipeError, match="the model reads 128: shorten it"):
            engine.reply([{"role": "user", "content": "a b " * 200}], Sampling())
        assert greedy(engine, CONVERSATIONS[0], count=5)[0].completion_tokens == 5


def until(true: Any) -> None:
    end = time.monotonic() + WITHIN
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_cancelled_reply_keeps_what_was_said_and_frees_its_place(tiny: Engine) -> None:
    tiny.scheduler.stops, stops = set(), tiny.scheduler.stops
    try:
        crowd = [tiny.reply(CONVERSATIONS[0], Sampling(max_new_tokens=1800)) for _ in range(6)]  # 4 slots: two wait
        assert crowd[0].wait(3, WITHIN)
        for reply in crowd:
            reply.cancel()
        for reply in crowd:
            reply.join()
        assert {reply.ended for reply in crowd} == {"cancelled"}
        assert crowd[0].text
        assert 0 < crowd[0].completion_tokens < 1800
        assert tiny.busy == 0
    finally:
        tiny.scheduler.stops = stops


def test_closing_the_pieces_and_an_exception_between_them_cancel(tiny: Engine) -> None:
    leaves: list[Any] = [lambda pieces: pieces.close(), lambda pieces: pieces.throw(KeyboardInterrupt)]
    for leave in leaves:
        pieces = tiny.reply(CONVERSATIONS[0], Sampling(max_new_tokens=1800)).pieces()
        next(pieces)
        with contextlib.suppress(KeyboardInterrupt):
            leave(pieces)
        until(lambda: tiny.busy == 0)


def test_what_fails_is_told_to_those_it_concerns_and_the_engine_goes_on(
    tiny: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(tiny, CONVERSATIONS[0])[0].text

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "decode", fail)
        reply = tiny.reply(CONVERSATIONS[1], Sampling(max_new_tokens=8))
        with pytest.raises(MemoryError, match="no room"):
            list(reply.pieces())
        assert reply.ended == "error"
    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "prefill", fail)
        with pytest.raises(MemoryError, match="no room"):
            list(tiny.reply(CONVERSATIONS[1], Sampling(max_new_tokens=8)).pieces())
    assert greedy(tiny, CONVERSATIONS[0])[0].text == expected
    assert tiny.busy == 0


@pytest.mark.parametrize("step", ["set", "choose"])
def test_what_fails_before_the_first_token_ends_its_reply(
    tiny: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """On its way from one queue to the next a sequence is in neither, and nobody would end it."""
    expected = greedy(tiny, CONVERSATIONS[0])[0].text

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(Sampler, step, fail)
        reply = tiny.reply(CONVERSATIONS[1], Sampling(max_new_tokens=8))
        until(lambda: reply.ended)
    assert reply.ended == "error"
    assert isinstance(reply.error, MemoryError)
    assert greedy(tiny, CONVERSATIONS[0])[0].text == expected
    assert tiny.busy == 0


def test_a_closed_engine_ends_its_replies_and_takes_no_more(tiny_model: Path) -> None:
    before = threading.active_count()
    engine = Engine(*generation.load(tiny_model))
    engine.scheduler.stops = set()
    reply = engine.reply(CONVERSATIONS[0], Sampling(max_new_tokens=1800))
    reply.wait(0, WITHIN)
    engine.close()
    assert reply.ended == "cancelled"
    assert threading.active_count() == before
    with pytest.raises(RecipeError, match="no longer served"):
        engine.reply(CONVERSATIONS[0], Sampling())


# --- Many at once -------------------------------------------------------------------------------------------------


def test_a_first_token_comes_at_once_while_others_speak(miniature: Engine) -> None:
    miniature.scheduler.stops, stops = set(), miniature.scheduler.stops
    try:
        others = [miniature.reply(c, Sampling(max_new_tokens=1500)) for c in CONVERSATIONS[:3]]
        for other in others:
            assert other.wait(0, WITHIN)
        waits = []
        for i in range(5):
            reply = miniature.reply([{"role": "user", "content": f"{i} hello"}], Sampling(max_new_tokens=1))
            reply.join()
            waits.append((reply.first_at or 0) - reply.asked_at)
        assert not any(other.ended for other in others)
        assert sorted(waits)[2] < 0.15, waits
    finally:
        for other in others:
            other.cancel()
            other.join()
        miniature.scheduler.stops = stops


def test_visitors_who_come_and_go_hear_only_their_own(tiny: Engine) -> None:
    """Sixty threads, some of whom leave in between: everybody who stays hears what he would hear alone."""
    alone = {i: greedy(tiny, c, count=8)[0].text for i, c in enumerate(CONVERSATIONS)}
    wrong: list[Any] = []

    def visit(number: int) -> None:
        rng, i = random.Random(number), number % len(CONVERSATIONS)
        time.sleep(rng.random() * 0.3)
        reply = tiny.reply(CONVERSATIONS[i], Sampling(max_new_tokens=8))
        if number % 7 == 0:
            reply.cancel()
        else:
            reply.join()
            if reply.text != alone[i]:
                wrong.append((number, reply.text, alone[i]))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN)
    assert not wrong
    until(lambda: tiny.busy == 0)


def test_a_model_of_another_layout_is_refused(tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32))
    with pytest.raises(RecipeError, match="not GPT2LMHeadModel: `make model` converts"):
        Decoder(model, slots=1, length=8)


def test_a_cache_too_large_serves_fewer_visitors_before_shorter_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        hidden_size=2048,
        max_position_embeddings=32768,
    )
    token = memory.bytes_per_token(config, 4)
    for tokens, expected in [
        (32 * 32768, (32, 32768)),
        (32 * 5000, (32, 4992)),
        (16 * 5000, (16, 4992)),
        (3000, (1, 2944)),
    ]:
        monkeypatch.setattr(memory, "CPU_CACHE_BYTES", tokens * token)
        assert memory.capacity(config, 4) == expected


@pytest.mark.parametrize(
    ("prefix", "used", "slot"),
    [(8, (), 0), (SAVED_TOKENS_PER_SLOT * 3, (), 0), (SAVED_TOKENS_PER_SLOT * 3 + 1, (), 3),
     (8, (0, 1, 2), 3), (8, (2,), 3), (0, (2,), 0)],
)  # fmt: skip
def test_the_decode_batch_is_widened_only_where_the_cached_prefix_is_worth_it(
    tokenizer: Any, prefix: int, used: tuple[int, ...], slot: int
) -> None:
    ids = list(range(100, 100 + 400))

    def sequence(slot: int = -1) -> EngineSequence:
        return EngineSequence(Sampling(), ids, True, Stream(Reply(), Text(tokenizer)), random.Random(0), slot)

    manager, waiting = SlotManager(4), sequence()
    manager.store(sequence(slot=3), ids[:prefix])
    manager.allocate(waiting, used)
    assert (waiting.slot, waiting.prefilled) == (slot, prefix if slot == 3 else 0)


def test_a_request_may_come_while_those_that_wait_are_looked_through(tiny: Engine) -> None:
    """Once in tens of thousands of requests it did, and every reply with a slot ended with its error."""
    queue = tiny.scheduler

    class Listener:
        ended: str | None = None
        other: threading.Thread | None = None

        @property
        def cancelled(self) -> bool:
            if self.other is None:
                self.other = threading.Thread(target=queue.add, args=(waiting(Listener()),))
                self.other.start()
                self.other.join(0.2)  # it is done by then, or waits its turn
            return True

        def add(self, token: int, logprob: Any = None) -> bool:
            return True

        def end(self, how: str, error: Exception | None = None, last: Any = None) -> None:
            self.ended = how

    def waiting(listener: Listener) -> EngineSequence:
        return EngineSequence(Sampling(), [1], False, listener, random.Random(0))

    first, second = Listener(), Listener()
    second.other = threading.Thread()
    for listener in (first, second):
        queue.add(waiting(listener))
    queue._drop_cancelled()
    assert first.other
    first.other.join(WITHIN)
    assert (first.ended, second.ended, queue.busy) == ("cancelled", "cancelled", 1)
    queue._waiting.clear()


def test_thousands_who_leave_before_their_turn_hold_nobody_up(tiny: Engine) -> None:
    """Each was compared with all that waited before it, prompts and all: seconds in which no reply grew."""
    queue, prompt = tiny.scheduler, list(range(1900))
    replies = [Reply() for _ in range(2000)]
    for reply in replies:
        stream = Stream(reply, Text(tiny.tokenizer))
        queue._waiting.append(EngineSequence(Sampling(), list(prompt), False, stream, random.Random(0)))
    for reply in replies[1000:]:
        reply.cancel()
    began = time.monotonic()
    queue._drop_cancelled()
    assert time.monotonic() - began < 1
    assert [reply.ended for reply in replies] == [None] * 1000 + ["cancelled"] * 1000
    queue._waiting.clear()
