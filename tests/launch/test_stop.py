"""The wish to stop of one rank is that of all: what is shared, and with whom."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_pipes.feed import StepBatch
from launch import engine, step
from launch.objective import Term
from launch.step import take_step
from launch.stop import StopAsked, StopFlag

CPU = torch.device("cpu")


def test_a_rank_stops_where_another_one_is_asked_to_and_only_there(monkeypatch):
    StopFlag().check(CPU)
    monkeypatch.setattr(engine, "sum_over_ranks", lambda own: own + 1)
    with pytest.raises(StopAsked):
        StopFlag().check(CPU)


class Weight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, factor):
        return {"loss_sum": (self.weight * factor).sum()}


@pytest.mark.parametrize(("own", "others", "wanted"), [(False, 0, False), (True, 0, True), (False, 1, True)])
def test_a_step_shares_who_is_asked_to_stop(own, others, wanted, monkeypatch):
    def add(values):
        """Of the two sums of a step the first has the wish in it, at its end."""
        if len(values) > 1:
            values[-1] += others
        return values

    monkeypatch.setattr(step, "sum_over_ranks", add)
    model = Weight()
    accelerator = SimpleNamespace(
        device=CPU, gradient_accumulation_steps=1, num_processes=1, sync_gradients=True, scaler=None,
        accumulate=lambda _: nullcontext(), backward=lambda loss: loss.backward(),
        unscale_gradients=lambda: None, optimizer_step_was_skipped=False,
    )  # fmt: skip
    job: Any = SimpleNamespace(
        accelerator=accelerator,
        terms=[Term("loss", 1.0, lambda batch: batch.num_targets)],
        counter=None,
        stop=SimpleNamespace(is_asked=own),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        plan=SimpleNamespace(precision="fp32", zero_stage=None),
        recipe=SimpleNamespace(training=SimpleNamespace(max_grad_norm=None)),
    )
    batch = StepBatch([{"factor": torch.tensor(2.0)}], 1, num_rows=1, num_pieces=1, num_slots=1, epoch=0.1)
    assert take_step(job, batch).is_asked_to_stop is wanted
