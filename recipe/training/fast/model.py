"""XTuner's SupervisedFinetune with this package's forward and backward pass; all else, the Runner too, is XTuner's.

Shapes:
    batch   packs; length: tokens of a pack
    tokens  batch * length
    hidden  features of the residual stream
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recipe.chat_format import IGNORE_INDEX
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.pipeline.phases import phase
from recipe.training.fast import graphs
from recipe.training.fast.attention import Packs
from recipe.training.fast.layer import Layer, run
from recipe.training.fast.linear import Scratch
from recipe.training.fast.loss import HeadLoss, loss_tokens
from recipe.training.fast.merged import merges
from recipe.training.teacher import Teacher, plain_loss
from recipe.training.teacher import load as read_teacher

PROJECTIONS = set(LINEAR_LAYERS)


class FusedLlama:
    """The loss of a PEFT-wrapped LlamaForCausalLM or Qwen2ForCausalLM, computed by `Layer`s over its own weights.

    A tied head is the embedding's own weight; both are frozen.

    Built at the first batch, when the model is on its device and DeepSpeed has settled its precision.
    """

    def __init__(self, peft_model: nn.Module, *, fp8: bool) -> None:
        llama = peft_model.get_base_model()
        self.model, self.head = llama.model, llama.lm_head.weight
        scratch = Scratch()
        like = self.model.embed_tokens.weight
        adapted = [module for module in self.model.layers.modules() if hasattr(module, "lora_A")]
        merged = not fp8 and merges(adapted, like)
        self.layers = [
            Layer(module, fp8=fp8, merged=merged, scratch=scratch, like=like) for module in self.model.layers
        ]
        self.graphs: dict[tuple[int, int], graphs.LayerGraphs] = {}  # (batch, length) -> its graphs
        self.steps: Counter[tuple[int, int]] = Counter()  # (batch, length) -> steps that could have been captured

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        teacher_rows: Tensor | None = None,
        *,
        teacher: Teacher | None = None,
        recompute: bool,
    ) -> Tensor:
        """The mean loss over the loss tokens of a batch.

        Args:
            input_ids, labels, position_ids: (batch, length) int64.
            teacher_rows: (batch, length) int64, the teacher's row for each label, -1 where it is learnt by its words.
            teacher: the base's distributions, on the batch's device; None where all is learnt by its words.
            recompute: whether a layer saves only its input for the backward pass.

        Returns:
            A float32 scalar.
        """
        rows, targets, at = loss_tokens(labels, teacher_rows)
        taught = None if teacher is None or at is None else teacher.rows(at)
        hidden = self.model.embed_tokens(input_ids)  # (batch, length, hidden)
        packs = Packs.of(position_ids, *self.model.rotary_emb(hidden, position_ids))
        hidden = self._run(hidden.flatten(0, 1), packs, recompute=recompute)
        norm = self.model.norm
        return HeadLoss.apply(hidden, rows, targets, norm.weight, norm.variance_epsilon, self.head, taught)

    def _run(self, hidden: Tensor, packs: Packs, *, recompute: bool) -> Tensor:
        """The layers in order, as CUDA graphs where a step is small. hidden and the result: (tokens, hidden)."""
        if not graphs.capturable(self.layers, hidden, packs, recompute=recompute):
            return run(self.layers, hidden, packs, recompute=recompute)
        shape = packs.batch, len(hidden) // packs.batch
        self.steps[shape] += 1
        if self.steps[shape] <= graphs.WARM_UP:
            return run(self.layers, hidden, packs, recompute=recompute)
        if shape not in self.graphs:
            self.graphs[shape] = graphs.LayerGraphs(self.layers, hidden, packs)
        return self.graphs[shape].run(hidden, packs)


def in_shards(llm: nn.Module) -> bool:
    """Whether ZeRO-3 has sharded the weights; only the modules' own forward gathers them, on all processes together."""
    return hasattr(next(llm.parameters()), "ds_id")


class LossWeight:
    """The weight of this process's loss: its loss tokens over the mean of all processes'.

    DDP and DeepSpeed take the mean of the processes' gradients. With losses weighted so, that is the gradient of the
    mean loss over the tokens of all processes: what one process computes on the same packs. XTuner's own class, of the
    presets `lora` and `tutorial`, takes the mean of means.
    """

    def __init__(self, labels: Tensor) -> None:
        """labels: (batch, length) int64."""
        self.pending = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.loss_tokens = labels[:, 1:].ne(IGNORE_INDEX).sum().float()
            self.total = self.loss_tokens.clone()
            self.pending = dist.all_reduce(self.total, async_op=True)  # while the loss is computed

    def of(self, loss: Tensor) -> Tensor:
        """The weighted loss, a scalar."""
        if self.pending is None:
            return loss
        self.pending.wait()
        return loss * (self.loss_tokens * dist.get_world_size() / self.total.clamp(min=1))


@phase("load")
def finetune(*, llm: Any, lora: Any, fp8: bool = False, recompute: bool = False, teacher: str = "") -> nn.Module:
    """The `model` of a config: XTuner's SupervisedFinetune, with this package's loss.

    XTuner itself would cast every weight that is not in 4 bits to float32 here, and back at every product.

    Args:
        llm, lora: the model and its adapter, as in XTuner's configs.
        fp8: whether the frozen products run in float8, which takes a GPU of compute capability 8.9.
        recompute: whether a layer saves only its input and computes most of its forward pass again.
        teacher: the file of the base's distributions, from which replay rows are learnt; empty to learn their words.

    Raises:
        ValueError: this package does not compute such a model or adapter; see `check`.
    """
    from peft import get_peft_model
    from transformers.integrations import is_deepspeed_zero3_enabled
    from xtuner.model import SupervisedFinetune
    from xtuner.registry import BUILDER

    if torch.cuda.is_available() and not is_deepspeed_zero3_enabled():  # from the file to the GPU at once
        llm = llm.copy()
        llm.device_map = f"cuda:{torch.cuda.current_device()}"
    model = SupervisedFinetune(llm=llm, use_activation_checkpointing=False)
    _keep_layout(model)
    model.lora = BUILDER.build(lora)
    model.use_lora = True
    # DeepSpeed's runner builds the model after the data, which have drawn random numbers by then: LoRA starts from the
    # seed itself.
    torch.manual_seed(torch.initial_seed())
    model.llm = get_peft_model(model.llm, model.lora)
    check(model.llm, model.lora, fp8=fp8)
    fused: list[FusedLlama] = []  # no submodule: its tensors are the model's own
    taught: list[Teacher] = []  # no buffer: nothing sends it to other processes or saves it

    def compute_loss(data: dict[str, Tensor], data_samples: None = None) -> dict[str, Tensor]:  # noqa: ARG001
        weight = LossWeight(data["labels"])
        if teacher and not taught:
            taught.append(read_teacher(Path(teacher)).to(data["labels"].device))
        if in_shards(model.llm):
            return {"loss": weight.of(_plain_loss(model, data, taught[0] if taught else None))}
        if not fused:
            fused.append(FusedLlama(model.llm, fp8=fp8))
        return {"loss": weight.of(fused[0].loss(**data, teacher=taught[0] if taught else None, recompute=recompute))}

    def train(mode: bool = True) -> nn.Module:
        """mmengine calls this before every step; walking through 2,000 modules to change nothing takes 10 ms."""
        return nn.Module.train(model, mode) if model.training != mode else model

    model.compute_loss, model.train = compute_loss, train
    return model


def _plain_loss(model: nn.Module, data: dict[str, Tensor], teacher: Teacher | None) -> Tensor:
    """The same loss through the modules' own forward pass."""
    if teacher is None:
        from xtuner.model import SupervisedFinetune

        return SupervisedFinetune.compute_loss(model, data)["loss"]
    logits = model.llm(input_ids=data["input_ids"], position_ids=data["position_ids"], use_cache=False).logits
    return plain_loss(logits, data["labels"], data["teacher_rows"], teacher)


def _keep_layout(model: nn.Module) -> None:
    """Keep 4-bit weights as they were quantised: `linear.Nf4FusedLoraLinear` reads them.

    Where a model replies on a CPU with AVX-512 bf16, bitsandbytes would lay them out anew for a kernel of its own.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check(peft_model: nn.Module, lora: Any, *, fp8: bool) -> None:
    """Check that this package computes this model with this adapter; XTuner's own class takes any.

    Raises:
        ValueError: not Llama without biases or Qwen2 with full attention, not plain LoRA on all projections without
            dropout, or no float8 GPU.
    """
    config = peft_model.get_base_model().config
    advice = "; use XTuner's SupervisedFinetune, as the preset lora does"
    if config.model_type == "llama":
        other = config.attention_bias or config.mlp_bias
    else:
        other = config.model_type != "qwen2" or "sliding_attention" in config.layer_types
    if other or config.hidden_act != "silu":
        raise ValueError(
            f"the fast path is for Llama models without biases and Qwen2 with full attention, not for this "
            f"{config.model_type}{advice}"
        )
    if set(lora.target_modules) != PROJECTIONS or lora.bias != "none" or lora.use_dora:
        raise ValueError(f"the fast path wants plain LoRA on all of {', '.join(sorted(PROJECTIONS))}{advice}")
    if lora.lora_dropout:
        raise ValueError(f"the fast path has no dropout: set lora_dropout=0.0{advice}")
    if fp8 and torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise ValueError("float8 products need a GPU of compute capability 8.9 or later: use the preset fast")
