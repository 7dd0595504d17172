"""Stage `publish`: the result of a run as a repository at Hugging Face or ModelScope.

What is sent is a folder of another stage, and in place of its card and its base's path what holds at a hub: a card with
the numbers of `eval`, and in adapter_config.json the base's repository. In the run's own folders that file keeps the
path of the base in the Llama layout, which stock PEFT finds without a connection; a hub's repository of InternLM2 holds
another layout. Manifests are not sent: they name paths of this machine. Nor are any training rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe import files
from recipe.checkpoint.base_origin import base_origin
from recipe.checkpoint.card_usage import Place
from recipe.checkpoint.hub_upload import UPLOADERS
from recipe.checkpoint.model_card import CARD, Subject, adapter_card, check_card, export_card, gguf_card, merged_card
from recipe.checkpoint.modelfile import MODELFILE
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import bases, results, stage
from recipe.pipeline.results import ConvertResults, EvalResults, GgufResults, MergeResults, PublishResults
from recipe.pipeline.table import BY_VERB
from recipe.stages import evaluate, gguf, train
from recipe.training import hyperparameters

ADAPTER_CONFIG = "adapter_config.json"
# ARTIFACT= -> the verb of the stage that writes it.
ARTIFACTS = {"merged": "merge", "adapter": "convert", "export": "export", "gguf": "gguf"}
# Files of a stage that are of use in a run's folder alone: export's Modelfile names a file of another folder.
LEFT_OUT = {"export": {MODELFILE}}
# Repositories that this run has created or filled, beside the stage's folder.
OURS = ".publish.json"


@dataclass(frozen=True)
class Target:
    """Where it goes.

    Attributes:
        repo: owner/name.
        source: the hub, "hf" or "modelscope".
        private: who sees it: the owner alone, or everybody.
    """

    repo: str
    source: str
    private: bool


def make(
    folder: Path,
    *,
    run_folder: Path,
    artifact: str,
    target: Target,
    names: Sequence[str],
    languages: Sequence[str],
    unverified: bool,
    dry_run: bool,
) -> list[str]:
    """Publish a result of a run.

    Args:
        folder: of the stage.
        run_folder: of the run.
        artifact: one of `ARTIFACTS`.
        target: where it goes.
        names: of the identity; empty after training on own data.
        languages: of the training.
        unverified: publish also what was not evaluated or is below the thresholds.
        dry_run: check everything, and send nothing.

    Returns:
        Lines for the user: what would be sent, or where it lies now.

    Raises:
        RecipeError: REPO= is no repository's name; the result is missing, changed, not evaluated or not good enough;
            or the hub refuses.
    """
    _refuse_name(target.repo)
    source_folder = run_folder / BY_VERB[ARTIFACTS[artifact]].folder
    manifest = stage.require(source_folder, ARTIFACTS[artifact])
    scores, caution = _verdict(run_folder, artifact, manifest, unverified=unverified)
    subject = _subject(run_folder, manifest, target, names=names, languages=languages, scores=scores, caution=caution)
    written = _written(artifact, manifest, source_folder, subject)
    check_card(written[CARD])
    sent = {name: source_folder / name for name in manifest["outputs"] if name not in LEFT_OUT.get(artifact, ())}
    contents: dict[str, Path | bytes] = sent | {name: text.encode() for name, text in written.items()}
    if dry_run:
        return _preview(target, contents, written[CARD])

    def work(out: Path) -> PublishResults:
        for name, text in written.items():
            (out / name).write_text(text, encoding="utf-8")
        commit = _send(folder, target, contents, subject.base.license)
        return PublishResults(target.repo, target.source, target.private, commit, sorted(contents))

    inputs = {"artifact": source_folder} | ({"eval": run_folder / "eval"} if scores else {})
    settings = {"repo": target.repo, "source": target.source, "private": target.private, "card": written[CARD]}
    manifest = stage.run("publish", folder, inputs=inputs, settings=settings, work=work)
    return [f"\n发布 published:  {results.of(manifest, PublishResults).commit}"]


def _refuse_name(repo: str) -> None:
    """RecipeError where no hub takes such a name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    reason = None if bases.REPOSITORY.fullmatch(repo) else "a repository is owner/name, in letters, digits, - _ and ."
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = reason or str(error).splitlines()[0]
    if reason:
        raise RecipeError(f"REPO={repo}: {reason}; for example REPO=alice/my-assistant")


def _send(folder: Path, target: Target, contents: Mapping[str, Path | bytes], license_id: str | None) -> str:
    """Create the repository and fill it; returns the commit's address."""
    uploader = UPLOADERS[target.source]()
    key, record = f"{target.source}/{target.repo}", folder.parent / OURS
    filled: dict[str, list[str]] = stage.read_json(record) if record.exists() else {}
    visible = "private" if target.private else "public"
    stage.say("publish", f"{uploader.title}: {len(contents)} files to {target.repo} ({visible} where it is new)")
    uploader.create(target.repo, private=target.private, license_id=license_id, ours=key in filled)
    before = filled.get(key, [])
    files.write_atomically(record, files.json_text(filled | {key: sorted({*before, *contents})}))
    stale = set(before) - set(contents)
    commit = uploader.upload(target.repo, contents, stale, f"Publish {target.repo.rpartition('/')[2]}")
    files.write_atomically(record, files.json_text(filled | {key: sorted(contents)}))
    return commit


def _verdict(
    run_folder: Path, artifact: str, manifest: stage.Manifest, *, unverified: bool
) -> tuple[EvalResults | None, str | None]:
    """(the numbers of `eval`, a word of caution) about an artifact, each None where there is none.

    Raises:
        RecipeError: it was not evaluated or is not good enough, and `unverified` does not say to publish it anyway.
    """
    folder = run_folder / "eval"
    anyway = "or say UNVERIFIED=1 to publish it all the same, and its card says so"
    evaluated = stage.read_manifest(folder)
    if evaluated is None or not _is_of(run_folder, artifact, manifest, evaluated):
        what = "was not evaluated" if evaluated is None else "is not what was evaluated"
        if unverified:
            return None, None
        raise RecipeError(f"{stage.shown(run_folder)}: its result {what}: run `make eval` first, {anyway}")
    stage.refuse_changed(folder, evaluated)
    failed = evaluate.failed_checks(folder)
    if failed and not unverified:
        raise RecipeError(
            f"{stage.shown(run_folder)}: its result is below the thresholds ({', '.join(failed)}): see its report, "
            f"{anyway}"
        )
    return results.of(evaluated, EvalResults), f"Below the thresholds: {', '.join(failed)}." if failed else None


def _is_of(run_folder: Path, artifact: str, manifest: stage.Manifest, evaluated: stage.Manifest) -> bool:
    """Whether an evaluation is of this artifact, or of what it was made from or into, by the hashes in manifests."""
    measured = evaluated["key"]["inputs"]["tuned"]
    folders = {name: run_folder / BY_VERB[ARTIFACTS[name]].folder for name in ("merged", "adapter")}
    digest = {name: stage.content_sha256(path) for name, path in folders.items() if stage.read_manifest(path)}
    merged = stage.read_manifest(folders["merged"])
    adapter_of_merged = merged["key"]["inputs"].get("adapter") if merged else None
    same = {digest.get("merged"), adapter_of_merged} if merged else {digest.get("adapter")}
    if measured not in same:
        return False
    if artifact == "adapter":
        return digest.get("adapter") in (measured, adapter_of_merged)
    return artifact == "merged" or manifest["key"]["inputs"]["merged"] == digest.get("merged")


def _subject(
    run_folder: Path,
    manifest: stage.Manifest,
    target: Target,
    *,
    names: Sequence[str],
    languages: Sequence[str],
    scores: EvalResults | None,
    caution: str | None,
) -> Subject:
    config = run_folder / "train" / train.CONFIG
    chosen = hyperparameters.read(config).shown() if config.is_file() else {}
    versions = {name: version for name, version in manifest["versions"].items() if name in ("xtuner", "torch", "peft")}
    return Subject(
        base=base_origin(ROOT / manifest["inputs"]["model"], target.source),
        place=Place(target.repo, target.source),
        languages=languages,
        names=names,
        scores=scores,
        caution=caution or (None if scores else "This result was not evaluated."),
        training=chosen | versions,
    )


def _written(artifact: str, manifest: stage.Manifest, folder: Path, subject: Subject) -> dict[str, str]:
    """File name -> text of what is sent in place of the artifact's own files.

    Raises:
        RecipeError: an adapter whose base lies at no hub, so that nobody could load it.
    """
    if artifact == "merged":
        return {CARD: merged_card(subject, results.of(manifest, MergeResults))}
    if artifact == "export":
        return {CARD: export_card(subject)}
    if artifact == "gguf":
        scores = gguf.scores_beside(manifest, folder.parent / "eval")
        return {CARD: gguf_card(subject, results.of(manifest, GgufResults).files, gguf.DEFAULT, scores)}
    if subject.base.repo is None:
        raise RecipeError(
            f"ARTIFACT=adapter: its base, {subject.base.name}, lies at no hub, so that nobody could load the adapter: "
            f"publish the merged model, ARTIFACT=merged"
        )
    settings: dict[str, Any] = stage.read_json(folder / ADAPTER_CONFIG)
    settings["base_model_name_or_path"] = subject.base.repo
    return {
        CARD: adapter_card(subject, results.of(manifest, ConvertResults).parameters, settings["r"]),
        ADAPTER_CONFIG: json.dumps(settings, indent=2, sort_keys=True) + "\n",
    }


def _preview(target: Target, contents: Mapping[str, Path | bytes], card: str) -> list[str]:
    """Lines that say what would be sent."""
    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()}
    visible = "private" if target.private else "public"
    return [
        f"would be sent to {bases.PAGES[target.source]}{target.repo} ({visible}), "
        f"{len(sizes)} files, {sum(sizes.values()):,} bytes:",
        *(f"  {size:>15,}  {name}" for name, size in sorted(sizes.items())),
        "",
        f"what the hub reads at the top of {CARD}:",
        card.split("\n---\n")[0].removeprefix("---\n"),
        "",
        "DRY_RUN: all checks that need no connection are passed, and nothing was sent.",
    ]
