from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.order import PlainOrder, permute
from data_pipes.ordering.mixture import MAX_CYCLE, Mixture, schedule

SIZES = [7, 20, 3]


def walk(order, num_samples, global_batch=10):
    steps = [order.rows_of_step(step, global_batch) for step in range(-(-num_samples // global_batch))]
    rows, epochs = (np.concatenate(part)[:num_samples] for part in zip(*steps, strict=True))
    return rows, epochs


def sources_of(rows, sizes):
    return np.searchsorted(np.cumsum(sizes), rows, side="right")


@settings(max_examples=150, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_after_any_number_of_slots_a_source_was_seen_within_one_of_its_share(counts):
    length = sum(counts)
    pattern = schedule(counts)
    assert np.bincount(pattern, minlength=len(counts)).tolist() == counts
    seen = [0] * len(counts)
    for number, source in enumerate(pattern.tolist(), start=1):
        seen[source] += 1
        for count, found in zip(counts, seen, strict=True):
            assert abs(Fraction(number * count, length) - found) < 1


def test_a_cycle_on_which_a_simpler_rule_fails_keeps_within_one():
    counts = [7, 2, 1, 9, 3, 3, 2, 3, 7, 71]

    def find_worst(pattern):
        seen = np.cumsum(pattern[:, None] == np.arange(len(counts)), axis=0)
        due = np.arange(1, len(pattern) + 1)[:, None] * np.array(counts) / sum(counts)
        return np.abs(seen - due).max()

    by_middle = sorted(((2 * k + 1) / count, j) for j, count in enumerate(counts) for k in range(count))
    assert find_worst(np.array([j for _, j in by_middle])) > 2
    assert find_worst(schedule(counts)) < 1


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    data=st.data(),
    global_batch=st.integers(1, 9),
)
def test_each_source_goes_through_its_own_epochs_as_if_it_were_alone(sizes, data, global_batch):
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(sizes), max_size=len(sizes)))
    rows, epochs = walk(Mixture(sizes, weights, seed=5), 100, global_batch)
    sources = sources_of(rows, sizes)
    first = 0
    for source, size in enumerate(sizes):
        own_rows, own_epochs = rows[sources == source] - first, epochs[sources == source]
        expected = np.concatenate(
            [
                permute(np.arange(size), num_rows=size, seed=5, epochs=epoch, parts=source)
                for epoch in range(len(own_rows) // size + 1)
            ]
        )
        assert own_rows.tolist() == expected[: len(own_rows)].tolist()
        assert own_epochs.tolist() == (np.arange(len(own_rows)) // size).tolist()
        first += size


@pytest.mark.parametrize(
    ("weights", "shares", "cycle"),
    [
        ((0.7, 0.2, 0.1), (Fraction(7, 10), Fraction(1, 5), Fraction(1, 10)), 10),
        ((3, 1, 1), (Fraction(3, 5), Fraction(1, 5), Fraction(1, 5)), 5),
        ((0.35, 0.35, 0.3), (Fraction(7, 20), Fraction(7, 20), Fraction(3, 10)), 20),
        (("0.1", 0.1, 1e-1), (Fraction(1, 3),) * 3, 3),
        ((Fraction(1, 7), 1, 1), (Fraction(1, 15), Fraction(7, 15), Fraction(7, 15)), 15),
    ],
)
def test_weights_are_kept_exactly_in_each_cycle(weights, shares, cycle):
    order = Mixture(SIZES, weights, seed=0)
    assert order.shares == shares
    assert order.is_exact
    rows, _ = walk(order, cycle * 30)
    for part in sources_of(rows, SIZES).reshape(30, cycle):
        assert np.bincount(part, minlength=3).tolist() == [share * cycle for share in shares]


@pytest.mark.parametrize("weights", [(0.1 + 0.2, 0.3, 0.4), (1, 1e-9, 70_001), (1e-12, 1e-12, 1)])
def test_weights_of_a_long_cycle_are_rounded_and_that_is_said(weights):
    order = Mixture(SIZES, weights, seed=0)
    assert not order.is_exact
    assert sum(order.shares) == 1
    for share, weight in zip(order.shares, weights, strict=True):
        assert share >= Fraction(1, MAX_CYCLE)
        assert abs(float(share) - weight / sum(weights)) <= len(weights) / MAX_CYCLE


def test_one_source_alone_is_in_the_plain_order():
    for step in (0, 1, 999):
        ours, theirs = Mixture([29], [0.3], 4).rows_of_step(step, 8), PlainOrder(29, 4).rows_of_step(step, 8)
        assert np.array_equal(ours, theirs)


def test_a_step_needs_no_earlier_one_and_batches_do_not_show():
    order = Mixture(SIZES, [0.5, 0.3, 0.2], seed=1)
    rows, epochs = walk(order, 1200, 10)
    far_rows, far_epochs = order.rows_of_step(99, 12)
    assert far_rows.tolist() == rows[1188:].tolist()
    assert far_epochs.tolist() == epochs[1188:].tolist()
    huge_rows, huge_epochs = order.rows_of_step(10**12, 10)
    assert np.bincount(sources_of(huge_rows, SIZES)).tolist() == [5, 3, 2]
    assert set(huge_epochs[sources_of(huge_rows, SIZES) == 2].tolist()) == {
        2 * 10**12 // 3,
        (2 * 10**12 + 1) // 3,
    }
    assert order.count_epochs(60) == 2.0


def test_sources_of_equal_size_have_orders_of_their_own():
    rows, _ = walk(Mixture([50, 50], [1, 1], seed=0), 100)
    assert (rows[rows < 50] != rows[rows >= 50] - 50).any()


def test_the_mixture_never_changes():
    rows, epochs = Mixture(SIZES, [0.5, 0.3, 0.2], seed=42).rows_of_step(3, 10)
    assert rows.tolist() == [5, 16, 6, 29, 0, 26, 1, 24, 3, 28]
    assert epochs.tolist() == [2, 0, 2, 2, 2, 0, 2, 0, 2, 2]


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "much"])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(ValueError, match=r"weight of source 1 is .*: give a number above 0, or leave"):
        Mixture([5, 5], [1, weight], seed=0)


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="2 sources and 1 weights"):
        Mixture([5, 5], [1], seed=0)
    with pytest.raises(ValueError, match="0 sources and 0 weights"):
        Mixture([], [], seed=0)
    with pytest.raises(ValueError, match="rows of source 1 is 0"):
        Mixture([5, 0], [1, 1], seed=0)
    with pytest.raises(ValueError, match="65,537 sources"):
        Mixture([1] * 65_537, [1] * 65_537, seed=0)
