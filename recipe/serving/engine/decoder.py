"""A Llama that speaks for several visitors at once: its forward pass over a static key-value cache with a slot for each.

Without gradients the pass is fourteen kernels a layer: query/key/value and gate/up are one product each, norms, rotary
embedding and gating are those of recipe.training.fast, and a residual is added by the product before it. Every shape is fixed by
(batch, window), so that a step can be captured in a CUDA graph; nothing waits for the GPU.

A model with a PEFT adapter speaks with it or without it, as each visitor likes, in the same batch: what LoRA adds to a
row is multiplied by 1 or by 0. The base is there once.
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

# Attention of one layer: (layer, queries [tokens, heads, head size], keys, values) -> [tokens, heads * head size].
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Part(NamedTuple):
    """Part of a prompt, whose first token is the slot's `start`-th."""

    slot: int
    ids: list[int]
    start: int


class Projections:
    """Linear layers that read the same input, as one product; with their LoRA where PEFT has put one on them."""

    def __init__(self, *modules: Any) -> None:
        plain = [getattr(module, "base_layer", module) for module in modules]
        if any(module.bias is not None for module in plain):
            raise RecipeError("the engine knows Llama without biases, as `make model` writes it")
        self.weight = torch.cat([module.weight.data for module in plain])
        rows = 0
        for module in plain:  # the model goes on to work, on views, and there is one copy of the weights
            module.weight.data = self.weight[rows : rows + len(module.weight)]
            rows += len(module.weight)
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        if adapted := [module for module in modules if hasattr(module, "lora_A")]:
            (name,) = adapted[0].active_adapters
            parts = [
                (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]) for module in modules
            ]
            self.a = torch.cat([a for a, _, _ in parts]).to(self.weight)
            self.b = torch.block_diag(*(scale * b for _, b, scale in parts)).to(self.weight)

    def __call__(self, x: Tensor, adapted: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: [tokens, in]. adapted: [tokens, 1], 1 where LoRA counts and 0 where not. Returns [tokens, out]."""
        out = x @ self.weight.T if residual is None else torch.addmm(residual, x, self.weight.T)
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
        self.norms = module.input_layernorm.weight, module.post_attention_layernorm.weight


class Decoder:
    """tokens, positions: [slots], what each slot reads next and where. A slot without a visitor points behind its end,
    at a place that nobody reads, and has `speaking` 0, so that a step may compute it without harm.

    slots, length: how many visitors at once, and tokens of each, prompt and reply together. Takes the model over: its
    weights become views of the engine's, and it may still be used.
    """

    def __init__(self, model: PreTrainedModel, *, slots: int, length: int) -> None:
        from transformers import LlamaForCausalLM

        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        if not isinstance(base, LlamaForCausalLM):
            raise RecipeError(
                f"the engine speaks for Llama-layout models, not {type(base).__name__}: `make model` converts"
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
        self.speaking = torch.zeros(slots, dtype=torch.long, device=self.device)
        self.adapted = torch.ones(slots, 1, dtype=self.head.dtype, device=self.device)

    @staticmethod
    def bytes_per_token(config: Any) -> int:
        """What the keys and values of one token take in a model of this configuration, in 16 bits on a GPU, else in 32."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(
            2 * config.num_hidden_layers * config.num_key_value_heads * size * (2 if torch.cuda.is_available() else 4)
        )

    def read(self, parts: Sequence[Part]) -> Tensor:
        """Read a part of each of several prompts in one pass; returns the logits after each [parts, vocabulary]."""
        lengths = [len(part.ids) for part in parts]
        tokens = self._moved([token for part in parts for token in part.ids])
        at = self._moved([part.start + i for part in parts for i in range(len(part.ids))])
        slots = self._moved([part.slot for part in parts for _ in part.ids])
        last = self._moved([end - 1 for end in accumulate(lengths)])
        masks = [
            torch.ones(length, part.start + length, dtype=torch.bool, device=self.device).tril(part.start)
            if part.start
            else None
            for part, length in zip(parts, lengths, strict=True)
        ]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            each = zip(parts, masks, *(x.split(lengths) for x in (q, k, v)), strict=True)
            for part, mask, queries, new_keys, new_values in each:
                keys, values = self.cache[layer, :, part.slot, :, : part.start + len(part.ids)]
                keys[:, part.start :], values[:, part.start :] = new_keys.transpose(0, 1), new_values.transpose(0, 1)
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

    def step(self, batch: int, window: int) -> Tensor:
        """One token further for the first `batch` slots, none of which is past `window`; the logits [batch, vocabulary]."""
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
        """last: the tokens after which logits are asked for; after every one where it is not given."""
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
            x = x[last]
        normed = torch.empty_like(x)
        rowwise.rms_norm(x, self.norm, self.eps, normed)
        return normed @ self.head.T
