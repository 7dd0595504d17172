"""The merged model is base + adapter, and only ever of the base that the adapter was trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip_bit, full_card
from safetensors.torch import load_file, save_file

from recipe.checkpoint.safetensors_io import INDEX
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.pipeline import stage
from recipe.stages import convert, merge

States = dict[str, dict[str, Any]]
MakeTrainFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def merged(adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge") / "merged"
    merge.make(folder, adapter_folder=adapter_folder, identity_names=("小明",))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_weights_equal_pefts_own_merge(merged: Path, adapter_folder: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # In float32, which float16 then rounds: to half of its last bit, a 2,048th of the value.
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, str(adapter_folder)).merge_and_unload().state_dict()
    ours = weights_of(merged)
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        assert weight.dtype == torch.float16
        assert torch.allclose(weight.float(), expected[name], rtol=2**-11, atol=1e-7), name


def test_every_adapted_weight_changed_and_no_other(merged: Path, tiny_model: Path) -> None:
    before, after = weights_of(tiny_model), weights_of(merged)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_the_merged_folder_answers_as_base_and_adapter(merged: Path, adapter_folder: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=False, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    conversations = [[{"role": "user", "content": probe}] for probe in merge.PROBES]
    plain = generation.answer(model, tokenizer, conversations, max_new_tokens=6)
    assert plain == generation.answer(*generation.load(tiny_model, adapter_folder), conversations, max_new_tokens=6)
    assert plain != generation.answer(*generation.load(tiny_model), conversations, max_new_tokens=6)


def test_the_proof_is_in_the_manifest_and_on_the_card(merged: Path) -> None:
    manifest = stage.read_manifest(merged)
    assert manifest is not None
    proof = manifest["results"]
    assert 0 < proof["largest_logit_difference"] < 0.1  # rounding to 16 bits is not nothing
    assert proof["mean_kl"] < 1e-3
    card = (merged / "README.md").read_text(encoding="utf-8")
    assert f"{proof['largest_logit_difference']:.2g}" in card
    assert "小明" in card


def test_the_folder_is_complete_and_holds_no_adapter_or_code(merged: Path) -> None:
    assert {path.name for path in merged.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "model.safetensors", "README.md", stage.MANIFEST,
    }  # fmt: skip


def pipeline(folder: Path, model: Path, make_train_folder: MakeTrainFolder, states: States) -> Path:
    """The adapter folder of a training on `model`."""
    train = make_train_folder(folder / "train", states, model=model)
    convert.make(folder / "adapter", train_folder=train, checkpoint=None)
    return folder / "adapter"


def test_merging_onto_a_changed_base_is_refused(
    tiny_model: Path, make_train_folder: MakeTrainFolder, checkpoints: States, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    adapter = pipeline(tmp_path, model, make_train_folder, checkpoints)
    flip_bit(model / "model.safetensors")
    with pytest.raises(RecipeError, match="was made on another base"):
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert not (tmp_path / "merged").exists()


def test_merging_without_the_base_is_refused(
    tiny_model: Path, make_train_folder: MakeTrainFolder, checkpoints: States, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    adapter = pipeline(tmp_path, model, make_train_folder, checkpoints)
    shutil.rmtree(model)
    with pytest.raises(RecipeError, match="run `make model` first"):
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())


def test_a_sharded_base_gives_the_same_weights_in_the_same_shards(
    merged: Path,
    tiny_internlm2: Path,
    make_train_folder: MakeTrainFolder,
    checkpoints: States,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    from recipe.stages import model

    source = Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for shard in set(weight_map.values()):
        save_file({n: w for n, w in weights.items() if weight_map[n] == shard}, source / shard, {"format": "pt"})
    (source / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    model.make(tmp_path / "models" / "sharded", model=str(source))
    adapter = pipeline(tmp_path, tmp_path / "models" / "sharded", make_train_folder, checkpoints)
    merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())

    ours, single = weights_of(tmp_path / "merged"), weights_of(merged)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) == 2
    assert ours.keys() == single.keys()
    assert all(torch.equal(ours[name], single[name]) for name in single)
    # And the index is right for them, or weights would be left at random, without a word.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").state_dict()
    assert all(torch.equal(single[name], loaded[name]) for name in single)


@pytest.mark.parametrize(("size", "files"), [("8KB", 3), ("1GB", 1)])
def test_files_of_a_chosen_size_hold_the_same_weights(
    merged: Path, adapter_folder: Path, tmp_path: Path, size: str, files: int
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "merged"
    merge.make(folder, adapter_folder=adapter_folder, identity_names=("小明",), max_shard_size=size)
    written = list(folder.glob("*.safetensors"))
    assert len(written) >= files if files > 1 else [file.name for file in written] == ["model.safetensors"]
    assert (folder / INDEX).is_file() == (files > 1)
    single = weights_of(merged)
    assert all(torch.equal(single[name], weight) for name, weight in weights_of(folder).items())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    assert all(torch.equal(single[name], loaded[name]) for name in single)


def test_a_size_that_is_none_is_refused_before_anything_is_read(adapter_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="MAX_SHARD_SIZE=much is no size"):
        merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=(), max_shard_size="much")


@pytest.mark.parametrize(
    ("device", "reason"), [("tpu", "DEVICE=tpu is none of auto, cpu, cuda"), ("cuda", "there is no NVIDIA GPU here")]
)
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(
    device: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RecipeError, match=reason) as caught:
        merge.make(tmp_path / "merged", adapter_folder=tmp_path / "adapter", identity_names=(), device=device)
    assert "\n" not in str(caught.value)


def test_a_full_card_is_one_line_that_names_the_cpu_which_merges_alike(
    merged: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = generation.load
    monkeypatch.setattr(generation, "load", full_card)
    with pytest.raises(RecipeError, match=r"CUDA out of memory.*DEVICE=cpu can$") as caught:
        merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=("小明",))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()

    def load_on_cpu(*arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and still not used
        loaded = load(*arguments, **settings)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert settings["device"] == loaded[0].device.type == "cpu"
        return loaded

    monkeypatch.setattr(generation, "load", load_on_cpu)
    merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=("小明",), device="cpu")
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    stage_made = (tmp_path / "merged" / stage.MANIFEST).stat().st_mtime_ns
    monkeypatch.setattr(generation, "load", full_card)
    merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=("小明",))  # the same result
    assert (tmp_path / "merged" / stage.MANIFEST).stat().st_mtime_ns == stage_made


def remade(adapter_folder: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """The adapter changed by hand, under a manifest that vouches for it."""
    manifest = stage.read_manifest(adapter_folder)
    assert manifest is not None
    results = manifest["results"]

    def work(out: Path) -> dict[str, Any]:
        for file in adapter_folder.iterdir():
            if file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)
        change(out)
        return dict(results)

    stage.run("convert", folder, inputs={}, settings={}, work=work)
    return folder


def edit_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return change


def edit_weights(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = {name: change(name, tensor) for name, tensor in load_file(folder / convert.WEIGHTS).items()}
        kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / convert.WEIGHTS, {"format": "pt"})

    return edit


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit_config(use_rslora=True), "use_rslora=True is more than plain LoRA"),
        (edit_config(use_dora=True), "use_dora=True is more than plain LoRA"),
        (edit_config(bias="all"), "bias='all' is more than plain LoRA"),
        (edit_config(r=8), "the base needs [8, "),
        (edit_weights(lambda name, t: None if "layers.1.mlp.up_proj.lora_A" in name else t), "1 tensors are missing"),
        (edit_weights(lambda name, t: t * 0 if "layers.1.mlp.up_proj.lora_B" in name else t), "is all zeros"),
        (edit_weights(lambda name, t: t * float("nan")), "not finite"),
    ],
    ids=["rslora", "dora", "bias", "rank", "missing", "zeros", "nan"],
)
def test_what_is_no_plain_adapter_is_refused(
    change: Callable[[Path], None], reason: str, adapter_folder: Path, tmp_path: Path
) -> None:
    adapter = remade(adapter_folder, tmp_path / "adapter", change)
    with pytest.raises(RecipeError) as caught:
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert reason in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_overflows_float16_is_refused(adapter_folder: Path, tmp_path: Path) -> None:
    # Finite in the adapter, infinite in the merged weights: its logits are no numbers, and no comparison may take them
    # for near.
    adapter = remade(
        adapter_folder, tmp_path / "adapter", edit_weights(lambda name, t: t * 1e8 if ".lora_B." in name else t)
    )
    with pytest.raises(RecipeError):
        merge.make(tmp_path / "merged", adapter_folder=adapter, identity_names=())
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_says_something_else_is_refused(
    adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe.checkpoint import lora

    plain = lora.merge_into
    monkeypatch.setattr(lora, "merge_into", lambda weights, tensors, scale: plain(weights, tensors, 3 * scale))
    with pytest.raises(RecipeError, match="merged and base \\+ adapter disagree"):
        merge.make(tmp_path / "merged", adapter_folder=adapter_folder, identity_names=())
    assert not (tmp_path / "merged").exists()
