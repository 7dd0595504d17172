"""Stage `publish`: what is sent, what is refused, and that a dry run makes no connection."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_results import example_metrics, example_results, example_scores, example_tuned
from huggingface_hub import ModelCard
from upload_server import OWNER, TOKEN, UploadServer
from urllib3.util.retry import Retry

from recipe.checkpoint import connection_limits, hub_upload
from recipe.checkpoint.base_origin import base_origin
from recipe.errors import RecipeError
from recipe.evaluation import metrics
from recipe.pipeline import bases, stage
from recipe.stages import export, merge, publish

REPO = f"{OWNER}/my-assistant"
SOURCES = ("hf", "modelscope")


@pytest.fixture(scope="module")
def finished(adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is merged, and evaluated as good."""
    run = tmp_path_factory.mktemp("work") / "main"
    shutil.copytree(adapter_folder.parent, run)
    merge.make(run / "merged", adapter_folder=run / "adapter", identity_names=("小明",))
    evaluate(run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "work" / "main"))


def evaluate(run: Path, hit: float = 1.0) -> None:
    """What `eval` writes of the merged model."""
    shutil.rmtree(run / "eval", ignore_errors=True)
    tuned = example_tuned(example_scores(identity_hit=hit))

    def work(out: Path) -> dict[str, Any]:
        metrics.write(out, example_metrics(tuned))
        return example_results("eval")

    stage.run("eval", run / "eval", inputs={"tuned": run / "merged"}, settings={"hit": hit}, work=work)


def send(run: Path, artifact: str = "merged", source: str = "hf", **changes: Any) -> list[str]:
    target = publish.Target(changes.pop("repo", REPO), source, changes.pop("private", True))
    options: dict[str, Any] = {"names": ("小明",), "languages": ("zh", "en"), "unverified": False, "dry_run": False}
    return publish.make(run / "publish", run_folder=run, artifact=artifact, target=target, **options | changes)


def refusal(run: Path, *arguments: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        send(run, *arguments, **changes)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def server() -> Iterator[UploadServer]:
    with UploadServer() as running:
        yield running


@pytest.fixture(autouse=True)
def connect(server: UploadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points both client libraries at the server, as their environment variables do when a process starts."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    hub_upload.ModelScopeUpload()
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "ENDPOINT", server.url)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.hf_api").api, "endpoint", server.url)
    config = importlib.import_module("modelscope_hub.config")
    monkeypatch.setattr(config, "_default_config", None, raising=False)


@pytest.mark.parametrize("source", SOURCES)
def test_the_merged_model_arrives_with_a_card_that_holds_its_numbers(
    run: Path, server: UploadServer, source: str
) -> None:
    lines = send(run, source=source)
    assert REPO in lines[-1]
    arrived = server.repos[REPO]
    expected = {path.name for path in (run / "merged").iterdir()} - {stage.MANIFEST}
    assert set(arrived) - {".gitattributes"} == expected
    for name in expected - {"README.md"}:
        assert arrived[name] == (run / "merged" / name).read_bytes(), name
    data = ModelCard(arrived["README.md"].decode()).data
    assert {each.metric_type for each in data.eval_results} == {"identity_hit", "identity_leak", "retention"}
    assert str(run) not in arrived["README.md"].decode()
    created = server.created[REPO]
    assert created["private"] is True if source == "hf" else created["Visibility"] == 1
    before = len(server.requests)
    send(run, source=source)
    assert len(server.requests) == before  # up to date


def test_public_is_what_the_user_says(run: Path, server: UploadServer) -> None:
    send(run, private=False)
    assert server.created[REPO]["private"] is False


def test_a_later_result_goes_to_the_same_repository_and_what_is_stale_leaves_it(
    run: Path, server: UploadServer
) -> None:
    send(run)
    server.repos[REPO]["a-picture-of-the-user-s.png"] = b"x"
    record = run / publish.OURS
    sent = json.loads(record.read_text(encoding="utf-8"))
    server.repos[REPO]["model-00001-of-00002.safetensors"] = b"of a larger base"
    record.write_text(json.dumps({f"hf/{REPO}": [*sent[f"hf/{REPO}"], "model-00001-of-00002.safetensors"]}))
    send(run, languages=("en",))
    assert "model-00001-of-00002.safetensors" not in server.repos[REPO]
    assert ModelCard(server.repos[REPO]["README.md"].decode()).data.language == ["en"]
    assert "a-picture-of-the-user-s.png" in server.repos[REPO]
    assert "model.safetensors" in server.repos[REPO]


@pytest.mark.parametrize("source", SOURCES)
def test_another_one_s_repository_is_left_alone(run: Path, server: UploadServer, source: str) -> None:
    server.repos[REPO] = {"README.md": b"", "model.safetensors": b"theirs"}
    assert "is taken" in refusal(run, source=source)
    assert server.repos[REPO] == {"README.md": b"", "model.safetensors": b"theirs"}
    assert not (run / "publish").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_an_interrupted_upload_goes_on(run: Path, server: UploadServer, source: str) -> None:
    server.status["/commit/"] = 403
    assert "HTTP 403" in refusal(run, source=source)
    server.status.clear()
    server.repos[REPO]["model.safetensors"] = b"a part"
    send(run, source=source)
    assert server.repos[REPO]["model.safetensors"] == (run / "merged" / "model.safetensors").read_bytes()


def base_at_a_hub(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Has the base of the run come from a hub."""
    known: dict[str, Any] = {"repo": "some-one/base", "license": "mit", "internlm2": False}
    monkeypatch.setattr(publish, "base_origin", lambda *args: replace(base_origin(*args), **known | changes))


def test_an_adapter_names_its_base_s_repository_and_the_run_s_own_keeps_the_path(
    run: Path, server: UploadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(path["base_model_name_or_path"]).is_dir()  # as stock PEFT finds it
    assert "lies at no hub" in refusal(run, "adapter")
    base_at_a_hub(monkeypatch)
    send(run, "adapter")
    arrived = json.loads(server.repos[REPO]["adapter_config.json"])
    assert arrived == path | {"base_model_name_or_path": "some-one/base"}
    assert ModelCard(server.repos[REPO]["README.md"].decode()).data.base_model == "some-one/base"
    assert json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8")) == path


def test_what_arrived_loads_in_stock_peft(
    run: Path, server: UploadServer, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base_at_a_hub(monkeypatch)
    send(run, "adapter")
    (tmp_path / "arrived").mkdir()
    for name, content in server.repos[REPO].items():
        (tmp_path / "arrived" / name).write_bytes(content)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "arrived")
    assert model.active_adapter == "default"


def test_the_export_goes_without_a_modelfile_of_another_folder(run: Path, server: UploadServer) -> None:
    export.make(run / "export", model=run / "merged")
    send(run, "export")
    assert "Modelfile" not in server.repos[REPO]
    assert "transformers does not" in server.repos[REPO]["README.md"].decode()


@pytest.mark.parametrize("source", SOURCES)
def test_a_dry_run_checks_all_and_connects_to_nobody(
    run: Path, server: UploadServer, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    lines = send(run, source=source, dry_run=True)
    text = "\n".join(lines)
    assert bases.PAGES[source] + REPO in text
    assert "private" in text
    assert "model.safetensors" in text
    assert "identity_hit" in text
    assert not server.requests
    assert not (run / "publish").exists()
    assert "owner/name" in refusal(run, source=source, dry_run=True, repo="my-assistant")


@pytest.mark.parametrize("repo", ["me", "a/b/c", "a/b c", "../x", "a/-b", "a/b--c", "a/b.git", "", "a/" + "b" * 100])
def test_what_is_no_repository_is_refused(run: Path, repo: str) -> None:
    assert f"REPO={repo}" in refusal(run, repo=repo, dry_run=True)


def test_what_is_not_good_enough_is_refused_unless_the_user_says_so(run: Path, server: UploadServer) -> None:
    evaluate(run, hit=0.5)
    assert "below the thresholds (identity_hit)" in (text := refusal(run))
    assert "UNVERIFIED=1" in text
    assert not server.requests
    send(run, unverified=True)
    assert "**Below the thresholds: identity_hit.**" in server.repos[REPO]["README.md"].decode()


def test_what_was_not_evaluated_is_refused_unless_the_user_says_so(run: Path, server: UploadServer) -> None:
    shutil.rmtree(run / "eval")
    assert "was not evaluated: run `make eval`" in refusal(run)
    send(run, unverified=True)
    card = server.repos[REPO]["README.md"].decode()
    assert "**This result was not evaluated.**" in card
    assert "model-index" not in card


def test_an_evaluation_of_another_result_does_not_count(run: Path) -> None:
    manifest = json.loads((run / "eval" / stage.MANIFEST).read_text(encoding="utf-8"))
    manifest["key"]["inputs"]["tuned"] = "0" * 64
    (run / "eval" / stage.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for artifact in ("merged", "adapter"):
        assert "is not what was evaluated" in refusal(run, artifact)


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_token_it_says_how_to_get_one(
    run: Path, server: UploadServer, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token" in refusal(run, source=source)
    assert not server.requests


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("status", "reason"), [(401, "not valid any more"), (403, "may not write there"), (404, "no such owner")]
)
def test_what_a_hub_refuses_is_one_line(run: Path, server: UploadServer, source: str, status: int, reason: str) -> None:
    server.status["/create" if source == "hf" else "/api/v1/models"] = status
    assert reason in refusal(run, source=source)
    assert not (run / "publish").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_redirects_without_end_are_one_line(run: Path, server: UploadServer, source: str) -> None:
    server.status["/create" if source == "hf" else "/api/v1/models"] = 307
    assert "redirects" in refusal(run, source=source)
    assert len(server.requests) == connection_limits.MAX_REDIRECTS + 1


def test_a_hub_has_longer_for_its_answer_to_a_file_than_for_another(
    run: Path, server: UploadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "SILENCE", 0.1)
    monkeypatch.setattr(connection_limits, "WINDOW", 0.2)
    server.pause = 0.3
    send(run, source="modelscope")
    assert "model.safetensors" in server.repos[REPO]


def test_a_card_that_the_hub_refuses_is_one_line(run: Path, server: UploadServer) -> None:
    server.status["/validate-yaml"] = 400
    assert "Hugging Face" in refusal(run)


@pytest.mark.parametrize("source", SOURCES)
def test_no_network_is_one_line(run: Path, server: UploadServer, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    waits: list[float] = []  # of ModelScope's client between its tries, 15 s in all
    monkeypatch.setattr(Retry, "sleep", lambda self, _=None: waits.append(self.get_backoff_time()))
    assert "the connection failed" in refusal(run, source=source)
    assert bool(waits) == (source == "modelscope")


def test_nothing_of_this_machine_is_sent(run: Path, server: UploadServer) -> None:
    send(run)
    assert stage.MANIFEST not in server.repos[REPO]
    assert str(run.parent).encode() not in b"".join(server.repos[REPO].values())
