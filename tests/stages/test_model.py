"""Stage `model`: what a good folder becomes, and every way in which a folder can be bad."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip_bit
from safetensors.torch import load_file, save_file

from recipe.checkpoint.safetensors_io import INDEX
from recipe.errors import RecipeError
from recipe.paths import MINIATURE
from recipe.pipeline import heartbeat, stage
from recipe.pipeline.run import Run, model_name
from recipe.pipeline.stage import MANIFEST, read_manifest
from recipe.stages import model

Damage = Callable[[Path], None]


def edit_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def split(folder: Path) -> None:
    """Two shards and their index instead of one file; one layer's tensors lie in both."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    weight_map: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in half}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(half, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def write_sums(folder: Path) -> None:
    sums = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(folder.iterdir())]
    (folder / model.SUMS).write_text("".join(sums), encoding="utf-8")


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_refused(source: str | Path, out: Path) -> str:
    """The one-line message of the refusal, which leaves nothing that a later stage could take for a model."""
    with pytest.raises(RecipeError) as caught:
        model.make(out, model=str(source))
    left = [path.name for path in out.parent.iterdir() if path.suffix not in (".lock", ".verified")]
    assert left == []
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def source(tiny_internlm2: Path, tmp_path: Path) -> Path:
    """A good folder to spoil."""
    return Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "out"


def test_a_good_folder_loads_with_plain_transformers(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    loaded, notes = AutoModelForCausalLM.from_pretrained(
        tiny_model, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    assert isinstance(loaded, LlamaForCausalLM)
    assert not any(notes.values())  # no missing, unexpected or mismatched keys
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, trust_remote_code=False)
    assert len(tokenizer) == loaded.config.vocab_size
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.generation_config.eos_token_id


@pytest.mark.parametrize("kind", ["internlm2", "llama"])
def test_no_code_and_no_name_of_code_gets_through(
    kind: str, tiny_internlm2: Path, tiny_model: Path, tmp_path: Path, out: Path
) -> None:
    # The real repository's config.json and tokenizer_config.json name its Python in auto_map.
    source = Path(shutil.copytree({"internlm2": tiny_internlm2, "llama": tiny_model}[kind], tmp_path / "source"))
    (source / MANIFEST).unlink(missing_ok=True)
    auto_map = {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM", "AutoTokenizer": ["a.B", None]}
    for name in ("config.json", "tokenizer_config.json"):
        edit_json(source / name, lambda content: content.update(auto_map=auto_map))
    model.make(out, model=str(source))
    assert not list(out.rglob("*.py"))
    for file in out.glob("*.json"):
        assert "auto_map" not in file.read_text(encoding="utf-8"), file.name


def test_weights_keep_their_precision(tiny_model: Path) -> None:
    assert {tensor.dtype for tensor in all_tensors(tiny_model).values()} == {torch.float16}


def test_the_manifest_counts_the_parameters(tiny_model: Path) -> None:
    manifest = read_manifest(tiny_model)
    assert manifest is not None
    assert manifest["results"]["parameters"] == sum(tensor.numel() for tensor in all_tensors(tiny_model).values())
    assert manifest["results"]["format"] == "internlm2"


def test_a_conversion_that_takes_long_is_not_silent(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beaten, say, convert = threading.Event(), stage.say, model._convert

    def hear(name: str, text: str) -> None:
        say(name, text)
        if text.startswith("converting the model: "):
            beaten.set()

    def slow(*folders: Path) -> tuple[int, str]:
        assert beaten.wait(60)
        return convert(*folders)

    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    monkeypatch.setattr(stage, "say", hear)
    monkeypatch.setattr(model, "_convert", slow)
    model.make(out, model=str(source))
    assert "[model] converting the model: 0 s" in capsys.readouterr().err


def test_the_embedded_miniature_is_what_its_sums_say_and_converts(out: Path) -> None:
    manifest = model.make(out, model="miniature")
    assert 1e6 < manifest["results"]["parameters"] < 1e7
    assert (MINIATURE / model.SUMS).is_file()


def test_a_folder_that_an_earlier_version_wrote_is_taken_and_named(
    source: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.make(out, model=str(source))
    assert "earlier version" not in capsys.readouterr().err
    (out / "sentencepiece").mkdir()
    (out / "tokenizer.model").rename(out / "sentencepiece" / "tokenizer.model")
    moved = {"tokenizer.model": "sentencepiece/tokenizer.model"}
    edit_json(
        out / MANIFEST,
        lambda content: content.update(
            outputs={moved.get(name, name): entry for name, entry in content["outputs"].items()}
        ),
    )
    before = (out / "tokenizer_config.json").stat().st_mtime_ns
    model.make(out, model=str(source))
    said = capsys.readouterr().err
    assert "up to date" in said
    assert "an earlier version wrote it" in said
    assert "remove it and run `make model` again" in said
    assert (out / "tokenizer_config.json").stat().st_mtime_ns == before


def test_tokenizer_model_goes_along_with_a_folder_in_llama_format(tiny_model: Path, out: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "llama"))
    (source / MANIFEST).unlink()
    edit_json(source / "tokenizer_config.json", lambda content: content.pop("added_tokens_decoder"))
    model.make(out, model=str(source))
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (out / name).read_bytes() == (tiny_model / name).read_bytes()
    ours, theirs = (json.loads((folder / "tokenizer_config.json").read_bytes()) for folder in (out, tiny_model))
    for key in ("added_tokens_decoder", "add_prefix_space"):
        assert ours[key] == theirs[key]


def test_a_folder_in_llama_format_is_accepted_as_it_is(tiny_model: Path, out: Path) -> None:
    manifest = model.make(out, model=str(tiny_model))
    assert manifest["results"]["format"] == "llama"
    before, after = all_tensors(tiny_model), all_tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert json.loads((out / name).read_bytes()) == json.loads((tiny_model / name).read_bytes())


def test_shards_give_the_tensors_of_a_single_file(source: Path, tiny_model: Path, out: Path) -> None:
    from transformers import AutoModelForCausalLM

    split(source)
    model.make(out, model=str(source))
    single, sharded = all_tensors(tiny_model), all_tensors(out)
    assert len(list(out.glob("*.safetensors"))) == 2
    assert single.keys() == sharded.keys()
    assert all(torch.equal(single[name], sharded[name]) for name in single)
    # A wrong index would leave weights at random, without a word.
    loaded = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False, dtype="auto").state_dict()
    assert all(torch.equal(single[name], loaded[name]) for name in single)


def test_right_sums_are_accepted(source: Path, out: Path) -> None:
    write_sums(source)
    model.make(out, model=str(source))
    assert (out / MANIFEST).is_file()


def test_a_stored_rotary_buffer_is_left_out(source: Path, out: Path) -> None:
    edit_weights(source, lambda w: w.update({"model.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}))
    model.make(out, model=str(source))
    assert not [name for name in all_tensors(out) if "rotary" in name]


@pytest.mark.parametrize(
    ("card", "license_id"),
    [("---\nlicense: mit\n---\n# A model\n", "mit"), ("# A model\n", None), ("---\nlicense: [\n---\n", None)],
)
def test_the_licence_of_a_folder_is_its_card_s(card: str, license_id: str | None, source: Path, out: Path) -> None:
    (source / "README.md").write_text(card, encoding="utf-8")
    assert model.make(out, model=str(source))["results"]["license"] == license_id
    assert not (out / "README.md").exists()


def test_the_same_model_again_is_not_converted_again(tiny_internlm2: Path, out: Path) -> None:
    first = model.make(out, model=str(tiny_internlm2))
    assert model.make(out, model=str(tiny_internlm2)) == first


def spoil_sums(folder: Path) -> None:
    write_sums(folder)
    flip_bit(folder / "model.safetensors")


def lose_listed_file(folder: Path) -> None:
    write_sums(folder)
    (folder / "generation_config.json").unlink()


def break_sums(folder: Path) -> None:
    (folder / model.SUMS).write_text("<html>404</html>\n", encoding="utf-8")


def lose_shard(folder: Path) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def change_shape(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"model.layers.1.feed_forward.w2.weight": torch.zeros(16, 25)}))


def change_layers(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(num_hidden_layers=3))


def lose_tensor(folder: Path) -> None:
    edit_weights(folder, lambda w: w.pop("model.layers.1.attention.wqkv.weight"))


def add_tensor(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"model.layers.0.attention.wqkv.bias": torch.zeros(32)}))


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def add_python(folder: Path, name: str = "modeling_qwen2.py") -> None:
    (folder / name).write_text("raise SystemExit('this ran')\n", encoding="utf-8")


def add_python_below(folder: Path) -> None:
    (folder / "code").mkdir()
    add_python(folder / "code", "modeling_internlm2.py")


def change_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(model_type="qwen3"))


def lose_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.pop("model_type"))


def add_biases(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(bias=True))


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "internlm2",', encoding="utf-8")


def list_for_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]", encoding="utf-8")


def break_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("Not found", encoding="utf-8")


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def pickles_only(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights))


def shard_outside(folder: Path) -> None:
    split(folder)
    shutil.copyfile(folder / "model-00002-of-00002.safetensors", folder.parent / "elsewhere.safetensors")
    second = "model-00002-of-00002.safetensors"
    edit_json(
        folder / INDEX,
        lambda c: c.update(
            weight_map={k: "../elsewhere.safetensors" if v == second else v for k, v in c["weight_map"].items()}
        ),
    )


def index_without_map(folder: Path) -> None:
    (folder / INDEX).write_text("{}", encoding="utf-8")


def vocabulary_too_small(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(vocab_size=100))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_shard, "model-00002-of-00002.safetensors: missing"),
        (spoil_sums, "model.safetensors: sha256 is"),
        (lose_listed_file, "generation_config.json: missing"),
        (break_sums, "SHA256SUMS, line 1"),
        (change_shape, "model.layers.1.feed_forward.w2.weight is [16, 25], config.json makes it [16, 24]"),
        (change_layers, "tensors are missing, the first is model.layers.2."),
        (lose_tensor, "1 tensors are missing, the first is model.layers.1.attention.wqkv.weight"),
        (add_tensor, "unknown tensor model.layers.0.attention.wqkv.bias"),
        (truncate, "model.safetensors: cannot be read"),
        (empty_weights, "model.safetensors: cannot be read"),
        (add_python, "holds Python (modeling_qwen2.py)"),
        (add_python_below, "holds Python (code/modeling_internlm2.py)"),
        (change_type, "model_type 'qwen3' is none of internlm2, llama, qwen2"),
        (lose_type, "model_type None"),
        (add_biases, "biases"),
        (lose_config, "config.json: missing"),
        (break_config, "config.json: is not JSON"),
        (list_for_config, "config.json: must hold a JSON object"),
        (break_tokenizer_config, "tokenizer_config.json: is not JSON"),
        (lose_tokenizer, "tokenizer.model: missing"),
        (pickles_only, "weights as pickles (.bin) are not taken"),
        (shard_outside, "names a shard outside of its folder: ../elsewhere.safetensors"),
        (index_without_map, "has no weight_map"),
        (vocabulary_too_small, "is beyond vocab_size 100"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_bad_folder_is_refused_and_leaves_nothing(damage: Damage, reason: str, source: Path, out: Path) -> None:
    damage(source)
    assert reason in assert_refused(source, out)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_a_config_that_lacks_a_size_is_refused(key: str, source: Path, out: Path) -> None:
    edit_json(source / "config.json", lambda content: content.pop(key))
    assert key in assert_refused(source, out)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 0), ("num_key_value_heads", 3), ("hidden_size", "16"), ("num_attention_heads", 5)],
)
def test_a_config_with_impossible_sizes_is_refused(key: str, value: Any, source: Path, out: Path) -> None:
    edit_json(source / "config.json", lambda content: content.update({key: value}))
    assert "config.json" in assert_refused(source, out)


def test_an_index_whose_shards_are_no_names_is_refused(source: Path, out: Path) -> None:
    split(source)
    edit_json(source / INDEX, lambda c: c["weight_map"].update({"output.weight": 2}))
    assert INDEX in assert_refused(source, out)


def test_a_llama_folder_without_its_tokenizer_is_refused(tiny_model: Path, tmp_path: Path, out: Path) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    (source / "tokenizer.json").unlink()
    assert "tokenizer.json: missing" in assert_refused(source, out)


def test_a_llama_model_that_knows_no_chat_tokens_is_refused(tiny_model: Path, tmp_path: Path, out: Path) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    edit_json(source / "tokenizer.json", lambda content: content.update(added_tokens=content["added_tokens"][:3]))
    edit_json(source / "tokenizer_config.json", lambda content: content.pop("added_tokens_decoder"))
    refusal = assert_refused(source, out)
    assert "tokenizer.json: has no token <|im_start|>" in refusal
    assert "is this a chat model whose format is ChatML?" in refusal


def test_internlm2s_own_python_is_left_alone_and_said(
    source: Path, tiny_model: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What a plain snapshot of the repository holds beside the weights.
    for name in model.KNOWN_PYTHON:
        add_python(source, name)
    model.make(out, model=str(source))
    assert not list(out.rglob("*.py"))
    before, after = all_tensors(tiny_model), all_tensors(out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    (notice,) = [line for line in capsys.readouterr().err.splitlines() if "is not read" in line]
    assert all(name in notice for name in model.KNOWN_PYTHON)


def test_known_python_excuses_no_other(source: Path, out: Path) -> None:
    for name in (*model.KNOWN_PYTHON, "setup.py"):
        add_python(source, name)
    assert "holds Python (setup.py)" in assert_refused(source, out)


@pytest.mark.parametrize("name", ["no-such-model", "internlm/internlm2/chat-7b", "../nowhere"])
def test_an_unknown_name_is_refused(name: str, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in assert_refused(name, out)


def test_a_bad_folder_leaves_the_last_good_result(source: Path, out: Path) -> None:
    good = model.make(out, model=str(source))
    truncate(source)
    with pytest.raises(RecipeError):
        model.make(out, model=str(source))
    assert read_manifest(out) == good
    assert len(all_tensors(out)) == len(load_file(out / "model.safetensors"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("miniature", "miniature"),
        ("/data/models/internlm2-chat-1_8b", "internlm2-chat-1_8b"),
        ("/data/models/my model/", "my_model"),
        ("internlm/internlm2-chat-1_8b", "internlm2-chat-1_8b"),
        ("/", "model"),
    ],
)
def test_a_model_is_named_after_its_folder(given: str, name: str) -> None:
    assert model_name(given) == name


@pytest.mark.parametrize("given", [".", "..", "/data/..", "../.."])
def test_a_model_is_never_named_into_another_folder(given: str) -> None:
    # work/models/.. would be the folder of all runs.
    assert model_name(given) not in ("", ".", "..")


@pytest.mark.parametrize(
    ("name", "internlm"),
    [
        ("miniature", True),
        ("internlm2-chat-1_8b", True),
        ("internlm/internlm2_5-7b-chat", True),
        ("smollm2-135m-instruct", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", False),
        ("someone/not-internlm", False),
    ],
)
def test_a_name_tells_whether_the_base_is_internlm(name: str, internlm: bool) -> None:
    assert model.is_internlm(name) is internlm


@pytest.mark.parametrize(("kind", "internlm"), [("internlm2", True), ("llama", False), ("qwen2", False)])
def test_a_folder_is_internlm_by_its_config_whatever_its_name(tmp_path: Path, kind: str, internlm: bool) -> None:
    for name in ("internlm2-chat", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        assert model.is_internlm(str(tmp_path / name)) is internlm


def test_a_folder_without_config_is_refused_before_rows_are_written_for_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"config\.json: missing"):
        model.is_internlm(str(tmp_path))


def test_the_replay_of_fewer_languages_is_no_other_model_s(tmp_path: Path) -> None:
    run = Run(tmp_path, "main")
    assert run.replay("m") == run.replay("m", ["zh", "en"]) == tmp_path / "replay" / "m"
    assert run.replay("m", ["en"]) == tmp_path / "replay" / "m+en" != run.replay("m+en")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json"])
def test_a_pointer_of_git_lfs_is_named_with_its_remedy(name: str, source: Path, out: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (source / name).write_text(pointer, encoding="utf-8")
    message = assert_refused(source, out)
    assert f"{name}: is a Git LFS pointer" in message
    assert "git lfs pull" in message


def test_the_folder_of_all_caches_is_answered_with_a_snapshot(tmp_path: Path, out: Path) -> None:
    (snapshot := tmp_path / "hub" / "models--a--b" / "snapshots" / "abc").mkdir(parents=True)
    with pytest.raises(RecipeError, match=f"is the cache of several models: take a snapshot, MODEL={snapshot}$"):
        model.make(out, model=str(tmp_path / "hub"))


@pytest.mark.parametrize("commits", [["abc"], ["abc", "abd"], []])
def test_a_cache_is_answered_with_its_snapshot(commits: list[str], tmp_path: Path, out: Path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "snapshots").mkdir(parents=True)
    for commit in commits:
        (cache / "snapshots" / commit).mkdir()
    with pytest.raises(RecipeError, match=f"MODEL={cache}/snapshots/{commits[-1] if commits else 'COMMIT'}"):
        model.make(out, model=str(cache))


def test_a_folder_with_a_pipe_is_refused_before_anything_is_read(tiny_internlm2: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_internlm2, tmp_path / "source"))
    (source / "config.json").unlink()
    os.mkfifo(source / "config.json")
    with pytest.raises(RecipeError, match=r"config\.json: is a pipe or a device, which may never end"):
        model.make(tmp_path / "model", model=str(source))
