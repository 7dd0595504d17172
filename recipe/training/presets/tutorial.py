"""Every value of the tutorial: XTuner's own pipeline on its file of one sample, the control of this recipe."""

from datasets import load_dataset
from mmengine.config import read_base
from mmengine.visualization import LocalVisBackend, TensorboardVisBackend, Visualizer
from xtuner.dataset.map_fns import openai_map_fn

from recipe.training.hooks import MeanLoss, Progress, SampleReplies, ScoreCheckpoints

with read_base():
    from xtuner.configs.internlm.internlm2_chat_1_8b.internlm2_chat_1_8b_qlora_alpaca_e3 import *

# 10,001 rows of 40 tokens in packs of 1,024: with XTuner's 32 map workers 384 packs an epoch, 768 iterations.
train_dataloader.dataset.update(
    dataset=dict(type=load_dataset, path="json", data_files=dict(train=[])),
    dataset_map_fn=openai_map_fn,
    max_length=1024,
    map_num_proc=32,
)

train_cfg.max_epochs = 2
param_scheduler[0].end = 0.03 * 2
param_scheduler[1].begin = 0.03 * 2
param_scheduler[1].end = 2

default_hooks.checkpoint.update(interval=300, max_keep_ckpts=3)
custom_hooks = [
    dict(type=MeanLoss),
    dict(type=Progress),
    dict(
        type=SampleReplies,
        tokenizer=tokenizer,
        questions=["请你介绍一下你自己", "你是谁", "你是我的小助手吗"],
        every=300,
    ),
    dict(type=ScoreCheckpoints, tokenizer=tokenizer, data="", patience=None),
]
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend), dict(type=TensorboardVisBackend)])
randomness = dict(seed=0, deterministic=False)
