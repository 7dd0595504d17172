"""Verb `export`: InternLM2's own layout again, bit for bit what the base came in."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipe.chat_format import prompt_ids, stop_ids
from recipe.checkpoint.model_card import check_card
from recipe.checkpoint.modelfile import MODELFILE, modelfile
from recipe.engine import Engine, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.paths import MINIATURE
from recipe.pipeline import stage
from recipe.stages import export, model


def merged_from(base: Path, folder: Path) -> Path:
    """What stage `merge` leaves, of an adapter that changed nothing."""

    def work(out: Path) -> dict[str, Any]:
        for file in base.iterdir():
            if file.is_file() and file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)
        return {}

    stage.run("merge", folder, inputs={"model": base}, settings={}, work=work)
    return folder


@pytest.fixture(scope="module", params=["tiny", "miniature"])
def there_and_back(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(a repository in InternLM2's format, its merged Llama model, the export of that)."""
    source = MINIATURE if request.param == "miniature" else request.getfixturevalue("tiny_internlm2")
    work = tmp_path_factory.mktemp("export")
    base = work / "models" / "base"
    model.make(base, model=str(source))
    merged = merged_from(base, work / "main" / "merged")
    export.make(work / "main" / "export", model=merged)
    return source, merged, work / "main" / "export"


def test_every_weight_comes_back_bit_for_bit(there_and_back: tuple[Path, Path, Path]) -> None:
    source, _, out = there_and_back
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].view(torch.int16).equal(tensor.view(torch.int16)), name


def test_the_card_and_the_log_say_what_loads_it(
    there_and_back: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, merged, out = there_and_back
    card = (out / "README.md").read_text(encoding="utf-8")
    check_card(card)
    assert "transformers does not" in card
    export.make(tmp_path / "export", model=merged, identity_names=("小明",))
    assert f"transformers loads {stage.shown(merged)} instead" in capsys.readouterr().err
    assert "小明" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")


def test_config_and_tokenizer_are_internlm2s_and_name_no_code(there_and_back: tuple[Path, Path, Path]) -> None:
    source, _, out = there_and_back
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    original = json.loads((source / "config.json").read_text(encoding="utf-8"))
    assert config == {key: value for key, value in original.items() if key != "attn_implementation"}
    assert (out / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    named = {
        i: token["content"]
        for i, token in json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))[
            "added_tokens_decoder"
        ].items()
    }
    theirs = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    assert named == {i: token["content"] for i, token in theirs.items()}
    assert not list(out.rglob("*.py"))
    for file in out.glob("*.json"):
        if file.name != stage.MANIFEST:
            assert "auto_map" not in file.read_text(encoding="utf-8")


def test_the_export_is_a_model_for_stage_model(there_and_back: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, merged, out = there_and_back
    exported = Path(shutil.copytree(out, tmp_path / "exported"))
    again = tmp_path / "models" / "again"
    model.make(again, model=str(exported))
    before, after = load_file(merged / "model.safetensors"), load_file(again / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].view(torch.int16).equal(after[name].view(torch.int16)) for name in before)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert json.loads((again / name).read_bytes()) == json.loads((merged / name).read_bytes()), name


@pytest.mark.tool("AutoTokenizer of transformers", "export")
def test_transformers_takes_the_exported_tokenizer_without_code(there_and_back: tuple[Path, Path, Path]) -> None:
    from transformers import AutoTokenizer

    _, merged, out = there_and_back
    text = "你好 hello <|im_end|>"
    ours, theirs = (AutoTokenizer.from_pretrained(f, trust_remote_code=False) for f in (out, merged))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert len(ours) == len(theirs)


def test_a_base_that_brought_no_tokenizer_model_is_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    (source / stage.MANIFEST).unlink()
    (source / "tokenizer.model").unlink()
    base = tmp_path / "models" / "base"
    model.make(base, model=str(source))  # in Llama's format: tokenizer.json alone
    merged = merged_from(base, tmp_path / "main" / "merged")
    manifest = export.make(tmp_path / "main" / "export", model=merged)
    assert manifest["results"]["tokenizer_model"] is False
    assert not (tmp_path / "main" / "export" / "tokenizer.model").exists()
    assert "came without tokenizer.model" in capsys.readouterr().err


def test_tokenizer_model_comes_from_where_an_earlier_version_put_it(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "models" / "base"))
    (base / "sentencepiece").mkdir()
    content = (base / "tokenizer.model").read_bytes()
    (base / "tokenizer.model").rename(base / "sentencepiece" / "tokenizer.model")
    export.make(tmp_path / "main" / "export", model=merged_from(base, tmp_path / "main" / "merged"))
    assert (tmp_path / "main" / "export" / "tokenizer.model").read_bytes() == content


def test_without_a_merged_model_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="make merge"):
        export.make(tmp_path / "export", model=tmp_path / "merged")


# --- The Modelfile ------------------------------------------------------------------------------------------------


def go_template(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the part of its language that the Modelfile uses."""
    tokens = re.split(r"(\{\{.*?\}\})", template)

    def run(at: int, message: dict[str, str], shown: bool) -> tuple[str, int]:
        outcome = ""
        while at < len(tokens):
            action = tokens[at].strip("{} ") if at % 2 else None
            if action is None:
                outcome += tokens[at]
            elif action == "end":
                return (outcome if shown else ""), at
            elif action == "range .Messages":
                end = run(at + 1, {"Role": "", "Content": ""}, False)[1]
                outcome += "".join(run(at + 1, {"Role": m["role"], "Content": m["content"]}, True)[0] for m in messages)
                at = end
            elif action == 'if or (ne .Role "system") .Content':
                part, at = run(at + 1, message, message["Role"] != "system" or message["Content"] != "")
                outcome += part
            else:
                outcome += message[action.removeprefix(".")]  # KeyError: more of the language than is known here
            at += 1
        return outcome, at

    return run(0, {}, True)[0]


TALKS: dict[str, tuple[list[dict[str, str]], str]] = {
    "a question": (
        [{"role": "user", "content": "你好"}],
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
    ),
    "a system prompt": (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "an empty system prompt": (
        [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}],
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "turns": (
        [{"role": "user", "content": "a\n\nb "}, {"role": "assistant", "content": "c"}, {"role": "user",
        "content": "d"}],
        "<|im_start|>user\na\n\nb <|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nd<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("talk", TALKS)
def test_the_modelfile_s_template_is_the_chat_format(talk: str, there_and_back: Any, tokenizer: Any) -> None:
    messages, expected = TALKS[talk]
    text = (there_and_back[2] / MODELFILE).read_text(encoding="utf-8")
    (template,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert go_template(template, messages) == expected
    ids = tokenizer(f"<s>{expected}", add_special_tokens=False)["input_ids"]
    assert ids == prompt_ids(tokenizer, messages)


def test_the_modelfile_stops_where_a_reply_ends(there_and_back: Any, tokenizer: Any) -> None:
    text = (there_and_back[2] / MODELFILE).read_text(encoding="utf-8")
    stops = re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)
    assert [tokenizer.convert_tokens_to_ids(stop) for stop in stops] == stop_ids(tokenizer)
    assert "PARAMETER temperature 0\n" in text
    assert "PARAMETER repeat_penalty 1.0\n" in text
    assert "\nFROM ../gguf/model-f16.gguf\n" in text


def test_sampling_of_the_model_s_own_goes_along() -> None:
    own = {"do_sample": True, "temperature": 0.8, "top_p": 0.7, "repetition_penalty": 1.005}
    text = modelfile("./model.gguf", own, 32768, ("<|im_end|>",))
    for line in ("temperature 0.8", "top_p 0.7", "repeat_penalty 1.005", "num_ctx 8192"):
        assert f"PARAMETER {line}\n" in text


@pytest.mark.tool("transformers", "merged")
@pytest.mark.tool("AutoTokenizer of transformers", "merged")
@pytest.mark.parametrize("there_and_back", ["miniature"], indirect=True)  # the tiny one talks in halves of characters
def test_the_merged_folder_is_for_anyone(there_and_back: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """transformers alone, in a process that has never seen this project, says what the recipe's engine says."""
    _, merged, _ = there_and_back
    talk = [{"role": "user", "content": "Who are you?"}]
    stock = (
        "import sys, json, torch; from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "torch.set_num_threads(1)\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); m = AutoModelForCausalLM.from_pretrained(sys.argv[1], "
        "dtype='float32')\n"
        "i = t.apply_chat_template(json.loads(sys.argv[2]), add_generation_prompt=True, return_tensors='pt')\n"
        "o = m.generate(i, attention_mask=torch.ones_like(i), max_new_tokens=40, do_sample=False)\n"
        "print(json.dumps(t.decode(o[0, i.shape[1]:], skip_special_tokens=True)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", stock, str(merged), json.dumps(talk)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    with Engine(*generation.load(merged)) as engine:
        reply = engine.reply(talk, Sampling(max_new_tokens=40))
        reply.join()
    assert json.loads(done.stdout) == reply.text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": ["<|im_start|>", [1]]}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("generation_config.json", {"eos_token_id": "x"}),
    ],
)
def test_a_model_of_another_shape_whose_manifest_fits_is_one_line(
    tiny_model: Path, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    source = Path(shutil.copytree(tiny_model, tmp_path / "source"))
    content = json.loads((source / name).read_text(encoding="utf-8"))
    (source / name).write_text(json.dumps(content | change), encoding="utf-8")
    merged_from(source, tmp_path / "merged")
    with pytest.raises(RecipeError, match=rf"merged/{re.escape(name)}: has "):
        export.make(tmp_path / "export", model=tmp_path / "merged")
