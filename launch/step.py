"""The step: one update of the weights from the micro-batches of all ranks."""

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipes.feed import StepBatch, move_batch
from launch import fault
from launch.build import Job
from launch.engine import sum_over_ranks
from launch.new_rows import enter_step
from launch.optim import clip_gradients, set_rate
from launch.verdict import DIVERGED, RunError
from launch.watching.track import Tracker


@dataclass
class Outcome:
    """What a step did on all ranks: means of the terms of its loss by name, the norm before clipping, ...

    Where the loss or the gradient is not finite on any rank, all ranks skip the update: weights and moments
    are as before, and there is no norm.

    Attributes:
        is_overflow: the gradient alone was not, and fp16's loss scale is still to fall: it was its fault.
    """

    means: dict[str, float]
    num_targets: int
    num_rows: int
    num_pieces: int
    num_slots: int
    num_flops: int
    grad_norm: float | None
    epoch: float
    is_asked_to_stop: bool
    is_skipped: bool = False
    is_overflow: bool = False

    @property
    def loss(self) -> float:
        """The sum of its terms."""
        return sum(self.means.values())


def begin_step(job: Job, tracker: Tracker, step: int, rate: float) -> None:
    """Say that a step begins, and write what it is taken with."""
    job.stop.mark("step", step)
    fault.at("before_step", step=step)
    set_rate(job.optimizer, rate)
    enter_step(job, tracker, step)


def take_step(job: Job, batch: StepBatch) -> Outcome:
    """One optimizer step over the micro-batches of all ranks, or none where a number in it is not finite.

    Each term of a step's loss is one sum over one count. Accelerate and DeepSpeed divide a micro-batch's
    loss by the accumulation, and DDP and ZeRO divide the gradients by the ranks; the scales undo both.

    Raises:
        RunError: DeepSpeed took a step that was to be skipped.
    """
    accelerator, device, terms = job.accelerator, job.accelerator.device, job.terms
    num_flops = job.counter.count(batch.micro_batches) if job.counter else 0
    own = [*(term.count(batch) for term in terms), batch.num_rows, batch.num_pieces, batch.num_slots]
    own += [num_flops, job.stop.is_asked]
    counts = sum_over_ranks(torch.tensor(own, dtype=torch.float64, device=device))
    *sizes, num_rows, num_pieces, num_slots, num_flops, num_asked = (int(n) for n in counts.tolist())
    undo = accelerator.gradient_accumulation_steps * accelerator.num_processes
    scales = [undo * term.weight / size for term, size in zip(terms, sizes, strict=True)]
    totals = torch.zeros(len(terms), dtype=torch.float64, device=device)
    grad_norm, is_skipped = math.nan, False
    for micro_batch in batch.micro_batches:
        with accelerator.accumulate(job.model):
            output = job.model(**move_batch(micro_batch, device))
            sums = spoil([output[f"{term.name}_sum"] for term in terms])
            totals += torch.stack(sums).detach().double()
            loss = sum(map(operator.mul, sums, scales))
            if accelerator.sync_gradients:
                totals = sum_over_ranks(totals * fault.poison("before_sum", 1.0))
                loss = loss * spread(totals)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                grad_norm = clip(job)
                is_skipped = not update(job, grad_norm)
    means = {term.name: sum_ / size for term, sum_, size in zip(terms, totals.tolist(), sizes, strict=True)}
    is_finite = math.isfinite(sum(means.values()))
    check_update(is_skipped, is_finite, grad_norm)
    return Outcome(
        means=means,
        num_targets=sizes[0],
        num_rows=num_rows,
        num_pieces=num_pieces,
        num_slots=num_slots,
        num_flops=num_flops,
        grad_norm=None if is_skipped else grad_norm,
        epoch=batch.epoch,
        is_asked_to_stop=num_asked > 0,
        is_skipped=is_skipped,
        is_overflow=is_skipped and is_finite and read_loss_scale(job) > 1,
    )


def spoil(sums: list[Tensor]) -> list[Tensor]:
    """The sums of a micro-batch as they are, unless a fault is to be seen in them."""
    factor = fault.poison("before_backward", 1.0)
    return sums if factor == 1 else [value * factor for value in sums]


def spread(totals: Tensor) -> Tensor:
    """A factor of the last micro-batch's loss: 1, or NaN if the loss of any rank is not finite.

    With it all ranks have gradients that are not finite, also where that rank's own are: what looks at them
    skips the step, and under DeepSpeed nothing else could, as `backward` takes it. No rank waits for its
    device here.
    """
    return torch.where(totals.sum().isfinite(), 1.0, math.nan)


def update(job: Job, grad_norm: float) -> bool:
    """Update the weights; whether it was done. DeepSpeed has done it, or not, in its `backward`."""
    optimizer, scaler = job.optimizer, job.accelerator.scaler
    # The loss scaler skips by itself, and has to see the step to know.
    is_due = math.isfinite(grad_norm) or scaler is not None or job.plan.zero_stage is not None
    if is_due:
        optimizer.step()
    optimizer.zero_grad()
    return is_due and not job.accelerator.optimizer_step_was_skipped


def read_loss_scale(job: Job) -> float:
    """The factor of fp16's loss in the next step; 1 without one."""
    if job.plan.precision != "fp16":
        return 1.0
    if job.plan.zero_stage is not None:
        return float(job.model.optimizer.loss_scale)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return job.accelerator.scaler.get_scale() if job.accelerator.scaler else 1.0


def check_update(is_skipped: bool, is_finite: bool, grad_norm: float) -> None:
    """Stop before weights that are no numbers are saved.

    Raises:
        RunError: the step was taken with a loss or a gradient that is not finite.
    """
    if not is_skipped and not (is_finite and math.isfinite(grad_norm)):
        raise RunError(
            DIVERGED,
            "the loss or the gradient is not finite, and the step was taken all the same: the weights may be "
            "no numbers any more; the last checkpoint is untouched",
        )


def clip(job: Job) -> float:
    """Clip the gradients as the recipe says; their norm before. DeepSpeed has done it in its own step."""
    if job.plan.zero_stage is not None:
        return float(job.model.get_global_grad_norm())  # pyright: ignore[reportCallIssue]
    job.accelerator.unscale_gradients()
    return float(clip_gradients(job.model.parameters(), job.recipe.training.max_grad_norm or math.inf))
