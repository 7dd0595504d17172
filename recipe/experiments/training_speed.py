"""Training speed side by side: this recipe's presets through XTuner's trainer, and what others offer for the same work.

Each measurement is a process of its own on a random-weight model of the true size (1,889,110,016 parameters in the
Llama layout), made on the spot, on the same packs of 1,024 random tokens, all of them learnt. Speed is the median over
windows of steps after a warm-up, from when the GPU was idle to when it was idle again; memory is the most that PyTorch
had allocated.

Model FLOP utilisation = tokens/s x FLOP a token / the rate of an 8192^3 bfloat16 product measured in the same process,
    with FLOP a token = 4 P + 6 L + 7 T H N P = weights in matrix products (each is used forward, 2, and for the
    gradient of its input, 2; being frozen it needs no gradient of its own), L = LoRA's weights (those do: 6), and for
    the causal attention of N layers of width H over packs of T tokens 2 T H forward and 2.5 times that backward. What
    is computed twice to save memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from recipe.checkpoint.internlm2_llama import LINEAR_LAYERS
from recipe.device import has_gpu
from recipe.errors import RecipeError
from recipe.training.rendezvous import Machines

LENGTH = 1024
VOCABULARY = 92544
MODEL = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
RANK = 64
WARM_UP = 6  # steps before the first window: kernels are compiled and memory is found in them
WINDOWS = 5


class Case(NamedTuple):
    """runner: a preset, or what else trains. batch: packs a step on each GPU. steps: of a window."""

    runner: str
    batch: int
    steps: int
    gpus: int = 1
    deepspeed: str | None = None


# The tutorial's own step is one pack, sixteen of which make an update.
CASES = {
    "tutorial": Case("tutorial", 1, 16),
    "lora": Case("lora", 8, 4),
    "fast, batch 4": Case("fast", 4, 8),
    "fast": Case("fast", 8, 6),
    "fast, batch 16": Case("fast", 16, 4),
    "fp8": Case("fp8", 8, 6),
    "fp8, batch 16": Case("fp8", 16, 4),
    "qlora": Case("qlora", 8, 6),
    "qlora, batch 2": Case("qlora", 2, 16),
    "fast, 2 GPUs": Case("fast", 8, 6, gpus=2),
    "fast zero2": Case("fast", 8, 6, deepspeed="zero2"),
    "fast zero2, 2 GPUs": Case("fast", 8, 6, gpus=2, deepspeed="zero2"),
    "transformers + PEFT": Case("plain", 8, 4),
    "transformers + PEFT + Liger": Case("plain_liger", 8, 4),
    "TRL": Case("trl", 8, 4),
    "TRL + Liger": Case("trl_liger", 8, 4),
    "Unsloth": Case("unsloth", 8, 4),
    "Unsloth, batch 16": Case("unsloth", 16, 4),
    "Unsloth nf4": Case("unsloth_nf4", 8, 4),
}
NEEDS = {
    "plain_liger": "liger_kernel", "trl": "trl", "trl_liger": "liger_kernel", "unsloth": "unsloth",
    "unsloth_nf4": "unsloth",
}  # fmt: skip
TARGETS = list(LINEAR_LAYERS)
LORA: dict[str, Any] = {"r": RANK, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": TARGETS}


def flop_per_token() -> float:
    """See the module's text."""
    hidden, intermediate, layers = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["num_hidden_layers"]
    kv = hidden * MODEL["num_key_value_heads"] // MODEL["num_attention_heads"]
    shapes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)] + [(hidden, intermediate)] * 3
    weights = layers * sum(a * b for a, b in shapes) + hidden * VOCABULARY
    adapter = layers * RANK * sum(a + b for a, b in shapes)
    return float(4 * weights + 6 * adapter + 7 * LENGTH * hidden * layers)


class RandomPacks:
    """`count` packs of LENGTH random tokens, each one conversation that is learnt from end to end."""

    def __init__(self, count: int, *, positions: bool = True) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.ids = [
            array("q", row) for row in torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator).tolist()
        ]
        self.positions = positions

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, array[int]]:
        ids = self.ids[index]
        return {"input_ids": ids, "labels": ids} | (
            {"position_ids": array("q", range(LENGTH))} if self.positions else {}
        )


class Clock:
    """Times windows of steps. `step` is called after each; seconds count from `started`, the process's own start.

    tokens: of a step, on all GPUs together. What it says of memory is of the first of them.
    """

    def __init__(self, *, started: float, tokens: int, steps: int, gpus: int = 1) -> None:
        self.started, self.tokens, self.steps, self.gpus = started, tokens, steps, gpus
        self.done = 0
        self.first: float | None = None
        self.rates: list[float] = []
        self.since = 0.0
        self.peak = 0

    @property
    def length(self) -> int:
        """Steps of the whole measurement."""
        return WARM_UP + WINDOWS * self.steps

    def step(self) -> None:
        import torch

        self.done += 1
        self.peak = max(self.peak, torch.cuda.max_memory_allocated())  # mmengine's logger resets it at every step
        if self.first is None:
            torch.cuda.synchronize()
            self.first = time.time() - self.started
        into = self.done - WARM_UP
        if into >= 0 and into % self.steps == 0:
            torch.cuda.synchronize()
            now = time.perf_counter()
            if into:
                self.rates.append(self.steps * self.tokens / (now - self.since))
            self.since = now

    def result(self) -> dict[str, Any]:
        import torch

        reserved = torch.cuda.max_memory_reserved()
        free, total = torch.cuda.mem_get_info()
        rate = statistics.median(self.rates)
        ceiling = matmul_rate()
        return {
            "tokens_per_s": round(rate),
            "slowest": round(min(self.rates)),
            "fastest": round(max(self.rates)),
            "peak_mib": self.peak >> 20,
            "reserved_mib": reserved >> 20,
            "card_mib": (total - free) >> 20,
            "seconds_to_first_step": round(self.first or 0, 1),
            "mfu": round(rate * flop_per_token() / (ceiling * self.gpus), 3),
            "matmul_tflops": round(ceiling / 1e12),
        }


def matmul_rate(size: int = 8192) -> float:
    """FLOP/s of a bfloat16 product of random matrices: the median of 20 after 5."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for i in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(begin.elapsed_time(end) / 1e3)
    return float(2 * size**3 / statistics.median(times))


def make_model(folder: Path) -> None:
    """A random-weight model of InternLM2-Chat-1.8B's size and layout in `folder`, drawn on the GPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**MODEL, dtype="bfloat16"))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)


def xtuner(case: Case, model: Path, clock: Clock, work: Path) -> None:
    """XTuner's trainer by a preset of this recipe, its data and its length replaced, its replies and checkpoints left
    out."""
    from recipe.stages import config
    from recipe.training import xtuner

    resolved = config.load_preset(case.runner)
    for node in config._walk(dict(resolved.items())):
        if "pretrained_model_name_or_path" in node:
            node["pretrained_model_name_or_path"] = str(model)
            node["trust_remote_code"] = False
    resolved.train_dataloader.batch_size = case.batch
    # The tutorial's packs see each other: without positions it keeps the quick kernel that it had.
    resolved.train_dataloader.dataset = {
        "type": "recipe.experiments.training_speed.RandomPacks", "count": 64, "positions": case.runner != "tutorial",
    }  # fmt: skip
    resolved.train_dataloader.collate_fn = {"type": "recipe.training.dataset.collate"}
    resolved.train_cfg = {"type": "xtuner.engine.runner.TrainLoop", "max_iters": clock.length}
    for part in resolved.param_scheduler:
        part.update(begin=0, end=clock.length, by_epoch=False)
        part.pop("convert_to_iter_based", None)
    resolved.default_hooks.checkpoint = None
    resolved.custom_hooks = [{"type": "recipe.experiments.training_speed.clock_hook"}]
    file = work / f"config_{_rank()}.py"  # the processes write it at the same time
    resolved.dump(file)
    _clocks.append(clock)
    arguments = [str(file), "--work-dir", str(work)]
    if _in_torchrun(case):
        arguments += ["--launcher", "pytorch"]
    if case.deepspeed:
        arguments += ["--deepspeed", f"deepspeed_{case.deepspeed}"]
    xtuner.run(arguments)


def _in_torchrun(case: Case) -> bool:
    return case.gpus > 1 or case.deepspeed is not None


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


_clocks: list[Clock] = []


def clock_hook() -> Any:
    """The hook that a config names: it tells the clock of this process of every step of XTuner's Runner."""
    from mmengine.hooks import Hook  # not at the top: others are measured where XTuner may not be installed

    class ClockHook(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            _clocks[-1].step()

    return ClockHook()


def plain(model: Path, batch: int, clock: Clock, *, liger: bool) -> None:
    """The loop that one writes by hand: transformers, PEFT with bfloat16 adapters, fused AdamW."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0})
    base.config.use_cache = False
    wrapped = get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM"), autocast_adapter_dtype=False).train()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0, fused=True)
    packs = RandomPacks(64, positions=False)
    for i in range(clock.length):
        rows = [torch.tensor(packs[(i * batch + j) % 64]["input_ids"]) for j in range(batch)]
        ids = torch.stack(rows).cuda()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()


def _sft(wrapped: Any, batch: int, clock: Clock, work: Path, **options: Any) -> None:
    """TRL's SFTTrainer over the packs."""
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    packs = RandomPacks(64, positions=False)
    rows = datasets.Dataset.from_list(
        [{key: list(ids) for key, ids in packs[i % 64].items()} for i in range(batch * clock.length)]
    )
    settings = SFTConfig(
        output_dir=str(work), per_device_train_batch_size=batch, gradient_accumulation_steps=1, max_steps=clock.length,
        learning_rate=2e-4, weight_decay=0.0, max_grad_norm=1.0, bf16=True, optim="adamw_torch_fused",
        logging_steps=10, save_strategy="no", report_to="none", max_length=LENGTH, packing=False,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, dataloader_num_workers=0,
        **{"gradient_checkpointing": False} | options,
    )  # fmt: skip
    collate = _Collate()
    SFTTrainer(
        model=wrapped, args=settings, train_dataset=rows, data_collator=collate, callbacks=[Tick()],
        processing_class=_tokenizer(),
    ).train()  # fmt: skip


class _Collate:
    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
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


def trl(model: Path, batch: int, clock: Clock, work: Path, *, liger: bool) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0})
    base.config.use_cache = False
    wrapped = get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    _sft(wrapped, batch, clock, work, use_liger_kernel=liger)


def unsloth(model: Path, batch: int, clock: Clock, work: Path, *, nf4: bool) -> None:
    """Unsloth as its notebooks call it; nf4 with its own checkpointing, which it is known for, bfloat16 without."""
    from unsloth import FastLanguageModel  # before transformers, which it changes

    _tokenizer().save_pretrained(model)
    base, _ = FastLanguageModel.from_pretrained(str(model), max_seq_length=LENGTH, load_in_4bit=nf4, dtype=None)
    wrapped = FastLanguageModel.get_peft_model(
        base, **LORA, bias="none", use_gradient_checkpointing="unsloth" if nf4 else False, random_state=0
    )
    _sft(wrapped, batch, clock, work, gradient_checkpointing=nf4)


def one(name: str, model: Path, work: Path, started: float) -> dict[str, Any]:
    """The measurement `name`, in this process."""
    case = CASES[name]
    batch = case.batch
    clock = Clock(started=started, tokens=case.gpus * batch * LENGTH, steps=case.steps, gpus=case.gpus)
    others: dict[str, Callable[[], None]] = {
        "plain": lambda: plain(model, batch, clock, liger=False),
        "plain_liger": lambda: plain(model, batch, clock, liger=True),
        "trl": lambda: trl(model, batch, clock, work, liger=False),
        "trl_liger": lambda: trl(model, batch, clock, work, liger=True),
        "unsloth": lambda: unsloth(model, batch, clock, work, nf4=False),
        "unsloth_nf4": lambda: unsloth(model, batch, clock, work, nf4=True),
    }
    others.get(case.runner, lambda: xtuner(case, model, clock, work))()
    return {"name": name, "batch": batch, "gpus": case.gpus, **clock.result()}


def lacking(name: str, gpus: int) -> str | None:
    """What a measurement needs beyond the locked environment and `gpus` GPUs, where that is not there."""
    need = NEEDS.get(CASES[name].runner)
    if need is not None and find_spec(need) is None:
        return f"{need} is not installed"
    return f"needs {CASES[name].gpus} GPUs" if CASES[name].gpus > gpus else None


def run(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Measure each of `names` in a process of its own; the results go to `folder`/bench.json as they come.

    RecipeError: there is no GPU, or a name is unknown.
    """
    if not has_gpu():
        raise RecipeError("bench: there is no NVIDIA GPU here, and training speed on a CPU says nothing")
    if unknown := [name for name in names if name not in CASES]:
        raise RecipeError(f"bench: {unknown[0]!r} is none of {'; '.join(CASES)}")
    import torch

    gpus = torch.cuda.device_count()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    if not (model / "config.json").is_file():
        _child(["make", str(model)])
    results: list[dict[str, Any]] = []
    for name in names:
        if lack := lacking(name, gpus):
            results.append({"name": name, "error": lack})
            continue
        work = folder / "".join(c if c.isalnum() else "_" for c in name)
        work.mkdir(exist_ok=True)
        begun = time.time()
        lines = _child(["one", name, str(model), str(work), str(begun)], CASES[name])
        results.append(json.loads(lines[-1]) if lines else {"name": name, "error": f"failed; see {work}/child.log"})
        results[-1]["seconds"] = round(time.time() - begun, 1)
        (folder / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _child(arguments: list[str], case: Case | None = None) -> list[str]:
    """The lines that a process of this module, or the first of several, printed; none where it failed."""
    start = [sys.executable]
    if case and _in_torchrun(case):
        start += ["-m", "torch.distributed.run", *Machines(case.gpus).torchrun()]
    done = subprocess.run(
        [*start, "-m", "recipe.experiments.training_speed", *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table in Markdown. The ratio is to the same on one GPU, where that was measured too."""
    alone = {CASES[r["name"]]: r["tokens_per_s"] for r in results if "error" not in r}
    lines = [
        "| what | GPUs | batch | tokens/s | slowest–fastest | x one GPU | peak MiB | MFU | s to first step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        if "error" in r:
            lines.append(f"| {r['name']} | | | {r['error']} | | | | | |")
            continue
        single = alone.get(CASES[r["name"]]._replace(gpus=1))
        ratio = f"{r['tokens_per_s'] / single:.2f}" if single else ""
        lines.append(
            f"| {r['name']} | {r['gpus']} | {r['batch']} | {r['tokens_per_s']:,} | {r['slowest']:,}–{r['fastest']:,} | "
            f"{ratio} | {r['peak_mib']:,} | {r['mfu']:.0%} | {r['seconds_to_first_step']} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="recipe.experiments.training_speed")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("make").add_argument("model", type=Path)
    single = verbs.add_parser("one")
    single.add_argument("name")
    single.add_argument("model", type=Path)
    single.add_argument("work", type=Path)
    single.add_argument("started", type=float)
    chosen = parser.parse_args(arguments)
    if chosen.verb == "make":
        make_model(chosen.model)
    else:
        result = one(chosen.name, chosen.model, chosen.work, chosen.started)
        if _rank() == 0:
            print(json.dumps(result))


if __name__ == "__main__":
    from recipe.experiments import training_speed  # the hook that a config names must find this process's clock

    training_speed.main(sys.argv[1:])
