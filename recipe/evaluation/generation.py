"""Loads a model, and generates whole replies to many prompts: for replay, evaluation, and scores while training.

The engine generates: see recipe/engine/batch. What the engine does not compute goes to transformers' `generate`: the
shards of ZeRO-3, adapters other than plain LoRA, other quantisations, and base weights that are trained themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from recipe.chat_format import Message, ids_of_texts, prompt_ids, stop_ids
from recipe.checkpoint import precision
from recipe.checkpoint.finite import refuse_not_finite
from recipe.checkpoint.loaded_adapter import ADAPTER, put_on
from recipe.checkpoint.loaded_tokenizer import load_tokenizer
from recipe.engine.batch import BatchGenerator
from recipe.engine.reply import Sampling
from recipe.errors import RecipeError
from recipe.evaluation import by_transformers
from recipe.panics import panics_as_errors
from recipe.pipeline import results, stage
from recipe.pipeline.heartbeat import heartbeat
from recipe.pipeline.phases import phase
from recipe.pipeline.stage import shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe.engine.batch import Likeliest

# The remedy of `gpu_failures` where a verb has no other.
FREE_THE_GPU = "`nvidia-smi` shows what fills it; CUDA_VISIBLE_DEVICES= before the command leaves it to the CPU"


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        text: without special tokens.
        stopped: whether the model ended it; False where it reached the length limit.
        likeliest: what the model held likeliest at each token; None where nobody asked, or transformers generated.
    """

    text: str
    stopped: bool
    likeliest: Likeliest | None = field(default=None, compare=False)


def load(
    folder: Path, adapter: Path | None = None, *, dtype: torch.dtype | None = None, device: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference. Nothing is fetched, and no Python from the folder is run.

    Args:
        folder: of the model.
        adapter: a PEFT folder to put on it.
        dtype: to compute in; None for the model's own on the GPU and `precision.on_cpu` on the CPU.
        device: one of `device.DEVICES`, checked by `device.check_device`.

    Returns:
        The model on the device, its weights frozen, and its tokenizer.

    Raises:
        RecipeError: a folder holds no model or no adapter, is not what its stage wrote, or cannot be loaded; or the
            adapter was made on another base.
    """
    if not (folder / "config.json").is_file():
        raise RecipeError(f"{shown(folder)}: holds no model (no config.json); run `make model`, or `make merge`, first")
    with heartbeat("load", shown(folder)):
        return _loaded(folder, adapter, dtype, device)


def _loaded(folder: Path, adapter: Path | None, dtype: torch.dtype | None, device: str) -> tuple[Any, Any]:
    """What `load` returns, after its checks of the folder."""
    with phase("import"):
        import torch
        from transformers import AutoModelForCausalLM

    _refuse_changed(folder, adapter)
    _refuse_other_shapes(folder)
    release()
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    try:
        with phase("load"), panics_as_errors():
            tokenizer = load_tokenizer(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or ("auto" if gpu else precision.on_cpu(folder)),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                device_map={"": "cuda"} if gpu else None,  # from the file to the GPU, and cast there
            )
    except (RecipeError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own, also a bare Exception
        reason = (str(error) or repr(error)).splitlines()[0]
        raise RecipeError(f"{shown(folder)}: cannot be loaded: {reason}") from error
    if adapter is not None:
        model = put_on(model, adapter)
    with phase("load"):
        model = model.to("cuda" if gpu else "cpu").eval().requires_grad_(False)  # the adapter, too
        refuse_not_finite(model.named_parameters(), adapter or folder)
    return model, tokenizer


@contextlib.contextmanager
def gpu_failures(what: str, remedy: str) -> Iterator[None]:
    """A context in which the GPU's errors, most often for lack of memory, are a RecipeError of one line.

    Args:
        what: cannot be done there.
        remedy: what to do instead.
    """
    try:
        yield
    except RuntimeError as error:  # also torch's OutOfMemoryError
        if "CUDA" not in str(error):
            raise
        raise RecipeError(f"{what}: {str(error).strip().splitlines()[0]}; {remedy}") from error


def _refuse_other_shapes(folder: Path) -> None:
    """RecipeError where a description in a model's folder has another shape, or sizes that no model has."""
    from recipe.checkpoint.base_config import check_sizes
    from recipe.checkpoint.chat_tokenizer import MAP, SETTINGS, GenerationConfig
    from recipe.checkpoint.tokenizer import TokenizerConfig

    shapes = {SETTINGS: TokenizerConfig, MAP: TokenizerConfig, "generation_config.json": GenerationConfig}
    for name, shape in shapes.items():
        if (folder / name).is_file():
            stage.read_json(folder / name, shape)
    try:
        check_sizes(stage.read_json(folder / "config.json"))
    except ValueError as error:
        raise RecipeError(f"{shown(folder / 'config.json')}: {error}; download the file again") from None


def _refuse_changed(folder: Path, adapter: Path | None) -> None:
    """RecipeError where a folder is not what its stage wrote, or the adapter is no LoRA of the base in `folder`."""
    from recipe.checkpoint.lora import AdapterConfig, refuse_more_than_lora
    from recipe.checkpoint.repository_files import refuse_programs

    refuse_programs(folder)
    if manifest := stage.read_manifest(folder):
        stage.refuse_changed(folder, manifest)
    if adapter is None:
        return
    if not (adapter / "adapter_config.json").is_file():
        raise RecipeError(f"{shown(adapter)}: holds no adapter (no adapter_config.json); run `make convert` first")
    settings = stage.read_json(adapter / "adapter_config.json")
    if settings.get("megatron_config"):  # PEFT would import what it names
        raise RecipeError(f"{shown(adapter)}: is an adapter for Megatron, which is not loaded here")
    refuse_more_than_lora(settings, adapter)
    stage.read_json(adapter / "adapter_config.json", AdapterConfig)
    if not (adapter / ADAPTER).is_file():
        raise RecipeError(f"{shown(adapter / ADAPTER)}: missing; an adapter as a pickle (.bin) is not taken")
    if manifest := stage.read_manifest(adapter):
        stage.refuse_changed(adapter, manifest)
        converted = results.of(manifest, results.ConvertResults)
        if stage.content_sha256(folder) != converted.base_sha256:
            raise RecipeError(
                f"{shown(adapter)} was made on another base than {shown(folder)} holds: load it on {converted.model} "
                f"as it was (`make model`), or run `make train` on this one"
            )


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
    likeliest: int = 0,
) -> list[Reply]:
    """Generate the reply to each conversation.

    The KV cache, and on a GPU the captured steps, stay for the next call on the same model, until `release`.

    Args:
        model, tokenizer: of `load`, or a model in training inside `evaluating`. An adapter is on or off as the model
            has it.
        conversations: each ends with the user's message.
        max_new_tokens: of a reply, at most.
        progress: a label for a progress bar on stderr; None for no bar.
        temperature: 0 is greedy; above, tokens are sampled.
        top_p: from the likeliest tokens that together reach this probability.
        seed: of the sampling; the same seed and conversations give the same replies.
        likeliest: how many of the likeliest tokens to keep for each token of a reply.

    Returns:
        The replies, in the order of the conversations.
    """
    from tqdm import tqdm

    with phase("tokenise"):
        ids_of = ids_of_texts(tokenizer, conversations)
        prompts = [prompt_ids(tokenizer, conversation, ids_of=ids_of) for conversation in conversations]
    stops = stop_ids(tokenizer)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed=seed, logprobs=likeliest or None)
    bar = tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None, leave=False)
    with bar, phase("generate"):
        if not prompts:
            return []
        generator = _generator(model, stops, prompts, sampling)
        if generator is None:
            return _by_transformers(model, tokenizer, prompts, stops, sampling, bar.update)
        try:
            outputs = generator.generate(prompts, sampling, adapted=_adapter_is_on(model), on_end=bar.update)
        except BaseException:
            release()  # sequences that were not finished are still in it
            raise
    return [Reply(_text(tokenizer, output.ids), output.stopped, output.likeliest) for output in outputs]


class _Kept(NamedTuple):
    """A generator that the next call may use.

    Attributes:
        weights: where the model's weights were when it was built.
        generator: of the model; it refers to the weights alone.
    """

    weights: tuple[int, ...]
    generator: BatchGenerator


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()  # model -> its generator


def _generator(
    model: PreTrainedModel, stops: list[int], prompts: Sequence[list[int]], sampling: Sampling
) -> BatchGenerator | None:
    """The model's generator, kept from an earlier call or built now; None where the engine does not compute it."""
    from recipe.engine.weights import refusal

    room = {
        "length": max(map(len, prompts)) + sampling.max_new_tokens,
        "sequences": len(prompts),
        "likeliest": sampling.logprobs or 0,
    }
    if room["length"] > model.config.max_position_embeddings or refusal(model) or _trains_its_base(model):
        return None
    weights, kept = _addresses(model), _kept.get(model)
    if kept and kept.weights == weights and kept.generator.fits(stops, **room):
        return kept.generator
    if kept:
        del kept
        release()
    generator = BatchGenerator(model, stops, **room)
    _kept[model] = _Kept(_addresses(model), generator)  # where building it has put them
    return generator


def _addresses(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(parameter.data_ptr() for parameter in model.parameters())


def _trains_its_base(model: PreTrainedModel) -> bool:
    """Whether a trainer updates the weights that the engine would lay out anew; an adapter's it reads as they are."""
    from recipe.engine.weights import base_of, linear_layers

    layers = base_of(model).model.layers
    return any(
        getattr(module, "base_layer", module).weight.requires_grad
        for layer in layers
        for group in linear_layers(layer)
        for module in group
    )


def _adapter_is_on(model: PreTrainedModel) -> bool:
    """Whether PEFT's `disable_adapter` is not in force."""
    return not any(module.disable_adapters for module in model.modules() if hasattr(module, "lora_A"))


def release(*, as_if_never: bool = False) -> None:
    """Free what `answer` keeps: the KV caches and captured steps of all models.

    Args:
        as_if_never: let a trainer's peak of memory not count them, since they take what happens to be free.
    """
    import torch

    if not _kept:
        return
    _kept.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        if as_if_never:
            torch.cuda.reset_peak_memory_stats()


def _by_transformers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    stops: list[int],
    sampling: Sampling,
    advance: Callable[[int], object],
) -> list[Reply]:
    """What `answer` returns, by `by_transformers.generate`."""
    outputs = by_transformers.generate(model, prompts, stops, tokenizer.pad_token_id, sampling, advance)
    return [Reply(_text(tokenizer, ids), stopped) for ids, stopped in outputs]


@panics_as_errors()
def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A context in which a model in training generates; afterwards the model is as before and the memory is free."""
    training, cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        yield
    finally:
        release(as_if_never=True)
        model.train(training)
        model.config.use_cache = cache
