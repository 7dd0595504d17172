"""Frozen projections fused with their LoRA: one matrix product computes both.

PEFT computes y = x Wᵀ + s (x Aᵀ) Bᵀ in three passes over y, the largest tensor: the first product writes y, then adding
the second reads and writes y again. Here W, A and B lie in one matrix,

        K  R
    N [ W  B ]
    R [ A  · ]

One product of its first N rows with [x, s x Aᵀ] gives y, a frozen bias added; one of its first K columns with
[dy, s dy B] gives dx. That costs 2·N·R and 2·K·R more operations per token instead of two passes over memory each.
A and B are copied in from the float32 LoRA weights at every step: Adam's steps of 1e-4 of a weight would be lost in
bfloat16's eight bits.

Shapes:
    rows  tokens of a batch
    K     in features
    N     out features of all projections that read the same x, stacked
    R     their LoRA ranks together; B is block-diagonal where there are several projections
    s     LoRA's scale, lora_alpha / r
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recipe.kernels import rowwise


class FusedLoraLinear:
    """Projections of one input in the precision in which PEFT's modules hold the frozen weight: bfloat16 or float32.

    The modules' own weights become views of the matrix, so that generating and saving see the same values.

    bias: (N) or None; of Qwen2's queries, keys and values.
    """

    # Whether y, or dx, lacks its LoRA part because the gating that reads it next adds that part. Float8 only.
    defer_lora = defer_lora_grad = False

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.rows = [module.out_features for module in modules]
        self.ranks = [module.r["default"] for module in modules]
        self.scale = float(modules[0].scaling["default"])
        self.n, self.k, self.r = sum(self.rows), int(modules[0].in_features), sum(self.ranks)
        self.matrix = self._allocate_matrix()
        biases = [module.base_layer.bias for module in modules]
        self.bias = None if biases[0] is None else torch.cat(biases).detach().to(self.matrix.dtype)

    def _allocate_matrix(self) -> Tensor:
        first = self.modules[0].base_layer.weight
        # (N + R, K + R)
        matrix = torch.zeros(self.n + self.r, self.k + self.r, dtype=first.dtype, device=first.device)
        start = 0
        for module, rows in zip(self.modules, self.rows, strict=True):
            place = matrix[start : start + rows, : self.k]
            place.copy_(module.base_layer.weight)
            module.base_layer.weight.data = place
            start += rows
        return matrix

    def parameters(self) -> list[Tensor]:
        """A, (rank, K), and B, (out features, rank), of each projection in order; float32."""
        return [p for m in self.modules for p in (m.lora_A["default"].weight, m.lora_B["default"].weight)]

    def input_buffer(self, rows: int, like: Tensor) -> Tensor:
        """An empty buffer (rows, K + R) for x: fill its first K columns."""
        return torch.empty(rows, self.k + self.r, dtype=like.dtype, device=like.device)

    def grad_buffer(self, rows: int, like: Tensor) -> Tensor:
        """An empty buffer (rows, N + R) for dy: fill its first N columns."""
        return torch.empty(rows, self.n + self.r, dtype=like.dtype, device=like.device)

    def _blocks(self) -> list[tuple[slice, slice]]:
        """(out features, ranks) of each projection."""
        blocks, n, r = [], 0, 0
        for rows, rank in zip(self.rows, self.ranks, strict=True):
            blocks.append((slice(n, n + rows), slice(r, r + rank)))
            n, r = n + rows, r + rank
        return blocks

    def refresh(self) -> None:
        """Copy this step's LoRA weights into the matrix."""
        places: list[Tensor] = []
        for rows, ranks in self._blocks():
            places += [self.lora_a[ranks], self.lora_b[rows, ranks]]
        with torch.no_grad():
            torch._foreach_copy_(places, self.parameters())

    @property
    def lora_a(self) -> Tensor:
        """A of all projections, (R, K)."""
        return self.matrix[self.n :, : self.k]

    @property
    def lora_b(self) -> Tensor:
        """B of all projections, (N, R), block-diagonal."""
        return self.matrix[: self.n, self.k :]

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, product: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Compute y.

        Args:
            x: (rows, K + R), an `input_buffer` whose first K columns are filled; the others are overwritten.
            residual: (rows, N), added to y.
            product: whether to compute y.

        Returns:
            y, (rows, N) or None, and s x Aᵀ, (rows, R).
        """
        low = torch.addmm(x.new_empty(()), x[:, : self.k], self.lora_a.T, beta=0, alpha=self.scale)
        return (self._frozen_product(x, low, residual) if product else None), low

    def _frozen_product(self, x: Tensor, low: Tensor, residual: Tensor | None) -> Tensor:
        x[:, self.k :] = low
        weight, addend = self.matrix[: self.n].T, self._addend(residual)
        return x @ weight if addend is None else torch.addmm(addend, x, weight)

    def _addend(self, residual: Tensor | None) -> Tensor | None:
        """What is added to the product: residual and bias, (rows, N), one of them, or nothing."""
        if residual is None or self.bias is None:
            return self.bias if residual is None else residual
        return residual + self.bias

    def backward(self, dy: Tensor, *, input_grad_needed: bool = True) -> tuple[Tensor | None, Tensor]:
        """Compute the gradient of x.

        Args:
            dy: (rows, N + R), a `grad_buffer` whose first N columns are filled; the others are overwritten.
            input_grad_needed: whether to compute dx.

        Returns:
            dx, (rows, K) or None, and s dy B, (rows, R).
        """
        low = dy[:, self.n :]
        for rows, ranks in self._blocks():
            place = low[:, ranks]
            torch.addmm(place, dy[:, rows], self.lora_b[rows, ranks], beta=0, alpha=self.scale, out=place)
        return (self._frozen_product_backward(dy, low) if input_grad_needed else None), low

    def _frozen_product_backward(self, dy: Tensor, low: Tensor) -> Tensor:  # noqa: ARG002
        return dy @ self.matrix[:, : self.k]

    def gradients(self, dy: Tensor, x: Tensor, x_low: Tensor, dy_low: Tensor) -> list[Tensor]:
        """Compute the gradients of `parameters()`: dA = (s dy B)ᵀ x and dB = dyᵀ (s x Aᵀ).

        Args:
            dy: (rows, N).
            x: (rows, K).
            x_low, dy_low: (rows, R), the second results of `forward` and `backward`.
        """
        a = _token_sum(dy_low, x)  # (R, K)
        grads = []
        for rows, ranks in self._blocks():
            grads += [a[ranks], _token_sum(dy[:, rows], x_low[:, ranks])]
        return grads


def _token_sum(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b, a sum over tokens. The GPU sums in float32 anyway; the result is not rounded before Adam reads it."""
    return torch.mm(a.T, b, out_dtype=torch.float32) if a.is_cuda and a.dtype == torch.bfloat16 else a.T @ b


class Scratch:
    """Matrices that 4-bit projections of equal shape share. `owner`: the projections whose weight is in a matrix."""

    def __init__(self) -> None:
        self._matrices: dict[tuple[int, ...], Tensor] = {}
        self.owner: dict[tuple[int, ...], object] = {}

    def matrix(self, key: tuple[int, ...], shape: tuple[int, int], like: Tensor) -> Tensor:
        if key not in self._matrices:
            self._matrices[key] = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return self._matrices[key]


class Nf4FusedLoraLinear(FusedLoraLinear):
    """Projections whose weight stays in bitsandbytes' nf4 and is dequantised into a shared matrix before each use."""

    def __init__(self, modules: Sequence[nn.Module], scratch: Scratch, like: Tensor) -> None:
        self.scratch, self.like = scratch, like
        super().__init__(modules)

    def _allocate_matrix(self) -> Tensor:
        self.key = (*self.rows, *self.ranks, self.k)
        return self.scratch.matrix(self.key, (self.n + self.r, self.k + self.r), self.like)

    def load(self) -> None:
        """Dequantise into the shared matrix, unless it still holds this weight, as after recomputing the layer."""
        if self.scratch.owner.get(self.key) is self:
            return
        self.scratch.owner[self.key] = self
        for (rows, _), module in zip(self._blocks(), self.modules, strict=True):
            weight = module.base_layer.weight
            rowwise.dequantize_nf4(weight.data, weight.quant_state, self.matrix[rows, : self.k])
        super().refresh()

    def refresh(self) -> None:
        if self.scratch.owner.get(self.key) is self:  # else `load` will
            super().refresh()

    def forward(
        self, x: Tensor, residual: Tensor | None = None, *, product: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        self.load()
        return super().forward(x, residual, product=product)

    def backward(self, dy: Tensor, *, input_grad_needed: bool = True) -> tuple[Tensor | None, Tensor]:
        self.load()
        return super().backward(dy, input_grad_needed=input_grad_needed)


class Fp8FusedLoraLinear(FusedLoraLinear):
    """Projections whose frozen products run in float8_e4m3fn, twice as fast on Hopper; LoRA keeps its precision.

    Weights are rounded once, activations and gradients at every product. Each row (an output feature, a token) has its
    own scale. A product of two values is right to about 1 part in 16, a sum of 2,048 products to about 1 in 25.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__(modules)
        weight = self.matrix[: self.n, : self.k]
        self.weight_fp8 = rowwise.to_fp8(weight)  # (N, K), scales (N, 1)
        self.weight_t_fp8 = rowwise.to_fp8(weight.T.contiguous())  # (K, N), scales (K, 1)

    def _frozen_product(self, x: Tensor, low: Tensor, residual: Tensor | None) -> Tensor:
        y = scaled_product(rowwise.to_fp8(x[:, : self.k]), self.weight_fp8, x.dtype)
        if not self.defer_lora:
            y.addmm_(low, self.lora_b.T)
        addend = self._addend(residual)
        return y if addend is None else y.add_(addend)

    def _frozen_product_backward(self, dy: Tensor, low: Tensor) -> Tensor:
        dx = scaled_product(rowwise.to_fp8(dy[:, : self.n]), self.weight_t_fp8, dy.dtype)
        return dx if self.defer_lora_grad else dx.addmm_(low, self.lora_a)


def scaled_product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """a bᵀ of two float8 matrices with a scale per row.

    Args:
        a, b: results of `rowwise.to_fp8`, of shapes (m, K) and (n, K).

    Returns:
        (m, n) of `dtype`.
    """
    (x, x_scale), (w, w_scale) = a, b
    if x.is_cuda:
        return torch._scaled_mm(x, w.T, x_scale, w_scale.T, out_dtype=dtype, use_fast_accum=True)
    return ((x.float() * x_scale) @ (w.float() * w_scale).T).to(dtype)


def projections(modules: Sequence[nn.Module], *, fp8: bool, scratch: Scratch, like: Tensor) -> FusedLoraLinear:
    """Fuse projections of one input, by the class that fits the format of their weights.

    Args:
        modules: PEFT's LoRA linear layers with the same in features.
        fp8: whether the frozen products run in float8; ignored for nf4 weights.
        scratch: the matrices that nf4 layers share.
        like: a tensor of the model's precision and device.
    """
    weight: Any = modules[0].base_layer.weight
    if hasattr(weight, "quant_state"):
        return Nf4FusedLoraLinear(modules, scratch, like)
    return Fp8FusedLoraLinear(modules) if fp8 else FusedLoraLinear(modules)
