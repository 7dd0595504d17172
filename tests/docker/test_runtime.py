"""make and docker/compose.sh on machines with and without an engine, acted out with stand-ins for docker and Python."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipe.cli.parser import build_parser
from recipe.paths import ROOT

TOOLS = (
    "make", "bash", "sh", "id", "realpath", "mkdir", "chown", "dirname", "basename", "awk", "sed", "grep", "find",
    "xargs", "printf", "sort", "head", "tail", "touch", "rm", "mv", "env", "cat", "cksum",
    "flock",
)  # fmt: skip
RECORDED = (
    "COMPOSE_FILE",
    "RECIPE_UID",
    "RECIPE_GID",
    "RECIPE_REVISION",
    "RECIPE_IMAGE",
    "COMPOSE_PROJECT_NAME",
    "RUN",
    "PORT",
    "TAG",
    "PWD",
    "GPUS",
)
RECORD = (
    "#!/bin/sh\n{ printf '%s\\037' " + '{tool} "$@"; printf "\\036"; '
    + " ".join(f"""[ -z "${{{name}+set}}" ] || printf '%s\\037' "{name}=${name}";""" for name in RECORDED)
    + """ printf '\\035'; } >> "$CALLS"\n"""
)  # fmt: skip
DOCKER = """case "$*" in
info*) [ -n "$ENGINE" ] ;;
"image inspect"*) [ -n "$IMAGE" ] && echo "$IMAGE" ;;
"compose ps"*) printf '%s' "$RUNNING" ;;
esac
"""
CPU = "compose.yaml:docker/compose.cpu.yaml"
root_only = pytest.mark.skipif(os.getuid() != 0, reason="this user is not root")
user_only = pytest.mark.skipif(os.getuid() == 0, reason="this user is root")


@dataclass
class Call:
    """One call of docker or of Python: its arguments, and what was exported of the variables that matter."""

    tool: str
    arguments: list[str]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        return " ".join(self.arguments)


def service_in(arguments: list[str]) -> int:
    """Where `docker compose run …` names the service, of those that a stage may run in."""
    return next(i for i, word in enumerate(arguments) if word in ("recipe", "fetch", "cluster"))


@dataclass
class Done:
    status: int
    out: str
    errors: list[str]
    calls: list[Call]
    after: list[list[str]] = field(default_factory=list)  # the verbs that each was told of, once `verbs` has looked

    def of(self, tool: str, beginning: str = "") -> list[Call]:
        return [call for call in self.calls if call.tool == tool and call.line.startswith(beginning)]

    def verbs(self) -> list[list[str]]:
        """What reached `python -m recipe`, here or in a container, in order."""
        assert self.status == 0, self.errors
        local = [call.arguments[2:] for call in self.of("python", "-m recipe ")]
        runs = [call.arguments for call in self.of("docker", "compose run ")]
        assert not (local and runs)
        whole = local or [arguments[service_in(arguments) + 1 :] for arguments in runs]
        self.after = [[b for a, b in itertools.pairwise(words) if a == "--after"] for words in whole]
        return [
            [word for i, word in enumerate(words) if not {"--after", "--before"} & {word, words[i - 1] if i else ""}]
            for words in whole
        ]


class Machine:
    """A checkout with what make and the scripts need, and a folder that is the whole PATH."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin, self.calls = folder / "check out", folder / "bin", folder / "calls"
        self.bin.mkdir()
        for tool in TOOLS:
            if tool_path := shutil.which(tool):
                (self.bin / tool).symlink_to(tool_path)
        (self.checkout / "recipe").mkdir(parents=True)
        shutil.copyfile(ROOT / "Makefile", self.checkout / "Makefile")
        shutil.copytree(ROOT / "docker", self.checkout / "docker")
        shutil.copytree(ROOT / "recipe" / "env", self.checkout / "recipe" / "env")
        (self.checkout / "recipe" / "device.py").touch()
        self.install("docker", DOCKER)
        self.script(self.checkout / ".venv" / "bin" / "python", RECORD.replace("{tool}", "python"))
        for number, name in enumerate(("requirements.lock", "recipe/env/setup.sh", ".venv/.installed")):
            (self.checkout / name).touch()
            os.utime(self.checkout / name, (1_000_000_000 + number, 1_000_000_000 + number))

    @staticmethod
    def script(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def install(self, tool: str, answers: str) -> None:
        self.script(self.bin / tool, RECORD.replace("{tool}", tool) + answers)

    def run(self, command: Sequence[str], environment: dict[str, str], cwd: Path | None = None) -> Done:
        self.calls.unlink(missing_ok=True)
        usual = {"PATH": str(self.bin), "HOME": str(self.checkout.parent), "CALLS": str(self.calls),
                 "ENGINE": "yes", "IMAGE": "sha256:1234", "RUNNING": ""}  # fmt: skip
        done = subprocess.run(
            command, cwd=cwd or self.checkout, env=usual | environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        text = self.calls.read_text(encoding="utf-8") if self.calls.exists() else ""
        calls = []
        for record in text.split("\035")[:-1]:
            words, variables = record.split("\036")
            tool, *arguments = words.split("\037")[:-1]
            exported = dict(variable.split("=", 1) for variable in variables.split("\037")[:-1])
            calls.append(Call(tool, arguments, exported))
        return Done(done.returncode, done.stdout, done.stderr.splitlines(), calls)

    def make(self, *words: str, **environment: str) -> Done:
        return self.run(["make", *words], environment)

    def compose(self, *arguments: str, **environment: str) -> Done:
        return self.run([str(self.checkout / "docker" / "compose.sh"), *arguments], environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def one_error(done: Done) -> str:
    """The one line that a failing script says, make's own aside."""
    assert done.status != 0
    lines = [line for line in done.errors if not re.match(r"make: \*\*\* \[.*\] Error 1$", line)]
    assert len(lines) == 1, done.errors
    return lines[0]


# --- Where it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "engine", "tool"),
    [
        ((), "yes", "docker"),
        ((), "", "python"),
        (("RUNTIME=",), "yes", "docker"),
        (("RUNTIME=local",), "yes", "python"),
        (("RUNTIME=docker",), "yes", "docker"),
    ],
)
def test_stages_run_in_docker_where_an_engine_answers_and_locally_where_none_does(
    machine: Machine, words: tuple[str, ...], engine: str, tool: str
) -> None:
    done = machine.make("data", "NAME=小明", *words, ENGINE=engine)
    assert done.verbs() == [["data", "--name", "小明"]]
    assert done.calls[-1].tool == tool
    # Whoever names it is not asked for the other one.
    assert bool(done.of("docker")) is ("RUNTIME=local" not in words)


def test_without_docker_stages_run_locally(machine: Machine) -> None:
    (machine.bin / "docker").unlink()
    assert machine.make("data", "NAME=小明").verbs() == [["data", "--name", "小明"]]


def test_docker_builds_first_and_local_does_not(machine: Machine) -> None:
    calls = [call.line for call in machine.make("data", "RUNTIME=docker").of("docker", "compose")]
    assert calls[0] == "compose --progress quiet build recipe demo"
    assert calls[1].startswith("compose run ")
    assert len(calls) == 2
    assert machine.make("data", "RUNTIME=local").of("docker") == []


def test_another_runtime_is_refused(machine: Machine) -> None:
    done = machine.make("data", "RUNTIME=podman")
    assert done.status != 0
    assert done.errors[-1].endswith("RUNTIME=podman is neither docker nor local.  Stop.")
    assert done.calls == []


@pytest.mark.parametrize("stray", ["NAEM=小明", "name=小明", "model=miniature", "DRYRUN=1"])
def test_a_variable_that_make_does_not_know_is_refused_before_anything_runs(machine: Machine, stray: str) -> None:
    done = machine.make("data", "NAME=小明", stray)
    assert done.status != 0
    assert f"{stray.split('=')[0]}= is no variable here: `make help` lists them" in done.errors[-1]
    assert done.calls == []


def test_a_name_with_a_blank_and_no_quotes_is_refused_before_anything_runs(machine: Machine) -> None:
    done = machine.make("quickstart", "NAME=Li", "Lei")
    assert done.status != 0
    assert "Lei is no target: `make help` lists them" in done.errors[-1]
    assert "NAME='Li Lei'" in done.errors[-1]
    assert done.calls == []
    assert machine.make("data", "NAME=Li Lei", "RUNTIME=local").verbs() == [["data", "--name", "Li Lei"]]


def test_a_full_width_equals_sign_is_named(machine: Machine) -> None:
    done = machine.make("data", "NAME＝小明")
    assert done.errors[-1].endswith("the ＝ in it is a full-width character: type =.  Stop.")
    assert done.calls == []


@pytest.fixture(scope="module")
def gb18030(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a terminal whose locale is zh_CN.GB18030, compiled where the C library has its source."""
    folder = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "zh_CN", "-f", "GB18030", str(folder / "zh_CN.GB18030")]
    if not shutil.which("localedef") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("localedef makes no zh_CN.GB18030 here")
    return {"LOCPATH": str(folder), "LC_ALL": "zh_CN.GB18030"}


def test_make_finds_its_targets_in_a_locale_that_is_not_utf_8(machine: Machine, gb18030: dict[str, str]) -> None:
    assert machine.make("data", "NAME=Ann", "RUNTIME=local", **gb18030).verbs() == [["data", "--name", "Ann"]]
    shown = subprocess.run(
        ["make", "help"], cwd=machine.checkout, env=os.environ | gb18030, capture_output=True, check=True
    ).stdout.decode("gb18030")
    assert re.search(r"^  NAME +whose assistant it is, 1-40 characters / 主人的名字$", shown, re.MULTILINE)


def test_the_environment_and_the_completion_of_shells_pass(machine: Machine) -> None:
    assert machine.make("data", "RUNTIME=local", NAEM="小明", HF_ENDPOINT="https://hub").verbs() == [["data"]]
    completion = machine.make("-npq", "__BASH_MAKE_COMPLETION__=1", ".DEFAULT")
    assert "quickstart:" in completion.out


def test_another_runtime_is_refused_by_the_doctor_too(machine: Machine) -> None:
    assert "RUNTIME=podman is neither docker nor local" in "\n".join(machine.make("doctor", "RUNTIME=podman").errors)


def test_setup_by_hand_names_what_comes_next_and_a_stage_s_does_not(machine: Machine) -> None:
    assert machine.make("setup").out == "done; next: make quickstart NAME=小明\n"
    assert machine.make("data", "NAME=小明", "RUNTIME=local").out == ""


@pytest.mark.parametrize("runtime", ["local", "docker"])
def test_each_verb_of_a_chain_is_told_which_ran_before(machine: Machine, runtime: str) -> None:
    done = machine.make("gguf", f"RUNTIME={runtime}")
    verbs = [words[0] for words in done.verbs()]
    assert verbs[-2:] == ["merge", "gguf"]
    assert done.after == [verbs[:number] for number in range(len(verbs))]


@pytest.mark.parametrize(
    ("goals", "before"),
    [(("publish",), ["--before", "publish"]), (("report",), ["--before", "report"]), (("eval",), []),
     (("eval", "publish"), []), (("publish", "a/b"), ["--before", "publish"])],
)  # fmt: skip
def test_eval_is_told_of_the_verb_that_was_asked_for(
    machine: Machine, goals: tuple[str, ...], before: list[str]
) -> None:
    if "a/b" in goals:
        (machine.checkout / "a").mkdir()
        (machine.checkout / "a" / "b").touch()
    calls = machine.make(*goals, "RUNTIME=local").of("python", "-m recipe eval")
    assert [call.arguments[call.arguments.index("merge") + 1 :] for call in calls] == [before]


@pytest.mark.parametrize("target", ["help", "clean"])
def test_what_needs_no_runtime_does_not_ask_for_one(machine: Machine, target: str) -> None:
    done = machine.make(target)
    assert (done.status, done.errors, done.calls) == (0, [], [])


# --- Cleaning -----------------------------------------------------------------------------------------------------


def test_clean_removes_a_run_and_says_where_there_was_none(machine: Machine) -> None:
    work = machine.checkout / "work"
    (work / "七" / "train").mkdir(parents=True)
    (work / "七" / ".train.lock").touch()
    (work / "七" / ".data.old").mkdir()
    (work / "models" / "miniature").mkdir(parents=True)
    assert machine.make("clean", "RUN=七").out == "removed work/七\n"
    assert [path.name for path in work.iterdir()] == ["models"]
    done = machine.make("clean", "RUN=七")
    assert (done.status, done.out, done.errors) == (0, "there is no work/七: nothing to remove\n", [])


def test_clean_finds_a_run_whose_name_is_typed_in_letters_and_marks(machine: Machine) -> None:
    (machine.checkout / "work" / "café").mkdir(parents=True)
    done = machine.make("clean", "RUN=cafe\u0301")  # without python3, which composes it: said, and nothing else removed
    assert (done.out, done.errors) == ("there is no work/cafe\u0301: nothing to remove\n", [])
    (machine.bin / "python3").symlink_to(sys.executable)
    assert machine.make("clean", "RUN=cafe\u0301").out == "removed work/café\n"


@pytest.mark.parametrize("place", ["main", "main/name-12345678-0"])
def test_clean_waits_for_nobody_and_takes_nothing_away_from_a_stage(machine: Machine, place: str) -> None:
    folder = machine.checkout / "work" / place
    folder.mkdir(parents=True)
    with (folder / ".train.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = machine.make("clean")
        assert done.status != 0
        assert f"error: another process is working on work/{place}: " in done.errors[0]
        assert folder.is_dir()
    assert machine.make("clean").status == 0
    assert not folder.exists()


@pytest.mark.parametrize("run", ["models", "hub", "replay", "Models", "HUB", "..", "a/b", ".hidden"])
def test_clean_refuses_what_is_shared_and_what_is_no_run(machine: Machine, run: str) -> None:
    (machine.checkout / "work" / "replay" / "miniature").mkdir(parents=True)
    done = machine.make("clean", f"RUN={run}")
    assert done.status != 0
    assert done.errors[0].startswith(f"error: RUN={run}")
    assert (machine.checkout / "work" / "replay" / "miniature").is_dir()


def test_clean_removes_a_run_with_the_longest_name(machine: Machine) -> None:
    (folder := machine.checkout / "work" / ("x" * 255)).mkdir(parents=True)
    assert machine.make("clean", f"RUN={folder.name}").out == f"removed work/{folder.name}\n"
    assert list(folder.parent.iterdir()) == []


# --- One project for each checkout --------------------------------------------------------------------------------


def test_each_checkout_and_user_has_a_compose_project_of_its_own(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    projects = [
        other.compose("ps", **user).of("docker", "compose ps")[0].environment["COMPOSE_PROJECT_NAME"]
        for other in (machine, Machine(tmp_path / "second"))
        for user in ({"RECIPE_UID": "1001"}, {"RECIPE_UID": "1002"})
    ]
    assert len({*projects}) == 4
    assert all(re.fullmatch(r"internlm2-identity-\d+", project) for project in projects)
    done = machine.compose("ps", COMPOSE_PROJECT_NAME="mine")
    assert done.of("docker", "compose ps")[0].environment["COMPOSE_PROJECT_NAME"] == "mine"


def test_a_checkout_is_one_project_by_whatever_link_it_is_called(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.checkout)
    names = {
        machine.run([str(place / "docker" / "compose.sh"), "ps"], {}).calls[-1].environment["COMPOSE_PROJECT_NAME"]
        for place in (machine.checkout, tmp_path / "link")
    }
    assert len(names) == 1


def test_help_names_the_targets_and_variables_of_this_runtime(machine: Machine) -> None:
    text = machine.make("help").out
    for word in ("build", "shell", "demo", "doctor", "sweep", "setup", "RUNTIME", "PORT"):
        assert re.search(rf"^  {word} ", text, re.MULTILINE), word


@pytest.mark.parametrize("words", [("build",), ("data", "NAME=小明")])
def test_a_build_that_takes_long_is_not_silent(machine: Machine, words: tuple[str, ...]) -> None:
    """The pauses take no time here, and the build ends at the third."""
    with (machine.checkout / "recipe" / "env" / "heartbeat.sh").open("a", encoding="utf-8") as script:
        script.write("touch pauses; pause() { echo >>pauses; }\n")
    wait = """case " $* " in *" build "*) until [ "$(grep -c '' pauses)" -ge 3 ]; do :; done ;; esac\n"""
    machine.install("docker", wait + DOCKER)
    done = machine.make(*words, "RUNTIME=docker")
    assert done.status == 0
    assert done.errors[:2] == ["building the images: 10 s", "building the images: 20 s"]


def test_a_whole_chain_is_the_same_stages_in_the_same_order(machine: Machine) -> None:
    words = ("eval", "NAME=小明", "MODEL=miniature", "RUN=七", "SEED=3")
    local, docker = machine.make(*words, "RUNTIME=local"), machine.make(*words, "RUNTIME=docker")
    assert [verb[0] for verb in local.verbs()] == [
        "data", "model", "replay", "config", "train", "convert", "merge", "eval",
    ]  # fmt: skip
    assert docker.verbs() == local.verbs()
    assert len(docker.of("docker", "compose --progress quiet build")) == 1
    assert all(verb[1:3] == ["--run", "七"] for verb in local.verbs())


# --- The same arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["小明", "Mary Ann", "O'Brien", 'a "b"', "-x", "a*b", "a;touch pwned", "`touch pwned`", "a\\b", "a&b", "a|b"],
)
@pytest.mark.parametrize("runtime", ["local", "docker"])
def test_any_name_arrives_as_it_is(machine: Machine, runtime: str, name: str) -> None:
    (machine.checkout / "axb").touch()
    assert machine.make("data", f"NAME={name}", f"RUNTIME={runtime}").verbs() == [["data", "--name", name]]
    assert not (machine.checkout / "pwned").exists()


@pytest.mark.parametrize("spelling", [str.upper, str.lower])
def test_the_machine_s_name_in_the_environment_is_nobody_s(machine: Machine, spelling: Callable[[str], str]) -> None:
    """WSL sets NAME so. A name that is typed, or another one in the environment, is taken."""
    name = spelling(socket.gethostname())
    assert "--name" not in machine.make("data", "RUNTIME=local", NAME=name).verbs()[-1]
    for taken in (
        machine.make("data", "RUNTIME=local", f"NAME={name}"),
        machine.make("data", RUNTIME="local", NAME="小明"),
    ):
        assert "--name" in taken.verbs()[-1]


@pytest.mark.parametrize("runtime", ["local", "docker"])
def test_no_name_becomes_a_command(machine: Machine, runtime: str) -> None:
    for name in ("$(touch pwned)${HOME}", "$(shell touch pwned)", "Ke$ha", "$(NAME)", "$$", "a$(HOME)b"):
        assert machine.make("data", f"NAME={name}", f"RUNTIME={runtime}").verbs() == [["data", "--name", name]]
        assert machine.make("data", f"RUNTIME={runtime}", NAME=name).verbs() == [["data", "--name", name]]
    assert not (machine.checkout / "pwned").exists()


TYPED = "$(shell touch pwned)`touch pwned`$(touch pwned)$h"


@pytest.mark.parametrize("runtime", ["local", "docker"])
@pytest.mark.parametrize(
    ("target", "variable", "option"),
    [
        ("data", "ASSISTANT", "--assistant"), ("data", "AUTHOR", "--author"), ("data", "MODE", "--mode"),
        ("data", "N", "--n"), ("merge", "MAX_SHARD_SIZE", "--max-shard-size"),
        ("model", "DEVICE", "--device"), ("merge", "DEVICE", "--device"), ("quickstart", "DEVICE", "--device"),
        ("data", "LANGUAGES", "--languages"), ("data", "MODEL", "--model"), ("data", "SEED", "--seed"),
        ("data", "RUN", "--run"), ("model", "SOURCE", "--source"), ("config", "PRESET", "--preset"),
        ("model", "PRESET", "--preset"),
        ("train", "DEEPSPEED", "--deepspeed"), ("train", "TRACK", "--track"), ("model", "TRACK", "--track"),
        ("convert", "CHECKPOINT", "--checkpoint"), ("train", "GPUS", "--gpus"),
        ("train", "MASTER_ADDR", "--master-addr"), ("list-cfg", "PATTERN", "--list"), ("chat", "CHAT", "chat"),
        ("sweep", "SWEEP", "sweep"), ("bench", "BENCH", "bench"), ("speed", "SPEED", "speed"),
    ],
)  # fmt: skip
def test_no_value_becomes_a_command(machine: Machine, target: str, variable: str, option: str, runtime: str) -> None:
    value = TYPED if option.startswith("--") else f"'{TYPED}'"  # the others hold words, quoted as in a shell
    for done in (
        machine.make(target, f"{variable}={value}", f"RUNTIME={runtime}"),
        machine.make(target, f"RUNTIME={runtime}", **{variable: value}),
    ):
        assert TYPED in [verb[verb.index(option) + 1] for verb in done.verbs() if option in verb], done.errors
    assert not (machine.checkout / "pwned").exists()


@pytest.mark.parametrize(("target", "variable"), [("chat", "CHAT"), ("sweep", "SWEEP"), ("bench", "BENCH")])
def test_a_quote_without_its_other_half_is_named(machine: Machine, target: str, variable: str) -> None:
    done = machine.make(target, f"{variable}=--prompt 'who are you", "RUNTIME=local")
    assert one_error(done).startswith(f"error: {variable} has a quote without its other half")
    assert not done.of("python")


@pytest.mark.parametrize("target", ["config", "quickstart"])
def test_settings_are_no_file_names(machine: Machine, target: str) -> None:
    (machine.checkout / "lr=1e-4").touch()
    done = machine.make(target, "SET=lr=* r=$h?", "RUNTIME=local")
    assert done.verbs()[-1][-3:] == ["--set", "lr=*", "r=$h?"]


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["data", "NAME=小明", "ASSISTANT=小 智", "AUTHOR=Ann Lee", "MODE=tutorial", "SEED=7", "RUN=r-1"],
         [["data", "--run", "r-1", "--name", "小明", "--assistant", "小 智", "--author", "Ann Lee",
           "--mode", "tutorial", "--seed", "7"]]),
        (["data", "MODE=tutorial", "N=500"], [["data", "--mode", "tutorial", "--n", "500"]]),
        (["quickstart", "N=500", "MAX_SHARD_SIZE=2GB"], [["quickstart", "--n", "500", "--max-shard-size", "2GB"]]),
        (["quickstart", "NAME=O'Brien", "SET=a=1 b=2", "RESUME=1", "PRESET=lora", "CHECKPOINT=iter_80"],
         [["quickstart", "--name", "O'Brien", "--preset", "lora", "--set", "a=1", "b=2", "--resume",
           "--checkpoint", "iter_80"]]),
        (["quickstart"], [["quickstart"]]),
        (["model", "MODEL=miniature"], [["model", "--model", "miniature"]]),
        (["data", "NAME=小明", "LANGUAGES=en", "MODEL=/no/folder"],
         [["data", "--name", "小明", "--languages", "en", "--model", "/no/folder"]]),
        (["replay", "LANGUAGES=zh,en", "MODEL=miniature"],
         [["model", "--model", "miniature"], ["replay", "--languages", "zh,en", "--model", "miniature"]]),
        (["quickstart", "LANGUAGES=en"], [["quickstart", "--languages", "en"]]),
        (["list-cfg", "PATTERN=chat 1_8b"], [["config", "--list", "chat 1_8b"]]),
        (["list-cfg"], [["config", "--list", ""]]),
        (["chat", "RUN=r", "CHAT=--prompt '你是 谁'"], [["chat", "--run", "r", "--prompt", "你是 谁"]]),
        (["sweep", "SWEEP=--names 3 --seeds 2"], [["sweep", "--names", "3", "--seeds", "2"]]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)  # fmt: skip
def test_the_arguments_are_the_same_here_and_in_a_container(
    machine: Machine, words: list[str], arguments: list[list[str]]
) -> None:
    assert machine.make(*words, "RUNTIME=local").verbs() == arguments
    assert machine.make(*words, "RUNTIME=docker").verbs() == arguments
    for verb in arguments:
        build_parser().parse_args(verb)


def test_what_is_published_unverified_is_not_asked_as_gguf(machine: Machine) -> None:
    assert machine.make("gguf", "RUNTIME=local").verbs()[-1] == ["gguf"]
    assert machine.make("gguf", "UNVERIFIED=1", "RUNTIME=docker").verbs()[-1] == ["gguf", "--unverified"]
    done = machine.make("publish", "ARTIFACT=gguf", "REPO=a/b", "UNVERIFIED=1", "RUNTIME=local").verbs()
    assert [verb[0] for verb in done[-3:]] == ["merge", "gguf", "publish"]
    assert done[-2] == ["gguf", "--unverified"]


def test_training_options_reach_the_training_alone(machine: Machine) -> None:
    words = ("train", "RESUME=1", "DEEPSPEED=zero2", "SET=lr=1e-4 max_iters=80")
    local, docker = (machine.make(*words, f"RUNTIME={runtime}").verbs() for runtime in ("local", "docker"))
    assert local == docker
    assert local[-1] == ["train", "--deepspeed", "zero2", "--resume"]
    assert local[-2] == ["config", "--set", "lr=1e-4", "max_iters=80"]


def test_several_gpus_and_machines_reach_config_and_training(machine: Machine) -> None:
    words = ("train", "GPUS=4", "NNODES=2", "NODE_RANK=1", "MASTER_ADDR=node0", "MASTER_PORT=29501")
    local, docker = (machine.make(*words, f"RUNTIME={runtime}").verbs() for runtime in ("local", "docker"))
    assert local == docker
    assert local[-2] == ["config", "--gpus", "4", "--nnodes", "2"]
    assert local[-1] == [
        "train", "--gpus", "4", "--nnodes", "2", "--node-rank", "1", "--master-addr", "node0", "--master-port", "29501",
    ]  # fmt: skip
    for verb in local:
        build_parser().parse_args(verb)


def test_machines_told_by_the_environment_are_told_too(machine: Machine) -> None:
    done = machine.make("train", "RUNTIME=local", NNODES="2", NODE_RANK="1", MASTER_ADDR="node0")
    assert done.verbs()[-1] == ["train", "--nnodes", "2", "--node-rank", "1", "--master-addr", "node0"]


def test_a_container_gets_as_many_gpus_as_processes_train(machine: Machine) -> None:
    def gpus_and_words(*words: str) -> tuple[str | None, list[str]]:
        done = machine.make("train", *words, "RUNTIME=docker")
        return done.of("docker", "compose run")[-1].environment.get("GPUS"), done.verbs()[-1]

    assert gpus_and_words() == (None, ["train"])
    assert gpus_and_words("GPUS=2") == ("2", ["train", "--gpus", "2"])
    (machine.checkout / ".env").write_text("GPUS=3\n")  # which compose reads by itself
    assert gpus_and_words() == (None, ["train", "--gpus", "3"])
    assert gpus_and_words("GPUS=2") == ("2", ["train", "--gpus", "2"])
    (machine.checkout / ".env").write_text("GPUS=all\n")
    assert gpus_and_words() == (None, ["train"])


def test_a_container_is_gone_when_its_stage_ends_and_knows_its_image(machine: Machine) -> None:
    (run,) = machine.make("data", "NAME=小明", "RUNTIME=docker").of("docker", "compose run")
    assert run.arguments[2 : run.arguments.index("recipe")] == ["--rm", "--quiet-pull"]
    assert run.environment["RECIPE_IMAGE"] == "sha256:1234"


def test_only_what_fetches_a_model_or_trains_on_several_machines_has_a_network(machine: Machine) -> None:
    def service(*words: str) -> str:
        (run,) = machine.compose("stage", *words).of("docker", "compose run")
        return run.arguments[service_in(run.arguments)]

    assert service("model", "--model", "internlm2-chat-1_8b") == "fetch"
    assert service("model", "--offline") == "recipe"
    assert service("train", "--run", "model") == "recipe"
    assert service("train", "--gpus", "2", "--nnodes", "1") == "recipe"
    assert service("train", "--nnodes", "2") == "cluster"
    assert service("quickstart", "--nnodes", "2") == "cluster"
    assert service("config", "--nnodes", "2") == "recipe"


# --- Files of the user's ------------------------------------------------------------------------------------------


def mounts(call: Call) -> list[str]:
    before = call.arguments[: service_in(call.arguments)]
    return [before[i + 1] for i, word in enumerate(before) if word == "--volume"]


def stage(machine: Machine, *arguments: str, **environment: str) -> tuple[list[str], list[str]]:
    """(mounts, arguments) of the container of `docker/compose.sh stage …`."""
    done = machine.compose("stage", *arguments, **environment)
    assert done.status == 0, done.errors
    (run,) = done.of("docker", "compose run")
    return mounts(run), run.arguments[service_in(run.arguments) + 1 :]


def test_a_file_from_elsewhere_is_mounted_to_be_read_at_its_own_path(machine: Machine, tmp_path: Path) -> None:
    rows = tmp_path / "my rows.jsonl"
    rows.touch()
    done = machine.make("data", f"DATA={rows}", "RUNTIME=docker")
    assert done.verbs() == [["data", "--data", str(rows)]]
    assert mounts(done.of("docker", "compose run")[0]) == [f"{rows}:{rows}:ro"]


@pytest.mark.parametrize("runtime", ["local", "docker"])
def test_several_files_are_split_at_blanks_and_one_with_blanks_is_whole(
    machine: Machine, tmp_path: Path, runtime: str
) -> None:
    for name in ("a.jsonl", "b.jsonl", "my own rows.jsonl", "*.jsonl"):
        (tmp_path / name).touch()
    first, second, whole, star = (
        str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "my own rows.jsonl", "*.jsonl")
    )
    for verb in ("data", "quickstart"):
        for given, files in (
            (f"{first} {second}", [first, second]),
            (f"  {second}   {first} ", [second, first]),
            (f"{first}\n{second}\n", [first, second]),  # a line each, as a shell's variable may have them
            (whole, [whole]),
            (f"{star} {first}", [star, first]),  # no pattern for the shell
            ("$(touch pwned) missing.jsonl", ["$(touch", "pwned)", "missing.jsonl"]),
        ):
            done = machine.make(verb, f"DATA={given}", f"RUNTIME={runtime}")
            assert done.verbs() == [[verb, "--data", *files]]
            if runtime == "docker":
                there = [name for name in files if name.startswith("/")]
                assert mounts(done.of("docker", "compose run")[0]) == [f"{name}:{name}:ro" for name in there]
    assert not (machine.checkout / "pwned").exists()
    assert machine.make("data", "DATA=", f"RUNTIME={runtime}").verbs() == [["data"]]


@pytest.mark.parametrize(("given", "option"), [("1", ["--data-only"]), ("0", ["--no-data-only"]), ("", [])])
def test_own_rows_alone_is_a_switch_that_can_be_turned_off(machine: Machine, given: str, option: list[str]) -> None:
    assert machine.make("data", f"DATA_ONLY={given}", "RUNTIME=local").verbs() == [["data", *option]]


def test_several_files_that_the_run_remembers_are_mounted_again(machine: Machine, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b c.jsonl"):
        (tmp_path / name).touch()
    files = [str(tmp_path / name) for name in ("a.jsonl", "b c.jsonl")]
    (machine.checkout / "work" / "main").mkdir(parents=True)
    run = {"name": "小明", "data": files, "data_only": True, "set": ["r=8"]}
    (machine.checkout / "work" / "main" / "run.json").write_text(json.dumps(run, indent=2) + "\n")
    assert stage(machine, "data")[0] == [f"{name}:{name}:ro" for name in files]


@pytest.mark.parametrize("option", ["--data", "--model", "--config", "--adapter"])
def test_every_option_that_names_a_file_or_folder_is_looked_at(machine: Machine, tmp_path: Path, option: str) -> None:
    assert option in {o for action in _options() for o in action}
    (tmp_path / "own").mkdir()
    given = str(tmp_path / "own")
    assert stage(machine, "verb", option, given, "--seed", "0") == (
        [f"{given}:{given}:ro"],
        ["verb", option, given, "--seed", "0"],
    )


def _options() -> Iterator[list[str]]:
    actions = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert isinstance(actions, dict)
    for sub in actions.values():
        yield from (list(action.option_strings) for action in sub._actions)


def test_a_relative_path_becomes_absolute(machine: Machine) -> None:
    (machine.checkout / "rows.jsonl").touch()
    rows = str(machine.checkout / "rows.jsonl")
    assert stage(machine, "data", "--data", "rows.jsonl") == ([f"{rows}:{rows}:ro"], ["data", "--data", rows])


@pytest.mark.parametrize("given", ["work/rows.jsonl", "{checkout}/work/rows.jsonl", "./docker/../work/rows.jsonl"])
def test_what_lies_under_work_is_there_already(machine: Machine, given: str) -> None:
    (machine.checkout / "work").mkdir()
    (machine.checkout / "work" / "rows.jsonl").touch()
    given = given.format(checkout=machine.checkout)
    assert stage(machine, "data", "--data", given) == ([], ["data", "--data", "work/rows.jsonl"])


@pytest.mark.parametrize("arguments", [["--model", "miniature"], ["--data", "missing.jsonl"], ["--name", "docker"]])
def test_what_is_no_file_and_no_option_for_one_stays_as_it_is(machine: Machine, arguments: list[str]) -> None:
    assert stage(machine, "data", *arguments) == ([], ["data", *arguments])


@pytest.mark.parametrize("key", ["data", "model", "config"])
def test_a_file_that_the_run_remembers_is_mounted_again(machine: Machine, tmp_path: Path, key: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (machine.checkout / "work" / "main").mkdir(parents=True)
    (machine.checkout / "work" / "main" / "run.json").write_text(json.dumps({key: str(own)}, indent=2) + "\n")
    assert stage(machine, "data")[0] == [f"{own}:{own}:ro"]


def test_a_model_of_links_brings_what_they_point_to(machine: Machine, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1234").touch()
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    mounted = [mount.split(":")[1] for mount in stage(machine, "model", "--model", str(snapshot))[0]]
    assert any((blobs / "1234").is_relative_to(mount) for mount in mounted)


# --- Engine and image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["engine", "docker"])
def test_without_an_engine_it_says_what_to_do(machine: Machine, missing: str) -> None:
    if missing == "docker":
        (machine.bin / "docker").unlink()
    expected = (
        "error: no Docker engine answers: start it (systemctl start docker), or use RUNTIME=local, which needs none"
    )
    for words in (("data", "RUNTIME=docker"), ("build",), ("demo", "RUNTIME=docker")):
        done = machine.make(*words, ENGINE="")
        assert one_error(done) == expected
        assert done.of("docker", "compose") == []


def test_without_the_image_it_says_how_to_build_it(machine: Machine) -> None:
    done = machine.compose("stage", "data", IMAGE="", TAG="v9")
    assert one_error(done) == "error: the image internlm2-identity-recipe:v9 is not there: run make build"
    assert done.of("docker", "compose run") == []


def test_a_failing_stage_fails_the_target(machine: Machine) -> None:
    machine.install("docker", DOCKER.replace("esac", '"compose run"*) exit 7 ;;\nesac'))
    assert machine.compose("stage", "data").status == 7
    done = machine.make("eval", "RUNTIME=docker")
    assert done.status != 0
    assert len(done.of("docker", "compose run")) == 1  # and no stage after it is begun


def test_the_tag_of_the_env_file_is_the_image_s(machine: Machine) -> None:
    (machine.checkout / ".env").write_text("TAG=v9\n")
    (inspect,) = machine.compose("stage", "data").of("docker", "image inspect")
    assert inspect.arguments[-1] == "internlm2-identity-recipe:v9"


# --- Who and what with --------------------------------------------------------------------------------------------


@user_only
def test_containers_run_as_the_user(machine: Machine) -> None:
    (run,) = machine.compose("stage", "data").of("docker", "compose run")
    assert (run.environment["RECIPE_UID"], run.environment["RECIPE_GID"]) == (str(os.getuid()), str(os.getgid()))
    assert not (machine.checkout / "work").exists()


@root_only
@pytest.mark.parametrize(
    ("sudo", "user", "group"), [({}, 1000, 1000), ({"SUDO_UID": "1234", "SUDO_GID": "2345"}, 1234, 2345)]
)
@pytest.mark.parametrize("work", ["missing", "of root"])
def test_root_s_containers_run_as_the_user_behind_it_who_owns_the_results(
    machine: Machine, sudo: dict[str, str], user: int, group: int, work: str
) -> None:
    if work == "of root":
        (machine.checkout / "work" / "main").mkdir(parents=True)
        (machine.checkout / "work" / "main" / "run.json").touch()
    for call in machine.compose("stage", "data", **sudo).of("docker", "compose"):
        assert (call.environment["RECIPE_UID"], call.environment["RECIPE_GID"]) == (str(user), str(group))
    results = machine.checkout / "work"
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (results, *results.rglob("*"))}
    assert owners == {(user, group)}


def test_another_user_may_be_chosen(machine: Machine) -> None:
    (run,) = machine.compose("stage", "data", RECIPE_UID="77", RECIPE_GID="78").of("docker", "compose run")
    assert (run.environment["RECIPE_UID"], run.environment["RECIPE_GID"]) == ("77", "78")
    assert not (machine.checkout / "work").exists()


@pytest.mark.parametrize(
    ("gpu", "chosen", "used"),
    [
        (True, None, None),
        (False, None, CPU),
        (None, None, CPU),
        (True, CPU, CPU),
        (False, "compose.yaml:my.yaml", "compose.yaml:my.yaml"),
    ],
)
def test_a_gpu_is_asked_for_where_there_is_one(
    machine: Machine, port: int, gpu: bool | None, chosen: str | None, used: str | None
) -> None:
    if gpu is not None:
        machine.install("nvidia-smi", f'[ "$*" = -L ] && exit {int(not gpu)}\n')
    done = machine.make("demo", "RUNTIME=docker", f"PORT={port}", **({"COMPOSE_FILE": chosen} if chosen else {}))
    calls = done.of("docker", "compose")
    assert {call.line.split()[1] for call in calls} == {"--progress", "ps", "up"}
    assert {call.environment.get("COMPOSE_FILE") for call in calls} == {used}


def test_the_commit_is_told_where_git_knows_it(machine: Machine) -> None:
    def commits_of_images() -> set[str]:
        return {call.environment["RECIPE_REVISION"] for call in machine.make("build").of("docker", "compose")}

    assert commits_of_images() == {"unknown"}
    machine.install("git", '[ "$*" = "rev-parse HEAD" ] && echo 0123abc\n')
    assert commits_of_images() == {"0123abc"}


# --- The page and the shell ---------------------------------------------------------------------------------------


def test_the_page_is_a_service_in_docker_and_a_verb_here(machine: Machine, port: int) -> None:
    words = ("demo", "RUN=r", f"PORT={port}")
    assert machine.make(*words, "RUNTIME=local").verbs() == [["demo", "--run", "r", "--port", str(port)]]
    docker = machine.make(*words, "RUNTIME=docker")
    assert docker.status == 0, docker.errors
    (up,) = docker.of("docker", "compose up")
    assert up.line == "compose up demo"
    assert (up.environment["RUN"], up.environment["PORT"]) == ("r", str(port))


def test_without_a_port_the_default_of_compose_and_cli_holds(machine: Machine) -> None:
    assert machine.make("demo", "RUNTIME=local").verbs() == [["demo"]]
    assert "PORT" not in machine.make("demo", "RUNTIME=docker").calls[-1].environment


def test_without_a_run_the_one_of_the_env_file_holds(machine: Machine) -> None:
    assert "RUN" not in machine.make("demo", "RUNTIME=docker").calls[-1].environment


def test_a_taken_port_is_told_with_the_next_one_unless_it_is_the_page_s_own(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ("demo", "RUNTIME=docker", f"PORT={port}")
        done = machine.make(*words)
        assert one_error(done).startswith(f"error: port {port} is taken: ")
        assert one_error(done).endswith(f"PORT={port + 1}")
        assert done.of("docker", "compose up") == []
        assert machine.make(*words, RUNNING="0123abc").of("docker", "compose up")


def test_the_port_of_the_env_file_is_the_one_looked_at(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (machine.checkout / ".env").write_text(f"PORT={taken.getsockname()[1]}\n")
        assert "is taken" in one_error(machine.compose("up", "demo"))


@pytest.mark.parametrize("service", ["vllm", "vllm-page"])
def test_vllm_starts_where_there_are_a_key_a_gpu_and_a_free_port(machine: Machine, port: int, service: str) -> None:
    variable = "API_PORT" if service == "vllm" else "PORT"
    given = {"API_KEY": "k", variable: str(port)}
    assert one_error(machine.compose("up", service, **given)).startswith("error: vLLM needs an NVIDIA GPU")
    machine.install("nvidia-smi", "")
    assert one_error(machine.compose("up", service, **given | {"API_KEY": ""})).startswith(
        "error: API_KEY is missing: "
    )
    (up,) = machine.compose("up", service, **given).of("docker", "compose up")
    assert up.line == f"compose up {service}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert one_error(machine.compose("up", service, **given)).endswith(f"{variable}={port + 1}")


@pytest.mark.parametrize("words", [("up",), ("up", "--detach"), ("--progress", "plain", "up", "-d")])
def test_a_profile_without_a_service_is_refused_since_two_pages_would_start(
    machine: Machine, words: tuple[str, ...]
) -> None:
    error = one_error(machine.compose("--profile", "vllm", *words))
    assert error.startswith("error: name the service, as in docker/compose.sh up vllm-page: ")
    for fine in (("--profile", "vllm", "down"), ("--profile", "vllm", "up", "-d", "vllm-page")):
        assert machine.compose(*fine, API_KEY="k").calls[-1].line == f"compose {' '.join(fine)}"


def test_a_shell_is_where_the_stages_run(machine: Machine) -> None:
    docker = machine.make("shell", "RUNTIME=docker")
    assert [call.line for call in docker.of("docker", "compose run")] == ["compose run --rm shell"]
    local = machine.make("shell", "RUNTIME=local")
    assert (local.status, local.calls) == (0, [])


def test_the_script_works_from_any_folder(machine: Machine, tmp_path: Path) -> None:
    done = machine.run([str(machine.checkout / "docker" / "compose.sh"), "ps"], {}, cwd=tmp_path)
    assert done.calls[-1].arguments == ["compose", "ps"]
    assert done.calls[-1].environment["PWD"] == str(machine.checkout)  # where compose.yaml is


def test_the_scripts_are_executable() -> None:
    for name in ("docker/compose.sh", "recipe/env/doctor.sh", ".ci/stand-ins.sh"):
        assert os.access(ROOT / name, os.X_OK), name
