"""The memory that a run of a fast preset will take, computed from its config before it starts.

It is the peak of what PyTorch allocates; on a GPU the driver's own 500 MiB and the allocator's reserve come on top.
Without a GPU Python's libraries come on top: the number is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.internlm2_llama import Shape
from recipe.pipeline.stage import read_json
from recipe.training.sizes import LOSS_ROWS


@dataclass(frozen=True)
class Memory:
    """Memory of a training, in bytes.

    weights: the frozen model in the preset's format.
    adapter: LoRA in float32, Adam's two moments, and the gradients.
    activations: saved by all layers for the backward pass.
    work: temporary tensors of one layer's backward pass, or of the loss.
    """

    weights: int
    adapter: int
    activations: int
    work: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.work

    def line(self, *, gpu: bool) -> str:
        """The line for the user. gpu: whether the memory is a GPU's."""
        parts = ", ".join(
            f"{name} {getattr(self, name) >> 20:,}" for name in ("weights", "adapter", "activations", "work")
        )
        return f"{'about' if gpu else 'at least'} {self.total >> 20:,} MiB of {'GPU ' if gpu else ''}memory: {parts}"


def predict(config: Any, model: Path, processes: int = 1) -> Memory | None:
    """Predict the memory that a training takes on each GPU, or on the CPU. DeepSpeed is not counted.

    Args:
        config: a resolved preset.
        model: the model's folder, for its config.json.
        processes: of all machines; with several, DDP allocates its gradient buckets from the start.

    Returns:
        None where the model is not recipe.training.fast's: what XTuner and PEFT save is not known from outside.
    """
    if "recompute" not in config.model:
        return None
    shape = Shape.of(read_json(model / "config.json", ConfigShape))
    tokens = config.train_dataloader.batch_size * config.train_dataloader.dataset.max_length
    r, hidden, intermediate = config.model.lora.r, shape.hidden, shape.intermediate
    kv = hidden // shape.heads * shape.kv_heads
    width = 4 if "float32" in str(config.model.llm.get("torch_dtype")) else 2  # bytes of a value
    # (out features, in features, projections) of the products of a layer
    groups = [
        (hidden + 2 * kv, hidden, 3),
        (hidden, hidden, 1),
        (2 * intermediate, hidden, 2),
        (hidden, intermediate, 1),
    ]
    linear = shape.layers * sum(n * k for n, k, _ in groups)
    fused_linear = sum((n + count * r) * (k + count * r) for n, k, count in groups)
    norms, biases = 2 * hidden, 2 * (hidden + 2 * kv) if shape.qkv_bias else 0  # biases once more side by side
    unfused = (2 - shape.tied) * shape.vocab * hidden + shape.layers * (norms + biases) + hidden
    if "quantization_config" in config.model.llm:
        # Half a byte per weight, a byte per 64 weights, 4 bytes per 256 of those; and the shared dequantised matrix.
        weights = int(linear * (1 / 2 + 1 / 64 + 4 / (64 * 256))) + width * (unfused + fused_linear)
    else:
        weights = width * (shape.layers * fused_linear + unfused) + (2 * linear if config.model.fp8 else 0)
    adapter = shape.layers * r * sum(n + count * k for n, k, count in groups)

    # Bytes per token that a layer saves: its input, q/k/v, attention's result, the sum after it, gate and up, seven
    # x Aᵀ; log-sums.
    saved = width * (hidden + (hidden + 2 * kv) + hidden + hidden + 2 * intermediate + 7 * r) + 4 * shape.heads
    # The peak of its backward pass: dy twice, the gradients of the gated product, of gate and up.
    backward = width * (hidden + (hidden + r) + intermediate + (2 * intermediate + 2 * r))
    stored = width * hidden if config.model.recompute else saved
    layer = tokens * (backward + (saved if config.model.recompute else 0))
    loss = width * (LOSS_ROWS * shape.vocab + hidden * 3 * tokens)
    # The backward pass starts with all activations and no gradients, and ends with the reverse.
    activations = shape.layers * stored * tokens
    adapter_bytes = 12 if processes == 1 else 16
    first = adapter_bytes * adapter + activations + max(layer, loss)
    last = 16 * adapter + stored * tokens + layer
    if last > first:
        return Memory(weights, 16 * adapter, stored * tokens, layer)
    return Memory(weights, adapter_bytes * adapter, activations, max(layer, loss))
