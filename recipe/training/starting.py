"""What is shown until a training's first step: `xtuner` opens it, `hooks.MeanLoss` closes it.

A module of its own, since torchrun runs `xtuner` as a program, which has its own copy of that module's values.
"""

from contextlib import ExitStack

starting = ExitStack()
