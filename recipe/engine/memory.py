"""How many sequences the KV cache holds beside a model that is loaded already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SLOTS = 32  # sequences that a server runs at once; further requests wait
MIN_CONTEXT = 4096  # tokens of a server's slot: where memory is short, fewer slots rather than shorter ones
CPU_CACHE_BYTES = 4 << 30  # of the KV cache where there is no GPU; on one it takes two thirds of what is free
# Sequences at once where whole replies count. On a GPU a step of 256 takes about twice as long as one of 32; on two CPU
# cores more than 64 gain nothing.
MOST_SLOTS = {"cuda": 256, "cpu": 64}


def free_memory(device: torch.device) -> int:
    """Bytes that tensors may still take on a device, of which PyTorch may hold some already; a constant on a CPU."""
    import torch

    if device.type != "cuda":
        return CPU_CACHE_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + cached)


def bytes_per_token(config: Any, size: int) -> int:
    """Bytes of one token in the KV cache.

    Args:
        config: the configuration of the model.
        size: bytes of a number.
    """
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size)


def capacity(config: Any, size: int, slots: int = SLOTS) -> tuple[int, int]:
    """The size of a server's KV cache.

    Args:
        config: the configuration of the model.
        size: bytes of a number.
        slots: the most that are needed.

    Returns:
        (slots, tokens of each slot).
    """
    import torch

    gpu = torch.cuda.is_available()
    memory = free_memory(torch.device("cuda", torch.cuda.current_device())) * 2 // 3 if gpu else CPU_CACHE_BYTES
    tokens = memory // bytes_per_token(config, size)
    longest = config.max_position_embeddings
    while slots > 1 and tokens // slots < min(MIN_CONTEXT, longest):
        slots //= 2
    return slots, max(min(longest, tokens // slots) // 64 * 64, 64)


def batch_slots(model: Any, length: int, sequences: int) -> int:
    """The slots of a KV cache for whole replies: half of the free memory, which prefills and sampling need, too.

    Args:
        model: of transformers.
        length: tokens of each slot.
        sequences: all that are to be computed; rounded up to a power of two, so that later calls find room.
    """
    from recipe.engine.weights import base_of

    head = base_of(model).lm_head.weight
    token = bytes_per_token(model.config, head.element_size())
    fitting = free_memory(head.device) // 2 // (token * length)
    return int(max(1, min(1 << (sequences - 1).bit_length(), MOST_SLOTS[head.device.type], fitting)))
