"""The opening of a run: what is known before the first step, and samples filled before and after."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipes import yardsticks
from data_pipes.files import hash_stream
from data_pipes.masking import describe_rate
from launch.build import build_masking, count_classes

if TYPE_CHECKING:
    from data_pipes.store import StoredRows
    from launch.build import Job
    from launch.progress import Progress
    from launch.watching.track import Tracker

_RATE_ROWS = 10_000


def describe_start(job: "Job", tracker: "Tracker", progress: "Progress") -> None:
    """Log the data, the weights, the yardsticks and the first fills; on a resume, only that it is one.

    All ranks call it.
    """
    if progress.step:
        text = ", ".join(filter(None, (f"going on from step {progress.step:,}", job.origin)))
        tracker.log("resume", progress.step, origin=job.origin, message=text)
        return
    if job.accelerator.is_main_process:
        _log_data(job, tracker)
        _log_rate(job, tracker)
        _log_weights(job, tracker)
        _log_yardsticks(job, tracker)
    fill_samples(job, tracker, 0)


def fill_samples(job: "Job", tracker: "Tracker", step: int) -> None:
    """Fill the recipe's samples with the model as it is and log them.

    All ranks call it: under ZeRO-3 each has a part of the weights, and one that does not take part in a
    forward pass leaves the others waiting.
    """
    samples = job.recipe.evaluation.samples
    is_needed = job.accelerator.is_main_process or job.plan.zero_stage == 3
    if not samples or not is_needed:
        return
    from launch.predict import as_dict, fill_texts

    for filled in fill_texts(job.masked_lm, job.tokenizer, samples, device=job.accelerator.device):
        tracker.log("fill", step, **as_dict(filled))


def _log_data(job: "Job", tracker: "Tracker") -> None:
    manifest = job.store.manifest
    train, evaluation = manifest["splits"]["train"], manifest["splits"]["evaluation"]
    tracker.log(
        "data",
        0,
        num_documents=train["num_documents"],
        num_rows=train["num_rows"],
        num_pieces=train["num_pieces"],
        fill=train["fill"],
        num_evaluation_documents=evaluation["num_documents"],
        num_evaluation_rows=evaluation["num_rows"],
        dropped=manifest["dropped"],
        read={key: value for key, value in manifest["input"].items() if key != "examples"},
        key=manifest["key"],
        tokenizer_sha256=_hash_tokenizer(job),
        message=f"data: {train['num_rows']:,} training rows, {evaluation['num_rows']:,} evaluation rows",
    )


def _hash_tokenizer(job: "Job") -> str | None:
    """SHA-256 of the tokenizer.json that cut the rows; None: there is none, as for characters."""
    folder = job.store.tokenizer_folder
    path = None if folder is None else Path(folder) / "tokenizer.json"
    if path is None or not path.exists():
        return None
    with path.open("rb") as file:
        return hash_stream(file)


def _find_rows(job: "Job") -> "StoredRows":
    """The training rows that are looked at: of a stream its first shard, however many are there by now.

    Later rows may hold characters that the output table, settled with the first shard, has no class for.
    """
    train = job.store.train
    return train.head(train.rows_per_shard) if train.rows_per_shard else train


def _log_rate(job: "Job", tracker: "Tracker") -> None:
    """What the first rows really hide: the target that every row must have raises the rate of short ones."""
    rows = _find_rows(job)
    row_ids = np.arange(min(_RATE_ROWS, rows.num_rows))
    masking = build_masking(job.recipe, job.tokenizer, job.store)
    found = describe_rate(
        rows.take(row_ids), masking, row_ids=row_ids, epochs=0, seed=job.recipe.training.seed
    )
    text = f"masks: {found['realised_rate']:.2%} hidden of {found['asked_rate']:.2%} asked"
    if found["num_short_rows"]:
        share = found["num_short_rows"] / found["num_rows"]
        text += f"; {share:.1%} of the rows are so short that their one target is more than that"
    tracker.log("masks", 0, **found, message=text)


def _log_weights(job: "Job", tracker: "Tracker") -> None:
    # Under ZeRO-3 a parameter is empty where it lies on all ranks, and knows how large it is.
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in job.bare_model.parameters())
    report = job.load_report
    kernel = f"; attention kernel: {job.kernel}" if job.kernel else ""
    if report is None:
        text = f"model: {num_parameters:,} parameters from scratch{kernel}"
        tracker.log("weights", 0, num_parameters=num_parameters, kernel=job.kernel, message=text)
        return
    text = (
        f"model: {num_parameters:,} parameters; {len(report.loaded)} tensors loaded, {len(report.new)} new, "
        f"{len(report.unused)} unused. {report.reason}{kernel}"
    )
    tracker.log(
        "weights",
        0,
        num_parameters=num_parameters,
        new=report.new,
        unused=report.unused,
        kernel=job.kernel,
        expected_loss=report.expected_loss,
        message=text,
    )


def _log_yardsticks(job: "Job", tracker: "Tracker") -> None:
    """What two count tables reach on the same targets; a model that learns beats both."""
    scores = yardsticks.score(
        _find_rows(job),
        job.store.evaluation,
        masking=build_masking(job.recipe, job.tokenizer, job.store, is_frozen=True),
        seed=job.recipe.evaluation.seed,
        num_classes=count_classes(job.recipe, job.tokenizer, job.store),
    )
    for name, score in scores.items():
        tracker.log("yardstick", 0, name=name, **score)
