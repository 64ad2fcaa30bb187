"""Steps that are skipped, as a number in them is not finite. No GPU: torch's scaler runs on a CPU too."""

import io
import json
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
from launch import step, train
from launch.events import read_events
from launch.objective import Term
from launch.progress import Progress
from launch.schedule import Cadence
from launch.step import Outcome, check_update, take_step
from launch.train import log_end, log_step
from launch.verdict import RunError
from launch.watching.display import LivePanel, PlainLines
from launch.watching.track import Tracker
from launch.watching.view import Facts, View

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
        recipe=SimpleNamespace(training=SimpleNamespace(max_grad_norm=None), conditions=()),
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
        progress = progress.after(
            progress.step + 1, is_skipped=outcome.is_skipped, is_overflow=outcome.is_overflow
        )
        weights.append(model.weight.detach().clone())
        assert (outcome.grad_norm is None) == outcome.is_skipped == (factor > 1e30)
    assert (progress.step, progress.num_skipped, progress.num_skipped_in_a_row) == (3, 1, 0)
    assert torch.equal(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0] - 0.1 * 2.0)
    assert accelerator.scaler.get_scale() == 512.0


class Vague(Scaled):
    """Its loss is not a number where its second factor is 0, and its gradient is one all the same."""

    def forward(self, factor):
        return {"loss_sum": (self.weight * factor[0]).sum() + torch.where(factor[1] == 0, math.nan, 0.0)}


def start_adam(accelerator, model):
    return accelerator.prepare_optimizer(torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_loss_scaling_a_step_that_is_not_finite_is_as_if_it_had_not_been(precision, bad, accelerator):
    accelerator.scaler, accelerator.state._mixed_precision = None, "no"
    ended = []
    for factors in ((1.0, 2.0, bad, 3.0), (1.0, 2.0, 3.0)):
        model = Scaled()
        job = make_job(accelerator, model, start_adam(accelerator, model), precision)
        outcomes = [take_step(job, batch_of(factor)) for factor in factors]
        assert [outcome.is_skipped for outcome in outcomes] == [not math.isfinite(f) for f in factors]
        assert not any(outcome.is_overflow for outcome in outcomes)
        assert all((outcome.grad_norm is None) == outcome.is_skipped for outcome in outcomes)
        moments = job.optimizer.state_dict()["state"][0]
        ended.append([model.weight.detach(), moments["exp_avg"], moments["exp_avg_sq"], moments["step"]])
        accelerator._optimizers.clear()
    for found, wanted in zip(*ended, strict=True):
        assert torch.equal(found, wanted)


def test_a_loss_that_is_not_a_number_is_skipped_where_its_gradient_is_one(accelerator):
    accelerator.scaler, accelerator.state._mixed_precision = None, "no"
    model = Vague()
    job = make_job(accelerator, model, start_adam(accelerator, model), "fp32")
    outcomes = [take_step(job, batch_of([1.0, flag])) for flag in (1.0, 0.0)]
    assert [outcome.is_skipped for outcome in outcomes] == [False, True]
    assert math.isnan(outcomes[1].loss)
    assert torch.equal(job.optimizer.state_dict()["state"][0]["step"], torch.tensor(1.0))


def test_fp16_skips_a_loss_that_is_not_a_number_and_does_not_take_it_for_an_overflow(accelerator):
    model = Vague()
    job = make_job(
        accelerator, model, accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), 0.1))
    )
    outcomes = [take_step(job, batch_of([1.0, flag])) for flag in (1.0, 0.0)]
    assert [(outcome.is_skipped, outcome.is_overflow) for outcome in outcomes] == [
        (False, False),
        (True, False),
    ]


def test_an_overflow_is_one_of_the_loss_scale_as_long_as_that_can_fall(accelerator):
    model = Scaled()
    job = make_job(
        accelerator, model, accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), 0.1))
    )
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    job.optimizer.scaler = accelerator.scaler
    model.weight.data.zero_()  # the loss is 0 at any scale, the gradient more than fp32 holds from 2 on
    outcomes = [take_step(job, batch_of(3e38)) for _ in range(4)]
    assert [outcome.is_skipped for outcome in outcomes] == [True, True, True, False]
    assert [outcome.is_overflow for outcome in outcomes] == [True, True, False, False]


def test_a_step_that_deepspeed_took_with_a_loss_that_is_not_finite_ends_the_run(accelerator):
    engine = Engine([False])
    accelerator.scaler = None
    wrapper = wrap(engine)
    accelerator._optimizers.append(wrapper)
    with pytest.raises(RunError, match="was taken all the same") as caught:
        take_step(make_job(accelerator, engine, wrapper, "bf16", zero_stage=1), batch_of(math.inf))
    assert caught.value.verdict.exit_code == 5


class Engine(nn.Module):
    """As DeepSpeed's: it has stepped within `backward`, and keeps the norm of the last step that it took."""

    def __init__(self, overflows):
        super().__init__()
        self.overflows = list(overflows)
        self.optimizer = SimpleNamespace(
            overflow=False, loss_scale=4.0, step=lambda: None, zero_grad=lambda: None
        )

    def forward(self, factor):
        self.optimizer.overflow = self.overflows.pop(0)
        return {"loss_sum": factor.clone().requires_grad_()}

    def get_global_grad_norm(self):
        return 1.5


def wrap(engine):
    from accelerate.utils import DeepSpeedOptimizerWrapper

    return DeepSpeedOptimizerWrapper(engine.optimizer)


def test_a_step_that_deepspeed_skipped_has_no_norm_of_its_own(accelerator):
    engine = Engine([False, True, False])
    accelerator.scaler = None
    wrapper = wrap(engine)
    accelerator._optimizers.append(wrapper)
    job = make_job(accelerator, engine, wrapper, zero_stage=2)
    outcomes = [take_step(job, batch_of(1.0)) for _ in range(3)]
    assert [outcome.is_skipped for outcome in outcomes] == [False, True, False]
    assert [outcome.grad_norm for outcome in outcomes] == [1.5, None, 1.5]


@pytest.mark.parametrize(("back_at", "wanted"), [(None, [6, 9]), (5, [4, 8])])
def test_a_save_that_is_due_while_steps_are_skipped_is_made_at_the_first_that_is_not(
    back_at, wanted, monkeypatch
):
    """It is due at every fourth; from step 5 the run may go back to 2, where none is owed."""
    skipped, saved, last = (4, 5, 8), [], []
    outcomes = iter(range(1, 100))

    def take(*_):
        is_skipped = next(outcomes) in skipped
        return Outcome({"loss": 1.0}, 1, 1, 1, 1, 1, None, 0.1, False, is_skipped=is_skipped)

    def follow(progress, _):
        nonlocal back_at
        if progress.step != back_at:
            return progress
        back_at = None
        return Progress(step=2)

    monkeypatch.setattr(step, "begin_step", lambda *_: None)
    monkeypatch.setattr(step, "take_step", take)
    monkeypatch.setattr(train, "evaluate_and_keep_best", lambda job, progress, *_: progress)
    monkeypatch.setattr(train, "log_step", lambda *_: None)
    saver: Any = SimpleNamespace(
        look=lambda: None,
        save=lambda progress: saved.append(progress.step),
        save_last=lambda progress: last.append(progress.step),
    )
    course: Any = SimpleNamespace(take=lambda _: None, follow=follow)
    job: Any = SimpleNamespace(
        recipe=SimpleNamespace(
            evaluation=SimpleNamespace(every=100),
            checkpoint=SimpleNamespace(every=4),
            logging=SimpleNamespace(every=100),
            conditions=(),
        ),
        plan=SimpleNamespace(
            num_steps=12,
            rate_schedule=lambda _: SimpleNamespace(at=lambda _: 0.1),
            cadence=lambda every: Cadence(every, 1, 1),
        ),
    )
    tracker: Any = None
    train.train(job, Progress(), tracker, saver, course)
    assert (saved, last) == (wanted, [12])


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
    assert message == "3 steps; 2 steps skipped: loss or gradient not finite"
    assert log_with(Progress(step=3), monkeypatch)[1] == "3 steps"


@pytest.mark.parametrize("loss", [2.0, None])
@pytest.mark.parametrize("num_skipped", [0, 1, 3])
def test_skipped_steps_are_shown_on_a_terminal_and_in_lines(num_skipped, loss):
    event = {**EVENT, "loss": loss, "skipped_steps": num_skipped}
    text = io.StringIO()
    panel = LivePanel(Console(file=text, width=200, force_terminal=True), View(Facts("name", 10), 0))
    panel.show(event)
    panel.close()
    assert "skipped" in text.getvalue()
    text = io.StringIO()
    PlainLines(Console(file=text, width=200), View(Facts("name", 10), 0)).show(event)
    words = {0: "", 1: "1 step skipped: loss or gradient", 3: "3 steps skipped: loss or gradient"}[
        num_skipped
    ]
    assert words in text.getvalue()
    assert ("skipped" in text.getvalue()) == (num_skipped > 0)
    assert ("loss not finite" in text.getvalue()) == (loss is None)


def test_the_overflows_that_lower_the_loss_scale_are_skipped_and_not_counted_in_a_row():
    progress = Progress()
    for is_skipped, is_overflow, wanted in [
        (True, False, 1), (True, True, 1), (True, False, 2), (False, False, 0), (True, True, 0),
    ]:  # fmt: skip
        progress = progress.after(progress.step + 1, is_skipped=is_skipped, is_overflow=is_overflow)
        assert progress.num_skipped_in_a_row == wanted
    assert (progress.step, progress.num_skipped) == (5, 4)


def test_metrics_never_hold_what_json_has_no_word_for(tmp_path):
    with Tracker(tmp_path, is_main=True, display=None) as tracker:
        tracker.log("train", 1, loss=math.nan, grad_norm=None, learning_rate=1e-3)
        tracker.log("eval", 1, perplexity=math.inf, parts={"a": -math.inf}, rest=[math.nan, 1.0])
    text = (tmp_path / "metrics.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in {text}"))
    events = read_events(tmp_path / "metrics.jsonl")
    assert events.rows[0]["loss"] is None
    assert events.rows[1] == {
        "kind": "eval", "step": 1, "perplexity": None, "parts": {"a": None}, "rest": [None, 1.0],
    }  # fmt: skip


@pytest.mark.parametrize("grad_norm", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("is_finite", [True, False])
def test_a_step_that_was_taken_with_numbers_that_are_none_ends_the_run_before_anything_is_saved(
    is_finite, grad_norm
):
    check_update(True, is_finite, grad_norm)
    if is_finite and grad_norm == 1.0:
        check_update(False, is_finite, grad_norm)
        return
    with pytest.raises(RunError, match="not finite") as caught:
        check_update(False, is_finite, grad_norm)
    assert caught.value.verdict.exit_code == 5
