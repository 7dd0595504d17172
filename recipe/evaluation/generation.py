"""Replies: one way to load a model and to let it speak, for replay, evaluation, sampling while training, and chat."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.chat_format import Message, prompt_ids, stop_ids
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prompts answered together. On two CPU cores larger batches gain nothing; on a GPU 64 is past the knee for short
# replies.
BATCH = 64


@dataclass(frozen=True)
class Reply:
    """text: without special tokens. stopped: the model ended it; False where it ran into the length limit."""

    text: str
    stopped: bool


def load(folder: Path, adapter: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in `folder`, on the GPU in its own precision or on the CPU in float32, and its tokenizer.

    adapter: a PEFT folder to put on it. Nothing is fetched, and no Python from the folder is run.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise RecipeError(f"{shown(folder)}: holds no model (no config.json); run `make model`, or `make merge`, first")
    gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if gpu else torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"{shown(folder)}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        from peft import PeftModel

        if not (adapter / "adapter_config.json").is_file():
            raise RecipeError(f"{shown(adapter)}: holds no adapter (no adapter_config.json); run `make convert` first")
        model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    model = model.to("cuda" if gpu else "cpu").eval()
    return model, tokenizer


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    progress: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[Reply]:
    """The reply to each conversation, in order. progress: a label for a progress bar on stderr.

    temperature 0: greedy; above, sampled from the likeliest words that make up `top_p`, the same for the same seed and
    batches.
    """
    import torch
    from tqdm import tqdm

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    stops = stop_ids(tokenizer)
    replies: list[Reply | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bar = tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None, leave=False)
    with torch.inference_mode(), torch.random.fork_rng(enabled=temperature > 0), bar:
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=_generation(stops, tokenizer.pad_token_id, max_new_tokens, **sampling),
            )
            for row, i in enumerate(chosen):
                replies[i] = _reply(tokenizer, output[row, width:].tolist(), stops)
            bar.update(len(chosen))
    return [reply for reply in replies if reply is not None]


def _generation(stops: list[int], pad: int | None, max_new_tokens: int, **sampling: Any) -> Any:
    from transformers import GenerationConfig

    sampling = sampling or {"do_sample": False}
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad, **sampling)


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: list[int]) -> Reply:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return Reply(tokenizer.decode(ids[:end], skip_special_tokens=True), end is not None)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in inference mode, its key-value cache on, and back as it was."""
    training, cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        yield
    finally:
        model.train(training)
        model.config.use_cache = cache
