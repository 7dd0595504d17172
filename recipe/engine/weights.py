"""The weights of a Llama or Qwen2 as the decoder multiplies by them: where they lie, if at all possible.

Linear layers that read the same input become one product. Their weights are one matrix already where the model was
here before, or where `recipe.training.fast` trains it; the decoder then takes a view. Other weights are put into one
matrix, of which the modules' own become views: so there is one copy, and the model still works.

LoRA is a second, thin product and stays apart from the base: folded in, it would cost a copy of the base, round the sum
to 16 bits, and the base could not answer beside it.

Shapes: tokens = rows of one pass; in, out = features of the layers together; ranks = LoRA ranks of the layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipe.kernels import rowwise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUPS = (  # the linear layers that read the same input
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


def base_of(model: PreTrainedModel) -> Any:
    """The model of transformers inside PEFT's, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def linear_layers(layer: Any) -> list[list[Any]]:
    """The linear layers of a decoder layer of transformers, by `GROUPS`."""
    return [[getattr(getattr(layer, part), name) for name in names] for part, names in GROUPS]


def refusal(model: PreTrainedModel) -> str | None:
    """Why the engine does not compute a model; None where it does.

    Args:
        model: of transformers, with a PEFT adapter or without; also one in training.
    """
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    base = base_of(model)
    if not isinstance(base, (LlamaForCausalLM, Qwen2ForCausalLM)):
        return (
            f"the engine computes models of the Llama and Qwen2 layouts, not {type(base).__name__}: "
            f"`make model` converts"
        )
    if base.config.hidden_act != "silu" or "sliding_attention" in (getattr(base.config, "layer_types", None) or ()):
        return "the engine computes SiLU and full attention alone: `make model` checks a base for both"
    changed = (hasattr(module, "base_layer") for module in (base.lm_head, base.model.embed_tokens))
    if any(changed) or any(hasattr(module, "original_module") for module in base.modules()):  # PEFT's modules_to_save
        return "the engine computes adapters of linear layers alone: leave others out of target_modules"
    for layer in base.model.layers:
        for i, group in enumerate(linear_layers(layer)):
            plain = [getattr(module, "base_layer", module) for module in group]
            if i and any(module.bias is not None for module in plain):
                return "the engine computes biases on queries, keys and values alone: `make model` says why"
            if not all(_readable(module.weight, base.model.embed_tokens.weight) for module in plain):
                return "the engine reads whole weights of the embedding's precision, and bitsandbytes' of 4 bits"
            if not all(_plain_lora(module) for module in group):
                return "the engine computes one plain LoRA, not merged: merge the adapter with `make merge`"
    return None


def four_bit(weight: Any) -> bool:
    """Whether a weight is one of bitsandbytes' of 4 bits."""
    return getattr(weight, "quant_state", None) is not None


def _readable(weight: Any, like: Tensor) -> bool:
    if hasattr(weight, "ds_id"):  # a shard of ZeRO-3
        return False
    if four_bit(weight):  # bitsandbytes packs some anew for a CPU kernel of its own
        return not getattr(weight.quant_state, "packing_format_for_cpu", False)
    return weight.dtype == like.dtype and like.dtype.is_floating_point


def _plain_lora(module: Any) -> bool:
    if not hasattr(module, "base_layer"):
        return True
    if not hasattr(module, "lora_A") or module.merged or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    return name in module.lora_A and not (module.lora_variant.get(name) or module.lora_bias.get(name))


def dequantised_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's 4-bit weights in the precision of its embedding."""
    base = base_of(model)
    size = base.model.embed_tokens.weight.element_size()
    plain = (
        getattr(module, "base_layer", module)
        for layer in base.model.layers
        for group in linear_layers(layer)
        for module in group
    )
    return sum(size * module.in_features * module.out_features for module in plain if four_bit(module.weight))


class Scratch:
    """Memory for one 4-bit weight at a time, dequantised for each product.

    Steps run one after another, so that all weights may use it in turn.
    """

    def __init__(self, like: Tensor) -> None:
        self._buffer = like.new_empty(0)

    def reserve(self, numbers: int) -> None:
        """Grow to so many numbers. Not once a step was captured: a CUDA graph reads the memory where it was."""
        if len(self._buffer) < numbers:
            self._buffer = self._buffer.new_empty(numbers)

    def matrix(self, out: int, features: int) -> Tensor:
        """(out, features), to be overwritten."""
        return self._buffer[: out * features].view(out, features)


class Projections:
    """Linear layers that read the same input, as one product; with their LoRA where PEFT has put one on them.

    Args:
        modules: linear layers of transformers, or PEFT's around them.
        like: a tensor of the precision and device to compute in.
        scratch: for 4-bit weights that are dequantised at each product; None dequantises them here, once.

    Attributes:
        weight: (out, in), of all layers together; None where they are dequantised at each product.
        bias: (out), that of Qwen2's queries, keys and values; None elsewhere.
        lora_a, lora_b: (ranks, in) and (out, ranks), scaled, block-diagonal; None without an adapter.
    """

    def __init__(self, modules: Sequence[Any], like: Tensor, scratch: Scratch | None = None) -> None:
        self.plain = [getattr(module, "base_layer", module) for module in modules]
        self.rows = [module.out_features for module in self.plain]
        self.bias = None if self.plain[0].bias is None else torch.cat([m.bias.data for m in self.plain]).to(like)
        self.scratch: Scratch | None = None
        self.weight = self._stack(like, scratch)
        self.adapted = [(i, module) for i, module in enumerate(modules) if hasattr(module, "lora_A")]
        self.lora_a: Tensor | None = None
        self.lora_b: Tensor | None = None
        if self.adapted:
            ranks = sum(module.r[module.active_adapters[0]] for _, module in self.adapted)
            self.lora_a = like.new_empty(ranks, self.plain[0].in_features)
            self.lora_b = like.new_zeros(sum(self.rows), ranks)
            self.refresh()

    def _stack(self, like: Tensor, scratch: Scratch | None) -> Tensor | None:
        out, features = sum(self.rows), self.plain[0].in_features
        if four_bit(self.plain[0].weight):
            if scratch is None:
                return self._dequantise(like.new_empty(out, features))
            scratch.reserve(out * features)
            self.scratch = scratch
            return None
        weights = [module.weight.data for module in self.plain]
        if (joined := _adjacent(weights)) is not None:
            return joined
        weight = torch.cat(weights)
        for module, rows in zip(self.plain, weight.split(self.rows), strict=True):
            module.weight.data = rows
        return weight

    def _dequantise(self, out: Tensor) -> Tensor:
        for module, rows in zip(self.plain, out.split(self.rows), strict=True):
            rowwise.dequantize_nf4(module.weight.data, module.weight.quant_state, rows)
        return out

    def refresh(self) -> None:
        """Copy the adapter's weights, which a training changes in the meantime."""
        assert self.lora_a is not None
        assert self.lora_b is not None
        start = 0
        for i, module in self.adapted:
            (name,) = module.active_adapters
            ranks, first = slice(start, start + module.r[name]), sum(self.rows[:i])
            self.lora_a[ranks].copy_(module.lora_A[name].weight.data)
            scaled = module.scaling[name] * module.lora_B[name].weight.data
            self.lora_b[first : first + self.rows[i], ranks].copy_(scaled)
            start = ranks.stop

    def __call__(self, x: Tensor, adapted: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product, with the bias or residual and LoRA's product added.

        Args:
            x: (tokens, in).
            adapted: (tokens, 1), 1 where LoRA counts and 0 where not.
            residual: (tokens, out).

        Returns:
            (tokens, out).
        """
        weight = self.weight
        if weight is None:
            assert self.scratch is not None
            weight = self._dequantise(self.scratch.matrix(sum(self.rows), x.shape[1]))
        addend = self.bias if residual is None else residual
        out = x @ weight.T if addend is None else torch.addmm(addend, x, weight.T)
        if self.lora_a is not None and self.lora_b is not None:
            out.addmm_((x @ self.lora_a.T) * adapted, self.lora_b.T)
        return out


def _adjacent(weights: Sequence[Tensor]) -> Tensor | None:
    """The weights as one matrix, (out, in), where their rows follow each other in memory; None where not."""
    first, start = weights[0], weights[0].storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or weight.stride() != first.stride() or weight.storage_offset() != start:
            return None
        start += len(weight) * weight.stride(0)
    return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


class Layer:
    """The weights of one decoder layer of transformers' Llama or Qwen2.

    Args:
        module: the layer.
        like, scratch: see `Projections`.
    """

    def __init__(self, module: Any, like: Tensor, scratch: Scratch | None) -> None:
        self.qkv, self.o, self.gate_up, self.down = (
            Projections(group, like, scratch) for group in linear_layers(module)
        )
        self.norms = module.input_layernorm.weight, module.post_attention_layernorm.weight

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter on any of the linear layers."""
        return any(group.adapted for group in self.groups)

    def refresh(self) -> None:
        """Copy the adapter's weights anew."""
        for group in self.groups:
            if group.adapted:
                group.refresh()

    @property
    def groups(self) -> tuple[Projections, ...]:
        return self.qkv, self.o, self.gate_up, self.down
