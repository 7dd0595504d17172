"""LoRA on a bfloat16 base through recipe.training.fast: the same training as `lora`, faster."""

from mmengine.config import read_base
from torch.optim import AdamW

from recipe.training.fast.clipping import clipping_wrapper
from recipe.training.fast.model import finetune

with read_base():
    from .lora import *

# The fast path has no dropout, hence no setting for it.
model.lora.pop("lora_dropout")

# Replay rows are learnt by the base's own distribution, not by its words: docs/experiments.md has what that earned.
train_dataloader.dataset.distill = True

# XTuner's model with this recipe's forward and backward pass. All activations are saved: 20 GiB at 16 x 1024 tokens.
model = dict(type=finetune, llm=model.llm, lora=model.lora, fp8=False, recompute=False, teacher="")

# The base computes in bfloat16 and the adapter is kept in float32: automatic mixed precision has nothing to cast.
# `fused` updates the whole adapter in one kernel.
optim_wrapper = dict(
    type=clipping_wrapper,
    optimizer=dict(type=AdamW, lr=3e-4, betas=(0.9, 0.99), weight_decay=0, fused=True),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=1,
)
