"""What the folders of a run say about its result, each checked to belong to the result that was evaluated."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe import json_reader
from recipe.corpus.rows import read_rows
from recipe.errors import RecipeError
from recipe.evaluation import metrics, thresholds
from recipe.evaluation.metrics import IdentityReply, JudgedReply, Metrics, OrdinaryReply, OwnReply
from recipe.languages import LANGUAGES
from recipe.paths import ROOT
from recipe.pipeline import results, stage, table
from recipe.pipeline.results import (
    ConfigResults,
    ConvertResults,
    DataResults,
    GgufScores,
    MergeResults,
    ModelResults,
    TrainResults,
    VariantResults,
)
from recipe.pipeline.stage import MANIFEST, Manifest
from recipe.records import ShapeError, from_json
from recipe.stages import config, gguf, replay, train
from recipe.training import hyperparameters

# Stage -> what it noted, of those whose results are shown; what `eval` measured stands in metrics.json.
NOTED: Mapping[str, type] = {
    "data": DataResults,
    "model": ModelResults,
    "config": ConfigResults,
    "train": TrainResults,
    "convert": ConvertResults,
    "merge": MergeResults,
}
FOLDERS = table.RESULT_FOLDERS
Judged = JudgedReply | OwnReply
# What can be wrong with a reply: what the numbers count, and that it does not end where the base's does.
FAULTS = ("missed", "not_learnt", "leaked", "leaked_without_name", "forgotten", "unstopped")


@dataclass(frozen=True)
class Exchange:
    """One prompt of the evaluation with the reply before and after, and what is wrong with the latter."""

    kind: str
    prompt: str
    before: str
    after: str
    expected: str | None
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Training rows of one file. languages: zh, en and other, by what the user says."""

    count: int
    distinct: int
    languages: Mapping[str, int]


@dataclass(frozen=True)
class _Loss:
    step: int
    loss: float


@dataclass(frozen=True)
class _Chosen:
    """What the report says of the settings of stage `config`."""

    preset: str
    set: list[str]
    seed: int


@dataclass(frozen=True)
class Facts:
    """Everything that a report says, before it is put into words.

    stages: manifests by the folder's name, in the order of the work. left_out: folders of the run that this result was
    not made from. gguf: file -> numbers of its weights. hyperparameters: name -> value as text. sources: the files
    read, by role.
    """

    run: str
    metrics: Metrics
    stages: Mapping[str, Manifest]
    left_out: Sequence[str]
    losses: Sequence[Mapping[str, float]]
    rows: Mapping[str, Rows]
    ablation: Mapping[str, VariantResults]
    gguf: Mapping[str, GgufScores]
    hyperparameters: Mapping[str, str]
    sources: Mapping[str, Path]

    @cached_property
    def checks(self) -> list[thresholds.Check]:
        return thresholds.verdict(self.metrics.tuned)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def name(self) -> str:
        return self.metrics.identity.name

    def result(self, folder: str, key: str) -> Any:
        """What a stage noted about its result; None where there is nothing."""
        return self.stages.get(folder, {}).get("results", {}).get(key)

    @property
    def converted(self) -> str | None:
        """The checkpoint that the tuned model was made from."""
        name = self.result("merged", "checkpoint") or self.result("adapter", "checkpoint")
        return Path(name).stem if name else None

    @cached_property
    def exchanges(self) -> list[Exchange]:
        base, tuned = self.metrics.base, self.metrics.tuned
        pairs: list[tuple[Judged, Judged]] = list(zip(base.replies, tuned.replies, strict=True))
        if base.own and tuned.own:
            pairs += zip(base.own.own_replies, tuned.own.own_replies, strict=True)
        return [_exchange(before, after) for before, after in pairs]

    @property
    def forecast(self) -> Mapping[str, int]:
        """Rows, tokens, packs, and the steps that were really made, where the run's own config was what trained."""
        manifest, trained = self.stages.get("config"), self.stages.get("train")
        if not manifest:
            return {}
        configured = results.of(manifest, ConfigResults)
        planned = configured.forecast
        size = planned.after(results.of(trained, TrainResults).iterations) if trained else planned
        return asdict(size) | {"tutorial_tokens": configured.tutorial_tokens}

    @property
    def padding(self) -> float | None:
        """Of the tokens in an epoch's packs, the share that is padding; the least it can be where rows were cut."""
        if not (numbers := self.forecast):
            return None
        room = numbers["packs"] * numbers["max_length"]
        return max(0.0, 1 - (numbers["tokens"] - numbers["dropped"]) / room)

    @property
    def epochs(self) -> float | None:
        if not (numbers := self.forecast):
            return None
        return numbers["trained_tokens"] / (numbers["packs"] * numbers["max_length"])

    @property
    def resumed(self) -> bool:
        """Whether the training was stopped on its way: every start leaves a folder of its own."""
        outputs = self.stages.get("train", {}).get("outputs", {})
        return len({name.split("/")[0] for name in outputs if "/vis_data/" in name}) > 1

    @property
    def tokens_per_second(self) -> float | None:
        """Padding included, over the whole stage; None where the stage's seconds are not those of all its steps."""
        seconds = self.stages.get("train", {}).get("seconds")
        if not self.forecast or not seconds or self.resumed:
            return None
        return float(self.forecast["trained_tokens"] / seconds)

    @property
    def differing(self) -> list[str]:
        """The stages that ran on other versions, another commit or another image than the last."""
        keys = ("versions", "git_commit", "image")
        last = [self.stages["eval"][key] for key in keys]
        return [manifest["stage"] for manifest in self.stages.values() if [manifest[key] for key in keys] != last]

    def shown(self, path: str) -> str:
        """A manifest's path without the folders of the machine it was made on."""
        parts = Path(path).parts
        if self.run in parts[:-1]:
            return "/".join(parts[len(parts) - parts[::-1].index(self.run) :])
        return "/".join(parts[-2:] if "models" in parts[-2:-1] else parts[-1:])


def gather(run_folder: Path) -> Facts:
    """Read a run. RecipeError: nothing was evaluated, or training, data or model changed since."""
    evaluated = stage.require(run_folder / "eval", "eval")
    manifests = {name: manifest for name in FOLDERS if (manifest := stage.read_manifest(run_folder / name))}
    folders = {name: run_folder / name for name in manifests}
    base = ROOT / stage.input_of(evaluated, "model")[0]
    if manifest := stage.read_manifest(base):
        manifests["model"], folders["model"] = manifest, base
    for file in map(Path, manifests.get("train", {}).get("inputs", {}).values()):
        if file.name == replay.FILE and (manifest := stage.read_manifest(ROOT / file.parent)):
            manifests["replay"], folders["replay"] = manifest, ROOT / file.parent
    _refuse_outdated(evaluated, folders)
    used = {name: manifest for name, manifest in manifests.items() if _belongs(name, manifests, folders)}
    order = ["data", "model", "replay", *FOLDERS[1:]]
    stages = {name: used[name] for name in order if name in used}
    for name, manifest in stages.items():
        stage.refuse_changed(folders[name], manifest)
        _refuse_another_shape(manifest)

    sources = {name: folders[name] / MANIFEST for name in stages}
    compared = stage.read_manifest(run_folder / "ablation")
    if compared and compared["key"]["inputs"]["balanced"] != stage.file_sha256(sources["eval"]):
        compared = None  # of an earlier result
    if compared:
        sources["ablation"] = run_folder / "ablation" / MANIFEST
    if files := gguf.scores_beside(stage.read_manifest(run_folder / "gguf"), folders["eval"]):
        sources["gguf"] = run_folder / "gguf" / MANIFEST
    sources["metrics"] = folders["eval"] / metrics.FILE
    if "train" in stages and (file := folders["train"] / train.LOSSES).is_file():
        sources["losses"] = file
    noted = results.of(stages["data"], DataResults) if "data" in stages else None
    written = {"data": ("data", noted.file)} if noted else {}
    if noted and noted.own_file and noted.own_file != noted.file:
        written["own"] = ("data", noted.own_file)
    for role, (folder, name) in (written | {"replay": ("replay", replay.FILE)}).items():
        if folder in stages and (file := folders[folder] / name).is_file():
            sources[f"rows_{role}"] = file
    return Facts(
        run=run_folder.name,
        metrics=metrics.read(folders["eval"]),
        stages=stages,
        left_out=[name for name in order if name in manifests and name not in used],
        losses=_losses(sources["losses"]) if "losses" in sources else [],
        rows={role: _count(sources[f"rows_{role}"]) for role in ("data", "own", "replay") if f"rows_{role}" in sources},
        ablation=results.of_variants(compared) if compared else {},
        gguf=files,
        hyperparameters=_hyperparameters(folders["train"] / train.CONFIG) if "train" in stages else {},
        sources=sources,
    )


def _hyperparameters(trained_with: Path) -> Mapping[str, str]:
    """Those of a resolved config; none where an older version has left no such file."""
    return hyperparameters.read(trained_with).shown() if trained_with.is_file() else {}


def _refuse_outdated(evaluated: Manifest, folders: Mapping[str, Path]) -> None:
    """RecipeError where a folder that was evaluated holds something else by now: the page would mix two results."""
    for role in ("train", "tuned", "data"):
        path, sha256 = stage.input_of(evaluated, role)
        name = Path(path).name
        if name in folders and stage.content_sha256(folders[name]) != sha256:
            raise RecipeError(
                f"{stage.shown(folders[name])} changed since it was evaluated: run `make eval` first, which ends with "
                f"the report"
            )


def _belongs(name: str, manifests: Mapping[str, Manifest], folders: Mapping[str, Path]) -> bool:
    """Whether a stage is one that the evaluated result was made from, as far as the manifests tell."""
    trained_on = manifests["train"]["key"]["inputs"] if "train" in manifests else {}
    if name == "model":
        return stage.content_sha256(folders[name]) == stage.input_of(manifests["eval"], "model")[1]
    if name == "adapter" and "merged" in manifests:
        return stage.content_sha256(folders[name]) == stage.input_of(manifests["merged"], "adapter")[1]
    if name == "merged":  # one that eval did not look at would be of another adapter
        return Path(stage.input_of(manifests["eval"], "tuned")[0]).name == name
    if name == "config" and trained_on:
        return _output(manifests, name, config.FILE) == stage.input_of(manifests["train"], "config")[1]
    if name == "replay" and trained_on:
        return _output(manifests, name, replay.FILE) in trained_on.values()
    return True


def _refuse_another_shape(manifest: Manifest) -> None:
    """RecipeError where a stage noted something else than this version's stage does."""
    if (kind := NOTED.get(manifest["stage"])) is not None:
        results.of(manifest, kind)
    if manifest["stage"] == "config":
        try:
            from_json(_Chosen, manifest["key"]["settings"], "key.settings")
        except ShapeError as error:
            raise RecipeError(f"the manifest of stage `config` {error}: run `make config` again") from None


def _output(manifests: Mapping[str, Manifest], name: str, file: str) -> str | None:
    digest: str | None = manifests[name]["outputs"].get(file, {}).get("sha256")
    return digest


def _losses(file: Path) -> list[dict[str, float]]:
    return json_reader.read_lines(file, dict[str, float], "run `make train` again", shape=_Loss)


def _count(file: Path) -> Rows:
    rows = read_rows(file)
    texts = [json.dumps(row["messages"], ensure_ascii=False) for row in rows]
    counted = Counter(_language(row["messages"]) for row in rows)
    languages = {language: counted[language] for language in (*LANGUAGES, "other") if counted[language]}
    return Rows(len(rows), len(set(texts)), languages)


def _language(messages: Sequence[Mapping[str, str]]) -> str:
    """zh where the user writes Han and no kana, en where plain Latin letters and no others, else other."""
    user_text = "".join(message["content"] for message in messages if message["role"] == "user")
    letters = "".join(character for character in user_text if character.isalpha())
    if re.search(r"[\u4e00-\u9fff]", letters) and not re.search(r"[\u3040-\u30ff]", letters):
        return "zh"
    return "en" if letters and letters.isascii() else "other"


def _exchange(before: Judged, after: Judged) -> Exchange:
    ordinary = after if isinstance(after, OrdinaryReply) else None
    faults = {
        "missed": isinstance(after, IdentityReply) and not after.hit,
        "not_learnt": isinstance(after, OwnReply) and not after.own_right,
        "leaked": ordinary is not None and ordinary.leak,
        "leaked_without_name": ordinary is not None and ordinary.leak_without_name,
        "forgotten": ordinary is not None and ordinary.base_knew and not ordinary.right,
        "unstopped": before.stopped and not after.stopped,
    }
    return Exchange(
        kind=after.kind,
        prompt=after.prompt,
        before=before.reply,
        after=after.reply,
        expected=None if isinstance(after, IdentityReply) else after.expected,
        faults=tuple(fault for fault in FAULTS if faults[fault]),
    )
