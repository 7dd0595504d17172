"""tokenizer.model -> tokenizer.json: the same ids without any Python from a model hub.

InternLM2's tokenizer is SentencePiece BPE with byte fallback, an identity normaliser and no dummy prefix;
tokenizer_config.json renames its last entries to the chat tokens. transformers' converter for Llama does the rest.

transformers reads tokenizer.json. llama.cpp's converter reads tokenizer.model, renames its entries by
`added_tokens_decoder`, and puts a space before a text unless `add_prefix_space` is false. A folder for both holds all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.chat_format import BOS, CHAT_TEMPLATE, CHAT_TOKENS, EOS, SPECIAL_TOKENS
from recipe.errors import RecipeError
from recipe.pipeline.phases import phase
from recipe.records import ShapeError

# What `model.generate(**tokenizer(text))` passes on: no token_type_ids, which such models refuse.
MODEL_INPUT_NAMES = ["input_ids", "attention_mask"]
SENTENCEPIECE = "tokenizer.model"
# Where earlier versions put it, out of llama.cpp's sight.
OLDER_SENTENCEPIECE = "sentencepiece/tokenizer.model"


@dataclass(frozen=True)
class Token:
    """A token of tokenizer_config.json or tokenizer.json, as far as it is read here."""

    content: str


@dataclass(frozen=True)
class AddedToken:
    """A token in `added_tokens` of tokenizer.json."""

    id: int
    content: str
    special: bool = False


@dataclass(frozen=True)
class Template:
    """One of several chat templates."""

    name: str
    template: str


@dataclass(frozen=True)
class TokenizerConfig:
    """The keys of tokenizer_config.json, or of special_tokens_map.json, that are read here, with their types."""

    bos_token: str | Token | None = None
    eos_token: str | Token | None = None
    unk_token: str | Token | None = None
    pad_token: str | Token | None = None
    additional_special_tokens: list[str | Token] | None = None
    added_tokens_decoder: dict[str, Token] | None = None
    chat_template: str | list[Template] | None = None

    def __post_init__(self) -> None:
        for key in self.added_tokens_decoder or ():
            if not re.fullmatch(r"\d{1,9}", key, re.ASCII):
                raise ShapeError(f"has the key {key[:40]!r} in added_tokens_decoder, not a token id")


@dataclass(frozen=True)
class TokenizerModel:
    """`model` of tokenizer.json. A vocabulary is an object in BPE and WordPiece, and a list in Unigram."""

    vocab: dict[str, int] | list[Any] | None = None
    merges: list[Any] | None = None
    byte_fallback: bool | None = None


@dataclass(frozen=True)
class TokenizerJson:
    """The keys of tokenizer.json that are read here, with their types."""

    model: TokenizerModel | None = None
    added_tokens: list[AddedToken] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None


def build_tokenizer_json(model_file: Path, names: dict[int, str]) -> dict[str, Any]:
    """The content of tokenizer.json for the SentencePiece model in `model_file`.

    `names`: id -> the name that tokenizer_config.json gives it. An entry is renamed, not added, so that its old name
    ("[UNUSED_TOKEN_146]") is ordinary text afterwards.
    """
    with phase("import"):
        from transformers import LlamaTokenizer
        from transformers.convert_slow_tokenizer import LlamaConverter

    try:
        slow = LlamaTokenizer(vocab_file=str(model_file), legacy=True, add_prefix_space=False)
        fast = json.loads(LlamaConverter(slow).converted().to_str())
    except Exception as error:  # SentencePiece and protobuf raise their own and each other's
        raise RecipeError(f"{model_file}: not a SentencePiece model ({error}); download the file again") from error
    pieces = {i: piece for piece, i in fast["model"]["vocab"].items()}
    for i, name in names.items():
        if i not in pieces:
            raise RecipeError(f"{model_file}: has no id {i}, which tokenizer_config.json calls {name}")
        pieces[i] = name
    fast["model"]["vocab"] = {piece: i for i, piece in sorted(pieces.items())}
    # The converter also makes merges that build "<s>" out of its letters; SentencePiece never does.
    fast["model"]["merges"] = [merge for merge in fast["model"]["merges"] if "".join(merge) not in SPECIAL_TOKENS]
    for token in fast["added_tokens"]:
        token["content"] = pieces[token["id"]]
        token["special"] = token["content"] in SPECIAL_TOKENS
        token["normalized"] = False
    added_ids = {token["id"] for token in fast["added_tokens"]}
    for i, piece in sorted(pieces.items()):
        if piece in SPECIAL_TOKENS and i not in added_ids:
            fast["added_tokens"].append(
                {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}
            )  # fmt: skip
    fast["added_tokens"].sort(key=lambda token: token["id"])
    bos = next(i for i, piece in pieces.items() if piece == BOS)
    fast["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos], "tokens": [BOS]}},
    }  # fmt: skip
    return fast


def renamed_tokens(tokenizer_config: dict[str, Any]) -> dict[int, str]:
    """id -> name of the tokens that tokenizer_config.json renames (`added_tokens_decoder`)."""
    names = {int(i): token["content"] for i, token in (tokenizer_config.get("added_tokens_decoder") or {}).items()}
    missing = [token for token in CHAT_TOKENS if token not in names.values()]
    if missing:
        raise RecipeError(
            f"tokenizer_config.json: added_tokens_decoder lacks {', '.join(missing)}; is this InternLM2-*Chat*-1.8B?"
        )
    return names


def sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece model in a folder that stage `model` wrote, also an earlier version of it, or None."""
    return next((folder / name for name in (SENTENCEPIECE, OLDER_SENTENCEPIECE) if (folder / name).is_file()), None)


def added_tokens_decoder(tokenizer_json: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder` of tokenizer_config.json: id -> name and flags of every added token of tokenizer.json."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in tokenizer_json.get("added_tokens") or ()
    }


def is_internlm2s(tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json, read as a `TokenizerConfig`, is InternLM2's, by its chat tokens."""
    tokens = tokenizer_config.get("additional_special_tokens") or ()
    return set(CHAT_TOKENS) <= {each["content"] if isinstance(each, dict) else each for each in tokens}


def fast_tokenizer_config(max_length: int) -> dict[str, Any]:
    """tokenizer_config.json for the converted tokenizer: a stock class, the chat template, no Python."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": "<unk>",
        "pad_token": EOS,
        "additional_special_tokens": list(CHAT_TOKENS),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": MODEL_INPUT_NAMES,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE,
    }
