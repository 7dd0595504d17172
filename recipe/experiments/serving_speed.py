"""Verb `speed`: how fast the engine generates, measured as a client sees it: text of 1, 8 and 32 replies at once.

Prompts are PROMPT random tokens, so that no prefix is cached; every reply is TOKENS long, greedy. The time to the first
token is from the request to the token's arrival: for all requests at once, and for one that comes while the others
decode.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe.chat_format import SPECIAL_TOKENS
from recipe.device import has_gpu
from recipe.engine import Engine, Reply, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.experiments.training_speed.workload import VOCABULARY, random_model
from recipe.pipeline import stage

STREAMS = (1, 8, 32)
PROMPT = 64
TOKENS = 256


def run(model: Path | None) -> list[dict[str, Any]]:
    """Measure the engine on a model.

    Args:
        model: its folder; None is a model of random weights of InternLM2-Chat-1.8B's size, which needs a GPU.

    Returns:
        For each number of "streams", replies at once:
        tokens_per_s: of all together.
        each: tokens/s of one reply after its first token, the median.
        first_ms, last_ms: to the first token, in milliseconds: the median and the largest.
        late_ms: likewise, of a request that comes while the others decode; None for one stream.

    Raises:
        RecipeError: there is no GPU for the model of random weights.
    """
    loaded, tokenizer = generation.load(model) if model else _random_model()
    results = []
    with Engine(loaded, tokenizer) as engine:
        engine.scheduler.stops = set()  # no reply ends before its limit
        for streams in STREAMS:
            if streams > engine.decoder.slots:
                stage.say("speed", f"{streams} streams: there is memory for {engine.decoder.slots} at once")
                continue
            stage.say("speed", f"{streams} at once")
            _measure(engine, streams)  # CUDA graphs are captured, kernels compiled
            results.append({"streams": streams, **_measure(engine, streams)})
    return results


def _measure(engine: Engine, streams: int) -> dict[str, Any]:
    started = time.monotonic()
    replies = [_request(engine, TOKENS) for _ in range(streams)]
    late: Reply | None = None
    if streams > 1:  # one of them comes while all others decode
        replies.pop().cancel()
        for reply in replies:
            reply.wait(0)
        late = _request(engine, TOKENS)
        replies.append(late)
    for reply in replies:
        reply.join()
        if reply.error:
            raise reply.error
    seconds = time.monotonic() - started
    waits = [(reply.first_at or 0) - reply.asked_at for reply in replies if reply is not late]
    return {
        "tokens_per_s": sum(reply.completion_tokens for reply in replies) / seconds,
        "each": statistics.median(reply.tokens_per_second or 0 for reply in replies),
        "first_ms": 1e3 * statistics.median(waits),
        "last_ms": 1e3 * max(waits),
        "late_ms": 1e3 * ((late.first_at or 0) - late.asked_at) if late else None,
    }


def _request(engine: Engine, tokens: int) -> Reply:
    ids = random.choices(range(100, len(engine.decoder.head) - 10), k=PROMPT)
    return engine.start(ids, Sampling(max_new_tokens=min(tokens, engine.length - PROMPT)))


def _random_model() -> tuple[Any, Any]:
    """InternLM2-Chat-1.8B's size and layout, and a tokenizer whose words are numbers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    if not has_gpu():
        raise RecipeError(
            "speed --random: there is no NVIDIA GPU here; leave --random out to measure the run's own model"
        )
    words = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *map(str, range(VOCABULARY - len(SPECIAL_TOKENS)))])}
    return random_model().eval(), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")))


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results of `run` as a table in Markdown."""
    lines = [
        "| at once | tokens/s together | tokens/s each | first token ms, median | slowest | while others speak |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        late = f"{r['late_ms']:.0f}" if r["late_ms"] is not None else ""
        lines.append(
            f"| {r['streams']} | {r['tokens_per_s']:,.0f} | {r['each']:,.0f} | {r['first_ms']:.0f} | "
            f"{r['last_ms']:.0f} | {late} |"
        )
    return "\n".join(lines)
