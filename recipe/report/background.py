"""How a result came about, as a report shows it: data, settings, speed, the proof of the merge, origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.evaluation import thresholds
from recipe.pipeline import results
from recipe.pipeline.phases import with_other
from recipe.pipeline.results import MergeResults, VariantResults
from recipe.report.facts import Facts, Rows
from recipe.report.words import WORDS, Text, label, plain, text

# Of a phase that is shown.
SHOWN_SECONDS = 0.05


@dataclass(frozen=True)
class Data:
    """What was trained on. own: whether `rows` are the user's. own_rows: the user's beside them.

    figures: what `config` reckoned, empty where it is not known.
    padding: its share of the packs; epochs: passes over the data; both None without figures. own_passes: times
    that each of the user's rows is seen.
    """

    mode: str | None
    own: bool
    rows: Rows | None
    own_rows: Rows | None
    own_passes: float | None
    replay: Rows | None
    figures: Mapping[str, int]
    padding: Text | None
    epochs: float | None


@dataclass(frozen=True)
class Settings:
    """What was chosen. changed: (key, value) of what differs from the preset."""

    preset: str
    seed: int
    device: Text
    deepspeed: str | None
    processes: int
    changed: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class OwnConfig:
    """A config of the user's own, of which nothing else is known."""

    file: str
    deepspeed: str | None


@dataclass(frozen=True)
class StageCost:
    """share: of the longest stage's seconds. Peaks in MiB, None where none was measured."""

    stage: str
    seconds: float
    share: float
    process_peak: int | None
    gpu_peak: int | None


@dataclass(frozen=True)
class PhaseCost:
    """label: of a phase of `pipeline.phases`, or of what they leave. share: of the longest stage's seconds."""

    name: str
    label: Text
    seconds: float
    share: float


@dataclass(frozen=True)
class Cost:
    """phases: of each stage its verb and phases, empty where an older version wrote the manifests.

    speed: tokens a second, padding included. resumed: whether that is why there is none.
    """

    stages: Sequence[StageCost]
    phases: Sequence[tuple[str, Sequence[PhaseCost]]]
    seconds: float
    gpu: bool
    speed: float | None
    resumed: bool


@dataclass(frozen=True)
class Merge:
    """parameters: of the adapter. proof: how merged and base + adapter differ, None where nothing was merged."""

    parameters: int | None
    proof: MergeResults | None
    limit: float = thresholds.MAX_MERGE_KL


@dataclass(frozen=True)
class File:
    """A file or folder that a stage read or wrote. size: in bytes, None where only the sha256 was noted."""

    path: str
    sha256: str
    size: int | None = None


@dataclass(frozen=True)
class StageFiles:
    """What a stage read and wrote. folder: where it is not called like the stage."""

    stage: str
    folder: str | None
    inputs: Sequence[File]
    outputs: Sequence[File]


@dataclass(frozen=True)
class Origin:
    """differing: stages that ran on other versions. left_out: folders that the result was not made from."""

    versions: Mapping[str, str]
    commit: str | None
    image: str | None
    differing: Sequence[str]
    left_out: Sequence[str]
    stages: Sequence[StageFiles]


@dataclass(frozen=True)
class Background:
    """settings: None where a config of the user's own trained, and `own_config` None where a preset did.

    ablation: of each variant of the data its name and results, empty where none were compared.
    """

    data: Data
    settings: Settings | None
    own_config: OwnConfig | None
    hyperparameters: Mapping[str, str]
    cost: Cost
    merge: Merge
    ablation: Sequence[tuple[Text, VariantResults]]
    origin: Origin


def background(facts: Facts) -> Background:
    """Gather how a result came about.

    Args:
        facts: what the folders of the run say.

    Returns:
        What is shown of it: seconds, MiB, bytes and tokens as they were noted.
    """
    trained = facts.stages.get("train", {})
    deepspeed = trained.get("key", {}).get("settings", {}).get("deepspeed")
    chosen = facts.stages["config"]["key"]["settings"] if "config" in facts.stages else None
    file = facts.shown(trained["inputs"]["config"]) if trained else "?"
    return Background(
        data=_data(facts),
        settings=_settings(chosen, deepspeed) if chosen else None,
        own_config=None if chosen else OwnConfig(file, deepspeed),
        hyperparameters=facts.hyperparameters,
        cost=_cost(facts),
        merge=Merge(
            parameters=facts.result("adapter", "parameters"),
            proof=results.of(facts.stages["merged"], MergeResults) if "merged" in facts.stages else None,
        ),
        ablation=[(_variant(variant), numbers) for variant, numbers in facts.ablation.items()],
        origin=_origin(facts),
    )


def _variant(name: str) -> Text:
    """What a variant of the ablation was trained on: "no-PART" is all but that part of the data."""
    if name.startswith("no-") and f"ablation_{name}" not in WORDS:
        return text("ablation_without", part=name.removeprefix("no-"))
    return label(name, "ablation_")


def _data(facts: Facts) -> Data:
    mode, figures = facts.result("data", "mode"), facts.forecast
    padding = None
    if facts.padding is not None:
        share = f"{facts.padding:.1%}"
        padding = text("at_least", share=share) if figures["truncated"] else plain(share)
    return Data(
        mode=mode,
        own=mode == "own",
        rows=facts.rows.get("data"),
        own_rows=facts.rows.get("own"),
        own_passes=facts.result("config", "own_passes"),
        replay=facts.rows.get("replay"),
        figures=figures,
        padding=padding,
        epochs=facts.epochs,
    )


def _settings(chosen: Mapping[str, Any], deepspeed: str | None) -> Settings:
    pairs = (setting.partition("=") for setting in chosen["set"])
    return Settings(
        preset=chosen["preset"],
        seed=chosen["seed"],
        device=text("gpu" if chosen.get("gpu") else "cpu"),
        deepspeed=deepspeed,
        processes=chosen.get("processes", 1),
        changed=[(key, value) for key, _, value in pairs],
    )


def _cost(facts: Facts) -> Cost:
    manifests = facts.stages.values()
    longest = max(manifest["seconds"] for manifest in manifests)
    return Cost(
        stages=[
            StageCost(
                stage=manifest["stage"],
                seconds=manifest["seconds"],
                share=manifest["seconds"] / longest if longest else 0.0,
                process_peak=manifest.get("process_peak_mib"),
                gpu_peak=manifest.get("gpu_peak_mib"),
            )
            for manifest in manifests
        ],
        phases=_phases([manifest for manifest in manifests if manifest.get("phases")]),
        seconds=sum(manifest["seconds"] for manifest in manifests),
        gpu=any("gpu_peak_mib" in manifest for manifest in manifests),
        speed=facts.tokens_per_second,
        resumed=facts.resumed,
    )


def _phases(manifests: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[PhaseCost]]]:
    """The phases of each stage, those that would show as 0.0 seconds left out."""
    parts = {}
    for manifest in manifests:
        phases = with_other(manifest["phases"], manifest["seconds"])
        parts[manifest["stage"]] = {name: value for name, value in phases.items() if value >= SHOWN_SECONDS}
    longest = max((sum(each.values()) for each in parts.values()), default=0.0)
    return [
        (verb, [PhaseCost(name, label(name, "phase_"), value, value / longest) for name, value in each.items()])
        for verb, each in parts.items()
        if each
    ]


def _origin(facts: Facts) -> Origin:
    evaluated = facts.stages["eval"]
    return Origin(
        versions=evaluated["versions"],
        commit=evaluated["git_commit"],
        image=evaluated["image"],
        differing=facts.differing,
        left_out=facts.left_out,
        stages=[_files(facts, folder, manifest) for folder, manifest in facts.stages.items()],
    )


def _files(facts: Facts, folder: str, manifest: Mapping[str, Any]) -> StageFiles:
    digests = manifest["key"]["inputs"]
    return StageFiles(
        stage=manifest["stage"],
        folder=None if folder == manifest["stage"] else folder,
        inputs=[File(f"{role}: {facts.shown(path)}", digests[role]) for role, path in manifest["inputs"].items()],
        outputs=[File(file, entry["sha256"], entry["bytes"]) for file, entry in manifest["outputs"].items()],
    )
