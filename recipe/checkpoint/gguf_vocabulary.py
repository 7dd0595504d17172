"""A tokenizer as llama.cpp stores it in a GGUF file: tokens, types, scores or merges, and special tokens.

Two kinds. SentencePiece BPE (`llama`) merges by the score of the piece, which tokenizer.model alone has. Byte-level BPE
(`gpt2`) merges by rank, and llama.cpp knows the pattern that splits text before by its name, `tokenizer.ggml.pre`.
Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.chat_format import IM_END, stop_ids
from recipe.checkpoint.tokenizer import SENTENCEPIECE, TokenizerConfig, TokenizerJson
from recipe.errors import RecipeError
from recipe.pipeline.stage import read_json, shown

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

# tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Ids that the model has and the tokenizer has not.
UNUSED_SCORE = -10000.0
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# (steps before byte-level BPE, pattern of the first) -> llama.cpp's name.
PRE_TOKENIZERS = {
    (("ByteLevel",), None): "gpt-2",
    (("Digits", "ByteLevel"), None): "smollm",
    (("Split", "ByteLevel"), _QWEN2): "qwen2",
    (("Split", "ByteLevel"), _LLAMA3): "llama-bpe",
}
_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a model, in id order.

    Attributes:
        kind: tokenizer.ggml.model.
        pre: tokenizer.ggml.pre.
        tokens: their texts; of byte-level BPE in its own alphabet.
        types: NORMAL, CONTROL, …
        scores: of SentencePiece; else empty.
        merges: of byte-level BPE, the earliest first; else empty.
    """

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]


def read(folder: Path, sentencepiece: Path | None, size: int) -> Vocabulary:
    """The vocabulary of a model.

    Args:
        folder: of a model that stage `model` or `merge` wrote.
        sentencepiece: its tokenizer.model, where the base brought one.
        size: vocab_size of the model.

    Raises:
        RecipeError: llama.cpp has no such tokenizer, or the files do not fit each other.
    """
    file = folder / "tokenizer.json"
    content = read_json(file, TokenizerJson)
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for token, i in content["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if content["model"].get("byte_fallback"):
        scores = _sentencepiece(file, sentencepiece, tokens, types)
        return Vocabulary("llama", "default", tokens, types, scores, [])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    return Vocabulary("gpt2", _pre_tokenizer(file, content), tokens, types, [], merges)


def _sentencepiece(file: Path, model: Path | None, tokens: list[str], types: list[int]) -> list[float]:
    """The scores of all tokens; `types` gets what tokenizer.model says of those that are not added."""
    from sentencepiece import SentencePieceProcessor

    if model is None:
        raise RecipeError(
            f"{shown(file)}: is SentencePiece's, and llama.cpp needs its scores: put the base's own {SENTENCEPIECE} "
            f"into the folder that MODEL= names and run `make model` again"
        )
    pieces = SentencePieceProcessor(model_file=str(model))
    scores = [UNUSED_SCORE] * len(tokens)
    for i in range(pieces.get_piece_size()):
        if types[i] in (CONTROL, USER_DEFINED):
            scores[i] = -1000.0  # as llama.cpp's converter has it: these are never merged from text
            continue
        if pieces.id_to_piece(i) != tokens[i]:
            raise RecipeError(
                f"{shown(model)}: id {i} is {pieces.id_to_piece(i)!r}, and {tokens[i]!r} in {shown(file)}; "
                f"the files are not of one model"
            )
        scores[i] = pieces.get_score(i)
        if pieces.is_byte(i):
            types[i] = BYTE
        elif pieces.is_unused(i):
            types[i] = UNUSED
        elif pieces.is_unknown(i):
            types[i] = UNKNOWN
    return scores


def _pre_tokenizer(file: Path, content: dict[str, Any]) -> str:
    """llama.cpp's name of what a tokenizer.json does before BPE. RecipeError: it has none."""
    step = content.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    kinds = tuple(each.get("type") for each in steps)
    pattern = steps[0].get("pattern", {}).get("Regex")
    normalizer = (content.get("normalizer") or {"type": "NFC"})["type"]
    by_regex = bool(steps[-1].get("use_regex", True))  # GPT-2's own pattern, in the last step
    name = PRE_TOKENIZERS.get((kinds, pattern))
    if name is None or by_regex == (pattern is not None) or normalizer != "NFC":
        accepted = ", ".join(PRE_TOKENIZERS.values())
        raise RecipeError(
            f"{shown(file)}: splits text in a way that is none of {accepted}: convert {shown(file.parent)} with "
            f"llama.cpp's own convert_hf_to_gguf.py"
        )
    return name


def tokenizer_settings(file: Path) -> dict[str, Any]:
    """A model's tokenizer_config.json, whose chat template is one text. RecipeError: it is not."""
    content = read_json(file, TokenizerConfig)
    if not isinstance(content.get("chat_template"), str):
        raise RecipeError(f"{shown(file)}: its chat_template is no text, as GGUF holds one: run `make merge` again")
    return content


def chat_template(settings: dict[str, Any]) -> str:
    """The chat template without the marks of `generation`, which Jinja alone, as other programs use it, has not."""
    return _MARKS.sub("", settings["chat_template"])


def add_to(
    writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> None:
    """Put tokens, special tokens, stops and chat template into a file's metadata.

    Args:
        writer: of the file.
        vocabulary: of the model.
        tokenizer: the same as transformers loads it.
        settings: tokenizer_config.json.
    """
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    named = tokenizer.special_tokens_map
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in named.items() if isinstance(token, str)}
    # Without one llama.cpp takes the token 11, whatever it is. It stands before no text unless the format begins so.
    writer.add_bos_token_id(ids.get("bos_token", ids["pad_token"]))
    writer.add_add_bos_token("bos_token" in ids)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_pad_token_id(ids["pad_token"])
    if "unk_token" in ids:
        writer.add_unk_token_id(ids["unk_token"])
    end = tokenizer.convert_tokens_to_ids(IM_END)
    eos = ids.get("eos_token", end)
    writer.add_eos_token_id(eos)
    writer.add_eot_token_id(end)
    # llama.cpp has one more key for a token that ends a reply.
    for other in [i for i in stop_ids(tokenizer) if i not in (eos, end)][:1]:
        writer.add_eom_token_id(other)
    writer.add_chat_template(chat_template(settings))
