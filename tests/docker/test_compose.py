"""What the Dockerfile, compose.yaml and .env.example promise, read without a Docker engine."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from recipe.cli.parser import API_PORT, DEMO_PORT, build_parser
from recipe.paths import ROOT


class Loader(yaml.SafeLoader):
    """YAML with compose's tag that takes away what the file underneath says."""


class Reset(list[Any]):
    pass


Loader.add_constructor("!reset", lambda loader, node: Reset(loader.construct_sequence(node)))


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader)
    return content


SERVICES: dict[str, dict[str, Any]] = load("compose.yaml")["services"]
TEXT = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("compose.yaml", "docker/compose.cpu.yaml", "docker/compose.sh", ".env.example", ".dockerignore")
}
VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*)|:\+[^}]*)?\}")  # with a default, or with what stands there if it is set
every_service = pytest.mark.parametrize("service", SERVICES)
# In front of vLLM stands a page without a model and without a GPU.
FRONT, FOREIGN = "vllm-page", "vllm"
OWN = [name for name in SERVICES if name != FOREIGN]  # of an image that the Dockerfile builds
RUN_STAGES = [name for name, service in SERVICES.items() if service.get("profiles") == ["stages"]]
WITH_GPU = [name for name in SERVICES if name != FRONT]


def defaults(value: Any) -> Any:
    """What compose makes of it where no variable is set."""
    if isinstance(value, dict):
        return {key: defaults(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [defaults(entry) for entry in value]
    return VARIABLE.sub(lambda match: match[2] or "", value) if isinstance(value, str) else value


# --- compose.yaml -------------------------------------------------------------------------------------------------


def test_the_services_are_the_page_and_the_stages() -> None:
    assert set(SERVICES) == {"demo", "api", "recipe", "shell", "fetch", "cluster", "vllm", "vllm-page"}
    assert [name for name, service in SERVICES.items() if not service.get("profiles")] == ["demo"]  # what `up` starts


@every_service
def test_a_service_does_not_run_as_root(service: str) -> None:
    user, group = defaults(SERVICES[service])["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0


@every_service
def test_a_service_may_do_and_write_as_little_as_possible(service: str) -> None:
    settings = SERVICES[service]
    assert settings["read_only"] is True
    assert settings["init"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "userns_mode", "devices", "device_cgroup_rules"} & set(settings)
    (tmpfs,) = settings["tmpfs"]
    folder, options = tmpfs.split(":")
    assert folder == "/tmp"
    assert {"exec", "mode=1777"} <= set(options.split(","))  # Triton loads what it compiles there


@pytest.mark.parametrize("service", WITH_GPU)
def test_a_service_sees_the_results_and_nothing_else_of_the_host(service: str) -> None:
    work, *others = SERVICES[service]["volumes"]
    assert (work["type"], work["source"], work["target"]) == ("bind", "./work", "/recipe/work")
    assert work.get("read_only", False) is (service in ("demo", "api", FOREIGN))  # these only read
    script = {"type": "bind", "source": "./docker/vllm_serve.py", "target": "/recipe/docker/vllm_serve.py"}
    kernels = {"type": "volume", "source": "kernels", "target": "/tmp/.triton"}
    more = {FOREIGN: [script | {"read_only": True}]} | {key: [kernels] for key in RUN_STAGES}
    assert others == more.get(service, [])


def test_what_was_compiled_stays_where_triton_looks_and_any_user_may_write() -> None:
    assert set(load("compose.yaml")["volumes"]) == {"kernels"}
    assert "mkdir -m 1777 /tmp/.triton" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@every_service
def test_a_service_s_log_memory_and_processes_have_an_end(service: str) -> None:
    settings = defaults(SERVICES[service])
    assert settings["logging"]["driver"] == "local"
    assert set(settings["logging"]["options"]) == {"max-size", "max-file"}
    limits = settings["deploy"]["resources"]["limits"]
    assert re.fullmatch(r"[1-9]\d*g", limits["memory"])
    assert 0 < limits["pids"] <= 4096


@pytest.mark.parametrize("service", WITH_GPU)
def test_a_service_gets_every_gpu(service: str) -> None:
    (device,) = defaults(SERVICES[service])["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_without_a_gpu_no_service_asks_for_one() -> None:
    override = load("docker/compose.cpu.yaml")
    assert list(override) == ["services"]
    assert set(override["services"]) == set(WITH_GPU) - {FOREIGN}  # which can do nothing without one
    for service in override["services"].values():
        devices = service["deploy"]["resources"]["reservations"]["devices"]
        assert isinstance(devices, Reset)  # a plain list would be added to the one underneath
        assert devices == []
        assert service == {"deploy": {"resources": {"reservations": {"devices": []}}}}


def test_the_page_is_reached_from_this_machine_alone() -> None:
    (port,) = defaults(SERVICES["demo"])["ports"]
    assert port == f"127.0.0.1:{DEMO_PORT}:{DEMO_PORT}"
    assert "network_mode" not in SERVICES["demo"]


def test_the_api_is_the_page_s_image_with_another_command_and_health_check() -> None:
    settings, page = defaults(SERVICES["api"]), defaults(SERVICES["demo"])
    assert settings["image"] == page["image"]
    assert settings["ports"] == [f"127.0.0.1:{API_PORT}:{API_PORT}"]
    options = build_parser().parse_args(settings["command"])
    assert (options.verb, options.host, options.port, options.run) == ("api", "0.0.0.0", API_PORT, "")
    assert settings["healthcheck"]["test"] == ["CMD", "python", "docker/healthcheck.py", "/health"]
    assert {"API_KEY", f"PORT={API_PORT}"} <= set(
        settings["environment"]
    )  # what the check reads, and what lets it start


def test_the_api_comes_back_after_a_failure_but_not_for_ever_and_without_a_key_not_at_all() -> None:
    """Compose puts the policy in where API_KEY is set and not empty; where it is not, there is none."""
    (tries,) = re.fullmatch(r"\$\{API_KEY:\+on-failure:(\d)\}", SERVICES["api"]["restart"]).groups()  # type: ignore[union-attr]
    assert 0 < int(tries) <= 5


def test_the_docs_name_every_service_that_mounts_the_results() -> None:
    page = (ROOT / "docs/page-and-containers.md").read_text(encoding="utf-8")
    volume = page.split("- **A named volume**")[1].split("by `work:/recipe/work`")[0]
    assert set(re.findall(r"`([\w-]+)`", volume)) == set(WITH_GPU)


def test_a_shell_has_its_own_name_and_is_otherwise_a_stage() -> None:
    shell, recipe = dict(SERVICES["shell"]), dict(SERVICES["recipe"])
    assert shell.pop("entrypoint") == ["bash"]
    assert shell == recipe


def test_the_page_comes_back_and_ends_in_time() -> None:
    assert SERVICES["demo"]["restart"] == "unless-stopped"
    assert int(SERVICES["demo"]["stop_grace_period"].removesuffix("s")) <= 10


def test_the_page_listens_where_its_port_is_published() -> None:
    options = build_parser().parse_args(defaults(SERVICES["demo"])["command"])
    assert (options.verb, options.host, options.port, options.run) == ("demo", "0.0.0.0", DEMO_PORT, "")


@pytest.mark.parametrize(("service", "network"), [("recipe", "none"), ("fetch", "bridge"), ("cluster", "host")])
def test_a_stage_has_no_life_of_its_own_and_no_network_but_to_fetch_and_for_other_machines(
    service: str, network: str
) -> None:
    stages = SERVICES[service]
    assert stages["network_mode"] == network
    assert stages["profiles"] == ["stages"]
    assert not {"restart", "ports"} & set(stages)
    assert defaults(stages["shm_size"]) == "2g"
    assert {"RECIPE_IMAGE", "NNODES"} <= set(stages["environment"])


@pytest.mark.parametrize("service", WITH_GPU)
def test_a_gpu_can_be_hidden_from_a_container_as_the_driver_check_advises(service: str) -> None:
    assert "CUDA_VISIBLE_DEVICES" in SERVICES[service].get("environment", [])


@pytest.mark.parametrize("service", OWN)
def test_a_service_is_built_from_its_target_under_its_own_name(service: str) -> None:
    settings = defaults(SERVICES[service])
    target = {"fetch": "recipe", "cluster": "recipe", "shell": "recipe", "api": "demo", FRONT: "demo"}.get(
        service, service
    )
    assert settings["image"] == f"internlm2-identity-{target}:latest"
    assert settings["pull_policy"] != "always"
    assert settings["build"]["target"] == target
    assert target in STAGES
    args = {line.split("=")[0] for words in arguments_of("ARG") for line in words.split()}
    assert set(settings["build"]["args"]) <= args


# --- vLLM ---------------------------------------------------------------------------------------------------------


def environment(service: str) -> dict[str, str]:
    """What compose sets by itself in a container."""
    pairs = (entry.split("=", 1) for entry in SERVICES[service]["environment"] if "=" in entry)
    return dict(pairs)


def test_vllm_s_image_is_pinned_and_told() -> None:
    image = defaults(SERVICES["vllm"])["image"]
    assert re.fullmatch(r"vllm/vllm-openai:v\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", image)
    assert told_variables()["VLLM_IMAGE"] == image
    assert image.split("@")[0] in (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    assert "build" not in SERVICES["vllm"]


def test_vllm_and_its_page_are_one_profile_and_the_page_waits() -> None:
    assert SERVICES["vllm"]["profiles"] == SERVICES["vllm-page"]["profiles"] == ["vllm"]
    assert SERVICES["vllm-page"]["depends_on"] == {"vllm": {"condition": "service_healthy"}}
    assert {"volumes", "reservations"}.isdisjoint(
        set(SERVICES["vllm-page"]) | set(SERVICES["vllm-page"]["deploy"]["resources"])
    )
    options = build_parser().parse_args(SERVICES["vllm-page"]["command"])
    assert (options.verb, options.host, options.port) == ("demo", "0.0.0.0", DEMO_PORT)
    assert SERVICES["vllm-page"]["ports"] == SERVICES["demo"]["ports"]


def test_the_page_of_no_profile_would_start_beside_it_which_the_docs_say() -> None:
    assert "profiles" not in SERVICES["demo"]
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert "`--profile vllm up` would start the page `demo` beside it, on the same port" in text


def test_the_page_asks_vllm_by_its_name_with_its_key_and_no_proxy() -> None:
    page, vllm = environment("vllm-page"), environment("vllm")
    assert page["OPENAI_BASE_URL"] == "http://vllm:8000/v1"
    assert page["OPENAI_API_KEY"] == vllm["VLLM_API_KEY"] == "${API_KEY:-}"
    assert page["NO_PROXY"] == page["no_proxy"] == "vllm"


def test_vllm_is_reached_from_this_machine_alone_whatever_the_page_s_host() -> None:
    """Its key guards /v1 and not /invocations, which answers as well."""
    assert defaults(SERVICES["vllm"]["ports"]) == [f"127.0.0.1:{API_PORT}:{API_PORT}"]
    assert "HOST" not in re.findall(VARIABLE, str(SERVICES["vllm"]["ports"]))


def test_vllm_fetches_nothing_reports_nothing_and_writes_below_tmp() -> None:
    settings = environment("vllm")
    assert (settings["HF_HUB_OFFLINE"], settings["VLLM_NO_USAGE_STATS"], settings["HOME"]) == ("1", "1", "/tmp")
    # Any other name that begins so is a warning of vLLM's.
    assert {name for name in settings if name.startswith("VLLM_")} == {"VLLM_API_KEY", "VLLM_NO_USAGE_STATS"}


def test_vllm_ends_once_without_a_key_and_its_health_is_asked_of_itself() -> None:
    assert SERVICES["vllm"]["restart"] == SERVICES["api"]["restart"]
    assert SERVICES["vllm"]["healthcheck"]["test"] == ["CMD", *SERVICES["vllm"]["entrypoint"], "--health"]


# --- Variables ----------------------------------------------------------------------------------------------------


def told_variables() -> dict[str, str]:
    """NAME -> default, of .env.example."""
    return dict(re.findall(r"^# ([A-Z_]+)=(.*)$", TEXT[".env.example"], re.MULTILINE))


def used_variables() -> dict[str, set[str]]:
    used: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(TEXT["compose.yaml"] + TEXT["docker/compose.cpu.yaml"]):
        used.setdefault(name, set()).add(default)
    return used


def test_every_variable_of_compose_is_explained_with_its_default() -> None:
    settings = told_variables()
    # The commit is what docker/compose.sh finds out; nobody sets it.
    used = {name: values for name, values in used_variables().items() if name != "RECIPE_REVISION"}
    assert set(used) <= set(settings)
    for name, values in used.items():
        if len(values) == 1:
            assert {settings[name]} == values, name
            continue
        # More than one default, by service: none is shown, and the comment above names each.
        assert settings[name] == "", name
        comment = TEXT[".env.example"].split(f"\n# {name}=")[0].split("\n\n")[-1]
        assert values <= set(re.findall(r"[\w.]+", comment)), name


def test_every_variable_that_is_explained_exists() -> None:
    given = {name.split("=")[0] for service in SERVICES.values() for name in service.get("environment", ())}
    names = set(used_variables()) | given | {"COMPOSE_FILE", "COMPOSE_PROJECT_NAME"}  # and docker compose's own
    assert set(told_variables()) <= names


def test_nothing_is_set_in_the_example_and_every_variable_has_a_comment() -> None:
    for paragraph in TEXT[".env.example"].strip().split("\n\n"):
        lines = paragraph.splitlines()
        assert all(line.startswith("# ") for line in lines), paragraph
        assert not re.match(r"# [A-Z_]+=", lines[0]), paragraph
        assert re.search(r"[\u4e00-\u9fff]", paragraph), paragraph


def test_the_file_for_machines_without_a_gpu_is_the_one_that_is_told() -> None:
    files = told_variables()["COMPOSE_FILE"]
    assert files == "compose.yaml:docker/compose.cpu.yaml"
    for text in ("compose.yaml", "docker/compose.cpu.yaml", "docker/compose.sh"):
        assert f"COMPOSE_FILE={files}" in TEXT[text], text


def test_every_variable_has_a_default() -> None:
    assert VARIABLE.sub("", TEXT["compose.yaml"] + TEXT["docker/compose.cpu.yaml"]).count("$") == 0
    assert all(":-" in hit or ":+" in hit for hit in re.findall(r"\$\{\w+[^}]*\}", TEXT["compose.yaml"]))


# --- Dockerfile ---------------------------------------------------------------------------------------------------


def instructions() -> Iterator[tuple[str, str]]:
    """(keyword, arguments) of every instruction, its lines joined and comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if line.strip():
            keyword, arguments = line.split(maxsplit=1)
            yield keyword, arguments


INSTRUCTIONS = list(instructions())
STAGES: dict[str, list[tuple[str, str]]] = {}
for _keyword, _arguments in INSTRUCTIONS:
    if _keyword == "FROM":
        STAGES[_arguments.split()[-1]] = []
    if STAGES:
        STAGES[list(STAGES)[-1]].append((_keyword, _arguments))
FINAL = ("demo", "recipe")
final_stage = pytest.mark.parametrize("name", FINAL)


def arguments_of(keyword: str, stage: str | None = None) -> list[str]:
    return [arguments for word, arguments in (STAGES[stage] if stage else INSTRUCTIONS) if word == keyword]


def lineage(name: str) -> list[str]:
    """A stage and those that it stands on, the first one first."""
    parent = STAGES[name][0][1].split()[0]
    return [*(lineage(parent) if parent in STAGES else ()), name]


def test_no_other_frontend_is_fetched() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"^#\s*(syntax|check|escape)\s*=", text, re.MULTILINE | re.IGNORECASE)


def test_what_an_image_stands_on_is_pinned_and_an_argument() -> None:
    bases = dict(arguments.split("=", 1) for arguments in arguments_of("ARG") if "@" in arguments)
    for value in bases.values():
        assert re.fullmatch(r"[\w./-]+:[\w][\w.-]*@sha256:[0-9a-f]{64}", value), value
        assert ":latest" not in value
    stood_on = [arguments.split()[0] for arguments in arguments_of("FROM")]
    assert {f"${{{name}}}" for name in bases} == {base for base in stood_on if base not in STAGES}
    first = [keyword for keyword, _ in INSTRUCTIONS].index("FROM")
    assert [keyword for keyword, _ in INSTRUCTIONS[:first]] == ["ARG"] * len(bases)


@final_stage
def test_an_image_runs_as_a_user_without_rights(name: str) -> None:
    keywords = [keyword for keyword, _ in STAGES[name]]
    user, group = arguments_of("USER", name)[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0
    after = keywords[len(keywords) - keywords[::-1].index("USER") :]
    assert set(after) <= {"EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@final_stage
def test_what_an_image_starts_needs_no_shell(name: str) -> None:
    assert json.loads(arguments_of("ENTRYPOINT", name)[-1]) == ["python", "-m", "recipe"]
    command = json.loads(arguments_of("CMD", name)[-1])
    assert command == {"demo": ["demo"], "recipe": ["--help"]}[name]
    for keyword in ("ENTRYPOINT", "CMD"):
        assert all(arguments.startswith("[") for arguments in arguments_of(keyword))


def test_the_page_s_health_is_asked_without_a_shell() -> None:
    (check,) = arguments_of("HEALTHCHECK")
    assert arguments_of("HEALTHCHECK", "demo") == [check]
    options, command = check.split(" CMD ")
    (copied,) = (words for words in arguments_of("COPY", "demo") if "healthcheck" in words)
    assert json.loads(command) == ["python", copied.split()[0]]
    assert {"--interval", "--timeout", "--start-period", "--retries"} == {o.split("=")[0] for o in options.split()}


def test_the_page_s_port_is_told() -> None:
    assert arguments_of("EXPOSE") == [str(DEMO_PORT)]
    assert arguments_of("EXPOSE", "demo")


def test_nothing_is_fetched_by_add_and_no_secret_stays() -> None:
    assert arguments_of("ADD") == []
    for keyword in ("ENV", "ARG"):
        for arguments in arguments_of(keyword):
            for name in re.findall(r"(\w+)(?==|\s|$)", re.sub(r"=\S+", "=", arguments)):
                assert not re.search(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|INDEX", name), name
    assert "://" not in " ".join(arguments for _, arguments in INSTRUCTIONS)


@final_stage
def test_packages_are_installed_with_their_hashes_before_the_source_is_copied(name: str) -> None:
    story = [(keyword, arguments) for stage in lineage(name) for keyword, arguments in STAGES[stage]]
    installed = [i for i, (keyword, arguments) in enumerate(story) if keyword == "RUN" and "uv pip" in arguments]
    copied = [i for i, (keyword, _) in enumerate(story) if keyword in ("COPY", "ADD")]
    assert installed
    assert max(installed) < min(copied)
    for i in installed:
        assert re.search(r"uv pip sync .*--require-hashes requirements(-demo)?\.lock", story[i][1])
    lock = {"demo": "requirements-demo.lock", "recipe": "requirements.lock"}[name]
    assert story[installed[-1]][1].endswith(lock)


@final_stage
def test_the_commit_changes_none_of_the_layers_that_take_long(name: str) -> None:
    """An argument is part of every layer after it, and this one changes with every commit."""
    keywords = [(keyword, arguments.split("=")[0]) for keyword, arguments in STAGES[name]]
    settings = next(
        i for i, (keyword, arguments) in enumerate(STAGES[name]) if keyword == "ARG" and "REVISION" in arguments
    )
    assert {keyword for keyword, _ in keywords[settings:]} <= {
        "ARG", "ENV", "LABEL", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    for earlier in lineage(name)[:-1]:
        assert not any("REVISION" in arguments for arguments in arguments_of("ARG", earlier))


@final_stage
def test_an_image_says_what_it_is(name: str) -> None:
    (labels,) = arguments_of("LABEL", name)
    settings = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", labels))
    assert {"title", "description", "licenses", "version", "revision"} <= settings
    assert "ENV RECIPE_COMMIT=$REVISION" in [" ".join(instruction) for instruction in STAGES[name]]


def test_a_driver_that_is_too_old_is_told_by_the_recipe_and_not_by_the_container_runtime() -> None:
    assert any("NVIDIA_DISABLE_REQUIRE=1" in arguments for arguments in arguments_of("ENV", "base"))


# --- The build context --------------------------------------------------------------------------------------------


def needed() -> set[str]:
    """What the Dockerfile takes out of the checkout."""
    copied = (words.split() for words in arguments_of("COPY"))
    sources = {source for words in copied for source in words[:-1] if not source.startswith("--")}
    bound = {
        source
        for arguments in arguments_of("RUN")
        for mount in re.findall(r"--mount=type=bind,(\S+)", arguments)
        if "from=" not in mount
        for source in re.findall(r"source=([^,]+)", mount)
    }
    return sources | bound


def patterns() -> list[str]:
    return [line for line in TEXT[".dockerignore"].splitlines() if line and not line.startswith("#")]


def let_through(path: str) -> bool:
    """Docker's rule: the last pattern that matches a path or a folder above it decides."""
    allowed = True
    for pattern in patterns():
        plain = pattern.removeprefix("!")
        prefixes = list(itertools.accumulate(PurePosixPath(path).parts, lambda a, b: f"{a}/{b}"))
        forms = [plain] + ([plain.removeprefix("**/")] if plain.startswith("**/") else [])
        if any(fnmatch(prefix, form) for prefix in prefixes for form in forms):
            allowed = pattern.startswith("!")
    return allowed


def test_the_context_holds_what_the_dockerfile_takes_and_no_more() -> None:
    assert {pattern[1:] for pattern in patterns() if pattern.startswith("!")} == needed()
    assert patterns()[0] == "*"
    assert all((ROOT / path).exists() for path in needed())


@pytest.mark.parametrize(
    "path",
    [".env", ".git/config", ".venv/bin/python", "work/main/merged/model.safetensors", "tests/conftest.py",
     "recipe/__pycache__/cli.cpython-310.pyc", "recipe/training/presets/__pycache__/lora.cpython-310.pyc",
     "docker/compose.sh",
     "requirements-dev.lock", "README.md", "compose.yaml"],
)  # fmt: skip
def test_no_result_secret_or_local_setting_reaches_an_image(path: str) -> None:
    assert not let_through(path)


@pytest.mark.parametrize(
    "path",
    ["LICENSE", "recipe/cli/parser.py", "recipe/training/presets/lora.py", "recipe/env/setup.sh",
    "data/miniature/config.json",
     "docker/healthcheck.py", "requirements.lock", "requirements-demo.lock"],
)  # fmt: skip
def test_what_the_images_need_does(path: str) -> None:
    assert (ROOT / path).exists()
    assert let_through(path)
