"""Checkpoints: whole or absent. Written beside their place, hashed, renamed; only then is an old one removed.

A checkpoint folder is a Hugging Face folder (`model.safetensors`, config, tokenizer) with a folder
`training/` (optimizer, random states, progress.json) and a manifest of sizes and hashes. That of a generator
and a discriminator is the discriminator's, with the generator's, `generator/`, inside.
"""

import json
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from data_pipes.store import Store
from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary.identity import check_identity
from launch import fault
from launch.build import Job
from launch.evaluate import Score
from launch.manifest import commit_folder, find_checkpoints, find_damage
from launch.recipe import Recipe
from launch.recipe_change import Change, check_resume, describe_recipe, record_changes
from launch.record import HIGHER_IS_BETTER
from launch.removal import may_remove, remove_draft
from launch.verdict import MACHINE, RESUME, RunError
from launch.weights import load_weights, read_weights, write_weights
from modeling.trust import check_shards, load_tensors

_TRAINING = "training"
_DEEPSPEED = "engine"


@dataclass(frozen=True)
class Progress:
    """How far a run is, and all that a later decision needs; plain data.

    Attributes:
        step: optimizer steps done.
        best_step, best_value: the best evaluation so far, by the stopping metric (else the loss).
        num_stale: evaluations since the last improvement.
        best_reported: the value that improvements are measured from.
        resumed_from: the step of the checkpoint that this process started from.
        num_skipped: of the steps done, those that changed nothing: a gradient overflowed under fp16.
        is_evaluation_due: the evaluation at this step was cut short by a signal.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    num_stale: int = 0
    best_reported: float | None = None
    resumed_from: int | None = None
    num_skipped: int = 0
    is_evaluation_due: bool = False

    def at(self, step: int) -> "Progress":
        """The same, some steps later."""
        return replace(self, step=step)

    def counting(self, *, is_skipped: bool) -> "Progress":
        """The same, with what became of its last step."""
        return replace(self, num_skipped=self.num_skipped + is_skipped)

    def with_evaluation_due(self) -> "Progress":
        """The same, with its evaluation still to be done: a signal came in the middle of it."""
        return replace(self, is_evaluation_due=True)

    def judged(self, score: Score, metric: str, threshold: float) -> "Progress":
        """After an evaluation: the best so far, and whether patience wears thin."""
        value = getattr(score, metric)
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        is_best = self.best_value is None or sign * value < sign * self.best_value
        improves = self.best_reported is None or sign * value < sign * self.best_reported - threshold
        return replace(
            self,
            best_step=self.step if is_best else self.best_step,
            best_value=value if is_best else self.best_value,
            num_stale=0 if improves else self.num_stale + 1,
            best_reported=value if improves else self.best_reported,
            is_evaluation_due=False,
        )


def save_checkpoint(job: Job, progress: Progress, folder: Path) -> Path:
    """Write `folder/checkpoint-<step>` and remove what the recipe no longer keeps. All ranks call it.

    Raises:
        RunError: it could not be written; nothing was removed.
    """
    accelerator = job.accelerator
    place = folder / f"checkpoint-{progress.step}"
    draft = folder / f".checkpoint-{progress.step}.partial"
    fault.at("before_save")
    if accelerator.is_main_process:
        with _writing(place):
            remove_draft(draft)
            (draft / _TRAINING).mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _writing(place):
        _save_training(job, progress, draft / _TRAINING)
        write_weights(job, draft, draft / _TRAINING)
        fault.at("after_shard_write")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with _writing(place):
            commit_folder(draft, place)
            protected = {progress.step, progress.best_step, progress.resumed_from}
            _rotate(folder, job.recipe.checkpoint.keep, protected)
    accelerator.wait_for_everyone()
    return place


def save_model(job: Job, place: Path) -> None:
    """Write the model as a Hugging Face folder (RUN/best, RUN/final), replacing an older one as a whole.

    Raises:
        RunError: it could not be written; an older one is as it was.
    """
    draft = place.with_name(f".{place.name}.partial")
    if job.accelerator.is_main_process:
        remove_draft(draft)
    job.accelerator.wait_for_everyone()
    with _writing(place):
        write_weights(job, draft)
        if job.accelerator.is_main_process:
            commit_folder(draft, place)
    job.accelerator.wait_for_everyone()


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Stop with a clear word: a full disk shows as OSError, RuntimeError (torch) or SafetensorError.

    Waiting for other ranks stays outside: a lost one shows as RuntimeError too.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            MACHINE, f"{place} could not be written ({reason}); older ones are untouched"
        ) from error


def _save_training(job: Job, progress: Progress, folder: Path) -> None:
    """Optimizer, loss scale and random states of all ranks, and the progress."""
    accelerator = job.accelerator
    if job.plan.zero_stage is not None:
        job.model.save_checkpoint(str(folder / _DEEPSPEED), tag="state")  # pyright: ignore[reportCallIssue]
    elif accelerator.is_main_process:
        scaler = accelerator.scaler
        state = {"optimizer": job.optimizer.state_dict(), "scaler": scaler and scaler.state_dict()}
        torch.save(state, folder / "optimizer.pt")
    torch.save(_random_states(), folder / f"random-{accelerator.process_index}.pt")
    if accelerator.is_main_process:
        keys = {"recipe": describe_recipe(job.recipe), "data_key": job.store.manifest["key"]}
        state = {**asdict(progress), **keys, "world_size": job.plan.world_size}
        (folder / "progress.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


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
    training = place / _TRAINING
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
        _load_engine(job, place, training / _DEEPSPEED, world_size)
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
    state = json.loads((place / _TRAINING / "progress.json").read_text(encoding="utf-8"))
    changes = check_resume(state, recipe, data_key=store.manifest["key"], place=place, accepted=accepted)
    return {key: value for key, value in state.items() if key not in ("recipe", "data_key")}, changes


def _rotate(folder: Path, keep: int, protected_steps: set[int | None]) -> None:
    for place in find_checkpoints(folder)[keep:]:
        is_protected = int(place.name.removeprefix("checkpoint-")) in protected_steps
        if not is_protected and may_remove(place):
            fault.at("during_rotate")
            shutil.rmtree(place)


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
