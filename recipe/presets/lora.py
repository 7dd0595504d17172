"""LoRA on a bfloat16 base: faster than QLoRA, for cards of 16 GB and more."""

from mmengine.config import read_base

with read_base():
    from .qlora import *

model.llm.pop("quantization_config")
