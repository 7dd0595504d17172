"""4-bit base (nf4, double quantisation), LoRA on all linear layers, bfloat16: the 1.8B model on a card of 8 GB."""

import torch
from mmengine.config import read_base
from transformers import BitsAndBytesConfig

with read_base():
    from .fast import *

model.llm.quantization_config = dict(
    type=BitsAndBytesConfig,
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_use_double_quant=True,
    bnb_4bit_quant_type="nf4",
)
# Saves one tensor per layer instead of eight; a quarter slower.
model.recompute = True
