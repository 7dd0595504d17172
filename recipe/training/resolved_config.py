"""Reads a resolved config as data: literals alone, parsed and never executed.

Stage `config` writes Python that mmengine prints: assignments of literals and of `dict(key=value)`. A run folder may
come from another machine, so nothing in such a file may run, and no name in it may lead the trainer to other code than
the presets'. A config of the user's, CONFIG=, is a program instead; stage `train` writes down what it came to.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.errors import RecipeError
from recipe.pipeline.stage import shown

# What mmengine's Runner and XTuner's train.py read; the other variables of a config only served to compute these.
READ_BY_TRAINER = (
    "model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "custom_hooks", "default_hooks",
    "env_cfg", "visualizer", "log_level", "load_from", "resume", "randomness", "log_processor", "model_wrapper_cfg",
)  # fmt: skip
# Every class and function that the trainer imports by a name in a resolved config.
CODE = frozenset(
    {
        "datasets.load_dataset",
        "mmengine.dataset.DefaultSampler",
        "mmengine.hooks.CheckpointHook",
        "mmengine.hooks.DistSamplerSeedHook",
        "mmengine.hooks.IterTimerHook",
        "mmengine.hooks.LoggerHook",
        "mmengine.hooks.ParamSchedulerHook",
        "mmengine.model.MMDistributedDataParallel",
        "mmengine.optim.AmpOptimWrapper",
        "mmengine.optim.CosineAnnealingLR",
        "mmengine.optim.LinearLR",
        "mmengine.optim.OptimWrapper",
        "mmengine.visualization.LocalVisBackend",
        "mmengine.visualization.TensorboardVisBackend",
        "mmengine.visualization.Visualizer",
        "peft.LoraConfig",
        "recipe.training.dataset.EndlessSampler",
        "recipe.training.dataset.chat_dataset",
        "recipe.training.dataset.collate",
        "recipe.training.fast.clipping.clipping_wrapper",
        "recipe.training.fast.model.finetune",
        "recipe.training.hooks.MeanLoss",
        "recipe.training.hooks.Progress",
        "recipe.training.hooks.SampleReplies",
        "recipe.training.hooks.ScoreCheckpoints",
        "transformers.AutoModelForCausalLM.from_pretrained",
        "transformers.AutoTokenizer.from_pretrained",
        "transformers.BitsAndBytesConfig",
        "xtuner.dataset.collate_fns.default_collate_fn",
        "xtuner.dataset.map_fns.openai_map_fn",
        "xtuner.dataset.map_fns.template_map_fn_factory",
        "xtuner.dataset.process_hf_dataset",
        "xtuner.engine.runner.TrainLoop",
        "xtuner.model.SupervisedFinetune",
        "xtuner.utils.PROMPT_TEMPLATE.internlm2_chat",
    }
)
# Other optimizers, which SET= may choose.
OPTIMIZER = re.compile(r"(torch|bitsandbytes)\.optim\.[A-Z]\w*", re.ASCII)
# `load_dataset` reads JSON in the presets. Other values of its `path` read pickles ("pandas"), or what a hub has.
READS_ROWS = "datasets.load_dataset"
# Keys by which the trainer's classes write elsewhere than into the stage's folder, over whatever lies there.
WRITES = frozenset(
    {
        "out_dir", "save_dir", "img_save_dir", "config_save_file", "scalar_save_file", "filename_tmpl",
        "cache_dir", "backend_args", "file_client_args",
    }
)  # fmt: skip
# Keys whose text the trainer imports.
NAMES_CODE = re.compile(r"type|template|\w+_fn", re.ASCII)


def load(file: Path, *, program: bool) -> Any:
    """Load a config to train by, as mmengine's Config.

    Args:
        file: of stage `config`, or the user's own.
        program: run it, as the user's own; otherwise read it as data.

    Raises:
        RecipeError: it is missing, no config, or not what a run's folder may hold.
    """
    if not program:
        resolved = read(file)
        _refuse_older(file)
        refuse_other_code(resolved, file)
        return resolved
    from mmengine.config import Config

    if not file.is_file():
        raise RecipeError(f"{shown(file)}: no such config; check CONFIG=")
    if file.suffix != ".py":
        raise RecipeError(f"{shown(file)}: CONFIG= takes a .py file, which is run as a program")
    try:
        resolved = Config.fromfile(file)
    except (Exception, SystemExit) as error:  # a user's Python may raise anything
        raise unreadable(file, error) from error
    _refuse_older(file)
    return resolved


def data_files(dataset: Any) -> list[str]:
    """The files with rows that a config's `train_dataloader.dataset` names, in their order, each once.

    Args:
        dataset: of a preset, which has `files`, or XTuner's around `load_dataset`, also several in a concatenation.
            `data_files` may be a text, a list, or a dict of either by split, as `load_dataset` takes it.

    Raises:
        ValueError: it names none.
    """
    files: list[str] = []
    for key, value in [*_items({"dataset": dataset})]:
        if key in ("files", "data_files"):
            parts = value.values() if isinstance(value, dict) else [value]
            files += [str(name) for part in parts for name in (part if isinstance(part, (list, tuple)) else [part])]
    if not files:
        raise ValueError(
            "it names no file with rows: write dataset=dict(type=load_dataset, path='json', "
            "data_files=dict(train='my.jsonl'))"
        )
    return list(dict.fromkeys(files))


def needs_gpu(config: Any) -> str | None:
    """What in a config runs on a GPU alone, or None."""
    kind = config.get("optim_wrapper", {}).get("type")
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return "AmpOptimWrapper, its automatic mixed precision," if name.endswith("AmpOptimWrapper") else None


def unreadable(file: Path, error: BaseException) -> RecipeError:
    """What to raise for a config that is none."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return RecipeError(f"{shown(file)}: cannot be read as an XTuner config ({reason})")


def write_down(resolved: Any, source: Path, file: Path, *, program: bool) -> None:
    """Write a config as data: a resolved one as it is, and of a program what it came to.

    Args:
        resolved: of `load`.
        source: its file.
        file: to write.
        program: whether it was run.

    Raises:
        RecipeError: the program left a value that has no literal.
    """
    if program:
        resolved.dump(file)
    else:
        shutil.copyfile(source, file)
    read(file)


def _refuse_older(file: Path) -> None:
    """RecipeError where the config names modules by where they were before recipe/ had folders (docs/adr/0014)."""
    if match := re.search(r"\brecipe\.(hooks|dataset|fast)\b", file.read_text(encoding="utf-8")):
        raise RecipeError(
            f"{shown(file)}: was written by an older version, {match[0]} is recipe.training.{match[1]} now: "
            f"run `make config` again, or change the name in a config of your own"
        )


def read(file: Path) -> Any:
    """Read a resolved config.

    Args:
        file: as stage `config` or `train` wrote it.

    Returns:
        The same mmengine Config as by `Config.fromfile`.

    Raises:
        RecipeError: it cannot be read, or holds anything but literals.
    """
    from mmengine.config import Config

    values = read_values(file)
    try:
        return Config(values)
    except KeyError as error:  # a name that mmengine keeps for itself
        raise _no_data(file, error) from None


def read_values(file: Path) -> dict[str, Any]:
    """The same as a dict, without mmengine."""
    try:
        return dict(_assignments(file))
    except FileNotFoundError:
        raise RecipeError(f"{shown(file)}: no such config; run `make config` first") from None
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise _no_data(file, error) from None


def _no_data(file: Path, error: BaseException) -> RecipeError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RecipeError(
        f"{shown(file)}: is not the data that stage `config` writes ({reason}), and a program in a run's folder is "
        f"not run: run `make config` again, or name a config of your own with CONFIG="
    )


def refuse_other_code(config: Any, file: Path) -> None:
    """Check that a resolved config leads the trainer to no other code than the presets do.

    Args:
        config: of `read`.
        file: its place, for errors.

    Raises:
        RecipeError: it names other code, or lets a model's own Python run.
    """
    content = config.to_dict()
    foreign = [f"{name} is no setting of a preset" for name in content if name not in READ_BY_TRAINER]
    for key, value in _items(content):
        if key == "trust_remote_code" and value:
            foreign.append("trust_remote_code is on")
        if isinstance(value, dict) and value.get("type") == READS_ROWS and value.get("path") != "json":
            foreign.append(f"load_dataset with path={value.get('path')!r} may run code, and no preset uses it")
        if key in WRITES:
            foreign.append(f"{key}={value!r} is a place to write to, and no preset has one")
        names_code = NAMES_CODE.fullmatch(key) and isinstance(value, str)
        if names_code and value not in CODE and not OPTIMIZER.fullmatch(value):
            foreign.append(f"{key}={value!r} is code that no preset uses")
    if foreign:
        raise RecipeError(
            f"{shown(file)}: {foreign[0]}; run `make config` again, or, where you trust it, name a copy with CONFIG="
        )


def _assignments(file: Path) -> Iterator[tuple[str, Any]]:
    """(name, value) of every line. ValueError: it is more than an assignment of literals."""
    text = file.read_text(encoding="utf-8")
    if "{{" in text:
        raise ValueError("it holds '{{', which mmengine replaces")
    for statement in ast.parse(text).body:
        if not (isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name)):
            raise ValueError(f"line {statement.lineno} is no assignment")
        yield target.id, _literal(statement.value)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, of dict(key=value) or dict({key: value}). ValueError: it is another expression."""
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict"):
            raise ValueError(f"line {node.lineno} calls a function")
        if len(node.args) == 1 and isinstance(node.args[0], ast.Dict) and not node.keywords:
            return _literal(node.args[0])
        if node.args:
            raise ValueError(f"line {node.lineno} calls a function")
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        if any(key is None for key, _ in pairs):
            raise ValueError(f"line {node.lineno} unpacks a dict")
        return {key: _literal(value) for key, value in pairs}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f"line {node.lineno} unpacks a dict")
        keys = (ast.literal_eval(key) for key in node.keys if key)
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return (list if isinstance(node, ast.List) else tuple)(_literal(each) for each in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"line {node.lineno} computes something") from None


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every dict in a nested one."""
    for key, child in value.items() if isinstance(value, dict) else ():
        yield str(key), child
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _items(child)
