from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from example_results import example_results
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recipe.corpus.identity import Identity
from recipe.errors import RecipeError
from recipe.files import jsonl_text
from recipe.pipeline import stage
from recipe.stages import config, data
from recipe.stages.config import SHORT_NAMES
from recipe.training import builtin_configs
from recipe.training.resolved_config import READ_BY_TRAINER
from recipe.training.without_gpu import for_cpu

PRESETS = ("fast", "fp8", "lora", "miniature", "qlora", "tutorial")
XTUNERS = "internlm2_chat_1_8b_qlora_alpaca_e3"  # what the presets are made of
HUB_NAME = "internlm/internlm2-chat-1_8b"


def values(resolved: Any) -> dict[str, Any]:
    """Dotted path -> value of every setting."""
    return dict(config.leaves(dict(resolved.items())))


def overridden(preset: str, *settings: str) -> dict[str, Any]:
    resolved = config.load_preset(preset)
    config.override(resolved, settings)
    return values(resolved)


def refusal(preset: str, *settings: str) -> str:
    resolved = config.load_preset(preset)
    before = values(resolved)
    with pytest.raises(RecipeError) as error:
        config.override(resolved, settings)
    assert values(resolved) == before
    assert str(error.value).isprintable(), "an error must be one line"
    return str(error.value)


def reload(resolved: Any, folder: Path) -> Any:
    """The config as the trainer reads it from the file."""
    from mmengine.config import Config

    resolved.dump(folder / config.FILE)
    return Config.fromfile(folder / config.FILE)


# --- Presets ------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_help() -> None:
    assert tuple(config.presets()) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_what_the_trainer_reads_and_nothing_else(preset: str) -> None:
    keys = set(config.load_preset(preset).keys())
    assert keys <= set(READ_BY_TRAINER)
    assert keys >= {"model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks"}


@pytest.mark.parametrize("preset", ["", "Qlora", "full", "__init__", "../config", "qlora.py"])
def test_an_unknown_preset_is_refused_with_those_that_are(preset: str) -> None:
    with pytest.raises(RecipeError, match="is none of fast, fp8, lora, miniature, qlora, tutorial"):
        config.load_preset(preset)


TUTORIAL = {
    "train_dataloader.dataset.max_length": 1024,
    "train_dataloader.dataset.pack_to_max_length": True,
    "train_dataloader.batch_size": 1,
    "optim_wrapper.accumulative_counts": 16,
    "train_cfg.max_epochs": 2,
    "optim_wrapper.optimizer.lr": 2e-4,
    "optim_wrapper.optimizer.betas": (0.9, 0.999),
    "optim_wrapper.optimizer.weight_decay": 0,
    "optim_wrapper.clip_grad.max_norm": 1,
    "optim_wrapper.dtype": "float16",
    "optim_wrapper.loss_scale": "dynamic",
    "param_scheduler.0.start_factor": 1e-5,
    "param_scheduler.0.by_epoch": True,
    "param_scheduler.0.convert_to_iter_based": True,
    "param_scheduler.0.begin": 0,
    "param_scheduler.0.end": 0.03 * 2,
    "param_scheduler.1.eta_min": 0.0,
    "param_scheduler.1.by_epoch": True,
    "param_scheduler.1.convert_to_iter_based": True,
    "param_scheduler.1.begin": 0.03 * 2,
    "param_scheduler.1.end": 2,
    "default_hooks.checkpoint.by_epoch": False,
    "default_hooks.checkpoint.interval": 300,
    "default_hooks.checkpoint.max_keep_ckpts": 3,
    "model.llm.quantization_config.load_in_4bit": True,
    "model.llm.quantization_config.bnb_4bit_quant_type": "nf4",
    "model.llm.quantization_config.bnb_4bit_use_double_quant": True,
    "model.lora.r": 64,
    "model.lora.lora_alpha": 16,
    "model.lora.lora_dropout": 0.1,
    "model.lora.bias": "none",
}


@pytest.mark.parametrize("path", TUTORIAL)
def test_the_tutorial_preset_holds_the_tutorials_values(path: str) -> None:
    assert values(config.load_preset("tutorial"))[path] == TUTORIAL[path]


def test_the_tutorial_preset_is_made_of_the_tutorials_parts() -> None:
    actual = values(config.load_preset("tutorial"))
    assert actual["optim_wrapper.type"] == "mmengine.optim.AmpOptimWrapper"
    assert actual["optim_wrapper.optimizer.type"] == "torch.optim.AdamW"
    assert actual["param_scheduler.0.type"] == "mmengine.optim.LinearLR"
    assert actual["param_scheduler.1.type"] == "mmengine.optim.CosineAnnealingLR"
    assert actual["model.llm.torch_dtype"] == "torch.float16"
    assert actual["model.llm.quantization_config.bnb_4bit_compute_dtype"] == "torch.float16"
    template = actual["train_dataloader.dataset.template_map_fn.template"]
    assert template == "xtuner.utils.PROMPT_TEMPLATE.internlm2_chat"
    # Without target_modules XTuner puts LoRA on every linear layer but the output head.
    assert "target_modules" not in config.load_preset("tutorial").model.lora


@pytest.mark.parametrize("preset", PRESETS)
def test_warm_up_and_decay_meet_and_end_with_the_training(preset: str) -> None:
    resolved = config.load_preset(preset)
    warm_up, decay = resolved.param_scheduler
    length = resolved.train_cfg.get("max_iters") or resolved.train_cfg.max_epochs
    assert (warm_up.begin, warm_up.end, decay.end) == (0, decay.begin, length)
    assert warm_up.by_epoch == decay.by_epoch == ("max_epochs" in resolved.train_cfg)


def test_qlora_is_fast_on_four_bits_and_recomputes() -> None:
    fast, qlora = values(config.load_preset("fast")), values(config.load_preset("qlora"))
    assert {path for path in qlora if ".quantization_config." in path} == set(qlora) - set(fast)
    assert {path for path in fast if qlora[path] != fast[path]} == {"model.recompute"}


def test_fp8_is_fast_with_one_value_changed() -> None:
    fast, fp8 = values(config.load_preset("fast")), values(config.load_preset("fp8"))
    assert fp8 == fast | {"model.fp8": True}


def test_fast_is_lora_but_for_what_makes_it_quick() -> None:
    lora, fast = values(config.load_preset("lora")), values(config.load_preset("fast"))
    assert {path for path in set(lora) | set(fast) if lora.get(path) != fast.get(path)} == {
        "model.type", "model.use_varlen_attn", "model.fp8", "model.recompute", "model.lora.lora_dropout",
        "optim_wrapper.type", "optim_wrapper.dtype", "optim_wrapper.loss_scale", "optim_wrapper.optimizer.fused",
        "model.teacher", "train_dataloader.dataset.distill",
    }  # fmt: skip


def test_presets_do_not_change_each_other() -> None:
    """miniature and lora are made by changing qlora's values."""
    before = values(config.load_preset("qlora"))
    for preset in PRESETS:
        config.override(config.load_preset(preset), ["lr=1", "r=2"])
    assert values(config.load_preset("qlora")) == before


# --- Overrides ----------------------------------------------------------------------------------------------------

CHANGES = {
    "lr": ("1e-4", 1e-4),
    "betas": ("(0.8,0.95)", (0.8, 0.95)),
    "weight_decay": ("0.01", 0.01),
    "max_norm": ("0.5", 0.5),
    "batch_size": ("3", 3),
    "accumulative_counts": ("5", 5),
    "max_length": ("256", 256),
    "max_iters": ("77", 77),
    "max_epochs": ("7", 7),
    "save_steps": ("11", 11),
    "r": ("8", 8),
    "lora_alpha": ("24", 24),
    "lora_dropout": ("0.25", 0.25),
    "replay_ratio": ("0.5", 0.5),
    "leave_out": ('["talk"]', ["talk"]),
    "patience": ("6", 6),
}


def test_every_short_name_is_tried_below() -> None:
    assert CHANGES.keys() == SHORT_NAMES.keys()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("short_name", CHANGES)
def test_a_short_name_is_set_at_every_place_or_refused(preset: str, short_name: str) -> None:
    text, value = CHANGES[short_name]
    # How long to train is said in iterations or in epochs.
    if short_name == ("max_iters" if preset in ("tutorial", "miniature") else "max_epochs"):
        assert f"{short_name}: this preset has no train_cfg.{short_name}" in refusal(preset, f"{short_name}={text}")
        return
    # XTuner's own dataset knows of no replay and no parts, and recipe.training.fast computes without dropout.
    if (short_name in ("replay_ratio", "leave_out") and preset == "tutorial") or (
        short_name == "lora_dropout" and preset not in ("tutorial", "lora")
    ):
        assert "this preset has no" in refusal(preset, f"{short_name}={text}")
        return
    before, after = values(config.load_preset(preset)), overridden(preset, f"{short_name}={text}")
    types = [str(hook["type"]).rpartition(".")[2] for hook in config.load_preset(preset).custom_hooks]
    paths = [path.replace("ScoreCheckpoints", str(types.index("ScoreCheckpoints"))) for path in SHORT_NAMES[short_name]]
    assert {path for path in after if after[path] != before[path]} == set(paths)
    assert {path: after[path] for path in paths} == dict.fromkeys(paths, value)


@pytest.mark.parametrize("preset", PRESETS)
def test_overrides_reach_the_optimizer(preset: str, tmp_path: Path) -> None:
    """Through the file, into the object that makes the steps."""
    import torch
    from mmengine.optim import build_optim_wrapper

    resolved = config.load_preset(preset)
    for_cpu(resolved)
    config.override(
        resolved, ["lr=3e-5", "betas=(0.7,0.8)", "weight_decay=0.02", "max_norm=0.3", "accumulative_counts=6"]
    )
    wrapper: Any = build_optim_wrapper(torch.nn.Linear(1, 1), reload(resolved, tmp_path).optim_wrapper)
    (group,) = wrapper.optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-5, (0.7, 0.8), 0.02)
    assert (wrapper.clip_grad_kwargs["max_norm"], wrapper._accumulative_counts) == (0.3, 6)


def _other(value: Any) -> Any:
    """Another value of the same kind, None where the value is no plain one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return f"{value}-"
    return None


@pytest.fixture
def templates() -> Iterator[None]:
    """XTuner's chat templates, put back afterwards: a config holds them by reference."""
    from xtuner.utils import PROMPT_TEMPLATE

    saved = copy.deepcopy(PROMPT_TEMPLATE.internlm2_chat)
    yield
    PROMPT_TEMPLATE.internlm2_chat.clear()
    PROMPT_TEMPLATE.internlm2_chat.update(saved)


@pytest.mark.usefixtures("templates")
@pytest.mark.parametrize("preset", PRESETS)
def test_whatever_can_be_overridden_reaches_the_file(preset: str, tmp_path: Path) -> None:
    """An override that was accepted and has no effect is worse than one that was refused."""
    resolved = config.load_preset(preset)
    accepted = {}
    for path, value in values(resolved).items():
        if (other := _other(value)) is not None:
            with contextlib.suppress(RecipeError):
                config.override(resolved, [f"{path}={other!r}"])
                accepted[path] = other
    assert accepted.keys() >= set(SHORT_NAMES["lr"] + SHORT_NAMES["r"] + SHORT_NAMES["batch_size"])
    written = reload(resolved, tmp_path)
    assert set(written.keys()) <= set(READ_BY_TRAINER)
    actual = values(written)
    assert {path: actual.get(path) for path in accepted} == accepted


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("default_hooks.checkpoint.max_keep_ckpts=1", "default_hooks.checkpoint.max_keep_ckpts", 1),
        ("param_scheduler.0.start_factor=0.5", "param_scheduler.0.start_factor", 0.5),
        ("train_dataloader.sampler.shuffle=False", "train_dataloader.sampler.shuffle", False),
        ("train_dataloader.sampler.shuffle=false", "train_dataloader.sampler.shuffle", False),
        ("model.lora.bias=all", "model.lora.bias", "all"),
        ("model.lora.target_modules=['q_proj']", "model.lora.target_modules", ["q_proj"]),
        ("load_from=/models/a=b.pth", "load_from", "/models/a=b.pth"),
        ("load_from=none", "load_from", None),
        ("betas=0.8,0.9", "optim_wrapper.optimizer.betas", (0.8, 0.9)),
        ("lr=1", "optim_wrapper.optimizer.lr", 1),
    ],
)
def test_any_dotted_key_can_be_set(setting: str, path: str, value: Any) -> None:
    assert overridden("qlora", setting)[path] == value


def test_the_last_of_two_overrides_counts() -> None:
    assert overridden("qlora", "lr=1e-3", "lr=1e-4")["optim_wrapper.optimizer.lr"] == 1e-4


def variables() -> Iterator[str]:
    """The names that XTuner's own config assigns and only it reads."""
    from mmengine.config import Config

    names = {key for key in Config.fromfile(builtin_configs.builtin_configs()[XTUNERS]) if key not in READ_BY_TRAINER}
    assert {"warmup_ratio", "lr", "max_epochs", "pack_to_max_length"} <= names
    return iter(sorted(names - SHORT_NAMES.keys()))


def test_a_variable_of_xtuners_config_would_not_reach_the_trainer_and_is_refused() -> None:
    """`warmup_ratio=0.1` after the fact changes nothing: the schedule was computed from the old one."""
    for name in variables():
        assert f"SET: {name} is no setting that reaches the trainer" in refusal("tutorial", f"{name}=0.1")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lora_r", "lora_alpha"),
        ("max_iter", "max_iters"),
        ("bathc_size", "batch_size"),
        ("max_keep_ckpts", "default_hooks.checkpoint.max_keep_ckpts"),
        ("start_factor", "param_scheduler.0.start_factor"),
        ("optim_wrapper.optimizer.lrr", "optim_wrapper.optimizer.lr"),
    ],
)
def test_a_mistyped_key_is_refused_with_what_was_meant(key: str, hint: str) -> None:
    message = refusal("qlora", f"{key}=1")
    assert f"SET: {key} is no setting that reaches the trainer; did you mean " in message
    assert hint in message.partition("did you mean ")[2].rstrip("?").split(", ")


@pytest.mark.parametrize(
    "key", ["optim_wrapper", "optim_wrapper.optimizer", "model.lora", "param_scheduler", "param_scheduler.0", "x" * 50]
)
def test_a_whole_section_is_no_setting(key: str) -> None:
    assert "is no setting that reaches the trainer" in refusal("qlora", f"{key}=1")


@pytest.mark.parametrize("setting", ["lr", "=1e-4", "", "=", "1e-4", "--lr"])
def test_what_is_not_key_and_value_is_refused(setting: str) -> None:
    assert f"SET: {setting!r} is not key=value" in refusal("qlora", setting)


@pytest.mark.parametrize(
    "setting",
    [
        "lr=",
        "lr=fast",
        "lr=true",
        "lr='1e-4'",
        "lr=(1e-4,)",
        "lr=nan",
        "lr=1e-4,",
        "betas=0.9",
        "betas=high",
        "batch_size=[4]",
        "train_dataloader.sampler.shuffle=1",
        "train_dataloader.sampler.shuffle=yes",
        "log_level=3",
        "model.lora.bias=None,",
    ],
)
def test_a_value_of_another_kind_is_refused(setting: str) -> None:
    assert "cannot become" in refusal("qlora", setting)


@pytest.mark.parametrize("short_name", ["lr", "batch_size", "max_iters", "max_length", "r", "betas"])
def test_what_the_trainer_needs_cannot_be_none(short_name: str) -> None:
    assert "cannot become None" in refusal("qlora", f"{short_name}=None")


@pytest.mark.parametrize(
    "short_name", ["batch_size", "accumulative_counts", "max_length", "max_iters", "save_steps", "r"]
)
def test_a_count_cannot_be_a_fraction(short_name: str) -> None:
    assert "cannot become 2.5" in refusal("qlora", f"{short_name}=2.5")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setting=st.one_of(st.text(max_size=20), st.text(max_size=20).map("lr={}".format)))
@example(setting="lr={[]}")
@example(setting="lr={[]: 1}")
@example(setting="lr=" + "(" * 1000)
@example(setting="lr=" + "-" * 20_000 + "1")
@example(setting="lr=\x00")
def test_no_text_raises_anything_but_a_refusal(setting: str) -> None:
    resolved = config.load_preset("lora")
    with contextlib.suppress(RecipeError):
        config.override(resolved, [setting])


@pytest.mark.parametrize("preset", ["qlora", "lora", "miniature"])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5, 8, 9, 100])
def test_a_short_training_is_refused_or_has_a_schedule(preset: str, iterations: int) -> None:
    """mmengine asserts that each schedule ends after it begins, and does so long after `config` said yes."""
    resolved = config.load_preset(preset)
    try:
        config.override(resolved, [f"max_iters={iterations}"])
    except RecipeError:
        return
    schedules = [(schedule.begin, schedule.end) for schedule in resolved.param_scheduler]
    assert all(begin < end <= iterations for begin, end in schedules), schedules


# --- The run's own values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_everything_a_preset_leaves_open_is_filled(preset: str, tmp_path: Path) -> None:
    resolved = config.load_preset(preset)
    model, files = tmp_path / "model", [tmp_path / "train.jsonl", tmp_path / "replay.jsonl"]
    config.fill(resolved, model=model, files=files, seed=7)
    resolved.dump(tmp_path / config.FILE)
    text = (tmp_path / config.FILE).read_text(encoding="utf-8")
    assert HUB_NAME not in text, "the trainer would go to the network"
    assert "trust_remote_code=True" not in text.replace(" ", ""), "the trainer would run a model folder's code"
    assert str(model) in text
    assert all(str(file) in text for file in files)
    assert resolved.randomness.seed == 7


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_gpu_whole_weights_of_the_fast_path_alone_are_in_16_bits(
    preset: str, precision: str, tmp_path: Path
) -> None:
    resolved = config.load_preset(preset)
    for_cpu(resolved, precision)
    actual = values(reload(resolved, tmp_path))
    wanted = precision if preset in ("fast", "fp8") else "float32"
    assert str(actual.pop("model.llm.torch_dtype")) == f"torch.{wanted}"
    assert {path: value for path, value in actual.items() if "float16" in str(value)} == {}
    assert not {"optim_wrapper.loss_scale", "optim_wrapper.dtype"} & set(actual)
    assert "Amp" not in str(actual["optim_wrapper.type"])
    assert actual["env_cfg.dist_cfg.backend"] == "gloo"


def done(folder: Path, results: dict[str, Any]) -> Path:
    stage.run("demo", folder, inputs={}, settings={}, work=lambda out: example_results("data", **results))
    return folder


@pytest.mark.parametrize(
    ("complete", "mode", "target"),
    [
        ((), "balanced", "model"),
        (("model",), "balanced", "data"),
        (("model", "data"), "balanced", "replay"),
        (("model", "data"), "own", "replay"),
    ],
)
def test_what_is_missing_is_named_with_the_target_that_makes_it(
    tmp_path: Path, complete: tuple[str, ...], mode: str, target: str
) -> None:
    for name in complete:
        done(tmp_path / name, {"file": "train.jsonl", "mode": mode})
    with pytest.raises(RecipeError, match=rf"{target} is missing or incomplete: run `make {target}` first"):
        config.make(
            tmp_path / "config",
            preset="qlora",
            model=tmp_path / "model",
            data_folder=tmp_path / "data",
            replay_folder=tmp_path / "replay",
            settings=[],
            seed=0,
        )
    assert not (tmp_path / "config").exists()


def test_the_replay_of_another_base_is_refused(tmp_path: Path) -> None:
    for name in ("model", "other"):
        done(tmp_path / name, {})
    done(tmp_path / "data", {"file": "train.jsonl", "mode": "balanced"})
    stage.run("replay", tmp_path / "replay", inputs={"model": tmp_path / "other"}, settings={}, work=lambda _: None)
    (tmp_path / "model" / "a-file").write_text("x", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"replay was made on another base than .*model holds now.*make replay"):
        config.make(
            tmp_path / "config", preset="qlora", model=tmp_path / "model", data_folder=tmp_path / "data",
            replay_folder=tmp_path / "replay", settings=[], seed=0,
        )  # fmt: skip


def replay_one_row(folder: Path, model: Path, *more: dict[str, Any]) -> None:
    """As a stage. more: keys besides, of a row each."""
    row = {"messages": [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]}

    def answer(out: Path) -> dict[str, Any]:
        text = jsonl_text(row | keys for keys in more or ({},))
        (out / "replay.jsonl").write_text(text, encoding="utf-8")
        return {}

    stage.run("replay", folder, inputs={"model": model}, settings={}, work=answer)


@pytest.mark.parametrize("epochs", ["1.3", "2.77", "2"])
def test_part_of_an_epoch_comes_to_whole_steps_as_xtuners_loop_asks(
    tiny_model: Path, tmp_path: Path, epochs: str
) -> None:
    from mmengine.config import Config

    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0)
    replay_one_row(tmp_path / "replay", tiny_model)
    manifest = config.make(
        tmp_path / "config", preset="miniature", model=tiny_model, data_folder=tmp_path / "data",
        replay_folder=tmp_path / "replay", settings=[f"max_epochs={epochs}"], seed=0,
    )["results"]  # fmt: skip
    resolved_config = Config.fromfile(tmp_path / "config" / config.FILE)
    steps = resolved_config.train_cfg.get("max_iters") or resolved_config.train_cfg.max_epochs * manifest["packs"]
    assert steps == manifest["iterations"] == int(float(epochs) * manifest["packs"])
    assert resolved_config.param_scheduler[1].end == float(epochs)


@pytest.mark.parametrize(("n", "steps"), [(1, 2), (12, 4), (40, 10)])
def test_a_training_shorter_than_its_warm_up_is_refused_before_it_begins(
    tiny_model: Path, tmp_path: Path, n: int, steps: int
) -> None:
    data.make(tmp_path / "data", identity=Identity("小明"), mode="tutorial", n=n, seed=0)

    def make() -> stage.Manifest:
        return config.make(
            tmp_path / "config", preset="miniature", model=tiny_model, data_folder=tmp_path / "data",
            replay_folder=tmp_path / "replay", settings=[], seed=0,
        )  # fmt: skip

    if n == 40:
        assert make()["results"]["iterations"] == steps
        return
    with pytest.raises(RecipeError, match=f"the training has {steps} steps, too few for a warm-up of 0.2 epochs"):
        make()
    assert not (tmp_path / "config").exists()


# --- XTuner's own configs -----------------------------------------------------------------------------------------


def test_all_of_xtuners_configs_are_listed_in_order() -> None:
    every = builtin_configs.names_of_builtin("")
    assert len(every) > 100
    assert every == sorted(set(every)) == builtin_configs.names_of_builtin(None)
    assert XTUNERS in every


@pytest.mark.parametrize("pattern", ["internlm2_chat_1_8b", "InternLM2_Chat_1_8B", "1_8b_qlora"])
def test_a_pattern_filters_whatever_its_case(pattern: str) -> None:
    actual = builtin_configs.names_of_builtin(pattern)
    assert XTUNERS in actual
    assert actual == [name for name in builtin_configs.names_of_builtin("") if pattern.lower() in name]


def test_a_pattern_that_nothing_matches_lists_nothing() -> None:
    assert builtin_configs.names_of_builtin("no such config") == []


def test_a_copy_is_the_original(tmp_path: Path) -> None:
    copy = builtin_configs.copy_builtin(XTUNERS, tmp_path / "new" / "folder")
    assert copy == tmp_path / "new" / "folder" / f"{XTUNERS}_copy.py"
    assert copy.read_bytes() == builtin_configs.builtin_configs()[XTUNERS].read_bytes()


def test_a_copy_overwrites_no_edited_one(tmp_path: Path) -> None:
    copy = builtin_configs.copy_builtin(XTUNERS, tmp_path)
    copy.write_text("edited", encoding="utf-8")
    with pytest.raises(RecipeError, match="is already there; remove it or copy to another folder"):
        builtin_configs.copy_builtin(XTUNERS, tmp_path)
    assert copy.read_text(encoding="utf-8") == "edited"


@pytest.mark.parametrize("name", ["", "internlm2_chat_1_8b_qlora_alpaca_e4", "../../setup", f"{XTUNERS}.py"])
def test_a_config_that_is_not_there_is_not_copied(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="is none of XTuner's configs") as error:
        builtin_configs.copy_builtin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (XTUNERS in str(error.value)) == name.startswith("internlm2")


def test_a_hook_is_found_by_its_class_wherever_it_stands() -> None:
    chosen = config.load_preset("fast")
    chosen.custom_hooks.insert(0, {"type": "recipe.training.hooks.MeanLoss"})
    config.override(chosen, ["patience=7"])
    (scores,) = [hook for hook in chosen.custom_hooks if str(hook["type"]).endswith("ScoreCheckpoints")]
    assert scores["patience"] == 7
    chosen.custom_hooks = [hook for hook in chosen.custom_hooks if hook is not scores]
    with pytest.raises(RecipeError, match=r"patience: this preset has no custom_hooks\.ScoreCheckpoints\.patience"):
        config.override(chosen, ["patience=7"])


@pytest.mark.parametrize(
    ("key", "name"),
    [("learning_rate", "lr"), ("lora_rank", "r"), ("num_train_epochs", "max_epochs"), ("seed", "SEED= beside SET=")],
)
def test_another_trainers_name_is_answered_with_ours(key: str, name: str) -> None:
    assert refusal("qlora", f"{key}=1").partition("did you mean ")[2].startswith(name)


@pytest.mark.parametrize(
    ("key", "name"),
    [("lora_r", "r"), ("rank", "r"), ("epochs", "max_epochs"), ("warmup_ratio", "param_scheduler.0.end")],
)
def test_ours_stands_first_and_once(key: str, name: str) -> None:
    first, *more = refusal("qlora", f"{key}=1").partition("did you mean ")[2].rstrip("?").split(", ")
    assert first.split()[0] == name
    assert first not in more


def test_the_table_of_settings_has_name_type_default_and_meaning() -> None:
    lines = config.settings_help("fast").splitlines()[1:]
    assert lines[0].split() == ["name", "type", "default", "meaning"]
    assert [line.split()[0] for line in lines[1:]] == list(SHORT_NAMES)
    (rank,) = [line for line in lines if line.startswith("r ")]
    assert str(config.load_preset("fast").model.lora.r) in rank
    assert "(not in this preset)" in next(line for line in lines if line.startswith("max_epochs"))


@pytest.mark.parametrize(
    ("languages", "settings", "steps"),
    [(("zh", "en"), [], 480), (("en",), [], 400), (("zh",), ["max_iters=300"], 300)],
)
def test_the_rows_of_one_language_take_fewer_steps(
    tiny_model: Path, tmp_path: Path, languages: tuple[str, ...], settings: list[str], steps: int
) -> None:
    from mmengine.config import Config

    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0, languages=languages)
    replay_one_row(tmp_path / "replay", tiny_model)
    manifest = config.make(
        tmp_path / "config", preset="lora", model=tiny_model, data_folder=tmp_path / "data",
        replay_folder=tmp_path / "replay", settings=settings, seed=0,
    )["results"]  # fmt: skip
    resolved = Config.fromfile(tmp_path / "config" / config.FILE)
    assert manifest["iterations"] == resolved.train_cfg.max_iters == resolved.param_scheduler[1].end == steps


@pytest.mark.parametrize("extended", [False, True])
def test_xtuners_own_pipeline_reads_rows_of_different_keys(tiny_model: Path, tmp_path: Path, extended: bool) -> None:
    """`datasets` refuses a later file that has a column more than the first."""
    from datasets import load_dataset
    from mmengine.config import Config

    data.make(tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0, extended=extended)
    replay_one_row(tmp_path / "replay", tiny_model, {"part": "facts"}, {"part": "facts", "ended": False})
    config.make(
        tmp_path / "config", preset="tutorial", model=tiny_model, data_folder=tmp_path / "data",
        replay_folder=tmp_path / "replay", settings=["train_dataloader.dataset.map_num_proc=1"], seed=0,
    )  # fmt: skip
    files = Config.fromfile(tmp_path / "config" / config.FILE).train_dataloader.dataset.dataset.data_files.train
    assert sorted(Path(name).name for name in files) == ["replay.jsonl", "train.jsonl"]
    rows = load_dataset("json", data_files={"train": list(files)}, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 2 + len((tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines())
