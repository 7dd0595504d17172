"""The forward pass of a Llama or Qwen2 over a static KV cache with a slot for each sequence: prefill and decode.

Without gradients the pass is fourteen kernels a layer: query/key/value and gate/up are one product each, norms, rotary
embedding and gating are those of recipe.kernels, and a residual is added by the product before it. Every shape is fixed
by (batch, window), so that a decode step can be captured in a CUDA graph; nothing waits for the GPU.

A model with a PEFT adapter runs with the adapter on and off in the same batch: what LoRA adds to a row is multiplied by
1 or by 0. The base is in memory once.

Shapes: tokens = rows of one pass, of one or several sequences; heads = query heads; kv_heads = key and value heads;
head_dim = features of a head; slots = sequences of the cache; length = positions of a slot; window = positions that a
decode step attends to; vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recipe.errors import RecipeError
from recipe.kernels import rowwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


class Projections:
    """Linear layers that read the same input, as one product; with their LoRA where PEFT has put one on them.

    Args:
        modules: linear layers of transformers, or PEFT's around them. Their weights become views of `weight`.

    Attributes:
        weight: (out, in), of all layers together.
        bias: (out), that of Qwen2's queries, keys and values; None elsewhere.
        lora_a, lora_b: (rank, in) and (out, rank), the ranks of all layers together, scaled; None without an adapter.
    """

    def __init__(self, *modules: Any) -> None:
        plain = [getattr(module, "base_layer", module) for module in modules]
        self.bias = None if plain[0].bias is None else torch.cat([module.bias.data for module in plain])
        self.weight = torch.cat([module.weight.data for module in plain])
        rows = 0
        for module in plain:  # the model still works, on views, and there is one copy of the weights
            module.weight.data = self.weight[rows : rows + len(module.weight)]
            rows += len(module.weight)
        self.lora_a: Tensor | None = None
        self.lora_b: Tensor | None = None
        if adapted := [module for module in modules if hasattr(module, "lora_A")]:
            (name,) = adapted[0].active_adapters
            factors = [
                (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]) for module in modules
            ]
            self.lora_a = torch.cat([a for a, _, _ in factors]).to(self.weight)
            self.lora_b = torch.block_diag(*(scale * b for _, b, scale in factors)).to(self.weight)

    def __call__(self, x: Tensor, adapted: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product, with the bias or residual and LoRA's product added.

        Args:
            x: (tokens, in).
            adapted: (tokens, 1), 1 where LoRA counts and 0 where not.
            residual: (tokens, out).

        Returns:
            (tokens, out).
        """
        addend = self.bias if residual is None else residual
        out = x @ self.weight.T if addend is None else torch.addmm(addend, x, self.weight.T)
        if self.lora_a is not None and self.lora_b is not None:
            out.addmm_((x @ self.lora_a.T) * adapted, self.lora_b.T)
        return out


class Layer:
    """The weights of one decoder layer of transformers' Llama."""

    def __init__(self, module: Any) -> None:
        attend, mlp = module.self_attn, module.mlp
        self.qkv = Projections(attend.q_proj, attend.k_proj, attend.v_proj)
        self.o = Projections(attend.o_proj)
        self.gate_up = Projections(mlp.gate_proj, mlp.up_proj)
        self.down = Projections(mlp.down_proj)
        if any(group.bias is not None for group in (self.o, self.gate_up, self.down)):
            raise RecipeError("the engine computes biases on queries, keys and values alone: `make model` says why")
        self.norms = module.input_layernorm.weight, module.post_attention_layernorm.weight


class Decoder:
    """The model's weights, and the state of every slot.

    A slot without a sequence is not `active`, and its position is after its end, where no token attends to. So a decode
    step may compute it without harm. The model's weights become views of the decoder's; the model may still be used.

    Args:
        model: a Llama or Qwen2 of transformers, with a PEFT adapter or without.
        slots: sequences that run at once.
        length: tokens of each, prompt and reply together.

    Raises:
        RecipeError: the model is of another layout, or has biases.

    Attributes:
        tokens: (slots,), the id that each slot computes next.
        positions: (slots,), that id's position.
        active: (slots,), 1 where a sequence is decoded.
        adapted: (slots, 1), 1 where the adapter is on.
        cache: (layers, 2, slots, kv_heads, length + 1, head_dim), keys and values.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int, length: int) -> None:
        from transformers import LlamaForCausalLM, Qwen2ForCausalLM

        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not isinstance(base, (LlamaForCausalLM, Qwen2ForCausalLM)):
            raise RecipeError(
                f"the engine speaks for models of the Llama and Qwen2 layouts, not {type(base).__name__}: "
                f"`make model` converts"
            )
        config = base.config
        self.slots, self.length = slots, length
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = base.model.layers[0].self_attn.head_dim
        self.eps = config.rms_norm_eps
        self.layers = [Layer(module) for module in base.model.layers]
        self.embedding, self.norm, self.head = (
            base.model.embed_tokens.weight,
            base.model.norm.weight,
            base.lm_head.weight,
        )
        self.adapted_model = self.layers[0].qkv.lora_a is not None
        self.device = self.head.device
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

    @staticmethod
    def bytes_per_token(config: Any) -> int:
        """Bytes of one token in the KV cache of a model of this configuration: 16 bits a number on a GPU, else 32."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
        return int(numbers * (2 if torch.cuda.is_available() else 4))

    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Compute chunks of several prompts in one pass, and put their keys and values into the cache.

        Args:
            chunks: of different slots.

        Returns:
            (chunks, vocabulary), the logits after each chunk's last token.
        """
        lengths = [len(chunk.ids) for chunk in chunks]
        tokens = self._on_device([token for chunk in chunks for token in chunk.ids])
        positions = self._on_device([chunk.start + i for chunk in chunks for i in range(len(chunk.ids))])
        slots = self._on_device([chunk.slot for chunk in chunks for _ in chunk.ids])
        last = self._on_device([end - 1 for end in accumulate(lengths)])
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

        return self._forward(tokens, self.cos[positions], self.sin[positions], self.adapted[slots], attend, last)

    def _on_device(self, values: list[int]) -> Tensor:
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
