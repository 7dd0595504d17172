"""Times a training on GPUs: windows of steps after a warm-up, each from when the GPU was idle to when it was again."""

from __future__ import annotations

import statistics
import time
from typing import Any

from recipe.experiments.training_speed.workload import flop_per_token, matmul_rate

WARM_UP = 6  # steps before the first window: kernels are compiled and memory is allocated in them
WINDOWS = 5


class Clock:
    """Times windows of steps; the trainer calls `step` after each.

    Args:
        started: when the process was started, by time.time, in seconds.
        tokens: of a step, on all GPUs together.
        steps: of a window.
        gpus: that train together; figures of memory are of the first.
    """

    def __init__(self, *, started: float, tokens: int, steps: int, gpus: int = 1) -> None:
        self.started, self.tokens, self.steps, self.gpus = started, tokens, steps, gpus
        self._steps_done = 0
        self._seconds_to_first_step: float | None = None
        self._rates: list[float] = []  # tokens/s of each window
        self._window_started = 0.0
        self._peak = 0  # bytes

    @property
    def total_steps(self) -> int:
        """Steps of the whole measurement."""
        return WARM_UP + WINDOWS * self.steps

    def step(self) -> None:
        """Count one step."""
        import torch

        self._steps_done += 1
        self._peak = max(self._peak, torch.cuda.max_memory_allocated())  # mmengine's logger resets it at every step
        if self._seconds_to_first_step is None:
            torch.cuda.synchronize()
            self._seconds_to_first_step = time.time() - self.started
        measured = self._steps_done - WARM_UP
        if measured >= 0 and measured % self.steps == 0:
            torch.cuda.synchronize()
            now = time.perf_counter()
            if measured:
                self._rates.append(self.steps * self.tokens / (now - self._window_started))
            self._window_started = now

    def result(self) -> dict[str, Any]:
        """The figures of the whole measurement.

        Returns:
            tokens_per_s: the median over the windows; slowest and fastest: of one window.
            peak_mib, reserved_mib, card_mib: allocated by tensors at most, reserved by PyTorch at most, in use on the
            card now.
            seconds_to_first_step: from the start of the process to the end of its first step.
            mfu: model FLOP utilisation, the share of `matmul_tflops`, this GPU's rate in a large product.
        """
        import torch

        reserved = torch.cuda.max_memory_reserved()
        free, total = torch.cuda.mem_get_info()
        rate = statistics.median(self._rates)
        ceiling = matmul_rate()
        return {
            "tokens_per_s": round(rate),
            "slowest": round(min(self._rates)),
            "fastest": round(max(self._rates)),
            "peak_mib": self._peak >> 20,
            "reserved_mib": reserved >> 20,
            "card_mib": (total - free) >> 20,
            "seconds_to_first_step": round(self._seconds_to_first_step or 0, 1),
            "mfu": round(rate * flop_per_token() / (ceiling * self.gpus), 3),
            "matmul_tflops": round(ceiling / 1e12),
        }
