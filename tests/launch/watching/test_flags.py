"""Red flags on planted series of events: each is raised by its own fault, once, and by nothing healthy."""

import math
import random

import pytest

from launch.watching import flags
from launch.watching.flags import Flags, Limits

GIB = 2**30


def step(number, loss=2.0, **more):
    return {
        "kind": "train",
        "step": number,
        "loss": loss,
        "grad_norm": 0.5,
        "data_wait_fraction": 0.01,
        "peak_memory_bytes": 5 * GIB,
        "skipped_steps": 0,
        **more,
    }


def evaluation(number, loss):
    return {"kind": "eval", "step": number, "loss": loss}


def raise_flags(events, **limits):
    found = []
    watched = Flags(Limits(**limits))
    for event in events:
        found += [(event["step"], flag["name"], flag["is_on"]) for flag in watched.warn(event)]
    return found


def names(found):
    return {name for _, name, _ in found}


def healthy(num_steps, seed=1):
    """A loss that falls like that of a small model, with the noise of a small batch."""
    noise = random.Random(seed)
    for number in range(1, num_steps + 1):
        yield step(number, 2 + 4 * math.exp(-4 * number / num_steps) + noise.gauss(0, 0.1))
        if number % 100 == 0:
            yield evaluation(number, 2 + 4 * math.exp(-4 * number / num_steps) + noise.gauss(0, 0.005))


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_raises_none(seed):
    limits = {"max_grad_norm": 1.0, "predicted_bytes": 5 * GIB, "limit_bytes": 8 * GIB}
    assert raise_flags(healthy(2_000, seed), num_steps=2_000, **limits) == []


def test_a_loss_that_stays_where_it_is_is_told_once_and_its_fall_ends_it():
    noise = random.Random(2)
    flat = [step(number, 7.0 + noise.gauss(0, 0.05)) for number in range(1, 1_001)]
    falling = [step(number, 7.0 - (number - 1_000) / 100) for number in range(1_001, 1_201)]
    found = raise_flags([*flat, *falling], num_steps=2_000)
    assert names(found) == {"loss_not_falling"}
    assert found[0][2] is True
    # Blocks of 50 steps: eight of them at the earliest.
    assert 400 <= found[0][0] <= 1_000
    assert found[-1][1:] == ("loss_not_falling", False)
    assert [is_on for _, _, is_on in found] == [index % 2 == 0 for index in range(len(found))]


def test_a_rising_loss_is_not_falling_either():
    events = [step(number, 2 + number / 100) for number in range(1, 501)]
    assert raise_flags(events, num_steps=800) == [(400, "loss_not_falling", True)]


def test_a_loss_logged_now_and_then_is_judged_over_as_many_steps():
    """2.5 % of 40,000 steps are 1,000: 40 events of every 25th step are too few, so 50 of them."""
    events = [step(number, 7.0) for number in range(25, 40_001, 25)]
    assert raise_flags(events, num_steps=40_000) == [(10_000, "loss_not_falling", True)]
    often = [step(number, 7.0) for number in range(1, 9_001)]
    assert raise_flags(often, num_steps=40_000) == [(8_000, "loss_not_falling", True)]


def diverging(losses, train=lambda number: 3 - number / 1_000):
    for index, loss in enumerate(losses):
        yield from (step(number, train(number)) for number in range(index * 20 + 1, index * 20 + 21))
        yield evaluation(index * 20 + 20, loss)


def test_an_evaluation_that_gets_worse_while_training_gets_better_is_told():
    found = raise_flags(diverging([2.5, 2.0, 2.1, 2.2, 2.3, 2.4, 2.2]))
    assert found == [(100, "evaluation_diverging", True), (140, "evaluation_diverging", False)]


def test_an_evaluation_that_is_worse_twice_or_while_training_gets_worse_too_is_not():
    assert raise_flags(diverging([2.5, 2.0, 2.1, 2.2, 2.1, 2.2, 2.3, 2.2])) == []
    worse = diverging([2.0, 2.1, 2.2, 2.3, 2.4], train=lambda number: 3 + number / 1_000)
    assert raise_flags(worse) == []


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_an_evaluation_that_is_no_number_is_told_at_once(lost):
    watched = Flags(Limits())
    told = [watched.warn(evaluation(step, loss)) for step, loss in ((0, 5.0), (10, lost), (20, lost))]
    ((flag,),) = told[1:2]
    assert told[0] == told[2] == []
    assert (flag["name"], flag["is_on"]) == ("evaluation_diverging", True)
    assert flag["message"] == "the evaluation of step 10 is not a number: the model has diverged"
    (over,) = watched.warn(evaluation(30, 2.5))
    assert (over["name"], over["is_on"]) == ("evaluation_diverging", False)
    assert over["message"] == "evaluation is a number again: loss 2.5000"
    assert watched.warn(evaluation(40, 2.6)) == []


def test_an_evaluation_that_got_worse_and_then_is_no_number_is_told_twice():
    events = [*diverging([2.5, 2.0, 2.1, 2.2, 2.3]), evaluation(120, None), evaluation(140, 2.2)]
    name = "evaluation_diverging"
    assert raise_flags(events) == [(100, name, True), (120, name, True), (140, name, False)]


def test_waiting_for_data_is_told_when_it_lasts():
    short = [
        step(number, 3 - number / 1_000, data_wait_fraction=0.9 if number < 15 else 0.0)
        for number in range(1, 301)
    ]
    assert raise_flags(short) == []
    long = [
        step(number, 3 - number / 1_000, data_wait_fraction=0.3 if number < 300 else 0.02)
        for number in range(1, 601)
    ]
    found = raise_flags(long)
    assert [(name, is_on) for _, name, is_on in found] == [("data_starving", True), ("data_starving", False)]
    assert found[0][0] == 101
    assert 360 < found[1][0] < 400


def test_waiting_is_not_told_again_while_it_hovers_about_its_limit():
    """0.25 and 0.15 in turn, 150 steps each: above the limit that begins it, never below the other."""
    events = [
        step(number, 3 - number / 1_000, data_wait_fraction=0.25 if number // 150 % 2 == 0 else 0.15)
        for number in range(1, 1_501)
    ]
    assert raise_flags(events) == [(101, "data_starving", True)]


def test_a_gradient_above_the_clip_nearly_always_is_told():
    events = [
        step(number, 3 - number / 1_000, grad_norm=4.0 if number % 20 else 0.5) for number in range(1, 301)
    ]
    assert raise_flags(events, max_grad_norm=1.0) == [(101, "gradient_above_clip", True)]
    assert raise_flags(events, max_grad_norm=None) == []
    often = [
        step(number, 3 - number / 1_000, grad_norm=4.0 if number % 5 else 0.5) for number in range(1, 301)
    ]
    assert raise_flags(often, max_grad_norm=1.0) == []


def test_skipped_steps_are_told_when_there_are_many_in_a_row_of_steps():
    def run(first, share):
        count = 0
        for number in range(1, 301):
            is_skipped = number > first and number % share == 0
            count += is_skipped
            yield step(number, 3 - number / 1_000, skipped_steps=count, grad_norm=None if is_skipped else 0.5)

    assert names(raise_flags(run(150, 4))) == {"steps_skipped"}
    assert raise_flags(run(150, 20)) == []


def test_a_scale_that_is_found_in_the_first_steps_is_no_skipping():
    events = [step(number, 3 - number / 1_000, skipped_steps=min(number, 8)) for number in range(1, 301)]
    assert raise_flags(events) == []


@pytest.mark.parametrize(
    ("peak", "expected"),
    [(7.5, set()), (7.7, {"memory_near_limit", "memory_above_plan"}), (5.6, {"memory_above_plan"} - {"x"})],
)
def test_memory_is_held_against_the_plan_and_the_limit(peak, expected):
    events = [step(number, 3 - number / 1_000, peak_memory_bytes=peak * GIB) for number in range(1, 10)]
    predicted = 5 * GIB if expected else 7.5 * GIB
    found = raise_flags(events, predicted_bytes=predicted, limit_bytes=8 * GIB)
    assert names(found) == expected
    assert len(found) == len(expected)


def test_what_is_not_known_raises_nothing():
    bare = [{"kind": "train", "step": number, "loss": 3 - number / 1_000} for number in range(1, 301)]
    assert raise_flags(bare, max_grad_norm=1.0, limit_bytes=1.0, predicted_bytes=1.0) == []
    odd = [
        {"kind": "train", "step": 1},
        {"kind": "eval", "step": 1},
        {"kind": "note", "step": 2},
    ]
    odd += [{"kind": "train", "step": 3, "loss": math.nan}, {"kind": "train", "step": 4, "loss": None}]
    assert raise_flags(odd) == []


def test_messages_have_the_figures():
    watched = Flags(Limits(num_steps=800, max_grad_norm=1.0))
    said = [
        flag["message"]
        for number in range(1, 401)
        for flag in watched.warn(step(number, 2 + number / 100, grad_norm=3.0, data_wait_fraction=0.5))
    ]
    assert len(said) == 3
    text = " ".join(said)
    assert "50% of the time of the last 100 steps" in text
    assert "above the clip of 1 in 100% of the last 101 logged steps (median 3.00)" in text
    assert "the loss is not falling: 5.7550, and 2.2550 at step 50 already" in text


def test_limits_are_read_from_a_plan_and_a_recipe():
    plan = {"num_steps": 10, "memory": {"gpu_bytes": 5.0, "limit_bytes": 8}}
    assert Limits.of(plan, {"training": {"max_grad_norm": 2}}) == Limits(10, 2.0, 5.0, 8.0)
    assert Limits.of({"memory": None}, {"training": None}) == Limits()
    cpu = {"memory": {"gpu_bytes": 0, "cpu_bytes": 7, "limit_bytes": None}}
    assert Limits.of(cpu, {}) == Limits(process_bytes=7.0)
    with_card = {"memory": {"gpu_bytes": 5.0, "cpu_bytes": 7, "limit_bytes": 8}}
    assert Limits.of(with_card, {}) == Limits(predicted_bytes=5.0, limit_bytes=8.0)
    assert raise_flags([step(1, peak_memory_bytes=9 * GIB)], process_bytes=5.0 * GIB) == []
    assert flags.MEMORY_SHARE < 1 < flags.PLAN_SHARE
