"""Steps that fp16 skips: counted, shown, and no divergence. No GPU: torch's scaler runs on a CPU too."""

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import nn

from data_pipes.feed import StepBatch
from launch.display import LivePanel, PlainLines
from launch.objective import Term
from launch.progress import Progress
from launch.step import take_step
from launch.train import log_end, log_step
from launch.verdict import RunError

EVENT = {
    "kind": "train", "step": 3, "loss": 2.0, "learning_rate": 1e-3, "grad_norm": None,
    "tokens_per_second": 10.0, "data_wait_fraction": 0.0, "epoch": 0.1,
}  # fmt: skip


class Scaled(nn.Module):
    """The loss is a number of the batch times a weight: so is the gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, factor):
        return {"loss_sum": (self.weight * factor).sum()}


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    found = Accelerator(cpu=True)
    # Accelerate refuses fp16 without a GPU; what it does with a scaler does not depend on one.
    found.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found.native_amp = True
    found.state._mixed_precision = "fp16"
    yield found
    AcceleratorState._reset_state(reset_partial_state=True)


def make_job(accelerator, model, optimizer, precision="fp16", zero_stage=None) -> Any:
    return SimpleNamespace(
        accelerator=accelerator,
        terms=[Term("loss", 1.0, lambda batch: batch.num_targets)],
        counter=None,
        stop=SimpleNamespace(is_asked=False),
        model=model,
        optimizer=optimizer,
        plan=SimpleNamespace(precision=precision, zero_stage=zero_stage, num_steps=3, peak_flops=None),
        recipe=SimpleNamespace(training=SimpleNamespace(max_grad_norm=None)),
    )


def batch_of(factor):
    batches = [{"factor": torch.tensor(factor)}]
    return StepBatch(batches, num_targets=1, num_rows=1, num_pieces=1, num_slots=1, epoch=0.1)


def test_a_step_whose_gradient_overflows_changes_nothing_and_is_counted(accelerator):
    model = Scaled()
    job = make_job(
        accelerator, model, accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), 0.1))
    )
    progress, weights = Progress(), []
    for factor in (1.0, 3.0e37, 2.0):  # times the scale of 1,024 the second is more than fp32 holds
        outcome = take_step(job, batch_of(factor))
        progress = progress.at(progress.step + 1).counting(is_skipped=outcome.is_skipped)
        weights.append(model.weight.detach().clone())
        assert (outcome.grad_norm is None) == outcome.is_skipped == (factor > 1e30)
    assert (progress.step, progress.num_skipped) == (3, 1)
    assert torch.equal(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0] - 0.1 * 2.0)
    assert accelerator.scaler.get_scale() == 512.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_without_loss_scaling_is_a_divergence(precision, accelerator):
    accelerator.scaler, accelerator.state._mixed_precision = None, "no"
    model = Scaled()
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(RunError, match="training diverged"):
        take_step(make_job(accelerator, model, optimizer, precision), batch_of(math.inf))


class Engine(nn.Module):
    """As DeepSpeed's: it has stepped within `backward`, and keeps the norm of the last step that it took."""

    def __init__(self, overflows):
        super().__init__()
        self.overflows = list(overflows)
        self.optimizer = SimpleNamespace(overflow=False, step=lambda: None, zero_grad=lambda: None)

    def forward(self, factor):
        self.optimizer.overflow = self.overflows.pop(0)
        return {"loss_sum": factor.clone().requires_grad_()}

    def get_global_grad_norm(self):
        return 1.5


def test_a_step_that_deepspeed_skipped_has_no_norm_of_its_own(accelerator):
    from accelerate.utils import DeepSpeedOptimizerWrapper

    engine = Engine([False, True, False])
    accelerator.scaler = None
    wrapper = DeepSpeedOptimizerWrapper(engine.optimizer)
    accelerator._optimizers.append(wrapper)
    job = make_job(accelerator, engine, wrapper, zero_stage=2)
    outcomes = [take_step(job, batch_of(1.0)) for _ in range(3)]
    assert [outcome.is_skipped for outcome in outcomes] == [False, True, False]
    assert [outcome.grad_norm for outcome in outcomes] == [1.5, None, 1.5]


def log_with(progress, monkeypatch):
    logged = []
    tracker: Any = SimpleNamespace(log=lambda kind, step, **values: logged.append((kind, step, values)))
    job = make_job(SimpleNamespace(device=torch.device("cpu")), None, None)
    outcome: Any = SimpleNamespace(means={"loss": 1.0}, num_targets=1, grad_norm=None, epoch=0.1)
    watch: Any = SimpleNamespace(read=lambda peak: {})
    log_step(job, tracker, progress, 1e-3, outcome, watch)
    return logged, log_end(job, tracker, progress)


def test_the_count_is_in_every_train_event_and_at_the_end(monkeypatch):
    logged, message = log_with(Progress(step=3, num_skipped=2), monkeypatch)
    assert [(kind, step, values["skipped_steps"]) for kind, step, values in logged] == [
        ("train", 3, 2),
        ("end", 3, 2),
    ]
    assert message == "3 steps; 2 steps skipped: fp16 overflow"
    assert log_with(Progress(step=3), monkeypatch)[1] == "3 steps"


@pytest.mark.parametrize("num_skipped", [0, 1, 3])
def test_skipped_steps_are_shown_on_a_terminal_and_in_lines(num_skipped):
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True)
    panel = LivePanel(console, "name", 10, 0)
    panel.show({**EVENT, "skipped_steps": num_skipped})
    panel.close()
    assert ("skipped" in text.getvalue()) == (num_skipped > 0)
    assert "overflow" in text.getvalue()
    text = io.StringIO()
    PlainLines(Console(file=text, width=200), 10, 0).show({**EVENT, "skipped_steps": num_skipped})
    words = {0: "", 1: "1 step skipped: fp16 overflow", 3: "3 steps skipped: fp16 overflow"}[num_skipped]
    assert text.getvalue().rstrip().endswith(words)
    assert ("skipped" in text.getvalue()) == (num_skipped > 0)
