"""How long a training step of `fast` takes with its layers captured in CUDA graphs and without, in one process.

    python tests/gpu/step_speed.py [--packs 2]

Random models of the shapes of SmolLM2-135M, Qwen2.5-0.5B and Qwen2.5-1.5B, packs of 1,024 tokens, LoRA of rank 64; the
optimizer's part included. Median of twelve steps, twice each way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

LENGTH, CONVERSATION, STEPS, WARM_UP = 1024, 51, 16, 4
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "135m": ("llama", {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
                       "num_attention_heads": 9, "num_key_value_heads": 3}),
    "0.5b": ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936,
                       "num_attention_heads": 14, "num_key_value_heads": 2}),
    "1.5b": ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936,
                       "num_attention_heads": 12, "num_key_value_heads": 2}),
}  # fmt: skip


def main() -> None:
    """Measure and print a line for each model and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=2)
    packs = parser.parse_args().packs
    import torch

    from recipe.training.fast import graphs

    ids = torch.randint(3, 40_000, (packs, LENGTH), device="cuda")
    labels = ids.clone()
    labels[:, ::2] = -100
    positions = (torch.arange(LENGTH, device="cuda") % CONVERSATION).repeat(packs, 1)
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    captured = graphs.MOST_TOKENS
    for name, (kind, shape) in SHAPES.items():
        for most in (0, captured, 0, captured):
            graphs.MOST_TOKENS = most
            seconds = statistics.median(_steps(_model(kind, shape), batch))
            memory = torch.cuda.max_memory_allocated() / 2**30
            way = "captured" if most else "launched"
            print(f"{name} {way}: {seconds * 1000:.1f} ms, peak {memory:.1f} GiB", flush=True)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _model(kind: str, shape: dict[str, int]) -> Any:
    import small_bases
    from small_training import adapted

    base = small_bases.random_model(kind, std=0.02, use_cache=False, max_position_embeddings=2 * LENGTH, **shape)
    return adapted(base.bfloat16(), r=64).cuda()


def _steps(model: Any, batch: dict[str, Any]) -> list[float]:
    """Seconds of each step after the first ones."""
    import torch

    from recipe.training.fast.model import FusedLlama

    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    fast, seconds = FusedLlama(model, fp8=False), []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        fast.loss(**batch, recompute=False).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


if __name__ == "__main__":
    main()
