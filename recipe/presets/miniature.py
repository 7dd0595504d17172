"""QLoRA for the embedded miniature on a laptop's CPU: the path of `qlora` in float32, a minute of training.

A model of 2.4 M parameters takes a tenth of the width and ten times the learning rate of one of 1.8 B.
"""

from mmengine.config import read_base

with read_base():
    from .qlora import *

train_dataloader.batch_size = 4
train_dataloader.dataset.max_length = 512

model.use_activation_checkpointing = False
model.lora.update(r=32, lora_alpha=32)
optim_wrapper.optimizer.lr = 2e-3

train_cfg.max_iters = 120
param_scheduler[0].end = 8
param_scheduler[1].begin = 8
param_scheduler[1].end = 120
default_hooks.checkpoint.update(interval=40, max_keep_ckpts=3)
