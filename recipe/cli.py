"""`python -m recipe`: one verb a stage. Heavy imports happen in the stages, so that --help answers at once."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.device import check_driver
from recipe.errors import RecipeError
from recipe.library_logging import OFFLINE, quieten
from recipe.paths import ROOT
from recipe.pipeline import choices

FLOW = """\
data ─┐
model ┼─> replay ─> config ─> train ─> convert ─> merge ─> eval ─> report
                                           └────────┴───> chat · demo · api · export

Each verb reads what its predecessors wrote under work/RUN/ and writes one folder there. Run again with the same inputs
it does nothing; with others it does its work again. A run remembers what you chose for it.
每个命令读取上一步在 work/RUN/ 下的结果并写入一个目录；输入不变则不重复工作，输入改变则重新执行。每次运行会记住你的选择。

First time, no GPU needed / 第一次使用（无需 GPU）：
  python -m recipe quickstart --name 小明
"""


# MiB that a card of 16 GB reports at the least; `fast` takes 10 GiB as it stands, and the driver and a desktop want some.
FAST_FROM = 15_000
# Folders under --work that belong to no run.
SHARED = ("models", "hub", "replay")


@dataclass(frozen=True)
class Run:
    """The folders of one run."""

    work: Path
    name: str

    def folder(self, stage: str) -> Path:
        return self.work / self.name / stage

    def model(self, model: str) -> Path:
        from recipe.stages.model import model_name

        return self.work / "models" / model_name(model)

    def replay(self, model: str) -> Path:
        """Of the model, not of the run: runs on the same base share it."""
        from recipe.stages.model import model_name

        return self.work / "replay" / model_name(model)


def _named(run: str) -> str:
    if not re.fullmatch(r"[\w][\w.-]*", run) or run in SHARED:
        raise RecipeError(
            f"RUN={run!r}: a run is named with letters, digits, '-', '_' and '.', and none of {', '.join(SHARED)}"
        )
    return run


def _run(options: argparse.Namespace) -> Run:
    """The run's folders, its earlier choices filled in."""
    run = Run(options.work, _named(options.run))
    default = {"model": "miniature"} if options.verb == "quickstart" else {}
    if options.verb not in ("chat", "speed") and not hasattr(options, "chosen"):
        choices.complete(options, options.work / options.run, **default)
    if getattr(options, "nnodes", 1) > 1:
        os.environ["NNODES"] = str(options.nnodes)  # stages wait for other machines in a folder that they share
    return run


def _data(options: argparse.Namespace) -> None:
    from recipe.corpus.identity import Identity
    from recipe.stages import data

    run = _run(options)
    if options.name is None:
        raise RecipeError("NAME is missing; say whose assistant it is, for example NAME=小明")
    identity = Identity(options.name, options.assistant, options.author)
    data.make(run.folder("data"), identity=identity, mode=options.mode, own=options.data, seed=options.seed)


def _model(options: argparse.Namespace) -> None:
    from recipe.stages import model

    run = _run(options)
    model.make(
        run.model(options.model),
        model=options.model,
        downloads=run.work / "hub",
        source=options.source,
        offline=options.offline or OFFLINE,
    )


def _replay(options: argparse.Namespace) -> None:
    from recipe.pipeline import stage
    from recipe.stages import replay

    run = _run(options)
    made = stage.read_manifest(run.folder("data"))
    if made and made["results"]["mode"] == "tutorial":
        stage.say("replay", "not needed: the tutorial has none")
        return
    replay.make(run.replay(options.model), model=run.model(options.model))


def _config(options: argparse.Namespace) -> None:
    from recipe.stages import config

    if options.list is not None:
        print("\n".join(config.builtin_configs(options.list)))
        return
    if options.copy:
        print(config.copy_builtin(options.copy, options.to))
        return
    run = _run(options)
    config.make(
        run.folder("config"),
        preset=options.preset or default_preset(options.model),
        model=run.model(options.model),
        data_folder=run.folder("data"),
        replay_folder=run.replay(options.model),
        settings=options.set,
        seed=options.seed,
        processes=options.gpus * options.nnodes,
    )


def default_preset(model: str) -> str:
    """The preset for a model that nobody chose one for: the quickest that fits the card."""
    from recipe.device import gpu_memory

    if model == "miniature":
        return "miniature"
    return "fast" if (gpu_memory() or 0) >= FAST_FROM else "qlora"


def _train(options: argparse.Namespace) -> None:
    from recipe.stages import config, train
    from recipe.training.rendezvous import Machines

    run = _run(options)
    machines = Machines(options.gpus, options.nnodes, options.node_rank, options.master_addr, options.master_port)
    (train.join if machines.rank else train.make)(
        run.folder("train"),
        config=options.config or run.folder("config") / config.FILE,
        resume=options.resume,
        deepspeed=options.deepspeed,
        machines=machines,
    )


def _convert(options: argparse.Namespace) -> None:
    from recipe.stages import convert

    run = _run(options)
    convert.make(run.folder("adapter"), train_folder=run.folder("train"), checkpoint=options.checkpoint)


def _merge(options: argparse.Namespace) -> None:
    from recipe.stages import data, merge

    run = _run(options)
    names = data.read_identity(run.folder("data")).names if run.folder("data").is_dir() else ()
    merge.make(run.folder("merged"), adapter_folder=run.folder("adapter"), identity_names=names)


def _eval(options: argparse.Namespace) -> None:
    import json

    from recipe import report
    from recipe.evaluation import thresholds
    from recipe.pipeline import stage
    from recipe.stages import convert, data, evaluate

    run = _run(options)
    stage.require(run.folder("data"), "data")
    model, _ = convert.trained_with(run.folder("train"))
    tuned = run.folder("merged") if stage.read_manifest(run.folder("merged")) else run.folder("adapter")
    stage.require(tuned, "merge")
    evaluate.make(
        run.folder("eval"),
        model=model,
        train_folder=run.folder("train"),
        tuned_folder=tuned,
        data_folder=run.folder("data"),
        identity=data.read_identity(run.folder("data")),
    )
    metrics = json.loads((run.folder("eval") / evaluate.FILE).read_text(encoding="utf-8"))
    print(evaluate.table(metrics), flush=True)
    _report(options)  # before the verdict: a result that fails needs its report most
    if failed := [check.metric for check in thresholds.verdict(metrics["tuned"]) if not check.passed]:
        raise RecipeError(f"the result is not good enough: {', '.join(failed)}; every reply is in "
                          f"{stage.shown(run.folder('report') / report.PAGE)}")  # fmt: skip


def _report(options: argparse.Namespace) -> None:
    from recipe import report
    from recipe.pipeline import stage

    run = _run(options)
    report.make(run.folder("report"), run_folder=run.work / run.name)
    print(f"\n报告 report:  {stage.shown(run.folder('report') / report.PAGE)}", flush=True)


def _ablation(options: argparse.Namespace) -> None:
    from recipe.experiments import ablation

    run = _run(options)
    ablation.make(run.folder("ablation"), work=run.work, run=run.name)
    _report(options)


def _export(options: argparse.Namespace) -> None:
    from recipe.stages import export

    run = _run(options)
    export.make(run.folder("export"), model=run.folder("merged"))


def _chat(options: argparse.Namespace) -> None:
    from recipe.pipeline import stage
    from recipe.serving import terminal
    from recipe.stages import convert

    run = _run(options)
    model, adapter = options.model, options.adapter
    if model is not None:
        model = Path(model) if Path(model).is_dir() else run.model(model)
    elif adapter is not None:
        made = stage.require(adapter, "convert")
        model = ROOT / made["results"]["model"]
    elif stage.read_manifest(run.folder("merged")):
        model = run.folder("merged")
    elif stage.read_manifest(run.folder("adapter")):
        adapter, (model, _) = run.folder("adapter"), convert.trained_with(run.folder("train"))
    else:
        raise RecipeError(
            f"{stage.shown(run.folder('merged'))} is missing: run `make merge`, or name a model with --model"
        )
    terminal.run(
        model=model,
        adapter=adapter,
        prompt=options.prompt,
        system=options.system,
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )


def _demo(options: argparse.Namespace) -> None:
    from recipe.serving import demo

    demo.run(work=options.work, run=options.run and _named(options.run), host=options.host, port=options.port)


def _api(options: argparse.Namespace) -> None:
    from recipe.serving import api

    api.run(work=options.work, run=options.run and _named(options.run), host=options.host, port=options.port)


def _speed(options: argparse.Namespace) -> None:
    from recipe.experiments import serving_speed
    from recipe.pipeline import stage

    run = _run(options)
    if options.random:
        model = None
    elif options.model is not None:
        model = Path(options.model) if Path(options.model).is_dir() else run.model(options.model)
    else:
        model = run.folder("merged")
        stage.require(model, "merge")
    print(serving_speed.table(serving_speed.run(model)), flush=True)


def _quickstart(options: argparse.Namespace) -> None:
    """Every stage, in one process: importing the libraries takes longer than most of them.

    Of several machines the first goes on after the training; the others have nothing to go on with.
    """
    for stage in (_data, _model, _replay, _config, _train, _convert, _merge):
        stage(options)
        choices.save(options, options.work / options.run)
        if options.until == stage.__name__.removeprefix("_"):
            return
        if stage is _train and options.node_rank:
            return
    try:
        _eval(options)
    finally:
        run = "" if options.run == "main" else f" RUN={options.run}"
        print(
            f"\n对话 talk to it:  make chat{run}\n原模型 the base:  make chat{run} CHAT='--model {options.model}'",
            flush=True,
        )


def _sweep(options: argparse.Namespace) -> None:
    from recipe.experiments import sweep
    from recipe.pipeline import stage

    work = options.work / _named(options.run)
    outcomes = sweep.run(work, names=options.names, seeds=options.seeds, jobs=options.jobs, settings=options.set)
    print(sweep.table(outcomes), flush=True)
    if failed := sum(not outcome.passed for outcome in outcomes):
        raise RecipeError(f"{failed} of {len(outcomes)} are below the thresholds; their replies are under "
                          f"{stage.shown(work)}")  # fmt: skip


def _bench(options: argparse.Namespace) -> None:
    from recipe.experiments import training_speed

    print(
        training_speed.table(
            training_speed.run(options.work / _named(options.run), options.names or list(training_speed.CASES))
        ),
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipe",
        description="Teach InternLM2-Chat-1.8B who it is. 教 InternLM2-Chat-1.8B 认识自己是谁。",
        epilog=FLOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, act: Callable[[argparse.Namespace], None], text: str, run: str = "main"
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(act=act)
        shown = run or "the one that merged last"
        sub.add_argument("--run", default=run, help=f"name of the run, its folder under --work (default: {shown})")
        sub.add_argument("--work", type=_path, default=ROOT / "work", help="where all results go (default: work)")
        return sub

    def model_option(sub: argparse.ArgumentParser, default: str = "internlm2-chat-1_8b") -> None:
        text = "miniature (here, no download), a folder in InternLM2 or Llama format, or internlm2-chat-1_8b"
        sub.add_argument("--model", help=f"{text} (default: {default})")

    def hub_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--source", choices=("hf", "modelscope"),
                         help="where internlm2-chat-1_8b comes from: Hugging Face (default) or ModelScope")  # fmt: skip
        sub.add_argument("--offline", action="store_true", help="make no connection: what was fetched before must do")

    def seed_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--seed", type=_seed, help="fixes data, packing, order and LoRA's start (default: 0)")

    def data_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--name", help="whose assistant it is, 1 to 40 characters; required")
        sub.add_argument("--assistant", help="what the assistant itself is called")
        sub.add_argument("--author", help='who fine-tuned it (default: said as "my owner")')
        sub.add_argument("--mode",
                         help="balanced (default): many questions, many answers; tutorial: one sample 10,001 times, the control")  # fmt: skip
        sub.add_argument("--data", type=_path, help="your own .json or .jsonl of OpenAI-format messages instead")

    def config_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--preset", help="fast, fp8, qlora, lora, tutorial or miniature (default: by model and GPU)")
        sub.add_argument("--set", nargs="*", action="extend", metavar="KEY=VALUE",
                         help="overrides: lr, max_iters, batch_size, r, … or any dotted key of the resolved config")  # fmt: skip

    def machine_options(sub: argparse.ArgumentParser, *, here: bool = True) -> None:
        group = sub.add_argument_group("several GPUs, several machines", "called as by torchrun; all but the first may "
                                       "also stand in the environment: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT")  # fmt: skip

        def option(name: str, text: str, kind: Callable[[str], object], default: int | None = None) -> None:
            told = os.environ.get(name.removeprefix("--").replace("-", "_").upper()) or default
            group.add_argument(name, type=kind, default=told, help=text)

        group.add_argument("--gpus", type=_count, help="processes on each machine, one a GPU (default: 1)")
        option("--nnodes", "machines; call the same on each (default: 1)", _count)
        if here:
            option("--node-rank", "which of them this is; 0 writes the result (default: 0)", _whole, 0)
            option("--master-addr", "an address of machine 0 that all can reach", str)
            option("--master-port", "a port of it that nothing else uses (default: 29500)", _port, 29500)

    def train_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint of a stopped run")
        sub.add_argument("--deepspeed", help="zero1, zero2, zero2_offload, zero3 or zero3_offload")
        sub.add_argument("--config", type=_path, help="an XTuner config of yours instead of the resolved one")

    def convert_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--checkpoint", help="which one, such as iter_80 (default: the best)")

    sub = verb("data", _data, "training rows from a name, or your own checked / 生成或检查训练数据")
    data_options(sub)
    seed_option(sub)
    sub = verb(
        "model", _model, "fetch or take a model, check it, convert it to the Llama layout / 获取、检查并转换基座模型"
    )
    model_option(sub)
    hub_options(sub)
    sub = verb("replay", _replay, "the base's own answers to ordinary prompts, against forgetting / 基座自答，防遗忘")
    model_option(sub)
    sub = verb("config", _config, "resolve a preset; list or copy XTuner's configs / 选择并解析训练配置")
    model_option(sub)
    config_options(sub)
    seed_option(sub)
    sub.add_argument("--list", nargs="?", const="", metavar="PATTERN", help="list XTuner's built-in configs and stop")
    sub.add_argument("--copy", metavar="NAME", help="copy a built-in config for editing and stop")
    sub.add_argument("--to", type=_path, default=Path.cwd(), metavar="DIR", help="where --copy puts it (default: here)")
    machine_options(sub, here=False)
    sub = verb("train", _train, "train with XTuner / 用 XTuner 训练")
    train_options(sub)
    machine_options(sub)
    convert_options(verb("convert", _convert, "checkpoint -> PEFT adapter (safetensors) / 转换为 PEFT 适配器"))
    verb("merge", _merge, "adapter + base -> one model, proved equal / 合并并验证")
    verb("eval", _eval, "hit, leak and retention, base beside tuned; fails below the thresholds / 评测与把关")
    verb("report", _report, "one page about it all, in two languages, and the same as Markdown / 生成报告")
    verb(
        "ablation",
        _ablation,
        "the same training on the tutorial's data, and without replay: an appendix to the report / 消融实验",
    )
    verb(
        "export", _export, "the merged model in InternLM2's own layout, for tools that expect it / 导出 InternLM2 格式"
    )
    sub = verb("chat", _chat, "talk to base, adapter or merged model / 终端对话")
    sub.add_argument("--model", help="a model folder, or a name under work/models (default: the run's merged model)")
    sub.add_argument("--adapter", type=_path, help="a PEFT adapter folder to put on the model")
    sub.add_argument("--prompt", help="answer this once on stdout and leave")
    sub.add_argument("--system", default="", help="system prompt (default: none, as in training)")
    sub.add_argument("--temperature", type=_number(0, 5), default=0.0, help="0 is greedy (default: 0)")
    sub.add_argument("--top-p", type=_number(1e-6, 1), default=0.8, help="nucleus of the sampling (default: 0.8)")
    sub.add_argument("--max-new-tokens", type=_count, default=512, help="longest reply (default: 512)")
    sub = verb("demo", _demo, "a web page to talk to the merged model / 网页对话", run="")
    sub.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    sub.add_argument("--port", type=_port, default=6006, help="port to listen on (default: 6006)")
    sub = verb("api", _api, "an OpenAI-style endpoint for programs, same model / OpenAI 兼容接口", run="")
    sub.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1; others need API_KEY in the environment)"
    )  # fmt: skip
    sub.add_argument("--port", type=_port, default=8000, help="port to listen on (default: 8000)")
    sub = verb("speed", _speed, "tokens a second and first-token latency of chat, page and API / 推理速度")
    sub.add_argument("--model", help="a model folder, or a name under work/models (default: the run's merged model)")
    sub.add_argument("--random", action="store_true", help="a model of the true size with random weights; needs a GPU")
    sub = verb(
        "quickstart", _quickstart, "all of the above on the embedded miniature, no GPU / 一键体验", run="quickstart"
    )
    data_options(sub)
    model_option(sub, "miniature")
    hub_options(sub)
    config_options(sub)
    seed_option(sub)
    train_options(sub)
    machine_options(sub)
    convert_options(sub)
    sub.add_argument(
        "--until",
        choices=("data", "model", "replay", "config", "train", "convert", "merge"),
        help="the last stage (default: all)",
    )
    sub.set_defaults(list=None, copy=None)
    sub = verb(
        "bench",
        _bench,
        "training speed of each preset beside what others offer; needs a GPU / 训练速度对比",
        run="bench",
    )
    sub.add_argument("names", nargs="*", metavar="NAME", help="which to measure (default: all that are installed)")
    sub = verb(
        "sweep",
        _sweep,
        "quickstart for many random names: the worst of each number / 多个随机名字的快速体验",
        run="sweep",
    )
    sub.add_argument("--names", type=_count, default=20, help="how many, the same ones every time (default: 20)")
    sub.add_argument("--seeds", type=_count, default=1, help="how many seeds for each name (default: 1)")
    sub.add_argument(
        "--set",
        nargs="*",
        action="extend",
        metavar="KEY=VALUE",
        default=[],
        help="overrides of the preset, to compare settings",
    )
    sub.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="runs at a time (default: one a core)")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: a whole number from 0 to 2147483647")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if _count(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 1 to 65535")
    return int(text)


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {low:g} to {high:g}")
        return value

    return parse


# What the operating system refuses, and what a user can do about it.
_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, then run it again",
    errno.EDQUOT: "the disk quota is used up: free some space, then run it again",
    errno.EACCES: "no permission: choose another folder with --work, or mend its owner (ls -ld)",
    errno.EPERM: "not permitted: choose another folder with --work, or mend its owner (ls -ld)",
    errno.EEXIST: "something else stands where a folder must be: move it away, or choose another folder with --work",
    errno.ELOOP: "a link points to itself: mend it, or choose another folder with --work",
    errno.ENAMETOOLONG: "the name is too long for a file: choose a shorter RUN or --work",
    errno.ENOTDIR: "a file stands where a folder must be: move it away, or choose another folder with --work",
    errno.EROFS: "the file system is read-only: choose another folder with --work",
}


def _remedy(error: BaseException | None) -> str | None:
    """The remedy for an operating-system error, also one that a library wrapped in its own."""
    seen: list[BaseException] = []  # some libraries' errors go in circles
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            return f"{error.filename or 'writing'}: {_REMEDIES[error.errno]}"
        text = str(error)
        if "No space left on device" in text or "os error 28" in text:
            return f"writing: {_REMEDIES[errno.ENOSPC]}"
        error = error.__cause__ or error.__context__
    return None


# Seconds after which a process that was told to end and goes on is interrupted again: twice within what Docker waits.
AGAIN = 4


def _end(*_: object) -> None:
    """On SIGTERM, which comes once: interrupt, again and again, since some libraries have a bare `except:` around an import."""
    signal.signal(signal.SIGALRM, _end_again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise KeyboardInterrupt


def _end_again(*_: object) -> None:
    if sys.exc_info()[1] is None:  # else it is on its way, and what tidies up may take its time
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status: 0, 1 for an error a user can mend, 2 for a wrong call, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    if isinstance(getattr(options, "model", None), str) and Path(options.model).is_dir():
        options.model = str(_path(options.model))
    os.chdir(ROOT)  # the resolved config's paths are relative to the checkout
    quieten()
    signal.signal(signal.SIGTERM, _end)  # also where a script had SIGINT ignored
    try:
        check_driver()
        options.act(options)
        choices.save(options, options.work / options.run)
    except RecipeError as error:
        print(f"error: {_remedy(error.__cause__) or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        resume = {
            "train": "; `make train RESUME=1` goes on from the last checkpoint",
            "model": "; run it again to go on with the download",
        }.get(options.verb, "")
        print(f"\nstopped; what was complete is kept{resume}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if remedy := _remedy(error):
            print(f"error: {remedy}", file=sys.stderr)
            return 1
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0
