"""What a run shows while it trains: a progress bar, and what the model says by now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from tqdm import tqdm

from recipe import generate
from recipe.fast.model import in_shards

# A sample that has not ended after so many tokens has shown what it has to show.
SAMPLE_TOKENS = 96


class MeanLoss(Hook):
    """Makes the loss that is logged the mean over all processes; without it mmengine logs the first one's."""

    priority = "HIGHEST"  # before the loss is noted down

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_world_size() > 1:
            outputs["loss"] = outputs["loss"].detach().clone()
            all_reduce(outputs["loss"], op="mean")  # on a GPU nothing here waits for it


class Progress(Hook):
    """One progress bar on stderr with loss and tokens per second; the trainer's own log goes to its file."""

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        shown = is_main_process()
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, desc="train", unit="step", disable=not shown)
        self.tokens = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.tokens += data_batch["data"]["input_ids"].numel() * get_world_size()
        self.bar.update()
        if self.bar.n % 10 == 0 or self.bar.n == self.bar.total:  # reading the loss waits for the GPU
            rate = self.tokens / max(self.bar.format_dict["elapsed"], 1e-9)
            self.bar.set_postfix(loss=f"{outputs['loss'].item():.4f}", tokens_per_s=f"{rate:.0f}", refresh=False)

    def after_train(self, runner: Any) -> None:
        self.bar.close()


class SampleReplies(Hook):
    """Asks the model some questions whenever a checkpoint is saved; the replies go to the screen and to replies.md."""

    priority = "LOW"

    def __init__(self, *, tokenizer: Any, questions: Sequence[str], every: int | None = None) -> None:
        from xtuner.registry import BUILDER

        self.tokenizer = BUILDER.build(tokenizer)
        self.questions = list(questions)
        self.every = every

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        every = self.every or runner.cfg.default_hooks.checkpoint.interval
        if self.every_n_train_iters(runner, every) or self.is_last_train_iter(runner):
            self.ask(runner)

    def ask(self, runner: Any) -> None:
        from mmengine.model import is_model_wrapper

        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not is_main_process() and not in_shards(model.llm):
            return
        conversations = [[{"role": "user", "content": question}] for question in self.questions]
        with generate.evaluating(model.llm):
            replies = generate.answer(model.llm, self.tokenizer, conversations, max_new_tokens=SAMPLE_TOKENS)
        if not is_main_process():
            return
        lines = [f"{q} -> {reply.text}" for q, reply in zip(self.questions, replies, strict=True)]
        for line in lines:
            tqdm.write(f"  step {runner.iter + 1}: {line}", file=sys.stderr)
        with (Path(runner.work_dir) / "replies.md").open("a", encoding="utf-8") as file:
            file.write(f"## Step {runner.iter + 1}\n\n" + "".join(f"- {line}\n" for line in lines) + "\n")
