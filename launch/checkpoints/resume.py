"""Resuming: whether a run may go on from a checkpoint, and its state put into a job."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from data_pipes.store import Store
from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary.identity import check_identity
from launch import fault
from launch.build import Job
from launch.checkpoints.contents import DEEPSPEED, TRAINING
from launch.checkpoints.origin import Origin, describe_world
from launch.checkpoints.takeover import take_over
from launch.checkpoints.universal import name_parameters
from launch.checkpoints.weights import load_weights, read_weights
from launch.progress import Progress
from launch.recipe import Recipe
from launch.recipe_change import Change, check_resume, record_changes
from launch.verdict import RESUME, RunError
from modeling.trust import check_shards, load_tensors


def load_checkpoint(job: Job, place: Path, folder: Path, accepted: Collection[str] = ()) -> Progress:
    """Put a checkpoint's state into a job that was just built; the progress to go on from.

    A checkpoint of the same world gives the same bits as if the run had never ended. One of another
    world (other processes, another sharding) is taken over by parameter name: on another number of processes
    dropout draws anew, and all else is as it was. What changed in the recipe since, and may, is
    written to changes.jsonl in the run's `folder`.

    Raises:
        RunError: it belongs to another recipe or other text, or cannot be taken over.
    """
    fault.at("before_load")
    training = place / TRAINING
    state, changes = check_state(job.recipe, job.store, place, accepted)
    if job.tokenizer.is_fast:
        try:
            check_identity(place)
        except TokenizerError as error:
            raise RunError(RESUME, f"{error}; restore it, or train in another --output") from error
    origin = Origin.read(place, state, is_sharded=not (training / "optimizer.pt").is_file())
    is_kept = origin.is_kept_by(job.plan)
    if is_kept and origin.is_sharded:
        _load_engine(job, place, training / DEEPSPEED)
    elif not (is_kept and _load_optimizer(job, place, training)):
        take_over(job, place, training, origin, num_updates=state["step"] - state.get("num_skipped", 0))
    own_states = training / f"random-{job.accelerator.process_index}.pt"
    if origin.world_size == job.plan.world_size and own_states.exists():
        _set_random_states(_load_tensors(own_states))
    job.origin = _describe(job, origin)
    if changes and job.accelerator.is_main_process:
        record_changes(folder, state["step"], changes)
    return Progress.read(state, job.recipe.best.metric)


def _describe(job: Job, origin: Origin) -> str | None:
    """In words where a checkpoint of another world comes from, and where it goes on; None: it is the same."""
    if not origin.differs(job.plan):
        return None
    text = f"written by {origin}, on {describe_world(job.plan.world_size, job.plan.sharding)}"
    is_drawn_anew = origin.world_size != job.plan.world_size and job.recipe.model.dropout != 0
    return f"{text}; what dropout drops is drawn anew" if is_drawn_anew else text


def _load_optimizer(job: Job, place: Path, training: Path) -> bool:
    """Load what one process or DDP has written, which the same gives back to the bit.

    Returns:
        Whether it was done: the optimizer's state is by number, and must be of the same parameters in order.
    """
    saved = _load_tensors(training / "optimizer.pt")
    if saved.get("names") not in (None, name_parameters(job.optimizer, job.bare_model)):
        return False
    load_weights(job, read_weights(job, place, training))
    job.optimizer.load_state_dict(saved["optimizer"])
    if job.accelerator.scaler is not None and saved["scaler"] is not None:
        job.accelerator.scaler.load_state_dict(saved["scaler"])
    return True


def _load_engine(job: Job, place: Path, shards: Path) -> None:
    _check_shards(shards)
    loaded, _ = job.model.load_checkpoint(str(shards), tag="state")  # pyright: ignore[reportCallIssue]
    if loaded is None:
        raise RunError(RESUME, f"DeepSpeed found no state in {place}")


def _check_shards(folder: Path) -> None:
    try:
        check_shards(folder)
    except ValueError as error:
        raise RunError(RESUME, str(error)) from error


def _load_tensors(path: Path) -> dict[str, Any]:
    try:
        return load_tensors(path)
    except ValueError as error:
        raise RunError(RESUME, str(error)) from error


def check_state(
    recipe: Recipe, store: Store, place: Path, accepted: Collection[str] = ()
) -> tuple[dict[str, Any], list[Change]]:
    """The state of a checkpoint, which must be of this text and a recipe with the same meaning; what changed.

    Raises:
        RunError: it is of others, or something changed that may not and is not `accepted`.
    """
    state = json.loads((place / TRAINING / "progress.json").read_text(encoding="utf-8"))
    changes = check_resume(state, recipe, data_key=store.manifest["key"], place=place, accepted=accepted)
    return {key: value for key, value in state.items() if key not in ("recipe", "data_key")}, changes


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
