"""vllm_serve.py --run RUN: start vLLM on what a run leaves. vllm_serve.py --health: exit 0 if and only if vLLM answers.

For the service `vllm` of compose.yaml, in vLLM's own image: standard library only.
"""

import argparse
import json
import os
import shlex
import sys
import urllib.request
from pathlib import Path
from typing import Any

WORK = Path("work")  # of /recipe, as the manifests name it
PORT = 8000
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes


def healthy() -> bool:
    """Whether vLLM answers on this machine."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy Docker set for the container
    try:
        with direct.open(f"http://127.0.0.1:{PORT}/health", timeout=4) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def read(file: Path, *keys: str) -> Any:
    """The JSON of a file of a run, or what is in it under some keys; ends where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for key in keys:
            content = content[key]
        return content
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        sys.exit(f"error: {file} cannot be read ({error}): run `make merge RUN={file.parts[1]}` again")


def newest_run() -> str:
    """The run that merged last."""
    manifests = list(WORK.glob("*/merged/manifest.json"))
    if not manifests:
        sys.exit("error: no run in work/ has a merged model yet: run `make merge` first")
    return max(manifests, key=lambda manifest: manifest.stat().st_mtime_ns).parts[1]


def merged(run: str) -> list[str]:
    """The arguments of `vllm serve` for a run's merged model."""
    folder = WORK / run / "merged"
    read(folder / "manifest.json")  # written last: where it is, the folder is complete
    return [str(folder.resolve()), "--served-model-name", run]


def base_and_adapter(run: str) -> list[str]:
    """The arguments of `vllm serve` for a run's base and adapter, both of which can be asked."""
    folder = WORK / run / "adapter"
    base = Path(str(read(folder / "manifest.json", "results", "model")))
    if not (base / "manifest.json").is_file():
        sys.exit(f"error: the base of {run} is not in {base}: run `make model RUN={run}`, or unset VLLM_ADAPTER")
    rank = read(folder / "adapter_config.json", "r")
    if not isinstance(rank, int) or rank < 1:
        sys.exit(f"error: {folder}/adapter_config.json has no rank: run `make convert RUN={run}` again")
    name = base.name if base.name != run else f"{run}-base"
    return [
        str(base.resolve()), "--served-model-name", name, "--enable-lora",
        "--lora-modules", f"{run}={folder.resolve()}",
        "--max-lora-rank", str(next((each for each in RANKS if each >= rank), rank)),
    ]  # fmt: skip


def main() -> None:
    """Become vLLM, or say in a line why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="", help="the run; empty: the one that merged last")
    parser.add_argument("--adapter", default="", help="not empty: base and adapter rather than the merged model")
    parser.add_argument("--options", default="", help="more options of `vllm serve`, as a shell splits them")
    parser.add_argument("--health", action="store_true", help="ask whether vLLM answers")
    options = parser.parse_args()
    if options.health:
        sys.exit(not healthy())
    if not os.environ.get("VLLM_API_KEY"):
        sys.exit("error: API_KEY is missing: choose a key, and set it in the environment or in .env")
    run = options.run or newest_run()
    model = base_and_adapter(run) if options.adapter else merged(run)
    # As much context as fits beside the weights: on 8 GB the whole context of the 1.8B model does not.
    own = ["--port", str(PORT), "--max-model-len", "auto"]
    try:
        more = shlex.split(options.options)
    except ValueError as error:
        sys.exit(f"error: VLLM_ARGS cannot be split into words ({error}): quote it as in a shell")
    arguments = ["vllm", "serve", *model, *own, *more]
    print(shlex.join(arguments), file=sys.stderr, flush=True)
    os.execvp("vllm", arguments)  # noqa: S606 - a shell is what it is to do without


if __name__ == "__main__":
    main()
