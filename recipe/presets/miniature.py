"""QLoRA for the embedded miniature on a laptop's CPU: the path of `qlora` in float32, a minute of training.

A model of 2.4 M parameters takes half the rank and fifteen times the learning rate of one of 1.8 B. Many small steps, not
few large ones, are what it needs to spell a name of 40 rare characters, which are 120 byte tokens to it.
"""

from mmengine.config import read_base

with read_base():
    from .qlora import *

train_dataloader.batch_size = 2
train_dataloader.dataset.max_length = 512

model.use_activation_checkpointing = False
model.lora.update(r=32, lora_alpha=32)
optim_wrapper.optimizer.lr = 3e-3

train_cfg.max_iters = 400
param_scheduler[0].end = 16
param_scheduler[1].begin = 16
param_scheduler[1].end = 400
default_hooks.checkpoint.update(interval=200, max_keep_ckpts=2)
