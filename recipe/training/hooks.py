"""Hooks of mmengine's runner: the progress bar, sample replies, and the scores of checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mmengine.dist import all_reduce, broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import Hook
from tqdm import tqdm

from recipe.chat_format import text_ids, user
from recipe.checkpoint.loaded_tokenizer import build_tokenizer
from recipe.corpus.identity import read_identity
from recipe.corpus.own_data import Row
from recipe.corpus.rows import read_rows
from recipe.evaluation import checkpoint_selection, generation, own_rows, scoring
from recipe.pipeline import results, stage
from recipe.pipeline.hashing import hash_ahead
from recipe.pipeline.phases import phase
from recipe.pipeline.results import DataResults
from recipe.plain_text import one_line
from recipe.training.fast.model import in_shards
from recipe.training.starting import starting

# Tokens of a sample reply: more would show nothing new.
SAMPLE_TOKENS = 96
Conversation = list[dict[str, str]]
SomeHook = TypeVar("SomeHook", bound=Hook)


class MeanLoss(Hook):
    """Logs the mean loss over all processes; without this hook mmengine logs that of the first process.

    It is the first hook, and also ends what `xtuner` shows before the training has a bar.
    """

    priority = "HIGHEST"  # before the loss is logged

    def before_train(self, runner: Any) -> None:
        starting.close()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_world_size() > 1:
            outputs["loss"] = outputs["loss"].detach().clone()
            all_reduce(outputs["loss"], op="mean")  # on a GPU nothing here waits for it


class Progress(Hook):
    """One progress bar on stderr with loss and tokens per second; the trainer's own log goes to its file.

    The hook also counts the seconds of the phases steps and save: its priority is that of mmengine's checkpoint hook,
    after which it comes.
    """

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        self.saving: phase | None = None
        self.steps = phase("steps").__enter__()
        shown = is_main_process()
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, desc="train", unit="step", disable=not shown)
        self.first, self.tokens = runner.iter + 1, 0

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.saving = phase("save").__enter__()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._end_saving(runner)
        self.tokens += data_batch["data"]["input_ids"].numel() * get_world_size()
        step = runner.iter + 1
        if step % 10 == 0 or step in (self.first, self.bar.total):  # reading the loss waits for the GPU
            rate = self.tokens / max(self.bar.format_dict["elapsed"], 1e-9)
            self.bar.set_postfix(loss=f"{outputs['loss'].item():.4f}", tokens_per_s=f"{rate:.0f}", refresh=False)
        self.bar.update()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context in which the bar is hidden and its clock stands still, so that its remaining time is of steps."""
        self.bar.clear()
        started = time.time()  # tqdm's clock
        try:
            yield
        finally:
            passed = time.time() - started
            self.bar.start_t += passed
            self.bar.last_print_t += passed
            self.bar.refresh()

    def after_train(self, runner: Any) -> None:
        self.bar.close()
        self._end_saving(runner)
        self.steps.__exit__()

    def _end_saving(self, runner: Any) -> None:
        if self.saving:
            self.saving.__exit__()
            self.saving = None
            saved = Path(runner.work_dir) / f"iter_{runner.iter + 1}.pth"
            if get_world_size() == 1 and saved.is_file():  # of several processes none writes the manifest
                hash_ahead(saved)


def _aside(runner: Any) -> AbstractContextManager[None]:
    """The context of what is no step of the training, and is not counted as one by the training's bar."""
    bar = _hook(runner, Progress)
    return bar.aside() if bar and is_main_process() else nullcontext()


class SampleReplies(Hook):
    """Asks the model some questions at every checkpoint; the replies go to the screen and to replies.md.

    Where `ScoreCheckpoints` asks at the same steps, it asks these questions along with its own: the GPU then starts one
    batch instead of two.

    Args:
        tokenizer: XTuner's dict that builds one.
        questions: one conversation each.
        every: steps between samples; None follows the checkpoints.
    """

    priority = "LOW"

    def __init__(self, *, tokenizer: Any, questions: Sequence[str], every: int | None = None) -> None:
        self.tokenizer = build_tokenizer(tokenizer)
        self.questions = list(questions)
        self.every = every

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.every is None and _hook(runner, ScoreCheckpoints):
            return
        every = self.every or runner.cfg.default_hooks.checkpoint.interval
        if self.every_n_train_iters(runner, every) or self.is_last_train_iter(runner):
            self.ask(runner)

    def ask(self, runner: Any) -> None:
        llm = _llm(runner)
        if not _answers(llm):
            return
        with _aside(runner), generation.evaluating(llm):
            replies = generation.answer(llm, self.tokenizer, self.conversations(), max_new_tokens=SAMPLE_TOKENS)
        self.show(runner, replies)

    def conversations(self) -> list[Conversation]:
        """One of one turn for each question."""
        return [[user(question)] for question in self.questions]

    def show(self, runner: Any, replies: Sequence[generation.Reply]) -> None:
        """Print and write the replies, in the order of the questions. Only the first process does."""
        if not is_main_process():
            return
        lines = [f"{q} -> {reply.text}" for q, reply in zip(self.questions, replies, strict=True)]
        for line in lines:
            tqdm.write(f"  step {runner.iter + 1}: {one_line(line)}", file=sys.stderr)
        with (Path(runner.work_dir) / "replies.md").open("a", encoding="utf-8") as file:
            file.write(f"## Step {runner.iter + 1}\n\n" + "".join(f"- {line}\n" for line in lines) + "\n")


class ScoreCheckpoints(Hook):
    """Writes hit, leak and retention of every checkpoint, and ends a training that no longer improves.

    They go to scores.jsonl and, as `score/…`, to the runner's visualizer, where the loss is.

    The base is the model with its adapter switched off, so no second model is loaded.

    Args:
        tokenizer: XTuner's dict that builds one.
        data: the folder of stage `data`, which holds the identity and says which prompts.
        patience: checkpoints without an improvement that end the training; None trains to the end.
    """

    priority = "LOW"

    def __init__(self, *, tokenizer: Any, data: str, patience: int | None) -> None:
        self.tokenizer = build_tokenizer(tokenizer)
        self.identity = read_identity(Path(data))
        self.patience = patience
        rows = results.of(stage.require(Path(data), "data"), DataResults)
        user_rows = read_rows(Path(data) / rows.own_file) if rows.own_file else []
        selection_prompts = checkpoint_selection.prompts(extended=rows.extended, languages=rows.languages)
        held_out: list[Row] = [
            {"messages": [*map(dict, each.messages)]} for each in own_rows.read_questions(Path(data))
        ]
        prompts = own_rows.without_own_questions(selection_prompts, [*user_rows, *held_out])
        taught = own_rows.taught_prompts(prompts.facts, user_rows, self.identity)
        self.prompts = replace(prompts, taught=taught)
        names = (*self.identity.names, self.identity.author or "")
        self.room = SAMPLE_TOKENS + sum(len(text_ids(self.tokenizer, name)) for name in names)

    def _replies(self, llm: Any, label: str, samples: Sequence[Conversation] = ()) -> list[generation.Reply]:
        """The replies to `samples`, then to the questions that choose a checkpoint. label: of their progress bar."""
        with generation.evaluating(llm):
            return generation.answer(
                llm, self.tokenizer, [*samples, *self.prompts.conversations()], max_new_tokens=self.room,
                progress=label if is_main_process() else None,
            )  # fmt: skip

    def before_train(self, runner: Any) -> None:
        self.folder = Path(runner.work_dir)
        # A resumed run scores again what came after the checkpoint from which it resumes.
        self.scores = {
            name: each for name, each in checkpoint_selection.read(self.folder).items() if _step(name) <= runner.iter
        }
        llm = _llm(runner)
        if _answers(llm):
            with llm.disable_adapter():
                self.base = self._replies(llm, "the base's score")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        every = runner.cfg.default_hooks.checkpoint.interval
        if not (self.every_n_train_iters(runner, every) or self.is_last_train_iter(runner)):
            return
        name, stop = f"iter_{runner.iter + 1}", [False]
        if _answers(llm := _llm(runner)):
            follows = _hook(runner, SampleReplies)
            sampler = follows if follows and follows.every is None else None
            samples = sampler.conversations() if sampler else []
            with _aside(runner):
                replies = self._replies(llm, f"score of step {runner.iter + 1}", samples)
            if sampler:
                sampler.show(runner, replies[: len(samples)])
            replies = replies[len(samples) :]
            self.scores[name], _ = scoring.score(self.prompts, replies, self.base, self.identity)
            stop = [self.patience is not None and checkpoint_selection.stale(list(self.scores.values()), self.patience)]
        broadcast_object_list(stop)
        if stop[0]:
            runner.train_loop.stop_training = True
        if is_main_process():
            self._write(name, ends=stop[0] and not self.is_last_train_iter(runner))
            scores = self.scores[name]
            shares = {"hit": scores.identity_hit, "leak": scores.identity_leak, "retention": scores.retention}
            runner.visualizer.add_scalars({f"score/{key}": share for key, share in shares.items()}, step=_step(name))

    def _write(self, name: str, *, ends: bool) -> None:
        checkpoint_selection.write(self.folder, self.scores)
        scores = self.scores[name]
        ending = "; no more is to be gained, stopping here" if ends else ""
        line = (
            f"  step {_step(name)}: hit {scores.identity_hit:.2f}, leak {scores.identity_leak:.2f}, "
            f"retention {scores.retention:.2f}{ending}"
        )
        tqdm.write(line, file=sys.stderr)


def _hook(runner: Any, kind: type[SomeHook]) -> SomeHook | None:
    """The runner's hook of a class, if it has one."""
    return next((hook for hook in getattr(runner, "hooks", ()) if isinstance(hook, kind)), None)


def _answers(llm: Any) -> bool:
    """Whether this process generates: only the first does, or all where the weights are sharded over them."""
    return is_main_process() or in_shards(llm)


def _llm(runner: Any) -> Any:
    from mmengine.model import is_model_wrapper

    return (runner.model.module if is_model_wrapper(runner.model) else runner.model).llm


def _step(name: str) -> int:
    return int(name.removeprefix("iter_"))
