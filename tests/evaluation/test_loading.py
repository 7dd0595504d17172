"""What is loaded for inference is what its stage wrote, on the base that it was made on, and every weight is a number.

Chat, page, API, evaluation and merge load through `generation.load`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip_bit
from safetensors.torch import load_file, save_file

from recipe.chat_format import user
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.pipeline import stage
from recipe.serving import terminal
from recipe.serving.model_host import ModelHost
from recipe.stages import convert, evaluate, export, gguf, model


def chat(folder: Path, adapter: Path | None = None) -> None:
    terminal.run(
        model=folder, adapter=adapter, prompt="你好", system="", temperature=0, top_p=1, max_new_tokens=2,
    )  # fmt: skip


@pytest.mark.parametrize("damaged", ["base", "adapter"])
def test_a_flipped_byte_is_refused_before_anything_is_loaded(
    tiny_model: Path, adapter_folder: Path, tmp_path: Path, damaged: str
) -> None:
    base, adapter = (Path(shutil.copytree(f, tmp_path / f.name)) for f in (tiny_model, adapter_folder))
    flip_bit(base / "model.safetensors" if damaged == "base" else adapter / convert.WEIGHTS)
    with pytest.raises(RecipeError, match=r"safetensors changed since `(model|convert)` wrote it"):
        chat(base, adapter)


def test_a_copy_with_other_times_is_loaded(tiny_model: Path, adapter_folder: Path, tmp_path: Path) -> None:
    base, adapter = (
        Path(shutil.copytree(f, tmp_path / f.name, copy_function=shutil.copyfile)) for f in (tiny_model, adapter_folder)
    )
    generation.load(base, adapter)


def test_an_adapter_is_not_put_on_another_base(
    tiny_model: Path, tiny_internlm2: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))
    flip_bit(other / "model.safetensors")
    model.make(tmp_path / "other", model=str(other))
    with pytest.raises(RecipeError, match=r"was made on another base than .*make train"):
        generation.load(tmp_path / "other", adapter_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_where_they_enter(
    tiny_model: Path, tiny_internlm2: Path, adapter_folder: Path, tmp_path: Path, value: float
) -> None:
    def spoil(file: Path) -> None:
        weights = load_file(file)
        next(iter(weights.values())).view(-1)[3] = value
        save_file(weights, file, {"format": "pt"})

    source = Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))
    spoil(source / "model.safetensors")
    with pytest.raises(RecipeError, match="holds values that are not finite"):
        model.make(tmp_path / "converted", model=str(source))
    assert not (tmp_path / "converted").exists()
    base, adapter = (Path(shutil.copytree(f, tmp_path / f.name)) for f in (tiny_model, adapter_folder))
    for folder in (base, adapter):  # of nobody's making
        (folder / stage.MANIFEST).unlink()
    spoil(adapter / convert.WEIGHTS)
    with pytest.raises(RecipeError, match="holds values that are not finite"):
        chat(tiny_model, adapter)
    spoil(base / "model.safetensors")
    with pytest.raises(RecipeError, match="holds values that are not finite"):
        chat(base)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_merged_model_that_is_no_numbers_is_refused_though_its_manifest_fits(
    tiny_model: Path, tmp_path: Path, value: float, tensor: str
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "models" / "base"))
    weights = load_file(base / "model.safetensors")
    weights[tensor].view(-1)[3] = value
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    merged = tmp_path / "main" / "merged"

    def copy(out: Path) -> dict[str, Any]:
        shutil.copytree(base, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(stage.MANIFEST))
        return {}

    stage.run("merge", merged, inputs={"model": base}, settings={}, work=copy)  # signed with these values
    stage.refuse_changed(merged, stage.require(merged, "merge"))
    out = tmp_path / "main"
    for verb in (
        lambda: chat(merged),
        lambda: export.make(out / "export", model=merged),
        lambda: gguf.make(out / "gguf", model=merged, run="main"),
    ):
        with pytest.raises(RecipeError, match=rf"main/merged: {tensor} holds values that are not finite: \S.*again"):
            verb()
    assert not any((out / name).exists() for name in ("export", "gguf"))
    for server in ("demo", "api"):
        host = ModelHost(tmp_path, None, 1, verb=server, compare=server == "demo")
        host.load()
        assert host.state == "failed"
        assert f"{tensor} holds values that are not finite" in host.message


def test_torch_s_checksums_of_a_checkpoint_are_looked_at_before_a_training_resumes(tmp_path: Path) -> None:
    from recipe.training import continuation

    torch.save({"a": torch.arange(10_000)}, tmp_path / "iter_4.pth")
    continuation.refuse_damaged(tmp_path / "iter_4.pth")
    flip_bit(tmp_path / "iter_4.pth", (tmp_path / "iter_4.pth").stat().st_size // 2)
    with pytest.raises(RecipeError, match=r"is damaged .*checkpoint before it"):
        continuation.refuse_damaged(tmp_path / "iter_4.pth")


def test_an_adapter_that_would_have_code_imported_or_is_a_pickle_is_refused(
    tiny_model: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / stage.MANIFEST).unlink()
    (adapter / convert.WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(RecipeError, match="as a pickle"):
        generation.load(tiny_model, adapter)
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {"megatron_config": {"a": 1}, "megatron_core": "evil"}), encoding="utf-8")
    with pytest.raises(RecipeError, match="for Megatron"):
        generation.load(tiny_model, adapter)


def test_a_model_s_own_generate_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    """transformers runs it as it loads a local folder, whatever trust_remote_code says."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    program = folder / "custom_generate" / "generate.py"
    program.parent.mkdir()
    program.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef generate(): pass\n", encoding="utf-8")
    for manifest in (True, False):
        if not manifest:
            (folder / stage.MANIFEST).unlink()
        with pytest.raises(RecipeError, match="custom_generate: is a program"):
            generation.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("alpha_pattern", {"q_proj": 4}), ("modules_to_save", ["lm_head"]), ("peft_type", "LOHA"),
        ("peft_type", None), ("init_lora_weights", "pissa"), ("init_lora_weights", 7), ("task_type", "SEQ_CLS"),
        ("trainable_token_indices", [1]), ("target_parameters", ["x"]), ("kasa_config", {"rank": 2}),
        ("of_a_later_peft", True), ("arrow_config", {"top_k": 3}),
    ],
)  # fmt: skip
def test_an_adapter_that_is_more_than_lora_is_refused_wherever_it_is_loaded(
    tiny_model: Path, adapter_folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / stage.MANIFEST).unlink()
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"modules_to_save": []}
    file.write_text(json.dumps(settings), encoding="utf-8")
    generation.load(tiny_model, adapter)
    file.write_text(json.dumps(settings | {key: value}), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"{key}=.* is more than plain LoRA"):
        generation.load(tiny_model, adapter)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("r", 3, "cannot be put on the base: size mismatch"),
        ("lora_dropout", 7.0, "cannot be put on the base: dropout"),
        ("target_modules", "(", "cannot be put on the base: missing \\)"),
        ("exclude_modules", 3, "not a list"),
        ("exclude_modules", ["q_proj"], "holds tensors that adapter_config.json puts nowhere on this base"),
        ("layers_to_transform", [0], "holds tensors that adapter_config.json puts nowhere on this base"),
        ("target_modules", "all-linear", None),
        ("lora_alpha", 0, "not a number above 0"),
        ("eva_config", 3, "not an object"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_one_line(
    tiny_model: Path, adapter_folder: Path, tmp_path: Path, key: str, value: Any, reason: str | None
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / stage.MANIFEST).unlink()
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(settings | {key: value}), encoding="utf-8")
    if reason is None:
        generation.load(tiny_model, adapter)
        return
    with pytest.raises(RecipeError, match=reason) as error:
        generation.load(tiny_model, adapter)
    assert "\n" not in str(error.value)


def test_an_adapter_without_some_of_its_tensors_is_refused(
    tiny_model: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    (adapter / stage.MANIFEST).unlink()
    tensors = load_file(adapter / convert.WEIGHTS)
    del tensors[next(iter(tensors))]
    save_file(tensors, adapter / convert.WEIGHTS)
    with pytest.raises(RecipeError, match="holds no tensors for modules"):
        generation.load(tiny_model, adapter)


def made(folder: Path, name: str, content: str, **inputs: Path) -> Path:
    """A complete folder of a stage."""

    def work(out: Path) -> dict[str, str]:
        (out / "file").write_text(content, encoding="utf-8")
        return {}

    stage.run(name, folder, inputs=inputs, settings={}, work=work)
    return folder


def test_evaluation_and_export_compare_the_base_too(tmp_path: Path) -> None:
    base, other = (made(tmp_path / name, "model", name) for name in ("base", "other"))
    train = made(tmp_path / "train", "train", "t", model=base)
    merged = made(tmp_path / "merged", "merge", "m", model=base)
    evaluate._refuse_another_base(merged, train, base)
    with pytest.raises(RecipeError, match=r"was made on another base than .*other holds now"):
        evaluate._refuse_another_base(merged, train, other)
    shutil.rmtree(base)
    made(base, "model", "another")
    with pytest.raises(RecipeError, match=r"merged was made on another base than .*make merge"):
        export.make(tmp_path / "export", model=merged)
    (train / "file").write_text("T", encoding="utf-8")
    with pytest.raises(RecipeError, match="file changed since `train` wrote it"):
        evaluate._refuse_another_base(merged, train, base)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_a_cpu_computes_in_the_model_s_own_bfloat16_where_it_can(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, key: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("manifest.json")))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings.pop("torch_dtype")
    (folder / "config.json").write_text(json.dumps(settings | {key: stored}), encoding="utf-8")
    for computes in (False, True):
        monkeypatch.setattr("recipe.device.cpu_computes_bfloat16", lambda computes=computes: computes)
        loaded, tokenizer = generation.load(folder)
        wanted = torch.bfloat16 if computes and stored == "bfloat16" else torch.float32
        assert {weight.dtype for weight in loaded.parameters()} == {wanted}
        (reply,) = generation.answer(loaded, tokenizer, [[user("你好")]], max_new_tokens=3)
        assert isinstance(reply.text, str)
        assert generation.load(folder, dtype=torch.float32)[0].dtype == torch.float32
