"""What every trainer is given: a random-weight model of the true size and packs of random tokens; and what a token
costs.

Shapes: a pack is LENGTH token ids, all of which bear a loss.
"""

from __future__ import annotations

import statistics
from array import array
from typing import Any

from recipe.checkpoint.linear_layers import LINEAR_LAYERS

LENGTH = 1024
VOCABULARY = 92544
# InternLM2-Chat-1.8B in the Llama layout: 1,889,110,016 parameters.
MODEL = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
RANK = 64
LORA: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": list(LINEAR_LAYERS)}


class RandomPacks:
    """Packs of LENGTH random tokens, the same for every trainer; each is one conversation, learnt from end to end.

    Args:
        count: packs.
        positions: whether a pack carries `position_ids`, by which XTuner keeps conversations apart.
    """

    def __init__(self, count: int, *, positions: bool = True) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.ids = [
            array("q", row) for row in torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator).tolist()
        ]
        self.positions = positions

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, array[int]]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": ids} | (
            {"position_ids": array("q", range(LENGTH))} if self.positions else {}
        )


def random_model() -> Any:
    """A LlamaForCausalLM of random weights in bfloat16, of MODEL's size and layout, on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**MODEL, dtype="bfloat16"))
        torch.set_default_dtype(torch.float32)
    return model


def flop_per_token() -> float:
    """Floating-point operations of one token's forward and backward pass: 4 P + 6 L + 7 T H N.

    P = weights in matrix products. Each is used forward, 2, and for the gradient of its input, 2; being frozen it needs
    no gradient of its own. L = LoRA's weights; those do: 6. Causal attention of N layers of width H over packs of T
    tokens takes 2 T H forward and 2.5 times that backward. What is computed twice to save memory is not counted.
    """
    hidden, intermediate, layers = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["num_hidden_layers"]
    kv = hidden * MODEL["num_key_value_heads"] // MODEL["num_attention_heads"]
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)] + [(hidden, intermediate)] * 3
    weights = layers * sum(a * b for a, b in shapes) + hidden * VOCABULARY
    adapter = layers * RANK * sum(a + b for a, b in shapes)
    return float(4 * weights + 6 * adapter + 7 * LENGTH * hidden * layers)


def matmul_rate() -> float:
    """FLOP/s of a bfloat16 product of random (8192, 8192) matrices on this GPU: the median of 20 after 5."""
    import torch

    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for i in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(begin.elapsed_time(end) / 1e3)
    return float(2 * size**3 / statistics.median(times))
