import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from launch.schedule import Cadence, RateSchedule, resolve_first_phase, resolve_warmup


@pytest.mark.parametrize(
    ("shape", "build"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_rates_are_transformers_own_without_the_wasted_first_step(shape, build):
    """Its schedules give the first update a rate of 0; ours is a step ahead of them in the warmup."""
    num_steps, warmup, peak = 50, 10, 2e-3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    theirs, schedule = [], build(optimizer, warmup, num_steps)
    for _ in range(num_steps):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = RateSchedule(peak, num_steps, warmup, shape)
    rates = [ours.at(step) for step in range(1, num_steps + 1)]
    assert rates[:warmup] == pytest.approx(theirs[1 : warmup + 1], rel=1e-12)
    assert rates[warmup:] == pytest.approx(theirs[warmup:], rel=1e-12)
    assert rates[0] > 0
    assert rates[-1] > 0


def test_a_constant_schedule_stays_at_its_peak():
    schedule = RateSchedule(1.0, 10, 4, "constant")
    assert [schedule.at(step) for step in range(1, 11)] == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_a_peak_of_zero_is_a_value():
    assert RateSchedule(0.0, 10, 2, "linear").at(5) == 0.0


@pytest.mark.parametrize("every", [1, 3, 7, "epoch"])
@pytest.mark.parametrize("num_rows", [5, 16, 17, 100])
def test_the_count_of_a_cadence_is_the_number_of_steps_at_which_it_is_due(every, num_rows):
    cadence = Cadence(every, global_batch=16, num_rows=num_rows)
    for num_steps in range(30):
        assert cadence.count(num_steps) == sum(cadence.is_due(step) for step in range(num_steps + 1))


def test_an_epoch_ends_with_the_step_that_uses_its_last_row():
    cadence = Cadence("epoch", global_batch=16, num_rows=40)
    assert [step for step in range(1, 11) if cadence.is_due(step)] == [3, 5, 8, 10]


@pytest.mark.parametrize(
    ("warmup", "num_steps", "steps"),
    [(0.06, 2289, 138), (0.1, 100, 10), (0, 100, 0), (500, 100, 500), (1, 9, 1)],
)
def test_warmup_below_one_is_a_share_rounded_up(warmup, num_steps, steps):
    assert resolve_warmup(warmup, num_steps) == steps


def test_the_first_phase_has_a_rate_of_its_own_and_the_ordinary_schedule_runs_after_it():
    plain, after = RateSchedule(1.0, 20, 4, "linear"), RateSchedule(1.0, 27, 4, "linear", 7, 0.3)
    assert [after.at(step) for step in range(1, 8)] == [0.3] * 7
    rates = [after.at(step) for step in range(8, 28)]
    assert rates == [plain.at(step) for step in range(1, 21)]
    assert (max(rates), rates[0], rates[-1]) == (1.0, 0.25, 1 / 16)


@pytest.mark.parametrize(
    ("steps", "num_first", "is_possible"),
    [(10, 10, True), (0.1, 10, True), (0.101, 11, True), (93, 93, True), (94, 94, False), (500, 500, False)],
)
def test_a_first_phase_leaves_steps_for_the_warmup_and_more(steps, num_first, is_possible):
    found, problem = resolve_first_phase(steps, 100, 6)
    assert found == num_first
    assert (problem is None) == is_possible
    if problem:
        assert (
            f"{num_first:,} steps in which only new rows are trained and a warmup of 6 leave none" in problem
        )
        assert "set it to 0.1 (10 steps)" in problem
