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

# Attention of one layer: (layer, queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, head_dim)), and
# the result is (tokens, heads * head_dim).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class PromptChunk(NamedTuple):
    """Some tokens of a prompt, the first of which is the slot's `start`-th."""

    slot: int
    ids: list[int]
    start: int


class Projections:
    """Linear layers that read the same input, as one product; with their LoRA where PEFT has put one on them.

    bias: (out) or None; of Qwen2's queries, keys and values.
    """

    def __init__(self, *modules: Any) -> None:
        plain = [getattr(module, "base_layer", module) for module in modules]
        self.bias = None if plain[0].bias is None else torch.cat([module.bias.data for module in plain])
        self.weight = torch.cat([module.weight.data for module in plain])
        rows = 0
        for module in plain:  # the model goes on to work, on views, and there is one copy of the weights
            module.weight.data = self.weight[rows : rows + len(module.weight)]
            rows += len(module.weight)
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        if adapted := [module for module in modules if hasattr(module, "lora_A")]:
            (name,) = adapted[0].active_adapters
            chunks = [
                (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]) for module in modules
            ]
            self.a = torch.cat([a for a, _, _ in chunks]).to(self.weight)
            self.b = torch.block_diag(*(scale * b for _, b, scale in chunks)).to(self.weight)

    def __call__(self, x: Tensor, adapted: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (tokens, in). adapted: (tokens, 1), 1 where LoRA counts and 0 where not. Returns (tokens, out)."""
        addend = self.bias if residual is None else residual
        out = x @ self.weight.T if addend is None else torch.addmm(addend, x, self.weight.T)
        if self.a is not None and self.b is not None:
            out.addmm_((x @ self.a.T) * adapted, self.b.T)
        return out


class Layer:
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

    A slot without a sequence points behind its end, at a position that nobody attends to, and is not `active`, so that
    a decode step may compute it without harm. The model is taken over: its weights become views of the decoder's, and
    it may still be used.

    Args:
        model: a Llama or Qwen2 of transformers, with a PEFT adapter or without.
        slots: sequences that run at once.
        length: tokens of each, prompt and reply together.

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
        self.size = base.model.layers[0].self_attn.head_dim
        self.eps = config.rms_norm_eps
        self.layers = [Layer(module) for module in base.model.layers]
        self.embedding, self.norm, self.head = (
            base.model.embed_tokens.weight,
            base.model.norm.weight,
            base.lm_head.weight,
        )
        self.adapted_model = self.layers[0].qkv.a is not None
        self.device = self.head.device
        # The position behind the end is never read; asking for it would stretch a dynamic rotary embedding.
        places = torch.arange(length + 1, device=self.device).clamp(max=length - 1)
        cos, sin = base.model.rotary_emb(self.embedding, places[None])
        self.cos, self.sin = cos[0].contiguous(), sin[0].contiguous()
        shape = (len(self.layers), 2, slots, self.kv_heads, length + 1, self.size)
        self.cache = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
        self.rows = torch.arange(slots, device=self.device)
        self.tokens = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.positions = torch.full((slots,), length, device=self.device)
        self.active = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.adapted = torch.ones(slots, 1, dtype=self.head.dtype, device=self.device)

    @staticmethod
    def bytes_per_token(config: Any) -> int:
        """Bytes of one token in the KV cache of a model of this configuration: 16 bits a number on a GPU, else 32."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(
            2 * config.num_hidden_layers * config.num_key_value_heads * size * (2 if torch.cuda.is_available() else 4)
        )

    def prefill(self, chunks: Sequence[PromptChunk]) -> Tensor:
        """Compute chunks of several prompts in one pass; returns the logits after each, (chunks, vocabulary)."""
        lengths = [len(chunk.ids) for chunk in chunks]
        tokens = self._moved([token for chunk in chunks for token in chunk.ids])
        at = self._moved([chunk.start + i for chunk in chunks for i in range(len(chunk.ids))])
        slots = self._moved([chunk.slot for chunk in chunks for _ in chunk.ids])
        last = self._moved([end - 1 for end in accumulate(lengths)])
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

        return self._forward(tokens, self.cos[at], self.sin[at], self.adapted[slots], attend, last)

    def _moved(self, values: list[int]) -> Tensor:
        return torch.tensor(values).to(self.device, non_blocking=True)

    def decode(self, batch: int, window: int) -> Tensor:
        """Compute the next token of the first `batch` slots, none of which is past `window`: logits (batch,
        vocabulary)."""
        at, rows = self.positions[:batch], self.rows[:batch]
        hidden = torch.arange(window, device=self.device) > at[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.head.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        group = self.heads // self.kv_heads
        mask = mask[:, None, None].expand(batch, self.kv_heads, group, window)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.cache[layer]
            keys[rows, :, at], values[rows, :, at] = k, v
            # The queries that share a key-value head are laid out as if they were tokens: one kernel, nothing repeated.
            out = functional.scaled_dot_product_attention(
                q.view(batch, self.kv_heads, group, self.size),
                keys[:batch, :, :window],
                values[:batch, :, :window],
                mask,
            )
            return out.reshape(batch, -1)

        return self._forward(self.tokens[:batch], self.cos[at], self.sin[at], self.adapted[:batch], attend)

    def _forward(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, on: Tensor, attend: Attend, last: Tensor | None = None
    ) -> Tensor:
        """Logits after the tokens in `last`, or after every one: (tokens or len(last), vocabulary)."""
        x = self.embedding[tokens]
        turned = (self.heads + self.kv_heads) * self.size
        for i, layer in enumerate(self.layers):
            normed = torch.empty_like(x)
            rowwise.rms_norm(x, layer.norms[0], self.eps, normed)
            qkv = layer.qkv(normed, on)
            rowwise.rotate(qkv[:, :turned], cos, sin, qkv[:, :turned])
            q, k, v = qkv.unflatten(1, (-1, self.size)).split((self.heads, self.kv_heads, self.kv_heads), 1)
            x = layer.o(attend(i, q, k, v), on, x)
            rowwise.rms_norm(x, layer.norms[1], self.eps, normed)
            gate_up = layer.gate_up(normed, on)
            gated = gate_up.new_empty(len(x), gate_up.shape[1] // 2)
            rowwise.swiglu(gate_up, gated)
            x = layer.down(gated, on, x)
        if last is not None:
            x = x[last]  # (chunks, hidden)
        normed = torch.empty_like(x)
        rowwise.rms_norm(x, self.norm, self.eps, normed)
        return normed @ self.head.T
