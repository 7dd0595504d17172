"""Runs XTuner's trainer in this process: `python -m recipe.training.xtuner CONFIG --work-dir DIR [its own options]`.

XTuner's `xtuner train` starts whichever `python` is on the PATH and ignores its exit status, so a failed training
exits 0. Its module, called here, does not. torchrun starts this module too, one process per GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from recipe.checkpoint.trainer_state import allow_trainer_state
from recipe.device import has_gpu
from recipe.library_logging import quieten
from recipe.pipeline import phases
from recipe.pipeline.heartbeat import heartbeat
from recipe.training import build_lock, tracking, unused_libraries
from recipe.training.starting import starting

LOG = "console.log"
# In the work folder: the seconds of each phase in the first process that torchrun has started.
PHASES = ".phases.json"
# What the trainer imports, so that its time is counted by itself.
IMPORTED = ("xtuner.dataset.collate_fns", "xtuner.model", "xtuner.engine.runner", "recipe.training.hooks")
# The variable with torchrun's process id.
PARENT = "RECIPE_TRAIN_PID"


def _run_without_gpu(*, deepspeed: bool) -> None:
    """Let several processes, and DeepSpeed, run where there is no GPU.

    mmengine chooses a CUDA device before it looks whether there is one, also for DDP, and XTuner's DeepSpeed strategy
    sends batches to it. Gloo, unlike NCCL, gathers by operations that autograd sees, and DeepSpeed gathers parameters.
    On a CPU DeepSpeed also compiles sums over shared memory, for a minute, which only its inference uses.
    """
    import torch
    from mmengine._strategy import DeepSpeedStrategy as Plain
    from mmengine.model import MMDistributedDataParallel
    from torch.nn.parallel import DistributedDataParallel
    from xtuner.engine import DeepSpeedStrategy

    torch.cuda.set_device = lambda _: None
    DeepSpeedStrategy._wrap_model = Plain._wrap_model

    def without_device(self: Any, module: Any, detect_anomalous_params: bool = False, **options: Any) -> None:
        DistributedDataParallel.__init__(self, module=module, **options | {"device_ids": None})
        self.detect_anomalous_params = detect_anomalous_params

    MMDistributedDataParallel.__init__ = without_device
    if deepspeed:
        from deepspeed import DeepSpeedEngine

        DeepSpeedEngine.step = torch.no_grad()(DeepSpeedEngine.step)
        communication: Any = import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None


def _end_with_parent() -> None:
    """Have the kernel end this process when torchrun's is killed (SIGKILL), so that it does not train on by itself."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)  # it was killed before the kernel knew


def _forget_instances() -> None:
    """Have the next training in this process log to its own file, and to its own tracker.

    mmengine keeps loggers and visualizers by a name that is made of the second: a training that begins in the same
    second would get this one's, whose files are closed.
    """
    from mmengine.utils import ManagerMixin

    for kept in ManagerMixin.__subclasses__():
        kept._instance_dict.clear()


def run(arguments: Sequence[str], *, program: bool = True) -> None:
    """Run `xtuner.tools.train` with these arguments.

    The first process prints to the work folder's console.log; of the others only tracebacks go there. A config that is
    no program names all that its training uses; other libraries are not imported.
    """
    quieten()
    work_dir = Path(arguments[list(arguments).index("--work-dir") + 1])
    work_dir.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0")) if "--launcher" in arguments else 0
    saved = sys.argv
    sys.argv = ["xtuner.tools.train", *arguments]
    try:
        with (
            unused_libraries.left_out([] if program else _unused(arguments)),
            (work_dir / LOG).open("a", encoding="utf-8") as log,
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere if rank else log),
            starting if rank == 0 else contextlib.nullcontext(),
        ):
            if rank == 0:
                starting.enter_context(heartbeat("train", "XTuner's trainer starts"))
            try:
                allow_trainer_state(deepspeed="--deepspeed" in arguments)
                if "--deepspeed" in arguments:
                    build_lock.install()
                if "--launcher" in arguments and not has_gpu():
                    _run_without_gpu(deepspeed="--deepspeed" in arguments)
                with phases.phase("import"):
                    for name in IMPORTED:
                        import_module(name)
                with phases.phase("load"):  # all but what is counted inside
                    runpy.run_module("xtuner.tools.train", run_name="__main__")
                if "--launcher" in arguments and not rank:
                    (work_dir / PHASES).write_text(json.dumps(phases.take()), encoding="utf-8")
            except (Exception, SystemExit):
                if rank:
                    print(f"process {rank}:", file=log)
                traceback.print_exc(file=log)
                raise
    except BaseException:  # also Ctrl-C
        tracking.end(failed=True)
        raise
    else:
        tracking.end(failed=False)
    finally:
        sys.argv = saved
        _forget_instances()


def _unused(arguments: Sequence[str]) -> list[str]:
    config = Path(arguments[0]).read_text(encoding="utf-8")
    return unused_libraries.unused(config, deepspeed="--deepspeed" in arguments)


if __name__ == "__main__":
    _end_with_parent()
    status = 0
    try:
        run(sys.argv[1:])
    except (Exception, SystemExit) as error:  # a config that calls sys.exit(0) has trained nothing
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # torchrun's parent reports it; the traceback is in the log
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk. Gloo's threads still run: ending them or the interpreter aborts one process in a hundred
    # ("terminate called without an active exception"), also through `destroy_process_group`. torchrun takes that for a
    # failed training.
    os._exit(status)
