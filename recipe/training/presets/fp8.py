"""`fast` with the frozen products in float8: for cards of compute capability 8.9 (RTX 40, L4, H100) and later."""

from mmengine.config import read_base

with read_base():
    from .fast import *

model.fp8 = True
