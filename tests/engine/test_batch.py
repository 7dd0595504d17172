"""Whole replies: as many sequences at once as memory takes, moved together at the end, each as if it were alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from small_serving import CONVERSATIONS

from recipe.chat_format import prompt_ids, stop_ids
from recipe.engine import Sampling, memory, scheduler
from recipe.engine.batch import BatchGenerator, Output
from recipe.engine.decoder import Decoder, PromptChunk
from recipe.engine.in_flight import InFlightStep
from recipe.engine.scheduler import ADMITTED_TOGETHER, Scheduler
from recipe.engine.sequence import Sequence
from recipe.evaluation import generation


@pytest.fixture
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    return generation.load(tiny_model)


def prompts(tokenizer: Any) -> list[list[int]]:
    return [prompt_ids(tokenizer, talk) for talk in CONVERSATIONS]


def generate(model: Any, tokenizer: Any, many: list[list[int]], sampling: Sampling) -> list[list[int]]:
    length = max(map(len, many)) + sampling.max_new_tokens
    generator = BatchGenerator(model, stop_ids(tokenizer), length=length, sequences=len(many))
    return [output.ids for output in generator.generate(many, sampling)]


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_reply_does_not_depend_on_how_many_run_at_once(
    loaded: tuple[Any, Any], slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    many = prompts(tokenizer) * 3
    for sampling in (Sampling(max_new_tokens=20), Sampling(max_new_tokens=20, temperature=1.0, top_p=0.9, seed=4)):
        expected = generate(model, tokenizer, many, sampling)
        with monkeypatch.context() as few:
            few.setitem(memory.MOST_SLOTS, "cpu", slots)
            assert generate(model, tokenizer, many, sampling) == expected


def test_each_conversation_draws_numbers_of_its_own_from_the_seed(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    same = prompts(tokenizer)[:1] * 4
    first, again, other = (
        generate(model, tokenizer, same, Sampling(max_new_tokens=12, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(map(tuple, first))) == 4


def test_the_last_sequences_move_into_a_narrower_batch(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequence of the highest slot goes on for longest; neither its tokens nor its random numbers change."""
    model, tokenizer = loaded
    batches: list[int] = []
    decode = Decoder.decode

    def count(self: Decoder, batch: int, window: int) -> Any:
        batches.append(batch)
        return decode(self, batch, window)

    def run(limits: dict[int, int]) -> dict[int, list[int]]:
        """index of a prompt -> its output_ids, of so many tokens."""
        scheduler = Scheduler(Decoder(model, slots=8, length=512), set(), whole=True)
        outputs = {i: Output(lambda: None) for i in limits}
        for i, limit in limits.items():
            sampling = Sampling(limit, temperature=1.0, repetition_penalty=1.3)
            scheduler.add(Sequence(sampling, many[i], True, outputs[i], random.Random(i)))
        with torch.inference_mode():
            while not scheduler.idle:
                scheduler.iterate()
        return {i: output.ids for i, output in outputs.items()}

    many = prompts(tokenizer)
    alone = {i: run({i: 40})[i] for i in range(len(many))}
    monkeypatch.setattr(Decoder, "decode", count)
    limits = {0: 2, 1: 2, 2: 30, 3: 6, 4: 40}
    assert run(limits) == {i: alone[i][:limit] for i, limit in limits.items()}
    assert (batches[0], batches[-1]) == (5, 1)
    assert sum(batches) < 5 + 2 * 40 + 30  # never wide for the sake of one


@pytest.mark.parametrize("sampling", [Sampling(30), Sampling(30, temperature=1.0, seed=2)], ids=["greedy", "sampled"])
def test_a_step_that_runs_ahead_of_the_last_one_s_tokens_changes_no_reply(
    loaded: tuple[Any, Any], sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the next step is launched before it is known which sequences have ended, moved or not."""
    model, tokenizer = loaded
    many = prompts(tokenizer) * 7
    stops = sorted({ids[-1] for ids in generate(model, tokenizer, many[:2], Sampling(9))})  # so that some end early

    def run(*, ahead: bool) -> list[tuple[list[int], bool]]:
        generator = BatchGenerator(model, stops, length=512, sequences=16)
        scheduler = generator.scheduler
        if ahead:
            monkeypatch.setattr(scheduler, "_gpu", True)
            monkeypatch.setattr(
                scheduler,
                "_copy_to_host",
                lambda sequences, tokens: scheduler._in_flight.append(InFlightStep(sequences, tokens.clone())),
            )
        return [(output.ids, output.stopped) for output in generator.generate(many, sampling)]

    expected = run(ahead=False)
    assert run(ahead=True) == expected
    assert {stopped for _, stopped in expected} == {True, False}


def test_prompts_wait_for_each_other_where_nobody_waits_for_them(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    passes: list[int] = []
    prefill = Decoder.prefill

    def count(self: Decoder, chunks: Any) -> Any:
        passes.append(len(chunks))
        return prefill(self, chunks)

    monkeypatch.setattr(Decoder, "prefill", count)
    scheduler = Scheduler(Decoder(model, slots=16, length=64), set(), whole=True)
    outputs = [Output(lambda: None) for _ in range(100)]
    for i, output in enumerate(outputs):  # they end one by one
        scheduler.add(Sequence(Sampling(2 + i * 5 % 16), prompts(tokenizer)[0], True, output, random.Random(i)))
    with torch.inference_mode():
        while not scheduler.idle:
            scheduler.iterate()
    assert [len(output.ids) for output in outputs] == [2 + i * 5 % 16 for i in range(100)]
    assert passes[0] == 16
    assert sum(passes) == 100
    assert min(passes[:-1]) >= 16 // ADMITTED_TOGETHER > 1


def test_prompts_are_prefilled_together_as_one_by_one(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    many = prompts(tokenizer)
    with torch.inference_mode():
        together, alone = (Decoder(model, slots=8, length=512) for _ in range(2))
        logits = together.prefill([PromptChunk(slot, ids, 0) for slot, ids in enumerate(many)])
        for slot, ids in enumerate(many):
            torch.testing.assert_close(logits[slot : slot + 1], alone.prefill([PromptChunk(slot, ids, 0)]))
            filled = alone.cache[:, :, slot, :, : len(ids)]
            torch.testing.assert_close(together.cache[:, :, slot, :, : len(ids)], filled)


@pytest.mark.parametrize(
    ("megabytes", "sequences", "slots"), [(4096, 1000, 64), (4096, 5, 8), (4096, 1, 1), (3, 1000, 5), (0, 1000, 1)]
)
def test_there_are_as_many_slots_as_memory_takes(
    megabytes: int, sequences: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_bases.random_model("llama")
    assert memory.bytes_per_token(model.config, 4) == 2 * 2 * 2 * 8 * 4
    monkeypatch.setattr(memory, "CPU_CACHE_BYTES", megabytes << 20)
    assert memory.batch_slots(model, 1100, sequences) == slots


def test_short_memory_is_no_reason_to_build_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_bases.random_model("qwen2")
    generator = BatchGenerator(model, [1], length=100, sequences=8)
    assert generator.fits([1], length=128, sequences=8)
    assert not generator.fits([1], length=129, sequences=8)
    assert not generator.fits([1], length=100, sequences=9)
    assert not generator.fits([2], length=100, sequences=8)
    monkeypatch.setattr(memory, "CPU_CACHE_BYTES", 3 << 20)
    short = BatchGenerator(model, [1], length=500, sequences=40)
    assert short.decoder.slots < 40
    assert short.fits([1], length=500, sequences=41)


def test_who_begins_beside_one_that_fails_gets_the_same_reply(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that begin together are sampled together, then one by one where that fails: nobody draws twice."""
    model, tokenizer = loaded
    many, sampling = prompts(tokenizer)[:3], Sampling(max_new_tokens=12, temperature=1.5, seed=3)
    length = max(map(len, many)) + sampling.max_new_tokens

    def run() -> list[Output]:
        generator = BatchGenerator(model, stop_ids(tokenizer), length=length, sequences=len(many))
        choose, outputs = generator.scheduler.sampler.choose, [Output(lambda: None) for _ in many]

        def fail(logits: Any, slots: Any, *, plain: bool) -> Any:
            if not isinstance(slots, slice) and spoilt in slots.tolist():
                raise ValueError("a setting that it cannot take")
            return choose(logits, slots, plain=plain)

        monkeypatch.setattr(generator.scheduler.sampler, "choose", fail)
        for i, output in enumerate(outputs):
            generator.scheduler.add(Sequence(sampling, many[i], False, output, random.Random(i)))
        with torch.inference_mode():
            while not generator.scheduler.idle:
                generator.scheduler.iterate()
        return outputs

    spoilt = -1
    expected = [output.ids for output in run()]
    spoilt = 1
    first, failed, last = run()
    assert isinstance(failed.error, ValueError)
    assert (first.ids, last.ids) == (expected[0], expected[2])
    assert first.error is last.error is None


def test_a_prompt_that_no_longer_fits_into_a_pass_waits_whole(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts it would make the next pass compute every prompt by itself."""
    model, tokenizer = loaded
    many = prompts(tokenizer)
    monkeypatch.setitem(scheduler.BATCH_PREFILL_TOKENS, "cpu", len(many[0]) + len(many[1]) - 1)
    passes: list[list[PromptChunk]] = []
    prefill = Decoder.prefill

    def note(self: Decoder, chunks: Any) -> Any:
        passes.append(list(chunks))
        return prefill(self, chunks)

    monkeypatch.setattr(Decoder, "prefill", note)
    generate(model, tokenizer, many, Sampling(max_new_tokens=2))
    assert len(passes) > 1
    assert not any(chunk.start for chunks in passes if len(chunks) > 1 for chunk in chunks)
    assert sum(len(chunk.ids) for chunks in passes for chunk in chunks) == sum(map(len, many))
