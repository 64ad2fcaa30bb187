"""The takeover of a checkpoint by a job of another world: other processes, another sharding, or both.

Its state is read by parameter name (universal.py), put into the job, read back and compared, so that no run
goes on from what only looks like its checkpoint.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.agreement import find_error, gather
from launch.build import Job
from launch.checkpoints import partitions
from launch.checkpoints.contents import DEEPSPEED
from launch.checkpoints.origin import Origin, describe_world
from launch.checkpoints.shards import read_shards
from launch.checkpoints.universal import (
    PlainState,
    TrainingState,
    UniversalError,
    fill_optimizer,
    find_misfit,
)
from launch.checkpoints.weights import collect_weights, load_weights, read_weights
from launch.verdict import MACHINE, RESUME, RunError
from modeling.trust import check_shards, load_tensors


def take_over(job: Job, place: Path, training: Path, origin: Origin, *, num_updates: int) -> None:
    """Put the state of a checkpoint that another world has written into a job. All ranks call it.

    Args:
        job: that goes on.
        place: the checkpoint.
        training: its folder of that name.
        origin: of the checkpoint.
        num_updates: how often its optimizer has updated the weights.

    Raises:
        RunError: on every rank; it cannot be taken over, or is not what it says.
    """
    weights = read_weights(job, place, training)
    state, error = None, _find_lack(job)
    try:
        state = None if error else _open_state(job, weights, training, origin)
    except ValueError as reason:
        error = str(reason)
    if state is not None:
        error = find_misfit(state, job.bare_model)
    _agree(job, place, origin, error)
    assert state is not None
    try:
        _fill(job, weights, state)
        error = _find_difference(job, weights, state, num_updates)
    except UniversalError as reason:
        error = str(reason)
    _agree(job, place, origin, error)
    if job.plan.zero_stage is not None:
        job.model.global_steps = num_updates  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def _find_lack(job: Job) -> str | None:
    """Why no state can be put into a job's engine, in words."""
    if job.plan.zero_stage is None:
        return None
    zero: Any = job.model.optimizer
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        return "its sharding keeps a part of the state on a disk (nvme), which cannot be filled"
    return None


def _open_state(job: Job, weights: dict[str, Tensor], training: Path, origin: Origin) -> TrainingState:
    """The state of a checkpoint by parameter name, once its files were looked at.

    Raises:
        ValueError: it cannot be read.
        RunError: DeepSpeed is wanted for its files, and is not here.
    """
    if not origin.is_sharded:
        return PlainState(weights, load_tensors(training / "optimizer.pt"), job.bare_model)
    folder = training / DEEPSPEED
    if not folder.is_dir():
        raise UniversalError("it has no state of an optimizer")
    check_shards(folder)
    if find_spec("deepspeed") is None:
        raise RunError(
            MACHINE,
            f"{training.parent} was written by DeepSpeed, which it takes to read it: pip install deepspeed",
        )
    return read_shards(folder / "state", origin.world_size)


def _fill(job: Job, weights: dict[str, Tensor], state: TrainingState) -> None:
    """Put a state that fits into a job.

    Raises:
        UniversalError: the engine cannot hold it.
    """
    if job.plan.zero_stage is not None:
        partitions.set_fixed(job.bare_model, weights)
        partitions.fill_partitions(job.model, job.bare_model, state)
        return
    load_weights(job, weights)
    fill_optimizer(job.optimizer, job.bare_model, state)
    scaler, scale = job.accelerator.scaler, state.loss_scale
    if scaler is not None and scale is not None:
        own = scaler.state_dict()
        tracker = scale.num_steps % own["growth_interval"]
        scaler.load_state_dict({**own, "scale": scale.value, "_growth_tracker": tracker})


def _find_difference(
    job: Job, weights: dict[str, Tensor], state: TrainingState, num_updates: int
) -> str | None:
    """What a job has otherwise than the checkpoint that was put into it, in words."""
    if job.plan.zero_stage is not None:
        difference = partitions.find_difference(job.model, job.bare_model, state)
        if difference is not None:
            return f"what was loaded is not what was read: {difference} is another"
        steps = partitions.find_steps(job.model.optimizer)
    else:
        steps = {float(of_one["step"]) for of_one in job.optimizer.state.values() if "step" in of_one}
    if (steps or {0.0}) != {float(num_updates)}:
        return f"its optimizer has made {sorted(steps)} updates, the run {num_updates:,}"
    found = collect_weights(job)
    for name, weight in weights.items() if job.accelerator.is_main_process else ():
        # An older version wrote the weights in half precision.
        if name not in found or not torch.equal(found[name].cpu().to(weight.dtype), weight):
            return f"the weight {name} is another than that of its model.safetensors"
    return None


def _agree(job: Job, place: Path, origin: Origin, error: str | None) -> None:
    error = find_error(gather(error))
    if error is not None:
        here = describe_world(job.plan.world_size, job.plan.sharding)
        remedy = f"Resume it on {origin}, or train" if origin.differs(job.plan) else "Train"
        raise RunError(
            RESUME,
            f"{place} was written by {origin} and does not fit {here}: {error}. {remedy} in another --output "
            f"with model.source={place}",
        )
