"""Resuming: which checkpoint a run goes on from, whether it may, and its state put into a job."""

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from data_pipes.store import Store
from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary.identity import check_identity
from launch import fault
from launch.build import Job
from launch.checkpoint import DEEPSPEED, TRAINING
from launch.manifest import find_checkpoints, find_damage
from launch.progress import Progress
from launch.recipe import Recipe
from launch.recipe_change import Change, check_resume, record_changes
from launch.verdict import RESUME, RunError
from launch.weights import load_weights, read_weights
from modeling.trust import check_shards, load_tensors


def set_aside_newer(folder: Path, step: int) -> None:
    """Rename the checkpoints after a step that a run starts anew from: they are of a course it has left."""
    for place in find_checkpoints(folder):
        number = int(place.name.removeprefix("checkpoint-"))
        if number > step:
            place.rename(folder / f"left-{number}-{int(time.time())}")


def choose_checkpoint(folder: Path, resume: str) -> Path | None:
    """The checkpoint to start from; None: a fresh start.

    Args:
        folder: the run folder.
        resume: `auto` (the newest whole one), `never`, or a checkpoint's path.

    Raises:
        RunError: there are checkpoints and none is whole, or `never` in a folder that has a run in it.
    """
    found = find_checkpoints(folder)
    if resume == "never":
        if found or (folder / "metrics.jsonl").exists():
            raise RunError(RESUME, f"--resume never: {folder} holds a run already; name another --output")
        return None
    if resume != "auto":
        found = [Path(resume)]
    damages = []
    for place in found:
        damage = find_damage(place)
        if damage is None:
            return place
        damages.append(f"{place.name}: {damage}")
    if damages:
        raise RunError(
            RESUME,
            f"no whole checkpoint to resume from ({'; '.join(damages)}); move it away to start afresh",
        )
    return None


def load_checkpoint(job: Job, place: Path, folder: Path, accepted: Collection[str] = ()) -> Progress:
    """Put a checkpoint's state into a job that was just built; the progress to go on from.

    What changed in the recipe since, and may, is written to changes.jsonl in the run's `folder`.

    Raises:
        RunError: it belongs to another recipe or other text, or its shards to another number of processes.
    """
    fault.at("before_load")
    training = place / TRAINING
    state, changes = check_state(job.recipe, job.store, place, accepted)
    if job.tokenizer.is_fast:
        try:
            check_identity(place)
        except TokenizerError as error:
            raise RunError(RESUME, f"{error}; restore it, or train in another --output") from error
    world_size = state.pop("world_size")
    if job.plan.zero_stage is None:
        _load_optimizer(job, place, training)
    else:
        _load_engine(job, place, training / DEEPSPEED, world_size)
    own_states = training / f"random-{job.accelerator.process_index}.pt"
    if world_size == job.plan.world_size and own_states.exists():
        _set_random_states(_load_tensors(own_states))
    if changes and job.accelerator.is_main_process:
        record_changes(folder, state["step"], changes)
    return Progress(**{**state, "resumed_from": state["step"]})


def _load_optimizer(job: Job, place: Path, training: Path) -> None:
    if not (training / "optimizer.pt").is_file():
        raise RunError(RESUME, f"{place} was written under ZeRO; resume it with the same profile")
    load_weights(job, read_weights(job, place, training))
    saved = _load_tensors(training / "optimizer.pt")
    job.optimizer.load_state_dict(saved["optimizer"])
    if job.accelerator.scaler is not None and saved["scaler"] is not None:
        job.accelerator.scaler.load_state_dict(saved["scaler"])


def _load_engine(job: Job, place: Path, shards: Path, world_size: int) -> None:
    if world_size != job.plan.world_size:
        raise RunError(
            RESUME, f"{place} holds ZeRO shards of {world_size} processes, not {job.plan.world_size}"
        )
    if not shards.is_dir():
        raise RunError(RESUME, f"{place} was written without DeepSpeed; resume it without a ZeRO profile")
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
