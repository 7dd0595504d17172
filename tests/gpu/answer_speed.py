"""How fast `generation.answer` is on a model, by the engine and by transformers' `generate`, in one process.

    python tests/gpu/answer_speed.py work/models/NAME [--adapter work/RUN/adapter] [--tokens 128] [--slots 64 128 256]

The prompts are those of replay. The first call of the engine builds the KV cache and captures its steps; later ones
find both.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from recipe.chat_format import prompt_ids, stop_ids, text_ids
from recipe.library_logging import quieten


def main() -> None:
    """Measure and print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128, 256])
    options = parser.parse_args()
    quieten()
    import torch

    from recipe.corpus.knowledge import conversation, replay_prompts
    from recipe.engine import Sampling, memory
    from recipe.evaluation import generation

    model, tokenizer = generation.load(options.folder, options.adapter)
    talks = [conversation(prompt) for prompt in replay_prompts(extended=True)]
    prompts, sampling = [prompt_ids(tokenizer, talk) for talk in talks], Sampling(max_new_tokens=options.tokens)
    gpu = model.device.type == "cuda"

    def measure(label: str, generate: Any) -> list[generation.Reply]:
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        replies: list[generation.Reply] = generate()
        seconds = time.perf_counter() - started
        tokens = sum(len(text_ids(tokenizer, reply.text)) + reply.stopped for reply in replies)
        peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if gpu else ""
        print(f"{label:28} {seconds:7.2f} s {tokens / seconds:9,.0f} tokens/s{peak}", flush=True)
        return replies

    for slots in options.slots:
        memory.MOST_SLOTS[model.device.type] = slots
        generation.release()
        for call in ("first", "second", "third"):
            replies = measure(
                f"engine, {slots} slots, {call}",
                lambda: generation.answer(model, tokenizer, talks, max_new_tokens=options.tokens),
            )
    generation.release()
    for call in ("first", "second"):
        others = measure(
            f"generate, {call}",
            lambda: generation._by_transformers(
                model, tokenizer, prompts, stop_ids(tokenizer), sampling, lambda _: None
            ),
        )
    same = sum(one == other for one, other in zip(replies, others, strict=True))
    print(f"{same} of {len(talks)} replies are the same")


if __name__ == "__main__":
    main()
