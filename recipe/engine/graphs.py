"""A step on a GPU as one launch: captured in a CUDA graph when its shape first comes, replayed from then on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Shape = tuple[int, int, bool]  # the step's arguments: slots, window, whether every slot is greedy


class Graphs:
    """A step that is called as `graphs(*shape)` and runs as a CUDA graph. The graphs never overlap: they share a pool.

    Args:
        step: reads and writes tensors that stay where they are.
        restored: the tensors that a step changes. The warm-up before a capture runs a step for real, and they are put
            back after it; the capture itself computes nothing.
    """

    def __init__(self, step: Callable[[int, int, bool], None], restored: tuple[Tensor, ...]) -> None:
        self.step, self.restored = step, restored
        self.captured: dict[Shape, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, *shape: int | bool) -> None:
        batch, window, plain = shape
        key = (int(batch), int(window), bool(plain))
        if key not in self.captured:
            self.captured[key] = self._capture(key)
        self.captured[key].replay()

    def _capture(self, key: Shape) -> torch.cuda.CUDAGraph:
        saved = [tensor.clone() for tensor in self.restored]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries find their workspaces
            self.step(*key)
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(self.restored, saved, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self.step(*key)
        return graph
