"""Frozen projections with their LoRA added to the weight at every step: for float32 on a CPU.

    y = x (W + s B A)ᵀ

`linear`'s one product of [x, s x Aᵀ] saves passes over memory, which a GPU waits for. A CPU waits for its arithmetic:
the ranks cost 3·K·R + N·R operations a token there, blocks of zeros among them, and here N·K·R / rows once a step. In
float32 the sum keeps Adam's smallest steps, which bfloat16 would round away.

The gradients of A and B come from those of the merged weight, G = dyᵀ x, or by `linear`'s way:

    dA = s Bᵀ G        dB = s G Aᵀ        N·K + 2·N·K·r / rows operations a token
    dA = (s dy B)ᵀ x   dB = dyᵀ (s x Aᵀ)  2·K·R + 2·N·r

Shapes: as in `linear`; r = the rank of one projection, R / r of which read the same x.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from recipe.kernels import rowwise
from recipe.training.fast.linear import FusedLoraLinear

# Bytes of all the matrices that merging takes besides the model. Larger models wait for memory more than they gain.
MOST_BYTES = 2 << 30


class MergedLoraLinear(FusedLoraLinear):
    """Projections of one input in float32, of whole weights or of bitsandbytes' nf4, dequantised once.

    matrix: (N, K), W + s B A of this step; frozen: (N, K), W, of which whole weights become views.
    """

    def _allocate_matrix(self) -> Tensor:
        like = self.modules[0].lora_A["default"].weight
        self.frozen = torch.empty(self.n, self.k, dtype=torch.float32, device=like.device)
        for module, place in zip(self.modules, self.frozen.split(self.rows), strict=True):
            weight = module.base_layer.weight
            if (state := getattr(weight, "quant_state", None)) is not None:
                rowwise.dequantize_nf4(weight.data, state, place)
            else:
                place.copy_(weight)
                weight.data = place
        return torch.empty_like(self.frozen)

    def input_buffer(self, rows: int, like: Tensor) -> Tensor:
        """An empty buffer (rows, K) for x."""
        return torch.empty(rows, self.k, dtype=like.dtype, device=like.device)

    def grad_buffer(self, rows: int, like: Tensor) -> Tensor:
        """An empty buffer (rows, N) for dy."""
        return torch.empty(rows, self.n, dtype=like.dtype, device=like.device)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A, (r, K), and B, (out features, r), of each projection, without their gradients."""
        weights = [parameter.detach() for parameter in self.parameters()]
        return list(zip(weights[::2], weights[1::2], strict=True))

    def refresh(self) -> None:
        """Merge this step's LoRA weights."""
        places = zip(self._pairs(), self.frozen.split(self.rows), self.matrix.split(self.rows), strict=True)
        for (a, b), frozen, merged in places:
            torch.addmm(frozen, b, a, alpha=self.scale, out=merged)

    def _by_weight(self, tokens: int) -> bool:
        """Whether the gradient of the merged weight is the cheaper way to those of A and B."""
        within = sum(rows * rank for rows, rank in zip(self.rows, self.ranks, strict=True))  # N·r
        return self.n * self.k + 2 * within * self.k / tokens < 2 * self.k * self.r + 2 * within

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, product: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Compute y.

        Args:
            x: (rows, K).
            residual: (rows, N), added to y.
            product: whether to compute y.

        Returns:
            y, (rows, N) or None, and s x Aᵀ, (rows, R), or (rows, 0) where `gradients` does without it.
        """
        if self._by_weight(len(x)):
            low = x.new_empty(len(x), 0)
        else:
            low = torch.cat([x @ a.T for a, _ in self._pairs()], 1).mul_(self.scale)
        return (self._frozen_product(x, low, residual) if product else None), low

    def _frozen_product(self, x: Tensor, low: Tensor, residual: Tensor | None) -> Tensor:  # noqa: ARG002
        addend = self._addend(residual)
        return x @ self.matrix.T if addend is None else torch.addmm(addend, x, self.matrix.T)

    def backward(self, dy: Tensor, *, input_grad_needed: bool = True) -> tuple[Tensor | None, Tensor]:
        """Compute the gradient of x.

        Args:
            dy: (rows, N).
            input_grad_needed: whether to compute dx.

        Returns:
            dx, (rows, K) or None, and s dy B, (rows, R), or (rows, 0) where `gradients` does without it.
        """
        if self._by_weight(len(dy)):
            low = dy.new_empty(len(dy), 0)
        else:
            parts = zip(dy.split(self.rows, 1), self._pairs(), strict=True)
            low = torch.cat([part @ b for part, (_, b) in parts], 1).mul_(self.scale)
        return (dy @ self.matrix if input_grad_needed else None), low

    def gradients(self, dy: Tensor, x: Tensor, x_low: Tensor, dy_low: Tensor) -> list[Tensor]:
        """Compute the gradients of `parameters()`. Arguments as in `FusedLoraLinear.gradients`."""
        if not self._by_weight(len(x)):
            return super().gradients(dy, x, x_low, dy_low)
        grads = []
        for (a, b), weight_grad in zip(self._pairs(), (dy.T @ x).mul_(self.scale).split(self.rows), strict=True):
            grads += [b.T @ weight_grad, weight_grad @ a.T]
        return grads


def merges(modules: Iterable[Any], like: Tensor) -> bool:
    """Whether to merge: float32 on a CPU, and a model whose matrices take at most MOST_BYTES.

    Args:
        modules: all of PEFT's LoRA linear layers of the model.
        like: a tensor of the model's precision and device.
    """
    copies = [(module, 2 if hasattr(module.base_layer.weight, "quant_state") else 1) for module in modules]
    numbers = sum(count * module.in_features * module.out_features for module, count in copies)
    return like.device.type == "cpu" and like.dtype == torch.float32 and 4 * numbers <= MOST_BYTES
