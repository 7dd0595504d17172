"""MODEL=owner/name: the files of any repository of a hub, its commit written down, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import BRANCHES, OTHER, REVISIONS, HubServer, sha256

from recipe.checkpoint.safetensors_io import INDEX, SINGLE
from recipe.errors import RecipeError
from recipe.pipeline import bases
from recipe.pipeline.run import Run, model_name
from recipe.stages import model

FOLDER = "Some-One--tiny.chat-model"
WEIGHTS = (".safetensors", ".bin")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Any]:
    """Stage `model` on the repository."""
    run = Run(tmp_path, "main")
    return lambda source, **more: model.make(run.model(OTHER), model=OTHER, source=source, **more)


def fetched(server: HubServer) -> set[str]:
    return {request.name for request in server.requests_for("get")}


def record(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "models" / f"{FOLDER}.lock.json").read_text(encoding="utf-8"))
    return content


def commit(source: str) -> str:
    """What the first download writes down: a commit, or ModelScope's branch, whose commit its client does not name."""
    return REVISIONS["hf"] if source == "hf" else BRANCHES[source]


def refusal(make: Callable[..., Any], source: str, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make(source, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_config_tokenizer_and_shards_arrive_and_nothing_else(
    source: str, server: HubServer, make: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = make(source)
    names = set(server.files) - {"modeling_internlm2.py", "README.md", "pytorch_model.bin"}
    assert fetched(server) == names
    assert (manifest["results"]["repository"], manifest["results"]["revision"]) == (OTHER, commit(source))
    entries = record(tmp_path)
    assert entries["revisions"] == {source: {BRANCHES[source]: commit(source)}}
    assert entries[source][commit(source)] == {
        name: {"bytes": len(server.files[name]), "sha256": sha256(server.files[name])} for name in names
    }
    assert (tmp_path / "models" / FOLDER / "config.json").is_file()
    assert (tmp_path / "hub" / FOLDER / commit(source)).is_dir()
    server.stop()
    assert make(source, offline=True) == manifest


def test_the_licence_that_hugging_face_names_is_written_down(
    source: str, server: HubServer, make: Callable[..., Any], tmp_path: Path
) -> None:
    server.license = "apache-2.0"
    expected = "apache-2.0" if source == "hf" else None  # ModelScope's listing names none
    assert make(source)["results"]["license"] == expected
    shutil.rmtree(tmp_path / "models" / FOLDER)
    server.stop()
    assert make(source, offline=True)["results"]["license"] == expected


def test_a_single_file_of_weights_is_taken_too(
    source: str, server: HubServer, make: Callable[..., Any], tiny_internlm2: Path
) -> None:
    for name in [name for name in server.files if name.endswith(".safetensors") or name == INDEX]:
        del server.files[name]
    server.files[SINGLE] = (tiny_internlm2 / SINGLE).read_bytes()
    make(source)
    assert SINGLE in fetched(server)


def test_the_commit_of_the_first_download_holds(
    server: HubServer, connect: Callable[[], None], make: Callable[..., Any], tmp_path: Path
) -> None:
    make("hf")
    (tmp_path / "hub" / FOLDER / REVISIONS["hf"] / "config.json").unlink()
    shutil.rmtree(tmp_path / "models" / FOLDER)
    server.commit = "1" * 40  # the branch has moved on; the server answers to the old commit with it, too
    assert "does not keep revisions" in refusal(make, "hf")


def test_other_content_than_the_first_download_s_is_refused(
    source: str, server: HubServer, make: Callable[..., Any], tmp_path: Path
) -> None:
    make(source)
    shutil.rmtree(tmp_path / "models" / FOLDER)
    (tmp_path / "hub" / FOLDER / commit(source) / "config.json").unlink()
    shard = next(name for name in server.files if name.endswith(".safetensors"))
    server.files[shard] = server.files[shard][:-1] + b"x"
    assert f"offers another {shard}" in refusal(make, source)


def test_a_revision_may_be_named(source: str, server: HubServer, make: Callable[..., Any], tmp_path: Path) -> None:
    manifest = make(source, revision=REVISIONS[source])
    assert manifest["results"]["revision"] == REVISIONS[source]
    assert "HTTP 404" in refusal(make, source, revision="no-such-branch")


def test_pickles_are_refused(source: str, server: HubServer, make: Callable[..., Any]) -> None:
    for name in [name for name in server.files if name.endswith(".safetensors") or name == INDEX]:
        del server.files[name]
    message = refusal(make, source)
    assert "pickles (pytorch_model.bin), which can run code and are never fetched" in message
    assert fetched(server) == set()


def change(server: HubServer, name: str, **changes: Any) -> None:
    server.files[name] = json.dumps(json.loads(server.files[name]) | changes).encode()


REFUSALS: list[tuple[str, Callable[[HubServer], Any], str]] = [
    ("layout", lambda server: change(server, "config.json", model_type="mistral"), "model_type 'mistral' is none of"),
    ("rope", lambda server: change(server, "config.json", rope_scaling={"type": "mrope"}), "of type 'mrope'"),
    ("tokenizer", lambda server: server.files.pop("tokenizer.model"), "tokenizer.model: missing"),
    ("no model", lambda server: server.files.pop("config.json"), "holds no config.json"),
    ("index", lambda server: change(server, INDEX, weight_map={"a": "../evil.safetensors"}), "is no index"),
    ("pickled shard", lambda server: change(server, INDEX, weight_map={"a": "pytorch_model.bin"}), "is no index"),
    ("shard", lambda server: change(server, INDEX, weight_map={"a": "none.safetensors"}), "holds no none.safetensors"),
]


@pytest.mark.parametrize(("spoil", "reason"), [each[1:] for each in REFUSALS], ids=[each[0] for each in REFUSALS])
def test_what_is_no_such_model_is_refused_before_its_weights_are_fetched(
    spoil: Callable[[HubServer], Any],
    reason: str,
    source: str,
    server: HubServer,
    make: Callable[..., Any],
    tmp_path: Path,
) -> None:
    spoil(server)
    assert reason in refusal(make, source)
    assert not [name for name in fetched(server) if name.endswith(WEIGHTS)]
    assert not (tmp_path / "models" / f"{FOLDER}.lock.json").exists()


def test_owners_never_share_a_folder_and_other_texts_are_no_repository() -> None:
    assert model_name("one/m") != model_name("two/m")
    assert model_name("one/m") == "one--m"
    for text in ("m", "../m", "/a/b", "a/b/c", "./b", "a/..", "a b/c"):
        assert bases.by_name(text) is None, text


def test_a_revision_of_what_has_none_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "models" / "x"
    for name in ("miniature", str(tmp_path)):
        with pytest.raises(RecipeError, match="is no repository of a hub"):
            model.make(out, model=name, revision="main")
    with pytest.raises(RecipeError, match="says which revision"):
        model.make(out, model="internlm2-chat-1_8b", revision="main")


def test_prompts_and_answers_of_a_repository_follow_its_name() -> None:
    assert model.is_internlm("internlm/internlm2-chat-7b")
    assert not model.is_internlm(OTHER)
    assert model.asks_extended_prompts("owner/miniature")
