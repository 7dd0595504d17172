"""A Llama decoder layer with LoRA as one function with its own backward: what it saves and when is written here, not inferred.

Of what a layer computes it keeps the residual stream, queries/keys/values, the attention's result and gate/up: 26 bytes a token
and hidden feature for the 1.8B model; norms and the gated product are computed again, which costs less than storing them.
With `recompute` it keeps its input alone and does all but the last product twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipe.kernels import rowwise
from recipe.kernels.rowwise import LowRank
from recipe.training.fast import attention
from recipe.training.fast.linear import EightBit, Margins, Scratch, projections


class Kept(NamedTuple):
    """What the backward of a layer needs: activations [tokens, features], and `*_low`, the s x Aᵀ of each projection."""

    qkv: Tensor
    qkv_low: Tensor
    attended: Tensor
    rest: tuple[Any, ...]
    o_low: Tensor
    middle: Tensor
    gate_up: Tensor
    gate_up_low: Tensor
    down_low: Tensor


class Layer:
    """One of transformers' LlamaDecoderLayers, whose seven projections PEFT has wrapped."""

    def __init__(self, module: nn.Module, *, fp8: bool, scratch: Scratch, like: Tensor) -> None:
        attend, mlp = module.self_attn, module.mlp

        def make(*modules: Any) -> Margins:
            return projections(modules, fp8=fp8, scratch=scratch, like=like)

        self.qkv = make(attend.q_proj, attend.k_proj, attend.v_proj)
        self.o = make(attend.o_proj)
        self.gate_up = make(mlp.gate_proj, mlp.up_proj)
        self.down = make(mlp.down_proj)
        self.in_gating = isinstance(self.gate_up, EightBit) and isinstance(self.down, EightBit)
        if self.in_gating:  # the gating reads these products next and adds what LoRA adds to them
            self.gate_up.apart = self.down.apart_back = True
        self.norms = module.input_layernorm, module.post_attention_layernorm
        self.eps = float(module.input_layernorm.variance_epsilon)
        self.heads = int(attend.config.num_attention_heads)
        self.kv_heads = int(attend.config.num_key_value_heads)

    @property
    def groups(self) -> tuple[Margins, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    def refresh(self) -> None:
        for group in self.groups:
            group.refresh()

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.groups for parameter in group.parameters()]

    def _normed(self, which: int, x: Tensor, out: Tensor) -> Tensor:
        rowwise.rms_norm(x, self.norms[which].weight, self.eps, out)
        return out

    def _rest(self, low: Tensor) -> LowRank | None:
        """What gate and up still lack."""
        return LowRank(low, self.gate_up.low_out.T) if self.in_gating else None

    def forward(self, x: Tensor, packs: attention.Packs, *, last_product: bool = True) -> tuple[Tensor | None, Kept]:
        """(the layer's result, unless only what it keeps is wanted; that). x: [tokens, hidden]."""
        tokens, hidden = x.shape
        wide = self.qkv.before(tokens, x)
        self._normed(0, x, wide[:, :hidden])
        qkv, qkv_low = self.qkv.forward(wide)
        assert qkv is not None
        size = qkv.shape[1] // (self.heads + 2 * self.kv_heads)
        turned = qkv[:, : (self.heads + self.kv_heads) * size]
        rowwise.rotate(turned, packs.cos, packs.sin, turned)
        attended, rest = attention.forward(qkv, self.heads, self.kv_heads, packs)
        wide = self.o.before(tokens, x)
        rowwise.copy(attended, wide[:, : self.o.k])
        middle, o_low = self.o.forward(wide, x)
        wide = self.gate_up.before(tokens, x)
        self._normed(1, middle, wide[:, :hidden])
        gate_up, gate_up_low = self.gate_up.forward(wide)
        wide = self.down.before(tokens, x)
        rowwise.swiglu(gate_up, wide[:, : self.down.k], self._rest(gate_up_low))
        y, down_low = self.down.forward(wide, middle, product=last_product)
        return y, Kept(qkv, qkv_low, attended, rest, o_low, middle, gate_up, gate_up_low, down_low)

    def backward(
        self, dy: Tensor, x: Tensor, kept: Kept, packs: attention.Packs, *, needed: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """(gradient of x if needed, those of `parameters()`). dy: [tokens, hidden]."""
        tokens, hidden = x.shape
        wide = self.down.behind(tokens, x)
        rowwise.copy(dy, wide[:, :hidden])
        dh, low = self.down.backward(wide)
        assert dh is not None
        d_gate_up = self.gate_up.behind(tokens, x)
        grad_rest = LowRank(low, self.down.low_in) if self.in_gating else None
        rowwise.swiglu_backward(
            dh, kept.gate_up, d_gate_up[:, : self.gate_up.n], self._rest(kept.gate_up_low), grad_rest
        )  # dh is now h
        of_down = self.down.gradients(wide[:, :hidden], dh, kept.down_low, low)
        del dh
        dn, low = self.gate_up.backward(d_gate_up)
        assert dn is not None
        normed = self._normed(1, kept.middle, torch.empty_like(x))
        of_gate_up = self.gate_up.gradients(d_gate_up[:, : self.gate_up.n], normed, kept.gate_up_low, low)
        del d_gate_up
        wide = self.o.behind(tokens, x)
        d_middle = wide[:, :hidden]
        rowwise.rms_norm_backward(dn, kept.middle, self.norms[1].weight, self.eps, d_middle, dy)
        d_attended, low = self.o.backward(wide)
        assert d_attended is not None
        of_o = self.o.gradients(d_middle, kept.attended, kept.o_low, low)
        parts = attention.backward(d_attended, kept.qkv, kept.attended, kept.rest, self.heads, self.kv_heads, packs)
        d_qkv = self.qkv.behind(tokens, x)
        q, k, v = d_qkv[:, : self.qkv.n].split([part.shape[1] for part in parts], 1)
        rowwise.rotate(parts[0], packs.cos, packs.sin, q, back=True)
        rowwise.rotate(parts[1], packs.cos, packs.sin, k, back=True)
        rowwise.copy(parts[2], v)
        dn, low = self.qkv.backward(d_qkv, needed=needed)
        self._normed(0, x, normed)
        of_qkv = self.qkv.gradients(d_qkv[:, : self.qkv.n], normed, kept.qkv_low, low)
        dx = None
        if dn is not None:
            dx = torch.empty_like(x)
            rowwise.rms_norm_backward(dn, x, self.norms[0].weight, self.eps, dx, d_middle)
        return dx, [*of_qkv, *of_o, *of_gate_up, *of_down]


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
        y, kept = layer.forward(x, packs)
        assert y is not None
        ctx.layer, ctx.packs = layer, packs
        ctx.saved = x, None if recompute else kept
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, kept), ctx.saved = ctx.saved, None  # not kept until the loss that XTuner logs is forgotten
        if kept is None:
            _, kept = ctx.layer.forward(x, ctx.packs, last_product=False)
        dx, found = ctx.layer.backward(grads[0], x, kept, ctx.packs, needed=ctx.needs_input_grad[0])
        return dx, None, None, None, *found


def run(layers: Sequence[Layer], hidden: Tensor, packs: attention.Packs, *, recompute: bool) -> Tensor:
    """The layers one after the other. hidden: [tokens, hidden features], which needs no gradient of its own."""
    for layer in layers:
        layer.refresh()
        hidden = RunLayer.apply(hidden, layer, packs, recompute, *layer.parameters())
    return hidden
