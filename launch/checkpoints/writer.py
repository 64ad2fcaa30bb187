"""The writer: one save, from a state in memory to a folder with its name. Rank 0 writes, in any thread.

A save that fails leaves what is there as it was, and no draft.
"""

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from launch import fault
from launch.agreement import find_error, gather, share
from launch.build import Job
from launch.checkpoints.contents import (
    DEEPSPEED,
    FAILURES,
    TRAINING,
    State,
    describe_failure,
    write_shards,
    write_state,
)
from launch.checkpoints.manifest import (
    Files,
    commit_checkpoint,
    commit_model,
    name_draft,
    seal_draft,
    write_pointer,
)
from launch.checkpoints.removal import discard
from launch.checkpoints.rotation import rotate_checkpoints
from launch.checkpoints.weights import NotFiniteError, write_weights


@dataclass(frozen=True)
class Outcome:
    """What a save came to.

    Attributes:
        error: why it failed, in words; None: it is committed.
        is_lost: it failed as the weights are no numbers any more.
        notes: what else went wrong and does not matter, in words.
        num_bytes, seconds: of writing, hashing and flushing.
    """

    error: str | None = None
    is_lost: bool = False
    notes: tuple[str, ...] = ()
    num_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Task:
    """A save on its way.

    Attributes:
        place: `checkpoint-<step>`, or a model's folder.
        protected_steps: of checkpoints that rotation leaves alone.
        blocked_seconds: how long the loop stood still for it.
        outcome: to come, of one in the background; None on ranks other than 0.
    """

    place: Path
    step: int
    protected_steps: Collection[int | None] = ()
    blocked_seconds: float = 0.0
    outcome: "Future[Outcome] | None" = None

    @property
    def kind(self) -> str:
        """`checkpoint`, or the model's name."""
        return self.place.name.partition("-")[0]


def write_checkpoint(job: Job, task: Task, state: State) -> Outcome:
    """Write and commit a checkpoint; rank 0 calls it."""

    def write(draft: Path) -> Outcome:
        write_state(job, state, draft)
        fault.at("after_shard_write")
        return _finish_checkpoint(job, task, draft)

    return _attempt(task, name_draft(task.place), write)


def write_model(job: Job, task: Task, weights: dict[str, Tensor]) -> Outcome:
    """Write a model and commit it in place of an older one; rank 0 calls it."""

    def write(draft: Path) -> Outcome:
        draft.mkdir()
        write_weights(job, weights, draft)
        files = seal_draft(draft, {"step": task.step})
        note = commit_model(draft, task.place)
        return Outcome(notes=(note,) if note else (), num_bytes=_sum_bytes(files))

    return _attempt(task, name_draft(task.place), write)


def write_sharded_checkpoint(job: Job, task: Task, state: State) -> Outcome:
    """Write and commit a checkpoint of which every rank has a part; all ranks call it and get the same."""
    begin = time.perf_counter()
    is_main = job.accelerator.is_main_process
    draft = share(name_draft(task.place))

    def prepare(draft: Path) -> Outcome:
        (draft / TRAINING / DEEPSPEED).mkdir(parents=True)
        return Outcome()

    def write_own(draft: Path) -> Outcome:
        write_state(job, state, draft)
        return Outcome()

    def finish(draft: Path) -> Outcome:
        return _finish_checkpoint(job, task, draft, files)

    prepared = share(_attempt(task, draft, prepare) if is_main else Outcome())
    if prepared.error is not None:
        return prepared
    own, error = write_shards(job, draft)
    written = _attempt(task, draft, write_own) if is_main and error is None else Outcome()
    error = find_error(gather(error or written.error or _pass_written()))
    files: Files = {name: entry for part in gather(own) for name, entry in part.items()}
    outcome = Outcome(error=error, is_lost=written.is_lost)
    if is_main and error is not None:
        discard(draft)
    elif is_main:
        outcome = _attempt(task, draft, finish)
    return replace(share(outcome), seconds=time.perf_counter() - begin)


def _finish_checkpoint(job: Job, task: Task, draft: Path, files: Files | None = None) -> Outcome:
    """Seal a draft, give it its name, point to it and rotate; only the first two can fail."""
    facts = {"step": task.step, "world_size": job.plan.world_size, "zero_stage": job.plan.zero_stage}
    num_bytes = _sum_bytes(seal_draft(draft, facts, files))
    commit_checkpoint(draft, task.place)
    notes = []
    try:
        write_pointer(task.place.parent, task.place.name)
    except OSError as error:
        notes.append(f"{task.place.name} is saved, RUN/latest could not be written ({error})")
    notes += rotate_checkpoints(task.place.parent, job.recipe.checkpoint.keep, task.protected_steps)
    return Outcome(notes=tuple(notes), num_bytes=num_bytes)


def _attempt(task: Task, draft: Path, write: Callable[[Path], Outcome]) -> Outcome:
    """Write a draft; without an error its outcome, else why not and no draft."""
    fault.enter_step(task.step)
    begin = time.perf_counter()
    try:
        outcome = write(draft)
    except FAILURES as error:
        note = discard(draft)
        is_lost = isinstance(error, NotFiniteError)
        return Outcome(describe_failure(error), is_lost, notes=(note,) if note else ())
    return replace(outcome, seconds=time.perf_counter() - begin)


def _pass_written() -> str | None:
    """Pass the point after a rank's part; what went wrong there, in words."""
    try:
        fault.at("after_shard_write")
    except OSError as error:
        return describe_failure(error)
    return None


def _sum_bytes(files: dict[str, dict[str, Any]]) -> int:
    return sum(entry["bytes"] for entry in files.values())
