"""How each trainer is called: XTuner with a preset of this recipe, and others as their own documentation has it.

Shapes: batch = packs of a step; LENGTH = tokens of a pack.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recipe.experiments.training_speed.cases import Case
from recipe.experiments.training_speed.clock import Clock
from recipe.experiments.training_speed.workload import LENGTH, LORA, RandomPacks

Trainer = Callable[[Case, Path, Clock, Path], None]
PACKS = 64  # after which the data begins anew


def rank() -> int:
    """The number of this process among those that torchrun started; 0 where it started none."""
    return int(os.environ.get("RANK", "0"))


def train(case: Case, model: Path, clock: Clock, work: Path) -> None:
    """Train by the case's trainer, which calls `clock.step` after each of `clock.total_steps` steps.

    Args:
        case: what to measure.
        model: the folder of a `workload.random_model`.
        clock: times the steps.
        work: a folder for what the trainer writes.
    """
    OTHERS.get(case.trainer, _preset)(case, model, clock, work)


def _preset(case: Case, model: Path, clock: Clock, work: Path) -> None:
    """XTuner's trainer by a preset of this recipe, its data and its length replaced, its replies and checkpoints left
    out."""
    # Not at the top: others are measured where XTuner may not be installed.
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from xtuner.engine.runner import TrainLoop

    from recipe.stages import config
    from recipe.training import xtuner
    from recipe.training.dataset import collate

    @HOOKS.register_module(force=True)
    class ClockHook(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            clock.step()

    resolved = config.load_preset(case.trainer)
    resolved.model.llm.update(pretrained_model_name_or_path=str(model), trust_remote_code=False)
    resolved.train_dataloader.batch_size = case.batch
    # The tutorial's packs see each other: without positions it keeps the quick kernel that it had.
    positions = case.trainer != "tutorial"
    resolved.train_dataloader.dataset = {"type": _dotted_name(RandomPacks), "count": PACKS, "positions": positions}
    resolved.train_dataloader.collate_fn = {"type": _dotted_name(collate)}
    resolved.train_cfg = {"type": _dotted_name(TrainLoop), "max_iters": clock.total_steps}
    for part in resolved.param_scheduler:
        part.update(begin=0, end=clock.total_steps, by_epoch=False)
        part.pop("convert_to_iter_based", None)
    resolved.default_hooks.checkpoint = None
    resolved.custom_hooks = [{"type": ClockHook.__name__}]
    file = work / f"config_{rank()}.py"  # the processes write it at the same time
    resolved.dump(file)
    arguments = [str(file), "--work-dir", str(work)]
    if case.distributed:
        arguments += ["--launcher", "pytorch"]
    if case.deepspeed:
        arguments += ["--deepspeed", f"deepspeed_{case.deepspeed}"]
    xtuner.run(arguments)


def _dotted_name(value: Any) -> str:
    """A class or function as a config file names it."""
    return f"{value.__module__}.{value.__qualname__}"


def _plain(case: Case, model: Path, clock: Clock, work: Path, *, liger: bool) -> None:  # noqa: ARG001
    """The loop that one writes by hand: transformers, PEFT with bfloat16 adapters, fused AdamW."""
    import torch
    from peft import get_peft_model

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    adapted = get_peft_model(_load(model), _lora_config(), autocast_adapter_dtype=False).train()
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    packs = RandomPacks(PACKS, positions=False)
    for i in range(clock.total_steps):
        rows = [torch.tensor(packs[(i * case.batch + j) % PACKS]["input_ids"]) for j in range(case.batch)]
        ids = torch.stack(rows).cuda()  # (batch, LENGTH)
        adapted(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()


def _trl(case: Case, model: Path, clock: Clock, work: Path, *, liger: bool) -> None:
    """TRL's SFTTrainer on a PEFT model, with Liger's kernels or without."""
    from peft import get_peft_model

    _sft(get_peft_model(_load(model), _lora_config()), case.batch, clock, work, use_liger_kernel=liger)


def _unsloth(case: Case, model: Path, clock: Clock, work: Path, *, nf4: bool) -> None:
    """Unsloth as its notebooks call it; nf4 with its own gradient checkpointing, bfloat16 without."""
    from unsloth import FastLanguageModel  # before transformers, which it changes

    _tokenizer().save_pretrained(model)
    base, _ = FastLanguageModel.from_pretrained(str(model), max_seq_length=LENGTH, load_in_4bit=nf4, dtype=None)
    adapted = FastLanguageModel.get_peft_model(
        base, **LORA, bias="none", use_gradient_checkpointing="unsloth" if nf4 else False, random_state=0
    )
    _sft(adapted, case.batch, clock, work, gradient_checkpointing=nf4)


OTHERS: Mapping[str, Trainer] = {
    "plain": partial(_plain, liger=False),
    "plain_liger": partial(_plain, liger=True),
    "trl": partial(_trl, liger=False),
    "trl_liger": partial(_trl, liger=True),
    "unsloth": partial(_unsloth, nf4=False),
    "unsloth_nf4": partial(_unsloth, nf4=True),
}


def _load(model: Path) -> Any:
    """The base on the GPU in bfloat16, as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0})
    base.config.use_cache = False
    return base


def _lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(**LORA, task_type="CAUSAL_LM")


def _sft(adapted: Any, batch: int, clock: Clock, work: Path, **options: Any) -> None:
    """TRL's SFTTrainer over the packs."""
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class ClockCallback(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    packs = RandomPacks(PACKS, positions=False)
    rows = datasets.Dataset.from_list(
        [{key: list(ids) for key, ids in packs[i % PACKS].items()} for i in range(batch * clock.total_steps)]
    )
    settings = SFTConfig(
        output_dir=str(work), per_device_train_batch_size=batch, gradient_accumulation_steps=1,
        max_steps=clock.total_steps,
        learning_rate=2e-4, weight_decay=0.0, max_grad_norm=1.0, bf16=True, optim="adamw_torch_fused",
        logging_steps=10, save_strategy="no", report_to="none", max_length=LENGTH, packing=False,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, dataloader_num_workers=0,
        **{"gradient_checkpointing": False} | options,
    )  # fmt: skip
    SFTTrainer(
        model=adapted, args=settings, train_dataset=rows, data_collator=_stack, callbacks=[ClockCallback()],
        processing_class=_tokenizer(),
    ).train()  # fmt: skip


def _stack(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """The packs as one batch of three tensors, (batch, LENGTH) each."""
    import torch

    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def _tokenizer() -> Any:
    """TRL asks for one although the packs are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), **special)
