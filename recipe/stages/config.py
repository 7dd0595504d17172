"""Stage `config`: a preset, the run's paths and the user's overrides, resolved into one complete XTuner config.

The file holds only values that the trainer reads. XTuner's own configs begin with variables (`lr = 2e-4`) that its
overrides reach too late to matter; here a name like `lr` is set where it counts, and any other is an error.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.checkpoint import precision
from recipe.device import gpu_memory, has_gpu
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import results, stage
from recipe.pipeline.phases import phase
from recipe.pipeline.results import ConfigResults, DataResults
from recipe.stages import replay
from recipe.training.resolved_config import READ_BY_TRAINER
from recipe.training.settings import ELSEWHERE, SETTINGS, table
from recipe.training.sizes import TEACHER_FILE
from recipe.training.without_gpu import for_cpu

if TYPE_CHECKING:
    from recipe.training.memory import Memory

PRESETS = Path(__file__).parent.parent / "training" / "presets"
FILE = "config.py"

# Short name -> every place that must change with it. Hooks are named by their class.
SHORT_NAMES: dict[str, tuple[str, ...]] = {name: setting.paths for name, setting in SETTINGS.items()}

# Settings that count something, by the last part of their path.
COUNTS = {
    "batch_size", "accumulative_counts", "max_length", "max_iters", "interval", "max_keep_ckpts", "r", "map_num_proc",
    "own_repeats",
}  # fmt: skip
# Of the steps for the rows of both languages. Half as many rows want more than half of the steps: SmolLM2-135M came to
# a hit of at least 0.875 by 240 steps, 0.912 by 320, 0.950 by 400 (docs/experiments.md, "Steps for one language").
ONE_LANGUAGE = 5 / 6


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("[!_]*.py"))


def load_preset(name: str) -> Any:
    """The preset as an mmengine Config without the variables that nothing reads.

    Classes and functions stand in it by name, as in the file it will become, so that nothing has to be imported.
    """
    with phase("import"):
        from mmengine.config import Config

    if name not in presets():
        raise RecipeError(f"PRESET={name} is none of {', '.join(presets())}")
    full = Config.fromfile(PRESETS / f"{name}.py")._cfg_dict.to_dict()
    return Config({key: full[key] for key in READ_BY_TRAINER if key in full})


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every setting; a list of plain values is one setting."""
    if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{prefix}{key}.")
    else:
        yield prefix[:-1], value


def _parent(config: Any, path: str) -> tuple[Any, Any]:
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    return node, int(last) if isinstance(node, list) else last


def override(config: Any, settings: Sequence[str]) -> None:
    """Apply `key=value` settings in place. RecipeError: an unknown key, or a value that cannot stand there."""
    leaf_values = dict(leaves(dict(config.items())))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"SET: {setting!r} is not key=value")
        paths = [_by_position(config, path) for path in SHORT_NAMES.get(key, (key,))]
        for path in paths:
            if path not in leaf_values:
                raise RecipeError(f"SET: {_unknown(key, path, list(leaf_values))}")
        value = _parse(text)
        if reason := _misfit(paths[0], leaf_values[paths[0]], value):
            raise RecipeError(f"SET: {key} cannot become {value!r}: {reason}")
        for path in paths:
            node, last = _parent(config, path)
            node[last] = value
    _check_schedule(config)


def check_settings(preset: str, settings: Sequence[str]) -> None:
    """Check overrides before anything else is done for a run. RecipeError as of `override`."""
    config = load_preset(preset)
    if not has_gpu():
        for_cpu(config)
    override(config, settings)


def widest_preset(model: str) -> str:
    """Of the presets that may become a model's default, one that has the settings of all; the model may be missing."""
    return "miniature" if model == "miniature" else "qlora"


def settings_help(preset: str) -> str:
    """The table of what SET= may change by a short name, with the values of a preset."""
    config = load_preset(preset)
    values = dict(leaves(dict(config.items())))
    places = {name: _by_position(config, paths[0]) for name, paths in SHORT_NAMES.items()}
    defaults = {name: values[place] for name, place in places.items() if place in values}
    return f"SET= for PRESET={preset}; any dotted key of the resolved config works too\n{table(defaults)}"


def _by_position(config: Any, path: str) -> str:
    """The path with a hook's position in place of its class, where the config has such a hook."""
    parts = path.split(".")
    if parts[0] == "custom_hooks" and not parts[1].isdigit():
        types = [str(hook["type"]).rpartition(".")[2] for hook in config.custom_hooks]
        parts[1] = str(types.index(parts[1])) if parts[1] in types else parts[1]
    return ".".join(parts)


def _unknown(key: str, path: str, leaf_values: list[str]) -> str:
    near = difflib.get_close_matches(
        key, [name for name in (*SHORT_NAMES, *leaf_values) if name != key], n=3, cutoff=0.5
    )
    near += [name for name in leaf_values if name.endswith(f".{key}") and name not in near]
    if (ours := ELSEWHERE.get(key)) is not None:
        near = [ours, *(name for name in near if name != ours and name.split(".")[-1] != ours)]
    hint = f"; did you mean {', '.join(near[: 3 + (ours is not None)])}?" if near else ""
    if key in SHORT_NAMES:
        return f"{key}: this preset has no {path}{hint}"
    return f"{key} is no setting that reaches the trainer{hint}"


def _parse(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _misfit(path: str, old: Any, new: Any) -> str | None:
    """Why `new` cannot stand where `old` does, or None."""
    name = path.rsplit(".", 1)[-1]
    number = isinstance(new, (int, float)) and not isinstance(new, bool)
    if name in COUNTS:
        return None if isinstance(new, int) and number and new >= 1 else "it must be a whole number from 1"
    if name == "lr":
        return None if number and 0 < new < float("inf") else "it must be a number above 0"
    if name == "replay_ratio":
        return (
            None
            if new is None or (number and 0 <= new < float("inf"))
            else "it must be a number from 0, or None for all"
        )
    if name == "patience":
        return (
            None
            if new is None or (isinstance(new, int) and number and new >= 1)
            else "it must be a whole number from 1, or None"
        )
    if old is None:
        return None
    if isinstance(old, bool):
        return None if isinstance(new, bool) else "it must be True or False"
    if isinstance(old, (int, float)):
        return None if number else f"it is a number, {old} now"
    if isinstance(old, (list, tuple)):
        return None if isinstance(new, (list, tuple)) else f"it is a list, {old} now"
    return None if isinstance(new, str) else f"it is text, {old} now"


def _walk(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _walk(child)


def fill(
    config: Any,
    *,
    model: Path,
    files: Sequence[Path],
    seed: int,
    own: Path | None = None,
    languages: Sequence[str] = LANGUAGES,
) -> None:
    """Put the model, the data files (the first is stage `data`'s) and the seed where the preset left them open.

    Paths are from the checkout, so that a resolved config is the same on every machine and in the container. With rows
    of the user's (own) the training does not end early: the questions that score checkpoints do not ask about them. The
    rows of one of the languages take fewer steps, where the preset counts steps; epochs are shorter by themselves.
    """
    if len(languages) == 1 and (steps := config.train_cfg.get("max_iters")):
        config.train_cfg.max_iters = config.param_scheduler[1].end = round(steps * ONE_LANGUAGE)
    for node in _walk(dict(config.items())):
        if "pretrained_model_name_or_path" in node:
            node["pretrained_model_name_or_path"] = stage.shown(model)
            node["trust_remote_code"] = False
    dataset = config.train_dataloader.dataset
    names = [stage.shown(file) for file in files]
    if "files" in dataset:
        dataset.files, dataset.seed = names, seed
        if own:
            dataset.own, dataset.own_repeats = stage.shown(own), 1
        dataset.distill = dataset.distill and len(files) > 1
        if "teacher" in config.model:
            config.model.teacher = stage.shown(files[1].with_name(TEACHER_FILE)) if dataset.distill else ""
    else:
        # `load_dataset` takes the columns of the first file for those of all; replay's rows have more than others.
        own_name = [stage.shown(own)] if own else []
        dataset.dataset.data_files.train = list(dict.fromkeys([*reversed(names), *own_name]))
    for hook in config.custom_hooks:
        if own and "patience" in hook:
            hook.patience = None
        if "data" in hook:
            hook.data = stage.shown(files[0].parent) if files else ""
    config.randomness.seed = seed


def make(
    folder: Path,
    *,
    preset: str,
    model: Path,
    data_folder: Path,
    replay_folder: Path,
    settings: Sequence[str],
    seed: int,
    processes: int = 1,
) -> stage.Manifest:
    """Resolve a preset to `folder`/config.py and say what training by it will amount to in so many processes.

    The config itself is the same for any number: `batch_size` is of each process, and what counts epochs counts them by
    the share of a process when the training begins. Only where it is to end within an epoch are its steps counted here.
    """
    stage.require(model, "model")
    data = results.of(stage.require(data_folder, "data"), DataResults)
    files = [data_folder / data.file]
    inputs = {"data": data_folder, "model": model}
    if data.mode != "tutorial":
        replayed = stage.require(replay_folder, "replay")
        stage.refuse_another_base(replay_folder, model, stage.input_of(replayed, "model")[1], "replay")
        files.append(replay_folder / replay.FILE)
        inputs["replay"] = replay_folder
    own = data_folder / data.own_file if data.own_file else None
    fill(config := load_preset(preset), model=model, files=files, seed=seed, own=own, languages=data.languages)
    if not (gpu := has_gpu()):
        for_cpu(config, precision.on_cpu(model))
    override(config, settings)

    def work(out: Path) -> ConfigResults:
        with phase("import"):
            from recipe.corpus.identity import read_identity
            from recipe.training import memory, own_share
            from recipe.training.forecast import forecast, lines, tutorial_tokens

        cut = own_share.cut_answers(config, own) if own else None
        share = own_share.plan(config, settings, processes)
        _refuse_too_short(config, (expected := forecast(config, processes)).iterations)
        if config.train_cfg.get("max_epochs", 1) % 1:  # XTuner's loop asks for epochs of a whole number of steps in all
            config.train_cfg = {"type": config.train_cfg.type, "max_iters": expected.iterations}
        config.dump(out / FILE)
        unrepeated = f"PRESET={preset}: your rows are seen as often as all others, and may not be learnt"
        about_own = [share.line() if share else unrepeated, *([cut] if cut else [])] if own else []
        for line in [*lines(expected), *about_own]:
            stage.say("config", line)
        if preset != "miniature" and (needed := memory.predict(config, model, processes)):
            stage.say("config", _memory_line(needed, gpu))
        tutorial = tutorial_tokens(read_identity(data_folder), model)
        stage.say("config", f"{expected.trained_tokens / tutorial:.0%} of the tokens that PRESET=tutorial trains on")
        return ConfigResults(
            preset=preset, model=stage.shown(model), data=stage.shown(data_folder), forecast=expected,
            tutorial_tokens=tutorial, own_passes=share.passes if share else None,
        )  # fmt: skip

    resolved = hashlib.sha256(config.pretty_text.encode()).hexdigest()  # follows every preset and override
    chosen: dict[str, Any] = {"preset": preset, "set": list(settings), "seed": seed, "gpu": gpu, "resolved": resolved}
    chosen["processes"] = processes  # of the forecast, and of where in an epoch the training ends
    return stage.run("config", folder, inputs=inputs, settings=chosen, work=work)


def _memory_line(needed: Memory, gpu: bool) -> str:
    """The line about the memory that a training needs, a warning where this GPU has less. gpu: whether there is one."""
    there = gpu_memory()
    short = there is not None and needed.total >> 20 > there
    line = needed.line(gpu=gpu)
    return f"warning: this GPU has {there:,} MiB; {line}" if short else line


def _check_schedule(config: Any) -> None:
    """RecipeError where the learning rate's schedule and the length of the run do not fit each other."""
    length = config.train_cfg.get("max_iters") or config.train_cfg.max_epochs
    warm, fall = config.param_scheduler
    if not warm.end == fall.begin < fall.end == length:
        raise RecipeError(
            f"SET: the learning rate warms up until {warm.end:g} and falls from {fall.begin:g} to {fall.end:g}, the "
            f"run "
            f"ends at {length:g}: set max_iters (or max_epochs) above the warm-up, or param_scheduler.0.end, "
            f".1.begin, .1.end"
        )


def _refuse_too_short(config: Any, iterations: int) -> None:
    """RecipeError where a warm-up that is counted in epochs comes to no step, which mmengine refuses later."""
    warm, epochs = config.param_scheduler[0], config.train_cfg.get("max_epochs")
    if epochs and int(warm.end * iterations / epochs) < 1:
        raise RecipeError(
            f"the training has {iterations} steps, too few for a warm-up of {warm.end:g} epochs: train on more rows, "
            f"or longer with SET=max_epochs="
        )
