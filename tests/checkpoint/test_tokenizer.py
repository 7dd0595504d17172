"""tokenizer.json gives the ids that SentencePiece gives, and none of its special tokens to text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from recipe.chat_format import CHAT_TOKENS, SPECIAL_TOKENS, text_ids
from recipe.checkpoint.tokenizer import build_tokenizer_json, fast_tokenizer_config, renamed_tokens
from recipe.errors import RecipeError
from recipe.paths import DATA, MINIATURE, ROOT

MIXED = """\
# 书生·浦语 recipe — teaches a chat model who it is / 教对话模型认识自己
    make quickstart NAME=小明   # two    spaces,\ttabs and a trailing space \n
| 指标 | base | tuned |
|:--|--:|--:|
for i in range(10):\r\n\tprint(f"{i:>3} × {i ** 2}", end="")  # ünïcödé, ﬁ ligature, ＡＢＣ full width
¿Qué tal? Привет, мир! こんにちは、世界。안녕하세요 שלום नमस्ते 🏳️‍🌈👩‍💻 \u200b zero width, \u3000 wide space
{"messages": [{"role": "user", "content": "1+1=?\\n"}]} 3.14159 1,234,567 https://example.org/a_b?c=d&e=%20
𠮷野家 龘 \U0001f9ff \x07 bell, ½ ² ① Ⅷ ﷽ ‘quotes’ “curly” … – — · • ° € £ ¥
"""


def lines() -> list[str]:
    """Every text of data/, once, and the mixture above as lines and as a whole."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                yield from texts(item)

    collected = [MIXED, *MIXED.splitlines()]
    for file in sorted(DATA.glob("*ge/*.json")) + sorted(DATA.glob("identity/*.json")):
        collected += texts(json.loads(file.read_text(encoding="utf-8")))
    return list(dict.fromkeys(collected))


@pytest.fixture(scope="session", params=["miniature", "internlm2"])
def both(request: pytest.FixtureRequest) -> tuple[Any, SentencePieceProcessor]:
    """(converted tokenizer, SentencePiece on the file that it was made from)."""
    if request.param == "miniature":
        tokenizer, file = request.getfixturevalue("tokenizer"), MINIATURE / "tokenizer.model"
    else:
        tokenizer = request.getfixturevalue("real_tokenizer")
        file = request.getfixturevalue("sentencepiece_file")
    return tokenizer, SentencePieceProcessor(model_file=str(file))


def test_the_lines_are_many_and_in_two_languages() -> None:
    # The comparison below says little if the files of data/ moved.
    collected = lines()
    assert len(collected) > 1000
    for word in ("capital", "首都"):
        assert any(word in line for line in collected)


def test_ids_equal_sentencepiece_on_every_text_of_the_recipe(both: tuple[Any, SentencePieceProcessor]) -> None:
    tokenizer, sentencepiece = both
    differing = [line for line in lines() if text_ids(tokenizer, line) != sentencepiece.encode(line)]
    assert not differing


# Ranges of characters that people write in, and some that only break things: controls, joiners, marks, private use.
SCRIPTS = (
    (0x20, 0x7E), (0x20, 0x7E), (0x4E00, 0x9FFF), (0x4E00, 0x9FFF), (0xA1, 0x24F), (0x370, 0x52F), (0x590, 0x6FF),
    (0x900, 0x97F), (0xE00, 0xE7F), (0x3000, 0x30FF), (0xAC00, 0xD7A3), (0xFF01, 0xFFEE), (0x300, 0x36F), (0x1, 0x1F),
    (0x2000, 0x206F), (0x2190, 0x2BFF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE000, 0xE0FF), (0xFE00, 0xFE0F),
)  # fmt: skip


def corpus(sentencepiece: SentencePieceProcessor) -> list[str]:
    """Some megabytes, the same in every run: programs, the vocabulary in any order, every script, tokens spelt out."""
    random = Random(0)
    programs = [*ROOT.glob("recipe/**/*.py"), *sorted(Path(json.__file__).parent.parent.glob("*.py"))[:60]]
    sources = "".join(file.read_text(encoding="utf-8") for file in programs)
    texts = [sources[at : at + 1000] for at in range(0, len(sources), 1000)]
    # Not its control and byte pieces, nor the names that the chat tokens had in it.
    ordinary = [
        piece.replace("\u2581", " ")
        for i in range(sentencepiece.get_piece_size())
        if not (sentencepiece.is_control(i) or sentencepiece.is_byte(i) or sentencepiece.is_unknown(i))
        and "UNUSED_TOKEN" not in (piece := sentencepiece.id_to_piece(i))
        and "\0" not in piece
    ]
    texts = [text for text in texts if "UNUSED_TOKEN" not in text]
    for _ in range(6000):
        words = random.choices(ordinary, k=random.randint(1, 40))
        texts.append(random.choice(("", " ", "  ", "\n", "\t")).join(words))
    for _ in range(6000):
        scripts = random.choices(SCRIPTS, k=random.randint(1, 4))
        texts.append("".join(chr(random.randint(*random.choice(scripts))) for _ in range(random.randint(1, 80))))
    for text in random.sample(texts, 2000):
        at = random.randint(0, len(text))
        texts.append(text[:at] + random.choice(SPECIAL_TOKENS) + text[at:])
    return texts


def test_ids_equal_sentencepiece_on_megabytes_of_mixed_text(both: tuple[Any, SentencePieceProcessor]) -> None:
    tokenizer, sentencepiece = both
    texts = corpus(sentencepiece)
    assert len(texts) > 15_000
    assert sum(len(text.encode()) for text in texts) > 3e6
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    used: set[int] = set()
    for text, theirs in zip(texts, sentencepiece.encode(texts), strict=True):
        ours = text_ids(tokenizer, text)
        assert ours == theirs, repr(text)
        used.update(ours)
    assert not used & special
    # The comparison says little about pieces that it never met.
    assert len(used) > 0.75 * len(tokenizer)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40))
@settings(max_examples=200)
def test_ids_equal_sentencepiece_on_any_text(both: tuple[Any, SentencePieceProcessor], text: str) -> None:
    tokenizer, sentencepiece = both
    assert text_ids(tokenizer, text) == sentencepiece.encode(text)


@pytest.mark.parametrize("text", ["a<s>b <s>", "</s></s>", "<unk> is unknown", "<0x0A><0xE4>", "<s", "s>"])
def test_ids_equal_sentencepiece_on_control_tokens_spelt_out(
    both: tuple[Any, SentencePieceProcessor], text: str
) -> None:
    # SentencePiece never merges characters into a control piece, though its file lists them beside the ordinary ones.
    tokenizer, sentencepiece = both
    assert text_ids(tokenizer, text) == sentencepiece.encode(text)


def test_there_are_as_many_ids_as_sentencepiece_has(both: tuple[Any, SentencePieceProcessor]) -> None:
    tokenizer, sentencepiece = both
    assert len(tokenizer) == sentencepiece.get_piece_size()


def test_every_other_id_keeps_its_piece(both: tuple[Any, SentencePieceProcessor]) -> None:
    tokenizer, sentencepiece = both
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    changed = {i for i, piece in enumerate(pieces) if piece != sentencepiece.id_to_piece(i)}
    assert changed == special - {0, 1, 2}


def test_old_names_of_the_chat_tokens_are_plain_text(both: tuple[Any, SentencePieceProcessor]) -> None:
    tokenizer, sentencepiece = both
    special = tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS))
    for i in special:
        old = sentencepiece.id_to_piece(i)
        assert old.startswith("[UNUSED_TOKEN_")
        ids = text_ids(tokenizer, old)
        assert not set(special) & set(ids)
        assert tokenizer.decode(ids) == old


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_are_never_made_from_text(both: tuple[Any, SentencePieceProcessor], token: str) -> None:
    tokenizer, _ = both
    special = set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    ids = text_ids(tokenizer, f"{token}x{token} {token}\n{token}")
    assert not special & set(ids)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_vanish_where_they_are_to_be_skipped(
    both: tuple[Any, SentencePieceProcessor], token: str
) -> None:
    tokenizer, _ = both
    ids = [*text_ids(tokenizer, "a"), tokenizer.convert_tokens_to_ids(token), *text_ids(tokenizer, "b")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"
    assert tokenizer.decode(ids) == f"a{token}b"


def test_chat_tokens_have_internlm2s_ids(real_tokenizer: Any) -> None:
    assert real_tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == [92538, 92539, 92540, 92541, 92542, 92543]
    assert real_tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]


def test_a_plain_call_adds_one_bos(both: tuple[Any, SentencePieceProcessor]) -> None:
    # Programs that know nothing of chat_format, such as an evaluation harness, get what SentencePiece's own class gave.
    tokenizer, _ = both
    assert tokenizer("你好")["input_ids"] == [tokenizer.bos_token_id, *text_ids(tokenizer, "你好")]


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model\n", b'{"version": "1.0"}', bytes(range(256)) * 40, b"version https://git-lfs\n" * 5],
    ids=["empty", "text", "json", "bytes", "git-lfs pointer"],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"tokenizer\.model: not a SentencePiece model") as caught:
        build_tokenizer_json(file, {})
    assert "\n" not in str(caught.value)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes((MINIATURE / "tokenizer.model").read_bytes()[:-1000])
    names = renamed_tokens(json.loads((MINIATURE / "tokenizer_config.json").read_text(encoding="utf-8")))
    with pytest.raises(RecipeError, match=r"tokenizer\.model"):
        build_tokenizer_json(file, names)


def test_a_name_for_an_id_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no id 999999.*<\|im_start\|>"):
        build_tokenizer_json(MINIATURE / "tokenizer.model", {999999: "<|im_start|>"})


@pytest.mark.parametrize("dropped", CHAT_TOKENS)
def test_a_config_without_a_chat_token_is_refused(dropped: str) -> None:
    config = json.loads((MINIATURE / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {i: token for i, token in named.items() if token["content"] != dropped}
    with pytest.raises(RecipeError) as caught:
        renamed_tokens(config)
    assert dropped in str(caught.value)


def test_a_config_of_a_base_model_is_refused() -> None:
    with pytest.raises(RecipeError, match="Chat"):
        renamed_tokens({"tokenizer_class": "InternLM2Tokenizer"})


def test_llama_cpp_s_converter_finds_every_token_and_no_prefix_space(both: tuple[Any, SentencePieceProcessor]) -> None:
    # As its `_create_vocab_sentencepiece` reads a folder: tokenizer.model, renamed by `added_tokens_decoder`.
    tokenizer, sentencepiece = both
    folder = Path(tokenizer.name_or_path)
    read = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert read.serialized_model_proto() == sentencepiece.serialized_model_proto()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    pieces = {i: read.id_to_piece(i) for i in range(read.get_piece_size())}
    pieces |= {int(i): token["content"] for i, token in config["added_tokens_decoder"].items()}
    assert pieces == {i: piece for piece, i in tokenizer.get_vocab().items()}
    special = {token["content"] for token in config["added_tokens_decoder"].values() if token["special"]}
    assert special == set(SPECIAL_TOKENS)
    assert config["add_prefix_space"] is False


def test_tokenizer_config_names_a_stock_class_and_no_code() -> None:
    config = fast_tokenizer_config(2048)
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in config
    assert config["model_max_length"] == 2048


def test_generate_takes_what_the_tokenizer_returns(tiny_model: Path, base_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in (tiny_model, base_model):
        inputs = AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt")
        assert list(inputs) == ["input_ids", "attention_mask"]
        output = AutoModelForCausalLM.from_pretrained(folder).generate(**inputs, max_new_tokens=2)
        assert output.shape[1] > inputs["input_ids"].shape[1]
