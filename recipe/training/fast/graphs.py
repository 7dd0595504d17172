"""All layers of a small step as two launches: their forward and backward passes, captured in CUDA graphs.

A pass starts some 2,000 kernels. Of a step of 2,048 tokens the GPU computes each faster than Python starts the next.

Shapes: tokens, hidden: as in `layer`; conversations: as in `attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from recipe.pipeline.phases import phase
from recipe.training.fast.attention import Packs
from recipe.training.fast.layer import Layer, SavedActivations
from recipe.training.fast.linear import FusedLoraLinear

# Largest step that is captured. In a larger one the GPU is behind Python anyway, and a graph keeps its activations for
# good, which checkpoint scores then lack.
MOST_TOKENS = 4096
# Shortest mean length of a step's conversations: the graph has room for this many of them.
SHORTEST_MEAN = 16
# Steps of a shape that run without a graph before its capture: kernels are compiled, libraries find their workspaces.
WARM_UP = 2


class LayerGraphs:
    """The layers' passes over batches of one shape.

    Args:
        layers: in order; their weights stay where they are.
        hidden: (tokens, hidden), of the first batch, as an example.
        packs: of that batch.
    """

    @phase("compile")
    def __init__(self, layers: Sequence[Layer], hidden: Tensor, packs: Packs) -> None:
        self.parameters = [parameter for layer in layers for parameter in layer.parameters()]
        self.x, self.dy = hidden.detach().clone(), torch.zeros_like(hidden)
        # Conversations that are not there begin and end behind the last row.
        self.starts = packs.starts.new_full((_room(len(hidden)) + 1,), len(hidden))
        self.cos, self.sin = packs.cos.clone(), packs.sin.clone()
        # One length for all batches: it only bounds how far attention looks.
        fixed = Packs(packs.batch, self.starts, len(hidden) // packs.batch, False, self.cos, self.sin, None)
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        sizes = [parameter.numel() for parameter in self.parameters]
        self.grads = torch.empty(sum(sizes), dtype=torch.float32, device=hidden.device)
        parts = zip(self.grads.split(sizes), self.parameters, strict=True)
        self.views = [part.view_as(parameter) for part, parameter in parts]
        saved: list[tuple[Tensor, SavedActivations]] = []
        with torch.no_grad(), torch.cuda.graph(self.forward_graph, capture_error_mode="thread_local"):
            self.y = _forward(layers, self.x, fixed, saved)
        pool = self.forward_graph.pool()
        with torch.no_grad(), torch.cuda.graph(self.backward_graph, pool=pool, capture_error_mode="thread_local"):
            torch._foreach_copy_(self.views, _backward(layers, self.dy, fixed, saved))

    def run(self, hidden: Tensor, packs: Packs) -> Tensor:
        """Run the layers in order; a batch is run backward before the next one is run.

        Args:
            hidden: (tokens, hidden), the embedded tokens, which need no gradient.
            packs: where the conversations lie.

        Returns:
            (tokens, hidden), the last layer's output, until the next call.
        """
        result: Tensor = _RunGraphs.apply(hidden, self, packs, self.parameters[0])
        return result

    def backward(self, dy: Tensor) -> None:
        """Add to each parameter's gradient, which becomes a view of `grads`.

        Autograd would take and add hundreds of gradients one by one, for longer than the GPU computes them.

        Args:
            dy: (tokens, hidden), the gradient of the last `run`'s result.
        """
        before = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        added = torch.cat([grad.flatten() for grad in before]) if before else None  # of batches before this one
        self.dy.copy_(dy)
        self.backward_graph.replay()
        if added is not None:
            self.grads += added
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view


def capturable(layers: Sequence[Layer], hidden: Tensor, packs: Packs, *, recompute: bool) -> bool:
    """Whether a step of this size gains from a graph and may be captured.

    Not where weights are dequantised or rounded between products (these layers remember what lies in shared memory),
    and not under torchrun, where gradients are reduced while the backward pass goes on.
    """
    alone = not dist.is_initialized()
    plain = all(type(group) is FusedLoraLinear for layer in layers for group in layer.groups)
    small = len(hidden) <= MOST_TOKENS and len(packs.starts) <= _room(len(hidden)) + 1
    return (
        hidden.is_cuda and alone and plain and small and not packs.whole and not recompute and torch.is_grad_enabled()
    )


def _room(tokens: int) -> int:
    return tokens // SHORTEST_MEAN


def _forward(
    layers: Sequence[Layer], hidden: Tensor, packs: Packs, saved: list[tuple[Tensor, SavedActivations]]
) -> Tensor:
    for layer in layers:
        layer.refresh()
        y, activations = layer.forward(hidden, packs)
        assert y is not None
        saved.append((hidden, activations))
        hidden = y
    return hidden


def _backward(
    layers: Sequence[Layer], dy: Tensor, packs: Packs, saved: list[tuple[Tensor, SavedActivations]]
) -> list[Tensor]:
    """The gradients of all layers' parameters, in the layers' order. `saved` is emptied on the way."""
    grads: list[list[Tensor]] = []
    grad: Tensor | None = dy
    for layer in reversed(layers):
        x, activations = saved.pop()
        assert grad is not None
        grad, parts = layer.backward(grad, x, activations, packs, input_grad_needed=bool(saved))
        grads.append(parts)
    return [part for parts in reversed(grads) for part in parts]


class _RunGraphs(torch.autograd.Function):
    """`LayerGraphs` for autograd: apply(hidden, graphs, packs, any of graphs.parameters).

    That parameter only makes autograd call `backward`, which sees to the gradients of all.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, graphs: LayerGraphs, packs: Packs, parameter: Tensor) -> Tensor:  # noqa: ARG004
        ctx.graphs = graphs
        graphs.x.copy_(hidden)
        graphs.starts[: len(packs.starts)].copy_(packs.starts)
        graphs.starts[len(packs.starts) :].fill_(len(hidden))
        graphs.cos.copy_(packs.cos)
        graphs.sin.copy_(packs.sin)
        graphs.forward_graph.replay()
        return graphs.y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.graphs.backward(grads[0])
        return None, None, None, None
