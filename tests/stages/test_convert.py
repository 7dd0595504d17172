"""Stage `convert` gives the adapter that XTuner's own converter gives, and refuses what that one takes in silence."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip_bit
from safetensors.torch import load_file

from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.stages import convert

States = dict[str, dict[str, Any]]
MakeTrainFolder = Callable[..., Path]
A_TENSOR = "llm.base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight"


def convert_with_xtuner(config: Path, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "xtuner.tools.model_converters.pth_to_hf"
    monkeypatch.setattr(sys, "argv", [name, str(config), str(checkpoint), str(folder), "--fp32"])
    runpy.run_module(name, run_name="__main__")


@pytest.fixture(scope="module")
def by_xtuner(lora_config: Path, train_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pth_to_hf")
    with pytest.MonkeyPatch.context() as monkeypatch:
        convert_with_xtuner(lora_config, train_folder / "iter_4.pth", folder, monkeypatch)
    return folder


def test_tensors_equal_those_of_xtuners_own_converter(adapter_folder: Path, by_xtuner: Path) -> None:
    ours = load_file(adapter_folder / convert.WEIGHTS)
    theirs = torch.load(by_xtuner / "adapter_model.bin", weights_only=True)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


def test_peft_reads_the_same_settings_as_from_xtuners_converter(adapter_folder: Path, by_xtuner: Path) -> None:
    from peft import PeftConfig

    ours, theirs = (PeftConfig.from_pretrained(str(folder)).to_dict() for folder in (adapter_folder, by_xtuner))
    for key in ("peft_type", "task_type", "r", "lora_alpha", "bias", "use_rslora", "use_dora", "fan_in_fan_out"):
        assert ours[key] == theirs[key], key
    assert set(ours["target_modules"]) == set(theirs["target_modules"])
    assert ours["inference_mode"] is True


@pytest.mark.tool("PEFT", "adapter")
def test_the_folder_is_a_peft_adapter_that_acts(adapter_folder: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(adapter_folder))(ids).logits
    assert (plain - adapted).abs().max() > 0.01


@pytest.mark.tool("AutoTokenizer of transformers", "adapter")
def test_transformers_reads_the_base_s_tokenizer_out_of_the_folder(adapter_folder: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (adapter_folder, tiny_model))
    talk = [{"role": "user", "content": "你好 hello"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk)


def test_nothing_in_the_folder_is_a_pickle_or_code(adapter_folder: Path) -> None:
    names = {path.name for path in adapter_folder.iterdir()}
    assert names == {
        convert.WEIGHTS, "adapter_config.json", "README.md", "tokenizer.json", "tokenizer_config.json",
        "generation_config.json", stage.MANIFEST,
    }  # fmt: skip


def test_the_manifest_names_the_base_by_content(adapter_folder: Path, tiny_model: Path) -> None:
    manifest = stage.read_manifest(adapter_folder)
    assert manifest is not None
    results = manifest["results"]
    assert results["checkpoint"] == "iter_4.pth"
    assert results["base_sha256"] == stage.content_sha256(tiny_model)
    assert results["tensors"] == 28
    assert results["parameters"] == sum(t.numel() for t in load_file(adapter_folder / convert.WEIGHTS).values())


@pytest.mark.parametrize("name", ["iter_2", "iter_2.pth"])
def test_a_named_checkpoint_is_converted(train_folder: Path, checkpoints: States, tmp_path: Path, name: str) -> None:
    convert.make(tmp_path / "adapter", train_folder=train_folder, checkpoint=name)
    tensors = load_file(tmp_path / "adapter" / convert.WEIGHTS)
    for key, tensor in checkpoints["iter_2"].items():
        assert torch.equal(tensors[key.removeprefix("llm.").replace(".default", "")], tensor)


def test_the_last_checkpoint_is_the_one_of_the_highest_number(
    make_train_folder: MakeTrainFolder, checkpoints: States, tmp_path: Path
) -> None:
    # By name iter_9 would come after iter_10.
    state = checkpoints["iter_2"]
    folder = make_train_folder(tmp_path / "train", {"iter_10": state, "iter_9": state, "iter_2": state})
    assert convert.pick_checkpoint(folder, None).name == "iter_10.pth"


@pytest.mark.parametrize(("best", "taken"), [("iter_2", "iter_2.pth"), (None, "iter_4.pth"), ("iter_8", "iter_4.pth")])
def test_the_checkpoint_that_the_training_called_best_is_taken(
    train_folder: Path, tmp_path: Path, best: str | None, taken: str
) -> None:
    folder = Path(shutil.copytree(train_folder, tmp_path / "train"))
    manifest = json.loads((folder / stage.MANIFEST).read_text(encoding="utf-8"))
    manifest["results"]["best"] = best
    (folder / stage.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    scores = {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 1.0}
    lines = [json.dumps({"checkpoint": name} | scores) + "\n" for name in ("iter_2", "iter_4")]
    (folder / "scores.jsonl").write_text("".join(lines), encoding="utf-8")  # by these alone the last would be best
    assert convert.pick_checkpoint(folder, None).name == taken


def test_an_unknown_checkpoint_is_refused_with_those_there_are(train_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="CHECKPOINT=iter_3 is none of iter_2, iter_4"):
        convert.make(tmp_path / "adapter", train_folder=train_folder, checkpoint="iter_3")


def changed(state: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    copy = {key: tensor.clone() for key, tensor in state.items()}
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s[A_TENSOR].zero_(), "all zeros"),
        (lambda s: s.pop(A_TENSOR), "1 tensors are missing"),
        (lambda s: s.update({A_TENSOR.replace("layers.1", "layers.7"): s[A_TENSOR]}), "match nothing in the base"),
        (lambda s: s.update({A_TENSOR: s[A_TENSOR][:, :3]}), "the base needs [16, 4]"),
        (lambda s: s[A_TENSOR].fill_(float("nan")), "not finite"),
        (lambda s: s.update({"llm.lm_head.weight": torch.ones(1)}), "is no LoRA tensor"),
    ],
    ids=["zeros", "missing", "extra", "rank", "nan", "not LoRA"],
)
def test_a_bad_checkpoint_is_refused_and_leaves_nothing(
    change: Callable[[dict[str, Any]], Any],
    reason: str,
    make_train_folder: MakeTrainFolder,
    checkpoints: States,
    tmp_path: Path,
) -> None:
    folder = make_train_folder(tmp_path / "train", {"iter_4": changed(checkpoints["iter_4"], change)})
    with pytest.raises(RecipeError) as caught:
        convert.make(tmp_path / "adapter", train_folder=folder, checkpoint=None)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"train", ".train.lock", ".train.verified", ".adapter.lock"}


def test_an_untrained_adapter_is_refused(
    make_train_folder: MakeTrainFolder, checkpoints: States, tmp_path: Path
) -> None:
    """As it starts: every B zero, so that the adapter would change nothing."""

    def reset(state: dict[str, Any]) -> None:
        for key, tensor in state.items():
            if ".lora_B." in key:
                tensor.zero_()

    folder = make_train_folder(tmp_path / "train", {"iter_4": changed(checkpoints["iter_4"], reset)})
    with pytest.raises(RecipeError, match="was not trained"):
        convert.make(tmp_path / "adapter", train_folder=folder, checkpoint=None)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_a_truncated_checkpoint_is_passed_over_for_the_last_whole_one(train_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(train_folder, tmp_path / "train"))
    truncate(folder / "iter_4.pth")
    assert convert.pick_checkpoint(folder, None).name == "iter_2.pth"
    with pytest.raises(RecipeError, match="CHECKPOINT=iter_4 is none of iter_2"):
        convert.pick_checkpoint(folder, "iter_4")


def test_truncated_checkpoints_alone_are_refused(train_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(train_folder, tmp_path / "train"))
    truncate(folder / "iter_2.pth")
    truncate(folder / "iter_4.pth")
    with pytest.raises(RecipeError, match="holds no checkpoint"):
        convert.make(tmp_path / "adapter", train_folder=folder, checkpoint=None)


def test_a_stopped_training_is_refused(train_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(train_folder, tmp_path / "train"))
    (folder / stage.MANIFEST).unlink()
    with pytest.raises(RecipeError, match="run `make train` first"):
        convert.make(tmp_path / "adapter", train_folder=folder, checkpoint=None)


def test_an_adapter_of_another_base_is_refused(
    make_train_folder: MakeTrainFolder, checkpoints: States, tiny_model: Path, tmp_path: Path
) -> None:
    # Same name, same place, other weights: the shapes all fit, only the content tells.
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    folder = make_train_folder(tmp_path / "train", checkpoints, model=model)
    flip_bit(model / "model.safetensors")
    with pytest.raises(RecipeError, match=r"was made on another base than .*make train"):
        convert.make(tmp_path / "adapter", train_folder=folder, checkpoint=None)


def test_a_config_without_lora_is_refused(lora_config: Path, tmp_path: Path) -> None:
    from mmengine.config import Config

    config = Config.fromfile(lora_config)
    config.model.pop("lora")
    config.dump(tmp_path / "config.py")
    with pytest.raises(RecipeError, match="trains no LoRA adapter"):
        convert.lora_settings(tmp_path / "config.py")


def test_a_program_in_place_of_the_config_is_not_run(lora_config: Path, tmp_path: Path) -> None:
    text = lora_config.read_text(encoding="utf-8")
    (tmp_path / "config.py").write_text(f"{text}\nopen({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not the data"):
        convert.lora_settings(tmp_path / "config.py")
    assert not (tmp_path / "ran").exists()


def test_the_settings_are_those_of_the_config(lora_config: Path) -> None:
    settings = convert.lora_settings(lora_config)
    assert (settings["r"], settings["lora_alpha"]) == (4, 8)
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert len(settings["target_modules"]) == 7


def test_a_config_that_leaves_the_modules_open_means_all_linear_ones(lora_config: Path, tmp_path: Path) -> None:
    from mmengine.config import Config
    from xtuner.registry import BUILDER

    config = Config.fromfile(lora_config)
    config.model.lora.pop("target_modules")
    config.dump(tmp_path / "config.py")
    # XTuner fills them in when it builds the model.
    built = BUILDER.build(Config.fromfile(tmp_path / "config.py").model)
    assert set(convert.lora_settings(tmp_path / "config.py")["target_modules"]) == set(built.lora.target_modules)


def test_the_card_names_the_base(adapter_folder: Path) -> None:
    chosen = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert chosen["base_model_name_or_path"] in (adapter_folder / "README.md").read_text(encoding="utf-8")
