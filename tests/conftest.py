"""The smallest things that are still real: a two-layer InternLM2 repository of random weights, and what is made of
it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from local_server import free_port

from recipe.library_logging import quieten
from recipe.paths import MINIATURE, ROOT

HERE = Path(__file__).parent
# Folders of tests that run only where their marker is named, and why.
OPTIONAL = {
    "browser": "starts a browser: run `make test-browser`",
    "faults": "takes minutes: run `make test-faults`",
    "image": "builds images: run `make test-image`",
    "real": "downloads 93 MB and takes minutes: run `make test-real`",
}

quieten()
# The same examples in every run, so that a change is to blame when one fails; no time limit, since the first call
# imports torch.
settings.register_profile("recipe", deadline=None, database=None, derandomize=True)
settings.load_profile("recipe")


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    # A shell has what it starts with `&` ignore Ctrl-C, and so would every process that a test starts and then stops.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of a folder in OPTIONAL, and skip them unless `-m` names it."""
    chosen = (config.getoption("-m") or "").split()
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in OPTIONAL:
            item.add_marker(folder)
            if folder not in chosen:
                item.add_marker(pytest.mark.skip(reason=OPTIONAL[folder]))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The test process keeps its own answers to SIGTERM and SIGHUP, which main() sets."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def tiny_internlm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository in InternLM2's format: 2 layers, hidden 16, 4 heads on 2 key-value heads, random float16."""
    import torch
    from safetensors.torch import save_file

    from recipe.checkpoint.internlm2_llama import Shape

    folder = tmp_path_factory.mktemp("tiny") / "internlm2"
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(MINIATURE / name, folder / name)
    config: dict[str, Any] = json.loads((MINIATURE / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
               "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (0.2 * torch.randn(shape, generator=generator) + (1.0 if len(shape) == 1 else 0.0)).half()
        for name, shape in Shape.of(config).internlm2().items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_internlm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after stage `model`: the Llama layout, with tokenizer.json."""
    from recipe.stages import model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.make(folder, model=str(tiny_internlm2))
    return folder


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def base_repository(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of another family as its publisher has it: tied, with a byte-level tokenizer, no BOS."""
    import small_bases

    return small_bases.write(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.fixture(scope="session")
def base_model(base_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model after stage `model`."""
    from recipe.stages import model

    folder = tmp_path_factory.mktemp("models") / base_repository.name
    model.make(folder, model=str(base_repository))
    return folder


@pytest.fixture(scope="session")
def base_tokenizer(base_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model)


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def sentencepiece_file() -> Path:
    """The SentencePiece model that the whole InternLM2 family shares; it is not part of this repository."""
    file = ROOT.parent / "shared" / "tokenizer" / "tokenizer.model"
    if not file.is_file():
        pytest.skip(
            "InternLM2's own tokenizer.model is not part of this repository: "
            "fetch it from internlm/internlm2-chat-1_8b to ../shared/tokenizer/tokenizer.model"
        )
    return file


@pytest.fixture(scope="session")
def real_tokenizer(sentencepiece_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of InternLM2-Chat-1.8B: what stage `model` makes of the model's own files."""
    from transformers import AutoTokenizer

    from recipe.chat_format import CHAT_TOKENS
    from recipe.stages import model

    names = {0: "<unk>", 1: "<s>", 2: "</s>"} | dict(enumerate(CHAT_TOKENS, 92538))
    source, folder = tmp_path_factory.mktemp("real_source"), tmp_path_factory.mktemp("real_tokenizer")
    shutil.copyfile(sentencepiece_file, source / "tokenizer.model")
    own = {"added_tokens_decoder": {i: {"content": name} for i, name in names.items()}}
    (source / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    model._convert_tokenizer(source, folder, {"max_position_embeddings": 32768, "vocab_size": 92544})
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def lora_config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resolved XTuner config that trains LoRA of rank 4 on the tiny model."""
    from recipe.stages import config
    from recipe.training.without_gpu import for_cpu

    resolved = config.load_preset("lora")
    config.fill(resolved, model=tiny_model, files=[], seed=0)
    for_cpu(resolved)
    config.override(resolved, ["r=4", "lora_alpha=8"])
    file = tmp_path_factory.mktemp("config") / "config.py"
    resolved.dump(file)
    return file


@pytest.fixture(scope="session")
def checkpoints(lora_config: Path) -> dict[str, dict[str, Any]]:
    """What XTuner's own model would save after 2 and after 4 steps: its state dict, the zeros of lora_B overwritten."""
    import torch
    from mmengine.config import Config
    from xtuner.registry import BUILDER

    with torch.random.fork_rng():
        torch.manual_seed(0)  # of lora_A, or the tests would depend on their order
        model = BUILDER.build(Config.fromfile(lora_config).model)
    generator = torch.Generator().manual_seed(1)
    states = {}
    for name in ("iter_2", "iter_4"):
        state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
        for key, tensor in state.items():
            if ".lora_B." in key:
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        states[name] = state
    return states


@pytest.fixture(scope="session")
def make_train_folder(lora_config: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a complete folder of stage `train` that holds the checkpoints it is given: file name -> state dict."""

    def make(folder: Path, states: dict[str, dict[str, Any]], *, model: Path = tiny_model) -> Path:
        import torch
        from example_results import example_results

        from recipe.pipeline import stage
        from recipe.stages import train

        def work(out: Path) -> dict[str, Any]:
            shutil.copyfile(lora_config, out / train.CONFIG)
            for name, state in states.items():
                torch.save({"state_dict": state}, out / f"{name}.pth")
            return example_results("train", checkpoints=[f"{name}.pth" for name in states])

        stage.run("train", folder, inputs={"config": lora_config, "model": model}, settings={}, work=work)
        return folder

    return make


@pytest.fixture(scope="session")
def train_folder(
    make_train_folder: Callable[..., Path],
    checkpoints: dict[str, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return make_train_folder(tmp_path_factory.mktemp("run") / "train", checkpoints)


@pytest.fixture(scope="session")
def adapter_folder(train_folder: Path) -> Path:
    """The last checkpoint after stage `convert`."""
    from recipe.stages import convert

    convert.make(train_folder.parent / "adapter", train_folder=train_folder, checkpoint=None)
    return train_folder.parent / "adapter"
