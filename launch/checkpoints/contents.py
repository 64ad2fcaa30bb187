"""What a checkpoint consists of: collected on all ranks, written to a draft; resume.py loads it.

A checkpoint folder is a Hugging Face folder (`model.safetensors`, config, tokenizer) with a folder
`training/` (optimizer, random states, progress.json) and a manifest of sizes and hashes. That of a generator
and a discriminator is the discriminator's, with the generator's, `generator/`, inside.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from launch.agreement import gather
from launch.build import Job
from launch.checkpoints.manifest import Files, describe_files
from launch.checkpoints.universal import name_parameters
from launch.checkpoints.weights import collect_weights, write_weights
from launch.progress import Progress
from launch.recipe_change import describe_recipe

TRAINING = "training"
DEEPSPEED = "engine"
FAILURES = (OSError, RuntimeError, SafetensorError, MemoryError)
"""What a full or broken disk shows as: the second comes from torch; the last is a full memory."""


@dataclass(frozen=True)
class State:
    """What a checkpoint is written from; of ranks but the first `random` and `progress` are all.

    Attributes:
        optimizer: None under DeepSpeed, which writes its own.
        random: the states of all ranks.
        progress: the content of progress.json.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any] | None
    random: list[dict[str, Tensor]]
    progress: dict[str, Any]


def collect_state(job: Job, progress: Progress) -> State:
    """The state of a job, not copied: it holds until the next step. All ranks call it."""
    keys = {"recipe": describe_recipe(job.recipe), "data_key": job.store.manifest["key"]}
    return replace(
        read_tensors(job),
        random=gather(_read_random_states()),
        progress={
            **asdict(progress),
            **keys,
            "world_size": job.plan.world_size,
            "sharding": job.plan.sharding,
        },
    )


def read_tensors(job: Job) -> State:
    """What of a state is large. Under ZeRO all ranks call it, else any."""
    accelerator = job.accelerator
    is_own = job.plan.zero_stage is None and accelerator.is_main_process
    return State(
        weights=collect_weights(job),
        optimizer=job.optimizer.state_dict() if is_own else None,
        scaler=accelerator.scaler.state_dict() if is_own and accelerator.scaler else None,
        random=[],
        progress={},
    )


def write_state(job: Job, state: State, draft: Path) -> None:
    """Write a state to a draft; rank 0 calls it, in any thread.

    Raises:
        OSError, RuntimeError, SafetensorError, MemoryError: it cannot be written.
    """
    training = draft / TRAINING
    training.mkdir(parents=True, exist_ok=True)
    if state.optimizer is not None:
        saved = {
            "optimizer": state.optimizer,
            "names": name_parameters(job.optimizer, job.bare_model),
            "scaler": state.scaler,
        }
        torch.save(saved, training / "optimizer.pt")
    for rank, states in enumerate(state.random):
        torch.save(states, training / f"random-{rank}.pt")
    text = json.dumps(state.progress, indent=2) + "\n"
    (training / "progress.json").write_text(text, encoding="utf-8")
    write_weights(job, state.weights, draft, training)


def write_shards(job: Job, draft: Path) -> tuple[Files, str | None]:
    """Let DeepSpeed write its shards to a draft, which has a folder for them; all ranks call it.

    Returns:
        The files of this rank, flushed and described, and what went wrong here, in words. DeepSpeed's own
        exchanges are done in either case: a rank that left them would keep the others waiting.
    """
    written: list[Path] = []
    errors: list[str] = []
    folder = draft / TRAINING / DEEPSPEED
    with _noting_errors(job.model, written, errors):
        # The file that names its tag would be written, and raise, before DeepSpeed's last exchange.
        job.model.save_checkpoint(str(folder), tag="state", save_latest=False)  # pyright: ignore[reportCallIssue]
    if errors:
        return {}, errors[0]
    try:
        if job.accelerator.is_main_process:
            (folder / "latest").write_text("state", encoding="utf-8")
        return describe_files(draft, written), None
    except OSError as error:
        return {}, describe_failure(error)


def estimate_shard_bytes(job: Job) -> int:
    """About what a checkpoint under DeepSpeed takes, over all ranks.

    The weights twice (for Hugging Face and for DeepSpeed), and of each parameter a master and two moments in
    fp32.
    """
    sizes = ((getattr(p, "ds_numel", p.numel()), p.element_size()) for p in job.bare_model.parameters())
    return sum(numel * (2 * size + 12) for numel, size in sizes)


def describe_failure(error: BaseException) -> str:
    """An error in one line."""
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    # torch's own word for what a full disk did not take
    return f"is the disk full? torch says: {text}" if "inline_container" in text else text


@contextmanager
def _noting_errors(engine: Any, written: list[Path], errors: list[str]) -> Iterator[None]:
    """Let a DeepSpeed engine note what it writes, and what goes wrong in that instead of raising it."""
    writer = engine.checkpoint_engine
    save, copy_script = writer.save, engine._copy_recovery_script

    def note(write: Any, *arguments: Any, **named: Any) -> None:
        try:
            if not errors:
                write(*arguments, **named)
        except FAILURES as error:
            errors.append(describe_failure(error))

    def save_noted(state_dict: Any, path: str) -> None:
        note(save, state_dict, path)
        written.append(Path(path))

    writer.save = save_noted
    engine._copy_recovery_script = lambda save_path: note(copy_script, save_path)
    try:
        yield
    finally:
        del writer.save, engine._copy_recovery_script


def _read_random_states() -> dict[str, Tensor]:
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
