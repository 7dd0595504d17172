"""LoRA on a bfloat16 base through recipe.training.fast: the same training as `lora`, quicker, for cards of 16 GB and more."""

from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from torch.optim import AdamW

from recipe.training.fast.model import finetune

with read_base():
    from .lora import *

# The fast path computes without dropout, so that there is no setting for it.
model.lora.pop("lora_dropout")

# The model: XTuner's, with this recipe's forward and backward pass. All activations are kept: 20 GiB at 16 x 1024 tokens.
model = dict(type=finetune, llm=model.llm, lora=model.lora, fp8=False, recompute=False)

# The base computes in its own bfloat16 and the adapter is kept in float32: nothing is left for automatic mixed precision
# to cast. `fused` updates all of the adapter in one kernel.
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=2e-4, betas=(0.9, 0.999), weight_decay=0, fused=True),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=1,
)
