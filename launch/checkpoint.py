"""Checkpoints: whole or absent. Written beside their place, hashed, renamed; only then is an old one removed.

A checkpoint folder is a Hugging Face folder (`model.safetensors`, config, tokenizer) with a folder
`training/` (optimizer, random states, progress.json) and a manifest of sizes and hashes. That of a generator
and a discriminator is the discriminator's, with the generator's, `generator/`, inside.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from launch import fault
from launch.build import Job
from launch.manifest import commit_folder, find_checkpoints
from launch.progress import Progress
from launch.recipe_change import describe_recipe
from launch.removal import may_remove, remove_draft
from launch.verdict import MACHINE, RunError
from launch.weights import write_weights

TRAINING = "training"
DEEPSPEED = "engine"


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
            (draft / TRAINING).mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _writing(place):
        _save_training(job, progress, draft / TRAINING)
        write_weights(job, draft, draft / TRAINING)
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
        job.model.save_checkpoint(str(folder / DEEPSPEED), tag="state")  # pyright: ignore[reportCallIssue]
    elif accelerator.is_main_process:
        scaler = accelerator.scaler
        state = {"optimizer": job.optimizer.state_dict(), "scaler": scaler and scaler.state_dict()}
        torch.save(state, folder / "optimizer.pt")
    torch.save(_random_states(), folder / f"random-{accelerator.process_index}.pt")
    if accelerator.is_main_process:
        keys = {"recipe": describe_recipe(job.recipe), "data_key": job.store.manifest["key"]}
        state = {**asdict(progress), **keys, "world_size": job.plan.world_size}
        (folder / "progress.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


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
