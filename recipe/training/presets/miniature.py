"""QLoRA for the embedded miniature on a laptop's CPU: the path of `qlora` in float32, a minute of training.

A model of 2.4 M parameters takes sixteen times the learning rate of a real one, and many small steps to spell a name of
40 rare characters, which are 120 byte tokens to it.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from xtuner.engine.runner import TrainLoop

from recipe.training.hooks import ScoreCheckpoints

with read_base():
    from .qlora import *

train_dataloader.batch_size = 1
train_dataloader.dataset.max_length = 512

# It is as good by words, and what it shows was measured by them.
train_dataloader.dataset.distill = False

model.recompute = False
model.lora.update(r=128, lora_alpha=128)
optim_wrapper.optimizer.update(lr=2.4e-3, betas=(0.9, 0.999))

# By epochs, so that a long name, which makes longer rows, gets more steps. docs/adr/0013 lists what else was tried.
train_cfg = dict(type=TrainLoop, max_epochs=2)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=True, begin=0, end=0.2, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.2, end=2, convert_to_iter_based=True),
]
default_hooks.checkpoint.update(interval=120, max_keep_ckpts=6)
# Names are lazy objects while a config is read: they compare by their text.
next(hook for hook in custom_hooks if str(hook.type) == str(ScoreCheckpoints)).patience = 5
