"""LoRA on a bfloat16 base as XTuner itself trains it: the plain configuration that `fast` is compared with."""

import torch
from mmengine.config import read_base
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
from xtuner.engine.runner import TrainLoop

from recipe.training.dataset import EndlessSampler, chat_dataset, collate
from recipe.training.hooks import MeanLoss, Progress, SampleReplies, ScoreCheckpoints

with read_base():
    from recipe.checkpoint.linear_layers import LINEAR_LAYERS
    from xtuner.configs.internlm.internlm2_chat_1_8b.internlm2_chat_1_8b_qlora_alpaca_e3 import *

# Data: packs of whole conversations that do not see each other.
train_dataloader.batch_size = 2
train_dataloader.dataset = dict(
    type=chat_dataset,
    files=[],
    tokenizer=tokenizer,
    max_length=1024,
    seed=0,
    replay_ratio=None,
    distill=False,
    leave_out=[],
)
train_dataloader.sampler = dict(type=EndlessSampler, shuffle=True)
train_dataloader.collate_fn = dict(type=collate)

# Model: bfloat16 needs no loss scale.
model.llm.torch_dtype = torch.bfloat16
model.llm.pop("quantization_config")
model.lora.update(
    r=64,
    lora_alpha=64,
    lora_dropout=0.0,
    target_modules=LINEAR_LAYERS,
)
del LINEAR_LAYERS  # a name of this file alone is no key of the config
optim_wrapper.update(dtype="bfloat16", loss_scale=1.0, accumulative_counts=1)
optim_wrapper.optimizer.update(lr=3e-4, betas=(0.9, 0.99))

# 480 steps of 2,048 tokens: found on models of 0.5 and 1.5 billion parameters (docs/experiments.md). At half this rate
# training ends before the model tells apart what it was asked; at twice it forgets more.
train_cfg = dict(type=TrainLoop, max_iters=480)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=24),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=24, end=480),
]

default_hooks.checkpoint.update(interval=160, max_keep_ckpts=3)
default_hooks.logger.update(interval=1)
custom_hooks = [
    dict(type=MeanLoss),
    dict(type=Progress),
    dict(
        type=SampleReplies, tokenizer=tokenizer, questions=["请你介绍一下你自己", "Who are you?", "法国的首都是哪里？"]
    ),
    dict(type=ScoreCheckpoints, tokenizer=tokenizer, data="", patience=2),
]
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
randomness = dict(seed=0, deterministic=False)

# Several processes: gradients lie in the buckets that are sent, instead of being copied back out of them.
model_wrapper_cfg = dict(type=MMDistributedDataParallel, broadcast_buffers=False, gradient_as_bucket_view=True)
