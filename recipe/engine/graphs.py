"""A step on a GPU as one launch: captured in a CUDA graph when its shape first comes, replayed from then on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from recipe.pipeline.phases import phase

# The step's arguments: slots, window, whether every slot is greedy, whether log probabilities are wanted.
Shape = tuple[int, int, bool, bool]


@cache
def _warm_up_stream() -> torch.cuda.Stream:
    """One stream for every warm-up: libraries keep a workspace of tens of MiB for each stream they see."""
    return torch.cuda.Stream()


class Graphs:
    """Steps that run as CUDA graphs, one for each shape. The graphs never overlap: they share a pool.

    Args:
        restored: the tensors that a step changes. The warm-up before a capture runs a step for real, and they are put
            back after it; the capture itself computes nothing.

    Attributes:
        captured: shape -> its graph.
    """

    def __init__(self, restored: tuple[Tensor, ...]) -> None:
        self.restored = restored
        self.captured: dict[Shape, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[int, int, bool, bool], None], shape: Shape) -> None:
        """Run a step, always the same one, which reads and writes tensors that stay where they are."""
        if shape not in self.captured:
            with phase("compile"):
                self.captured[shape] = self._capture(step, shape)
        self.captured[shape].replay()

    def _capture(self, step: Callable[[int, int, bool, bool], None], shape: Shape) -> torch.cuda.CUDAGraph:
        saved = [tensor.clone() for tensor in self.restored]
        side = _warm_up_stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries find their workspaces
            step(*shape)
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(self.restored, saved, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            step(*shape)
        return graph
