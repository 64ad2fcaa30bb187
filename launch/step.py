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
from launch.track import Tracker
from launch.verdict import DIVERGED, RunError


@dataclass
class Outcome:
    """What a step did on all ranks: means of the terms of its loss by name, the norm before clipping, ...

    A step whose gradient overflowed under fp16 is skipped: the weights are as before, and there is no norm.
    """

    means: dict[str, float]
    num_targets: int
    num_rows: int
    num_pieces: int
    num_flops: int
    grad_norm: float | None
    epoch: float
    is_asked_to_stop: bool
    is_skipped: bool = False


def begin_step(job: Job, tracker: Tracker, step: int, rate: float) -> None:
    """Say that a step begins, and write what it is taken with."""
    job.stop.mark("step", step)
    fault.at("before_step", step=step)
    set_rate(job.optimizer, rate)
    enter_step(job, tracker, step)


def take_step(job: Job, batch: StepBatch) -> Outcome:
    """One optimizer step over the micro-batches of all ranks.

    Each term of a step's loss is one sum over one count. Accelerate and DeepSpeed divide a micro-batch's
    loss by the accumulation, and DDP and ZeRO divide the gradients by the ranks; the scales undo both.

    Raises:
        RunError: the loss or the gradient is not finite.
    """
    accelerator, device, terms = job.accelerator, job.accelerator.device, job.terms
    num_flops = job.counter.count(batch.micro_batches) if job.counter else 0
    own = [*(term.count(batch) for term in terms), batch.num_rows, batch.num_pieces, num_flops]
    own.append(job.stop.is_asked)
    counts = sum_over_ranks(torch.tensor(own, dtype=torch.float64, device=device))
    *sizes, num_rows, num_pieces, num_flops, num_asked = (int(n) for n in counts.tolist())
    undo = accelerator.gradient_accumulation_steps * accelerator.num_processes
    scales = [undo * term.weight / size for term, size in zip(terms, sizes, strict=True)]
    totals = torch.zeros(len(terms), dtype=torch.float64, device=device)
    grad_norm = None
    for micro_batch in batch.micro_batches:
        with accelerator.accumulate(job.model):
            output = job.model(**move_batch(micro_batch, device))
            sums = [output[f"{term.name}_sum"] for term in terms]
            accelerator.backward(fault.poison("before_backward", sum(map(operator.mul, sums, scales))))
            if accelerator.sync_gradients:
                grad_norm = clip(job)
            job.optimizer.step()
            job.optimizer.zero_grad()
        totals += torch.stack(sums).detach().double()
    found = sum_over_ranks(totals).tolist()
    means = {term.name: total / size for term, total, size in zip(terms, found, sizes, strict=True)}
    is_skipped = accelerator.optimizer_step_was_skipped
    # DeepSpeed still has the norm of the step before a skipped one.
    norm = math.nan if grad_norm is None or is_skipped else float(grad_norm)
    norm = check_finite(sum(means.values()), norm, job.plan.precision)
    return Outcome(
        means, sizes[0], num_rows, num_pieces, num_flops, norm, batch.epoch, num_asked > 0, is_skipped
    )


def check_finite(loss: float, grad_norm: float, precision: str) -> float | None:
    """The gradient norm; None where fp16 overflowed, which its loss scaling answers by skipping the step.

    Raises:
        RunError: the loss is not finite, or the norm is not and there is no loss scaling.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return grad_norm
    if math.isfinite(loss) and precision == "fp16":
        return None
    raise RunError(
        DIVERGED,
        f"the loss is {loss} and the gradient norm {grad_norm}: training diverged; the last checkpoint is "
        "untouched. Try a lower training.learning_rate or a longer warmup",
    )


def clip(job: Job) -> Tensor | float:
    """Clip the gradients as the recipe says; their norm before. DeepSpeed has done it in its own step."""
    if job.plan.zero_stage is not None:
        return job.model.get_global_grad_norm()  # pyright: ignore[reportCallIssue]
    job.accelerator.unscale_gradients()
    return clip_gradients(job.model.parameters(), job.recipe.training.max_grad_norm or math.inf)
