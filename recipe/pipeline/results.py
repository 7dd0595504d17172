"""What each stage notes about its result, under "results" in its manifest.

A stage's work returns one of these classes; whoever reads the manifest gets the same class back from `of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.records import INLINE, ShapeError, from_json

Results = TypeVar("Results")


@dataclass(frozen=True)
class DataResults:
    """rows: conversations in `file`. mode: balanced, tutorial, or own for the user's rows alone.

    extended: whether the base is asked the questions for bases that other people trained. languages: of all prompts.
    own_file: of the user's rows, None without any; with mode own the same as `file`. own_rows: in it.
    own_questions: that evaluation asks about them. identity_taught: whether any row says the name.
    """

    rows: int
    file: str
    mode: str
    extended: bool = False
    languages: list[str] = field(default_factory=lambda: list(LANGUAGES))
    own_file: str | None = None
    own_rows: int = 0
    own_questions: int = 0
    identity_taught: bool = True


@dataclass(frozen=True)
class ModelResults:
    """model: as MODEL named it. format: that it came in. repository, revision: of the hub, where one was asked.

    license: of the weights, as the publisher's card names it; None where it is not known.
    """

    model: str
    parameters: int
    format: str
    repository: str | None = None
    revision: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class ReplayResults:
    """prompts: those asked. rows: the replies that are trained on."""

    prompts: int
    rows: int


@dataclass(frozen=True)
class Forecast:
    """The size of a training, as `training.forecast` counts it.

    Attributes:
        rows: conversations.
        tokens: of all rows.
        packs: of an epoch.
        max_length: tokens of a pack.
        iterations: of the whole run, in each process.
        optimizer_steps: iterations over gradient accumulation.
        trained_tokens: pack length times packs seen, padding included.
        dropped: tokens of an epoch that no pack holds.
        truncated: rows longer than a pack.
        processes: that share the packs of an epoch, one per GPU.
    """

    rows: int
    tokens: int
    packs: int
    max_length: int
    iterations: int
    optimizer_steps: int
    trained_tokens: int
    dropped: int
    truncated: int
    processes: int = 1

    def after(self, iterations: int) -> Forecast:
        """The size of a training that ended after so many iterations: fewer than planned where it stopped early."""
        share = iterations / self.iterations
        return replace(
            self,
            iterations=round(self.iterations * share),
            optimizer_steps=round(self.optimizer_steps * share),
            trained_tokens=round(self.trained_tokens * share),
        )


@dataclass(frozen=True)
class ConfigResults:
    """The choices behind a resolved config, and the size of the training by it.

    tutorial_tokens: tokens that the tutorial trains on for the same identity, padding included. own_passes: times that
    each of the user's rows is seen.
    """

    preset: str
    model: str
    data: str
    forecast: Forecast = field(metadata=INLINE)
    tutorial_tokens: int
    own_passes: float | None = None


@dataclass(frozen=True)
class TrainResults:
    """checkpoints: file names, oldest first. best: the name of the one chosen by its scores, None without scores.

    gpu_peak_mib: largest memory of a GPU in the training's processes; None on a CPU.
    """

    checkpoints: list[str]
    best: str | None
    last_loss: float
    iterations: int
    gpu_peak_mib: int | None = None


@dataclass(frozen=True)
class ConvertResults:
    """The checkpoint behind an adapter, and the base (folder, content's sha256) that the adapter belongs to."""

    checkpoint: str
    checkpoint_sha256: str
    tensors: int
    parameters: int
    model: str
    base_sha256: str


@dataclass(frozen=True)
class MergeResults:
    """The checkpoint behind a merged model, and how far the model is from base + adapter, both in float32.

    largest_logit_difference: of any logit. mean_kl: nats a token. same_top_token: share of the positions.
    """

    checkpoint: str
    checkpoint_sha256: str
    largest_logit_difference: float
    mean_kl: float
    same_top_token: float


@dataclass(frozen=True)
class BaseScores:
    """The three numbers of the untuned model (see `evaluation.scoring`) and the counts behind them.

    broken: share of its replies to ordinary prompts that loop or do not end. own_hit: share of the user's questions
    answered right, None without such rows.
    """

    identity_hit: float
    identity_leak: float
    retention: float
    broken: float | None
    counts: Mapping[str, int]
    own_hit: float | None = None


@dataclass(frozen=True)
class TunedScores:
    """The same of the tuned model, with the suites (see `evaluation.suites`) and the divergence in nats a token.

    leak_without_name: share of replies to unrelated prompts that show the identity without the name. broken: share of
        all replies by how many more loop or do not end than of the base's. own_hit: as of the base.
    """

    identity_hit: float
    identity_leak: float
    leak_without_name: float
    retention: float
    counts: Mapping[str, int]
    multi_turn_hit: float
    multi_turn_leak: float
    injection_hit: float
    sampled_hit: float
    sampled_leak: float
    broken: float
    kl_per_token: float
    own_hit: float | None = None


@dataclass(frozen=True)
class EvalResults:
    """The numbers of metrics.json without the replies behind them."""

    base: BaseScores
    tuned: TunedScores
    best_checkpoint: str | None


@dataclass(frozen=True)
class ReportResults:
    """passed: every threshold. stages: shown. left_out: folders of the run that the result was not made from."""

    passed: bool
    stages: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class ExportResults:
    """tokenizer_model: whether tokenizer.model could be written beside tokenizer.json."""

    parameters: int
    tokenizer_model: bool


@dataclass(frozen=True)
class GgufScores:
    """The three numbers of a file's weights (see `evaluation.scoring`) and the counts behind them."""

    identity_hit: float
    identity_leak: float
    retention: float
    counts: Mapping[str, int]


@dataclass(frozen=True)
class GgufResults:
    """files: names, one a kind. tokenizer, pre_tokenizer: llama.cpp's names of them.

    scores: file -> its numbers; empty where the merged model was not evaluated, or nobody wanted the files asked.
    """

    parameters: int
    files: list[str]
    tokenizer: str
    pre_tokenizer: str
    scores: Mapping[str, GgufScores] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishResults:
    """What lies at a hub now. files: all that were sent. commit: its page, or the repository's where it has none."""

    repo: str
    source: str
    private: bool
    commit: str
    files: list[str]


@dataclass(frozen=True)
class VariantResults:
    """What one variant of the ablation came to: shares, nats a token, steps, tokens with padding."""

    identity_hit: float
    identity_leak: float
    retention: float
    multi_turn_hit: float
    injection_hit: float
    broken: float
    kl_per_token: float
    iterations: int
    trained_tokens: int


def of(manifest: Mapping[str, Any], kind: type[Results]) -> Results:
    """The results in a manifest.

    Args:
        manifest: of the stage that returns `kind`.
        kind: one of the classes above.

    Raises:
        RecipeError: an older version wrote the manifest, and something is missing or of another type in it.
    """
    try:
        return from_json(kind, manifest["results"], "results")
    except ShapeError as error:
        name = manifest["stage"]
        raise RecipeError(
            f"the manifest of stage `{name}` {error}: an older version wrote it; remove the stage's folder and run "
            f"`make {name}` again"
        ) from None


def of_variants(manifest: Mapping[str, Any]) -> dict[str, VariantResults]:
    """The results of stage `ablation`, by the variant's name. RecipeError: as in `of`."""
    name = manifest["stage"]
    return {
        variant: of({"stage": name, "results": numbers}, VariantResults)
        for variant, numbers in manifest["results"].items()
    }
