"""A Llama or Qwen2 decoder layer with LoRA as one autograd function with its own backward pass.

A layer saves the residual stream, queries/keys/values, the attention's result and gate/up. For the 1.8B model these are
26 bytes per token and hidden feature. Norms and the gated product are computed again, which costs less than storing
them. With `recompute` a layer saves its input alone and computes all but the last product twice.

Shapes:
    tokens        all tokens of a batch, end to end
    hidden        features of the residual stream
    qkv_out       (heads + 2 * kv_heads) * head_dim
    intermediate  features of gate, and of up
    ranks         LoRA ranks of the projections that share an input
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipe.kernels import rowwise
from recipe.kernels.rowwise import LowRank
from recipe.training.fast import attention
from recipe.training.fast.linear import Fp8FusedLoraLinear, FusedLoraLinear, Scratch, projections
from recipe.training.fast.merged import MergedLoraLinear


class SavedActivations(NamedTuple):
    """What the backward pass of a layer needs; `*_low` is the s x Aᵀ of each projection."""

    qkv: Tensor  # (tokens, qkv_out)
    qkv_low: Tensor  # (tokens, ranks)
    attention_out: Tensor  # (tokens, hidden)
    attention_state: tuple[Any, ...]
    o_low: Tensor  # (tokens, ranks)
    residual: Tensor  # (tokens, hidden), after attention
    gate_up: Tensor  # (tokens, 2 * intermediate)
    gate_up_low: Tensor  # (tokens, ranks)
    down_low: Tensor  # (tokens, ranks)


class Layer:
    """One of transformers' LlamaDecoderLayers or Qwen2DecoderLayers, whose seven projections PEFT has wrapped."""

    def __init__(self, module: nn.Module, *, fp8: bool, merged: bool, scratch: Scratch, like: Tensor) -> None:
        """merged: whether LoRA is added to the weights, see `merged`."""
        attend, mlp = module.self_attn, module.mlp

        def make(*modules: Any) -> FusedLoraLinear:
            if merged:
                return MergedLoraLinear(modules)
            return projections(modules, fp8=fp8, scratch=scratch, like=like)

        self.qkv = make(attend.q_proj, attend.k_proj, attend.v_proj)
        self.o = make(attend.o_proj)
        self.gate_up = make(mlp.gate_proj, mlp.up_proj)
        self.down = make(mlp.down_proj)
        self.defer_lora = isinstance(self.gate_up, Fp8FusedLoraLinear) and isinstance(self.down, Fp8FusedLoraLinear)
        if self.defer_lora:  # the gating reads these products next and adds their LoRA part
            self.gate_up.defer_lora = self.down.defer_lora_grad = True
        self.norms = module.input_layernorm, module.post_attention_layernorm
        self.eps = float(module.input_layernorm.variance_epsilon)
        self.heads = int(attend.config.num_attention_heads)
        self.kv_heads = int(attend.config.num_key_value_heads)

    @property
    def groups(self) -> tuple[FusedLoraLinear, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    def refresh(self) -> None:
        for group in self.groups:
            group.refresh()

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.groups for parameter in group.parameters()]

    def _normed(self, which: int, x: Tensor, out: Tensor) -> Tensor:
        rowwise.rms_norm(x, self.norms[which].weight, self.eps, out)
        return out

    def _gate_up_lora(self, low: Tensor) -> LowRank | None:
        """The LoRA part that gate and up still lack, if it was deferred."""
        return LowRank(low, self.gate_up.lora_b.T) if self.defer_lora else None

    def forward(
        self, x: Tensor, packs: attention.Packs, *, last_product: bool = True
    ) -> tuple[Tensor | None, SavedActivations]:
        """Compute the layer.

        Args:
            x: (tokens, hidden).
            packs: where the conversations lie.
            last_product: whether to compute the result, or only what the backward pass needs.

        Returns:
            The result, (tokens, hidden) or None, and what the backward pass needs.
        """
        tokens, hidden = x.shape
        buffer = self.qkv.input_buffer(tokens, x)
        self._normed(0, x, buffer[:, :hidden])
        qkv, qkv_low = self.qkv.forward(buffer)  # (tokens, qkv_out), (tokens, ranks)
        assert qkv is not None
        size = qkv.shape[1] // (self.heads + 2 * self.kv_heads)
        queries_keys = qkv[:, : (self.heads + self.kv_heads) * size]
        rowwise.rotate(queries_keys, packs.cos, packs.sin, queries_keys)
        attention_out, attention_state = attention.forward(qkv, self.heads, self.kv_heads, packs)
        buffer = self.o.input_buffer(tokens, x)
        rowwise.copy(attention_out, buffer[:, : self.o.k])
        residual, o_low = self.o.forward(buffer, x)  # (tokens, hidden), (tokens, ranks)
        buffer = self.gate_up.input_buffer(tokens, x)
        self._normed(1, residual, buffer[:, :hidden])
        gate_up, gate_up_low = self.gate_up.forward(buffer)  # (tokens, 2 * intermediate), (tokens, ranks)
        buffer = self.down.input_buffer(tokens, x)
        rowwise.swiglu(gate_up, buffer[:, : self.down.k], self._gate_up_lora(gate_up_low))
        y, down_low = self.down.forward(buffer, residual, product=last_product)
        return y, SavedActivations(
            qkv, qkv_low, attention_out, attention_state, o_low, residual, gate_up, gate_up_low, down_low
        )

    def backward(
        self, dy: Tensor, x: Tensor, saved: SavedActivations, packs: attention.Packs, *, input_grad_needed: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Compute the gradients.

        Args:
            dy: (tokens, hidden), the gradient of the result.
            x: (tokens, hidden), the layer's input.
            saved: the second result of `forward`.
            packs: the same as in `forward`.
            input_grad_needed: whether to compute the gradient of x.

        Returns:
            The gradient of x, (tokens, hidden) or None if not needed, and those of `parameters()`.
        """
        tokens, hidden = x.shape
        buffer = self.down.grad_buffer(tokens, x)
        rowwise.copy(dy, buffer[:, :hidden])
        dh, low = self.down.backward(buffer)  # (tokens, intermediate), (tokens, ranks)
        assert dh is not None
        d_gate_up = self.gate_up.grad_buffer(tokens, x)
        down_lora = LowRank(low, self.down.lora_a) if self.defer_lora else None
        rowwise.swiglu_backward(
            dh, saved.gate_up, d_gate_up[:, : self.gate_up.n], self._gate_up_lora(saved.gate_up_low), down_lora
        )  # dh now holds the gated product itself
        down_grads = self.down.gradients(buffer[:, :hidden], dh, saved.down_low, low)
        del dh
        dn, low = self.gate_up.backward(d_gate_up)  # (tokens, hidden), (tokens, ranks)
        assert dn is not None
        normed = self._normed(1, saved.residual, torch.empty_like(x))
        gate_up_grads = self.gate_up.gradients(d_gate_up[:, : self.gate_up.n], normed, saved.gate_up_low, low)
        del d_gate_up
        buffer = self.o.grad_buffer(tokens, x)
        d_residual = buffer[:, :hidden]
        rowwise.rms_norm_backward(dn, saved.residual, self.norms[1].weight, self.eps, d_residual, dy)
        d_attention_out, low = self.o.backward(buffer)
        assert d_attention_out is not None
        o_grads = self.o.gradients(d_residual, saved.attention_out, saved.o_low, low)
        parts = attention.backward(
            d_attention_out, saved.qkv, saved.attention_out, saved.attention_state, self.heads, self.kv_heads, packs
        )
        d_qkv = self.qkv.grad_buffer(tokens, x)
        q, k, v = d_qkv[:, : self.qkv.n].split([part.shape[1] for part in parts], 1)
        rowwise.rotate(parts[0], packs.cos, packs.sin, q, inverse=True)
        rowwise.rotate(parts[1], packs.cos, packs.sin, k, inverse=True)
        rowwise.copy(parts[2], v)
        dn, low = self.qkv.backward(d_qkv, input_grad_needed=input_grad_needed)
        self._normed(0, x, normed)
        qkv_grads = self.qkv.gradients(d_qkv[:, : self.qkv.n], normed, saved.qkv_low, low)
        dx = None
        if dn is not None:
            dx = torch.empty_like(x)
            rowwise.rms_norm_backward(dn, x, self.norms[0].weight, self.eps, dx, d_residual)
        return dx, [*qkv_grads, *o_grads, *gate_up_grads, *down_grads]


class RunLayer(torch.autograd.Function):
    """`Layer` for autograd: RunLayer.apply(x, layer, packs, recompute, *layer.parameters())."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Layer,
        packs: attention.Packs,
        recompute: bool,
        *parameters: Tensor,  # noqa: ARG004
    ) -> Tensor:
        y, saved = layer.forward(x, packs)
        assert y is not None
        ctx.layer, ctx.packs = layer, packs
        ctx.saved = x, None if recompute else saved
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, saved), ctx.saved = ctx.saved, None  # else it stays alive as long as the loss that XTuner logs
        if saved is None:
            _, saved = ctx.layer.forward(x, ctx.packs, last_product=False)
        dx, parameter_grads = ctx.layer.backward(
            grads[0], x, saved, ctx.packs, input_grad_needed=ctx.needs_input_grad[0]
        )
        return dx, None, None, None, *parameter_grads


def run(layers: Sequence[Layer], hidden: Tensor, packs: attention.Packs, *, recompute: bool) -> Tensor:
    """Run the layers in order.

    Args:
        hidden: (tokens, hidden), the embedded tokens, which need no gradient.

    Returns:
        (tokens, hidden), the last layer's output before the final norm.
    """
    for layer in layers:
        layer.refresh()
        hidden = RunLayer.apply(hidden, layer, packs, recompute, *layer.parameters())
    return hidden
