"""The tokenizer of a ChatML base in the Llama or Qwen2 layout: checked, and written so that every tool reads it alike.

tokenizer.json stays as it is, and tokenizer.model goes along where the base has both. tokenizer_config.json is written
anew: a stock class, so that tokenizer.json alone decides what text becomes; a chat template without a default system
prompt; bos_token only where the base's format begins with one; a pad_token that is no part of the format. All follow
the base's own files, and the result is compared with the base's own chat template and with the ids of the template's
text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe import files
from recipe.chat_format import (
    CHAT_TEMPLATE,
    CHAT_TEMPLATE_WITHOUT_BOS,
    IM_END,
    IM_START,
    STOP_TOKENS,
    assistant,
    prompt_ids,
    stop_ids,
    user,
)
from recipe.checkpoint.tokenizer import (
    MODEL_INPUT_NAMES,
    SENTENCEPIECE,
    TokenizerConfig,
    TokenizerJson,
    added_tokens_decoder,
)
from recipe.errors import RecipeError
from recipe.panics import panics_as_errors
from recipe.pipeline.stage import read_json, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER, SETTINGS, MAP, TEMPLATE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# A conversation with every role, in two languages, that ends where the model is asked.
PROBE = (
    {"role": "system", "content": "Be brief. 用中文回答。"},
    user("Hello, who are you? 1+1=2"),
    assistant("我是一个AI助手。"),
    user("def f(x):\n    return x  # 谢谢"),
)


@dataclass(frozen=True)
class GenerationConfig:
    """The keys of generation_config.json that are read here, with their types."""

    eos_token_id: int | list[int] | None = None


def write(folder: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write tokenizer.json and tokenizer_config.json of the model in `folder` to `out`.

    Args:
        config: the model's config.json.

    Returns:
        generation_config.json for this tokenizer: greedy, with its own ids.

    Raises:
        RecipeError: the tokenizer is incomplete, has no chat tokens, or its chat format is not ChatML.
    """
    for name in (TOKENIZER, SETTINGS):
        if not (folder / name).is_file():
            raise RecipeError(f"{shown(folder / name)}: missing; is the model folder complete?")
    content, own = read_json(folder / TOKENIZER, TokenizerJson), _own_settings(folder)
    _check_vocabulary(folder, content, own, config["vocab_size"])
    shutil.copyfile(folder / TOKENIZER, out / TOKENIZER)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: own[key] for key in (*NAMED, "additional_special_tokens", "added_tokens_decoder") if own.get(key)},
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": MODEL_INPUT_NAMES,
        "model_max_length": config["max_position_embeddings"],
    }
    if (content.get("model") or {}).get("byte_fallback") and (folder / SENTENCEPIECE).is_file():
        shutil.copyfile(folder / SENTENCEPIECE, out / SENTENCEPIECE)
        named = added_tokens_decoder(content) | (own.get("added_tokens_decoder") or {})
        settings |= {"added_tokens_decoder": named, "add_prefix_space": False}
    tokenizer = _load(folder, out, settings)
    template = _own_template(folder, own, tokenizer)
    if not _begins_with_bos(tokenizer, template):
        settings.pop("bos_token", None)
    settings["pad_token"] = _pad_token(folder, tokenizer)
    if stops := _other_stops(folder, config, tokenizer):
        settings[STOP_TOKENS] = stops
    settings["chat_template"] = CHAT_TEMPLATE if "bos_token" in settings else CHAT_TEMPLATE_WITHOUT_BOS
    tokenizer = _load(folder, out, settings)
    _check_format(folder, tokenizer, template)
    return generation_config(tokenizer)


def generation_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """generation_config.json: greedy, with the tokenizer's own ids."""
    bos = {"bos_token_id": tokenizer.bos_token_id} if tokenizer.special_tokens_map.get("bos_token") else {}
    eos = sorted(stop_ids(tokenizer))
    return {**bos, "eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}


def _text(token: Any) -> str | None:
    """A token of tokenizer_config.json, which is text, an object with its text, or null."""
    return token.get("content") if isinstance(token, dict) else token


def _own_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens that older folders name in special_tokens_map.json alone."""
    own = read_json(folder / SETTINGS, TokenizerConfig)
    older = read_json(folder / MAP, TokenizerConfig) if (folder / MAP).is_file() else {}
    own |= {key: token for key in NAMED if (token := _text(own.get(key) or older.get(key)))}
    own["additional_special_tokens"] = [
        _text(token) for token in own.get("additional_special_tokens") or older.get("additional_special_tokens") or []
    ]
    return own


def _check_vocabulary(folder: Path, content: dict[str, Any], own: dict[str, Any], size: int) -> None:
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    added |= {token["content"]: int(i) for i, token in (own.get("added_tokens_decoder") or {}).items()}
    if missing := [token for token in (IM_START, IM_END) if token not in added]:
        raise RecipeError(
            f"{shown(folder / TOKENIZER)}: has no token {missing[0]}; is this a chat model whose format is ChatML?"
        )
    vocabulary = (content.get("model") or {}).get("vocab")
    if (last := max([*added.values(), *(vocabulary.values() if isinstance(vocabulary, dict) else ())])) >= size:
        raise RecipeError(f"{shown(folder)}: token id {last} is beyond vocab_size {size}")


def _load(folder: Path, out: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder` with other settings, as everyone will load it from `out`."""
    from transformers import AutoTokenizer

    files.write_json(out / SETTINGS, settings)
    try:
        with panics_as_errors():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                out, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises a bare Exception for what it cannot read
        raise RecipeError(f"{shown(folder / TOKENIZER)}: cannot be read ({_line(error)}); fetch it again") from error
    return tokenizer


def _line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]


def _own_template(folder: Path, own: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the base's own chat template makes of `PROBE`; None where the base brings none."""
    template = own.get("chat_template")
    if (folder / TEMPLATE).is_file():
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    if not template:
        return None
    try:
        return _rendered(tokenizer, template)
    except Exception as error:  # a template may raise anything, and the library has errors of its own
        raise RecipeError(
            f"{shown(folder)}: its chat template fails on an ordinary conversation ({_line(error)})"
        ) from error


def _rendered(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """`PROBE` as text, by a template or the tokenizer's own."""
    text: str = tokenizer.apply_chat_template(
        list(PROBE), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return text


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    """Whether a conversation begins with the BOS: by the base's own chat template or, without one, as any text."""
    bos = tokenizer.special_tokens_map.get("bos_token")
    if not bos or bos == IM_START:  # SmolLM2 calls the latter its BOS
        return False
    if template is not None:
        return template.startswith(bos)
    return tokenizer("a")["input_ids"][:1] == tokenizer.convert_tokens_to_ids([bos])


def _pad_token(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The base's own, unless a reply would be trained to end with it: SmolLM2 pads with `<|im_end|>`."""
    own = tokenizer.special_tokens_map
    named = (own.get(key) for key in ("pad_token", "eos_token", "unk_token", "bos_token"))
    for token in (*named, *tokenizer.all_special_tokens):
        if token and token not in (IM_START, IM_END):
            return str(token)
    raise RecipeError(f"{shown(folder / SETTINGS)}: has no special token for padding; name one as pad_token")


def _other_stops(folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The base's own stop tokens beside `<|im_end|>` and eos_token, where transformers reads them too."""
    file = folder / "generation_config.json"
    source = file if file.is_file() else folder / "config.json"
    eos = (read_json(file, GenerationConfig) if file.is_file() else config).get("eos_token_id")
    ids: Iterable[Any] = eos if isinstance(eos, list) else [eos] if eos is not None else []
    stops = []
    for i in ids:
        if i not in tokenizer.added_tokens_decoder:
            raise RecipeError(f"{shown(source)}: eos_token_id {i} is no special token of {TOKENIZER}; correct it")
        stops.append(tokenizer.added_tokens_decoder[i].content)
    always = (IM_END, tokenizer.special_tokens_map.get("eos_token"))
    return [token for token in dict.fromkeys(stops) if token not in always]


def _check_format(folder: Path, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """RecipeError unless the base's own template, ours, and `chat_format` mean the same."""
    text = _rendered(tokenizer, None)
    if template is not None and template != text:
        at = next((i for i, (a, b) in enumerate(zip(template, text, strict=False)) if a != b), len(text))
        raise RecipeError(
            f"{shown(folder)}: its chat template is not ChatML: it writes {json.dumps(template[at : at + 40])} where "
            f"ChatML has {json.dumps(text[at : at + 40])}"
        )
    if tokenizer(text, add_special_tokens=False)["input_ids"] != prompt_ids(tokenizer, PROBE):
        raise RecipeError(
            f"{shown(folder / TOKENIZER)}: reads a turn's text differently by itself than after {IM_START}; "
            "is it a byte-level tokenizer, or one without a prefix space?"
        )
