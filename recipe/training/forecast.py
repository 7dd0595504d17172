"""What a resolved config will train on, counted before it runs: packs, tokens, optimizer steps, and lost tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from recipe.chat_format import training_ids
from recipe.checkpoint.loaded_tokenizer import load_tokenizer
from recipe.corpus.identity import Identity
from recipe.corpus.rows import TUTORIAL_ROWS, tutorial_rows
from recipe.errors import RecipeError
from recipe.pipeline.results import Forecast
from recipe.training.dataset import PackedDataset, read_tokens

# Rows that `datasets.map(batched=True)` passes to XTuner's Packer at a time.
MAP_BATCH = 1000
# max_length, map_num_proc and max_epochs of the preset `tutorial`.
TUTORIAL_LENGTH, TUTORIAL_WORKERS, TUTORIAL_EPOCHS = 1024, 32, 2
# Largest share of dropped tokens without a warning.
WORTH_A_WARNING = 0.02


def lines(size: Forecast) -> list[str]:
    """The lines for the user, warnings included."""
    shared = f" of {size.processes} processes" if size.processes > 1 else ""
    text = [
        f"{size.rows:,} conversations of {size.tokens:,} tokens in {size.packs} packs of {size.max_length}; "
        f"{size.iterations} iterations{shared}, {size.optimizer_steps} optimizer steps, "
        f"{size.trained_tokens:,} tokens in all"
    ]
    if size.dropped > WORTH_A_WARNING * size.tokens:
        text.append(f"warning: packing drops {size.dropped:,} of {size.tokens:,} tokens of every epoch")
    if size.truncated:
        text.append(f"warning: {size.truncated} rows are longer than max_length {size.max_length} and lose their end")
    return text


def shards(count: int, workers: int) -> list[range]:
    """The contiguous ranges of rows that `datasets.map(num_proc=workers)` gives its workers."""
    workers = min(workers, count)
    size, extra = divmod(count, workers)
    starts = [i * size + min(i, extra) for i in range(workers + 1)]
    return [range(start, end) for start, end in pairwise(starts)]


def xtuner_packs(lengths: Sequence[int], max_length: int, workers: int) -> tuple[int, int]:
    """(packs, dropped tokens) of XTuner 0.1.17's Packer: each worker drops the remainder of its last pack.

    Exact for rows of equal length; rows are shuffled before packing, so for others it is an estimate.
    """
    packs, dropped = 0, 0
    for shard in shards(len(lengths), workers):
        remainder = 0
        for start in range(shard.start, shard.stop, MAP_BATCH):
            remainder += sum(lengths[i] for i in range(start, min(start + MAP_BATCH, shard.stop)))
            if remainder >= max_length:
                packs += remainder // max_length
                remainder %= max_length
            else:  # too little for a pack: handed over as a short one
                packs += 1
                remainder = 0
        dropped += remainder
    return packs, dropped


def tutorial_tokens(identity: Identity, model: Path) -> int:
    """Tokens that the tutorial trains on: two epochs of its file by its own config, padding included.

    Args:
        identity: the names in the tutorial's row.
        model: the model's folder, for its tokenizer.
    """
    tokenizer = load_tokenizer(model)
    length = len(training_ids(tokenizer, tutorial_rows(identity)[0]["messages"])[0])
    packs, _ = xtuner_packs([length] * TUTORIAL_ROWS, TUTORIAL_LENGTH, TUTORIAL_WORKERS)
    return TUTORIAL_EPOCHS * packs * TUTORIAL_LENGTH


def forecast(config: Any, processes: int = 1) -> Forecast:
    """Count what a training will consume.

    Args:
        config: a resolved preset.
        processes: of all machines.

    Raises:
        RecipeError: nothing would be trained, or the data do not fit the model's tokenizer.
    """
    dataset = config.train_dataloader.dataset
    tokenizer = load_tokenizer(Path(dataset.tokenizer.pretrained_model_name_or_path))
    own = "files" in dataset
    files = dataset.files if own else dataset.dataset.data_files.train
    # XTuner's dataset has neither a ratio nor a seed of its own.
    rows = read_tokens(
        files, tokenizer, replay_ratio=dataset.get("replay_ratio"), seed=dataset.get("seed", 0),
        distill=dataset.get("distill", False), own=dataset.get("own", ""), own_repeats=dataset.get("own_repeats", 1),
        leave_out=dataset.get("leave_out", ()),
    )  # fmt: skip
    lengths = [len(row[0]) for row in rows]
    if own:
        packed = PackedDataset(rows, max_length=dataset.max_length, pad_id=tokenizer.pad_token_id, seed=dataset.seed)
        packs, dropped, truncated = len(packed), 0, packed.truncated
        if not packed.loss_tokens:
            raise RecipeError(f"max_length={dataset.max_length} cuts every row before the answer: raise it")
    else:
        if not tokenizer.special_tokens_map.get("bos_token"):
            raise RecipeError(
                "PRESET=tutorial: XTuner's own data begin with a BOS, and this model's chat format has none: choose "
                "another preset"
            )
        truncated = sum(length > dataset.max_length for length in lengths)
        cut = [min(length, dataset.max_length) for length in lengths]
        packs, dropped = xtuner_packs(cut, dataset.max_length, dataset.map_num_proc)
    batch = config.train_dataloader.batch_size
    per_epoch = -(-packs // (processes * batch))  # of a process's share, the last of them filled up
    iterations = config.train_cfg.get("max_iters") or int(config.train_cfg.max_epochs * per_epoch + 1e-6)
    accumulation = config.optim_wrapper.get("accumulative_counts", 1)
    return Forecast(
        rows=len(rows),
        tokens=sum(lengths),
        packs=packs,
        max_length=dataset.max_length,
        iterations=iterations,
        optimizer_steps=-(-iterations // accumulation),
        trained_tokens=iterations * processes * batch * dataset.max_length,
        dropped=dropped,
        truncated=truncated,
        processes=processes,
    )
