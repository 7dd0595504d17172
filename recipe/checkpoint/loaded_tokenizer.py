"""The tokenizer of a folder, read once a process: half a second to one for 150,000 tokens, and every stage wants it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.errors import RecipeError
from recipe.panics import panics_as_errors
from recipe.paths import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What AutoTokenizer reads of a folder, as far as it is there.
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
AUTO_TOKENIZER = "transformers.AutoTokenizer.from_pretrained"  # in a config that is written down
# Of a base, its merged model with the same files, and what a config of XTuner wants besides.
KEPT = 4


@dataclass(frozen=True)
class _Folder:
    """A folder, which equals another one of the same files.

    Attributes:
        path: where it is.
        contents: name and sha256 of each of FILES.
    """

    path: Path = field(compare=False)
    contents: tuple[tuple[str, bytes], ...]


def load_tokenizer(folder: Path, **settings: Hashable) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; the same object for folders of the same files, so nobody may change it.

    Nothing is fetched, and no Python from the folder is run.

    Args:
        folder: of a model.
        settings: more arguments of AutoTokenizer.from_pretrained.

    Raises:
        RecipeError: the folder's files are no tokenizer.
    """
    present = [name for name in FILES if (folder / name).is_file()]
    contents = tuple((name, sha256((folder / name).read_bytes()).digest()) for name in present)
    return _load(_Folder(folder, contents), tuple(sorted(settings.items())))


def build_tokenizer(description: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a config of XTuner describes.

    Args:
        description: what to call and its arguments, as XTuner's registry takes them.
    """
    from transformers import AutoTokenizer
    from xtuner.registry import BUILDER

    arguments = dict(description)
    called, folder = arguments.pop("type", None), Path(str(arguments.pop("pretrained_model_name_or_path", "")))
    if (
        called not in (AutoTokenizer.from_pretrained, AUTO_TOKENIZER)
        or not (folder / "tokenizer_config.json").is_file()
    ):
        tokenizer: PreTrainedTokenizerBase = BUILDER.build(description)
        return tokenizer
    arguments.pop("trust_remote_code", None)
    return load_tokenizer(folder, **arguments)


@lru_cache(maxsize=KEPT)
@panics_as_errors()
def _load(folder: _Folder, settings: tuple[tuple[str, Any], ...]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False, **dict(settings)
        )
    except Exception as error:  # the tokenizers library raises a bare Exception for what it cannot read
        reason = (str(error) or repr(error)).splitlines()[0]
        raise RecipeError(
            f"{shown(folder.path)}: its tokenizer cannot be read ({reason}): make or fetch the folder again"
        ) from error
    return tokenizer
