"""The forward pass of a Llama or Qwen2 over a static KV cache with a slot for each sequence: prefill and decode.

Without gradients the pass is fourteen kernels a layer: query/key/value and gate/up are one product each (see weights),
norms, rotary embedding and gating are those of recipe.kernels, and a residual is added by the product before it. Every
shape is fixed by (batch, window), so that a decode step can be captured in a CUDA graph; nothing waits for the GPU.

A model with a PEFT adapter runs with the adapter on and off in the same batch: what LoRA adds to a row is multiplied by
1 or by 0. The base is in memory once.

Shapes: tokens = rows of one pass, of one or several sequences; heads = query heads; kv_heads = key and value heads;
head_dim = features of a head; slots = sequences of the cache; length = positions of a slot; window = positions that a
decode step attends to; vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from recipe.engine.memory import free_memory
from recipe.engine.weights import Layer, Scratch, base_of, dequantised_bytes, refusal
from recipe.errors import RecipeError
from recipe.kernels import rowwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What computes attention over prompts, of which every pass has another shape. With cuDNN a pass took 40 ms on an H200,
# by all signs for a plan of each new shape: a third of the time of short replies.
OF_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Attention of one layer: (layer, queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, head_dim)) ->
# (tokens, heads * head_dim). It also writes the keys and values into the cache.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class PromptChunk(NamedTuple):
    """Consecutive tokens of a prompt, which one prefill computes.

    Attributes:
        slot: of the KV cache.
        ids: token ids.
        start: the position of the first of them.
    """

    slot: int
    ids: list[int]
    start: int


class Decoder:
    """The model's weights, and the state of every slot.

    A slot without a sequence is not `active`, and its position is after its end, where no token attends to. So a decode
    step may compute it without harm. The model may still be used: see weights for whose the memory is.

    Args:
        model: a Llama or Qwen2 of transformers, with a PEFT adapter or without, of 4-bit weights or whole ones.
        slots: sequences that run at once.
        length: tokens of each, prompt and reply together.

    Raises:
        RecipeError: the engine does not compute such a model, see `weights.refusal`.

    Attributes:
        tokens: (slots,), the id that each slot computes next.
        positions: (slots,), that id's position.
        active: (slots,), 1 where a sequence is decoded.
        adapted: (slots, 1), 1 where the adapter is on.
        cache: (layers, 2, slots, kv_heads, length + 1, head_dim), keys and values.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int, length: int) -> None:
        if why := refusal(model):
            raise RecipeError(why)
        base = base_of(model)
        config = base.config
        self.slots, self.length = slots, length
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = base.model.layers[0].self_attn.head_dim
        self.eps = config.rms_norm_eps
        self.embedding, self.norm, self.head = (
            base.model.embed_tokens.weight,
            base.model.norm.weight,
            base.lm_head.weight,
        )
        self.device = self.head.device
        fits = dequantised_bytes(model) <= free_memory(self.device) // 2
        scratch = None if fits else Scratch(self.embedding)
        self.layers = [Layer(module, self.embedding, scratch) for module in base.model.layers]
        self.adapted_model = any(layer.adapted for layer in self.layers)
        # The position after the end is never read; computing it would stretch a dynamic rotary embedding.
        positions = torch.arange(length + 1, device=self.device).clamp(max=length - 1)
        cos, sin = base.model.rotary_emb(self.embedding, positions[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()  # (length + 1, head_dim)
        shape = (len(self.layers), 2, slots, self.kv_heads, length + 1, self.head_dim)
        self.cache = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
        self.rows = torch.arange(slots, device=self.device)
        self.tokens = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.positions = torch.full((slots,), length, device=self.device)
        self.active = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.adapted = torch.ones(slots, 1, dtype=self.head.dtype, device=self.device)

    def refresh(self) -> None:
        """Copy the adapter's weights anew, after a training changed them."""
        for layer in self.layers:
            layer.refresh()

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Move sequences to other slots, whose own sequences have ended."""
        old, new = self.on_device(list(sources)), self.on_device(list(targets))
        self.cache[:, :, new] = self.cache[:, :, old]
        for state in (self.tokens, self.positions, self.active, self.adapted):
            state[new] = state[old]
        self.positions[old], self.active[old] = self.length, 0

    def release(self, slots: Sequence[int]) -> None:
        """Let nothing be decoded in `slots`, whose sequences have ended."""
        if slots:
            ended = self.on_device(list(slots))
            self.positions.index_fill_(0, ended, self.length)
            self.active.index_fill_(0, ended, 0)

    def synchronize(self) -> None:
        """Wait for the device.

        Raises:
            Exception: what it failed with since the last call.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Compute chunks of several prompts in one pass, and put their keys and values into the cache.

        Args:
            chunks: of different slots.

        Returns:
            (chunks, vocabulary), the logits after each chunk's last token.
        """
        lengths = [len(chunk.ids) for chunk in chunks]
        tokens = self.on_device([token for chunk in chunks for token in chunk.ids])
        positions = self.on_device([chunk.start + i for chunk in chunks for i in range(len(chunk.ids))])
        slots = self.on_device([chunk.slot for chunk in chunks for _ in chunk.ids])
        last = self.on_device([end - 1 for end in accumulate(lengths)])
        if not any(chunk.start for chunk in chunks):
            attend = self._attend_to_themselves(lengths, slots, positions)
        else:
            attend = self._attend_to_cache(chunks)
        with sdpa_kernel(OF_ANY_SHAPE):
            return self._forward(tokens, self.cos[positions], self.sin[positions], self.adapted[slots], attend, last)

    def _attend_to_themselves(self, lengths: list[int], slots: Tensor, positions: Tensor) -> Attend:
        """Causal attention of whole prompts, padded on the right, where none of their tokens attends to."""
        chunks, width = len(lengths), max(lengths)
        rows = self.on_device([row for row, length in enumerate(lengths) for _ in range(length)])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.cache[layer]
            keys[slots, :, positions], values[slots, :, positions] = k, v
            if chunks * width == len(q):
                padded = [x.view(chunks, width, -1, self.head_dim).transpose(1, 2) for x in (q, k, v)]
            else:
                padded = [x.new_zeros(chunks, x.shape[1], width, self.head_dim) for x in (q, k, v)]
                for x, place in zip((q, k, v), padded, strict=True):
                    place[rows, :, positions] = x
            queries, keys, values = padded
            out = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
            return out[rows, :, positions].flatten(1)

        return attend

    def _attend_to_cache(self, chunks: Sequence[PromptChunk]) -> Attend:
        """Causal attention of chunks of which some have tokens before them in the cache, one after another."""
        lengths = [len(chunk.ids) for chunk in chunks]
        masks = [
            torch.ones(length, chunk.start + length, dtype=torch.bool, device=self.device).tril(chunk.start)
            if chunk.start
            else None
            for chunk, length in zip(chunks, lengths, strict=True)
        ]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            each = zip(chunks, masks, *(x.split(lengths) for x in (q, k, v)), strict=True)
            for chunk, mask, queries, new_keys, new_values in each:
                keys, values = self.cache[layer, :, chunk.slot, :, : chunk.start + len(chunk.ids)]
                keys[:, chunk.start :], values[:, chunk.start :] = new_keys.transpose(0, 1), new_values.transpose(0, 1)
                attended = functional.scaled_dot_product_attention(
                    queries.transpose(0, 1)[None],
                    keys[None],
                    values[None],
                    attn_mask=mask,
                    is_causal=mask is None,
                    enable_gqa=True,
                )
                out.append(attended[0].transpose(0, 1).flatten(1))
            return torch.cat(out)

        return attend

    def on_device(self, values: list[int]) -> Tensor:
        """Numbers as a tensor on the model's device, without waiting for it."""
        return torch.tensor(values).to(self.device, non_blocking=True)

    def decode(self, batch: int, window: int) -> Tensor:
        """Compute the token of each of the first `batch` slots in `tokens`.

        Args:
            batch: slots, counted from the first.
            window: cached positions that are attended to; no sequence may be past it.

        Returns:
            (batch, vocabulary), the logits after that token.
        """
        positions, rows = self.positions[:batch], self.rows[:batch]
        hidden = torch.arange(window, device=self.device) > positions[:, None]  # (batch, window)
        mask = torch.zeros(hidden.shape, dtype=self.head.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        group = self.heads // self.kv_heads
        mask = mask[:, None, None].expand(batch, self.kv_heads, group, window)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.cache[layer]
            keys[rows, :, positions], values[rows, :, positions] = k, v
            # The queries that share a key-value head are laid out as if they were tokens: one kernel, nothing repeated.
            out = functional.scaled_dot_product_attention(
                q.view(batch, self.kv_heads, group, self.head_dim),
                keys[:batch, :, :window],
                values[:batch, :, :window],
                mask,
            )
            return out.reshape(batch, -1)

        return self._forward(
            self.tokens[:batch], self.cos[positions], self.sin[positions], self.adapted[:batch], attend
        )

    def _forward(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, adapted: Tensor, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """The pass over all layers.

        Args:
            tokens: (tokens,), ids.
            cos, sin: (tokens, head_dim), of each token's position.
            adapted: (tokens, 1), 1 where the adapter is on.
            attend: attention of one layer.
            last: (rows,), indices of the tokens after which logits are wanted; all of them without it.

        Returns:
            (tokens or rows, vocabulary).
        """
        x = self.embedding[tokens]  # (tokens, hidden)
        rotated = (self.heads + self.kv_heads) * self.head_dim  # queries and keys
        for i, layer in enumerate(self.layers):
            normed = torch.empty_like(x)
            rowwise.rms_norm(x, layer.norms[0], self.eps, normed)
            qkv = layer.qkv(normed, adapted)
            rowwise.rotate(qkv[:, :rotated], cos, sin, qkv[:, :rotated])
            q, k, v = qkv.unflatten(1, (-1, self.head_dim)).split((self.heads, self.kv_heads, self.kv_heads), 1)
            x = layer.o(attend(i, q, k, v), adapted, x)
            rowwise.rms_norm(x, layer.norms[1], self.eps, normed)
            gate_up = layer.gate_up(normed, adapted)
            gated = gate_up.new_empty(len(x), gate_up.shape[1] // 2)
            rowwise.swiglu(gate_up, gated)
            x = layer.down(gated, adapted, x)
        if last is not None:
            x = x[last]  # (rows, hidden)
        normed = torch.empty_like(x)
        rowwise.rms_norm(x, self.norm, self.eps, normed)
        return normed @ self.head.T
