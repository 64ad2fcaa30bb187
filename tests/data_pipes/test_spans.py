import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.masking import Masking, hide
from data_pipes.masks.draws import Stream, draw_streams
from data_pipes.masks.spans import choose_spans, find_start_chance
from data_pipes.rows import Rows

STREAMS = (Stream.SPAN_START, Stream.SPAN_SLOT, Stream.SPAN_TURN)
MASK = 4


def choose(num_units, num_hidden, *, mean_span=3.0, max_span=10, seed=0):
    """Which units are hidden, bool [all units]."""
    num_units, num_hidden = np.asarray(num_units, np.int64), np.asarray(num_hidden, np.int64)
    draws = draw_streams(seed, 0, np.arange(len(num_units)), STREAMS)
    chosen = choose_spans(
        num_units,
        num_hidden,
        (draws[0], draws[1], draws[2]),
        start_chance=find_start_chance(mean_span, max_span),
        max_span=max_span,
    )
    assert (np.diff(chosen) > 0).all()
    is_hidden = np.zeros(num_units.sum(), bool)
    is_hidden[chosen] = True
    return is_hidden


def measure_runs(is_hidden_RW):
    """Lengths of the hidden runs of rows read as circles."""
    lengths = []
    for row in is_hidden_RW:
        if row.all() or not row.any():
            continue
        row = np.roll(row, -np.flatnonzero(~row)[0])
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(int), [0]))))
        lengths += (edges[1::2] - edges[::2]).tolist()
    return np.array(lengths)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), mean_share=st.floats(0, 1), max_span=st.integers(1, 12))
def test_exactly_as_many_units_as_asked_are_hidden_in_every_row(data, mean_share, max_span):
    num_units = data.draw(st.lists(st.integers(0, 40), max_size=6))
    num_hidden = [data.draw(st.integers(1, number)) if number else 0 for number in num_units]
    mean_span = 1 + mean_share * (max_span - 1)
    is_hidden = choose(num_units, num_hidden, mean_span=mean_span, max_span=max_span)
    ends = np.cumsum([0, *num_units])
    got = [int(is_hidden[first:end].sum()) for first, end in zip(ends[:-1], ends[1:], strict=True)]
    assert got == num_hidden


@pytest.mark.parametrize(("num_units", "num_hidden"), [(40, 6), (7, 2), (12, 9), (200, 1)])
def test_every_place_is_hidden_equally_often_at_the_edges_too(num_units, num_hidden):
    num_rows = 40_000
    is_hidden = choose([num_units] * num_rows, [num_hidden] * num_rows).reshape(num_rows, num_units)
    share = num_hidden / num_units
    # Rows are independent, so that each count is binomial and the statistic's mean is num_units. Neighbours
    # are hidden together: it spreads more than chi-square, by the covariance that is measured here.
    deviations = is_hidden.sum(axis=0) - num_rows * share
    statistic = (deviations**2).sum() / (num_rows * share * (1 - share))
    covariance = np.cov(is_hidden.T.astype(float)) / (share * (1 - share))
    spread = math.sqrt(2 * (covariance**2).sum())
    assert abs(statistic - num_units) < 5 * spread
    edges = is_hidden[:, [0, -1]].mean(axis=0)
    assert np.abs(edges - share).max() < 4.5 * math.sqrt(share * (1 - share) / num_rows)


@pytest.mark.parametrize(("mean_span", "max_span"), [(1.0, 10), (2.0, 10), (3.0, 10), (3.0, 4), (5.0, 5)])
def test_spans_have_the_mean_that_was_asked_for(mean_span, max_span):
    # So few of so many that spans hardly ever touch, and so many in all that the cut one hardly tells.
    num_rows, num_units, num_hidden = 30, 30_000, 1500
    is_hidden = choose(
        [num_units] * num_rows, [num_hidden] * num_rows, mean_span=mean_span, max_span=max_span
    )
    lengths = measure_runs(is_hidden.reshape(num_rows, num_units))
    # Of n spans, at a density d of spans among slots, a share d touches the next one.
    num_spans = num_rows * num_hidden / mean_span
    num_touching = num_spans * (num_hidden / mean_span) / (num_units - num_hidden)
    expected = mean_span * num_spans / (num_spans - num_touching)
    assert lengths.mean() == pytest.approx(expected, rel=0.02)


def test_lengths_are_geometric_up_to_the_longest():
    num_rows, num_units = 200, 100_000
    is_hidden = choose([num_units] * num_rows, [500] * num_rows, mean_span=2.0, max_span=4, seed=1)
    counts = np.bincount(measure_runs(is_hidden.reshape(num_rows, num_units)), minlength=9)
    chance = find_start_chance(2.0, 4)
    shares = [chance, chance * (1 - chance), chance * (1 - chance) ** 2, (1 - chance) ** 3]
    assert counts[1:5] / counts.sum() == pytest.approx(shares, abs=0.012)
    # Two that touch.
    assert counts[5:].sum() < 0.01 * counts.sum()


def test_all_orders_of_spans_come_up_equally_often():
    # Two units hidden of five: with spans of exactly one, all ten pairs; with spans of two, all five
    # neighbours on the circle.
    for mean_span, max_span, number in ((1.0, 1, 10), (2.0, 2, 5)):
        is_hidden = choose([5] * 20_000, [2] * 20_000, mean_span=mean_span, max_span=max_span).reshape(-1, 5)
        codes, counts = np.unique(is_hidden @ (1 << np.arange(5)), return_counts=True)
        assert len(codes) == number
        expected = 20_000 / number
        assert ((counts - expected) ** 2 / expected).sum() < number - 1 + 5 * math.sqrt(2 * (number - 1))


@pytest.mark.parametrize(("mean_span", "max_span"), [(1, 1), (1, 7), (2.5, 3), (3, 10), (7, 7), (9.99, 10)])
def test_the_chance_of_a_start_gives_the_mean_by_the_sum_over_lengths(mean_span, max_span):
    chance = find_start_chance(mean_span, max_span)
    shares = [chance * (1 - chance) ** (length - 1) for length in range(1, max_span)]
    mean = sum(length * share for length, share in enumerate(shares, 1))
    assert mean + max_span * (1 - sum(shares)) == pytest.approx(mean_span, rel=1e-9)


@pytest.mark.parametrize("kind", ["span", "character_span"])
@pytest.mark.parametrize("rate", [0.01, 0.5, 0.8, 0.99])
def test_any_rate_ends_and_is_met_in_every_row(kind, rate):
    chance = np.random.default_rng(0)
    lengths = chance.integers(1, 60, 400)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    starts = chance.random(offsets[-1]) < 0.5
    starts[offsets[:-1]] = True
    rows = Rows(
        chance.integers(10, 60, offsets[-1]).astype(np.uint32), offsets, starts, np.zeros_like(starts)
    )
    how = Masking(kind, rate, MASK, np.arange(10, 60), np.arange(5))
    is_target = hide(rows, how, row_ids=np.arange(400), epochs=0, seed=1).is_target
    for first, end in zip(offsets[:-1], offsets[1:], strict=True):
        units = np.cumsum(starts[first:end]) if kind == "span" else np.arange(end - first)
        hidden = {int(unit) for unit, target in zip(units, is_target[first:end], strict=True) if target}
        visible = {int(unit) for unit, target in zip(units, is_target[first:end], strict=True) if not target}
        assert not hidden & visible
        wanted = rate * len(hidden | visible)
        assert len(hidden) in {max(1, math.floor(wanted)), max(1, math.ceil(wanted))}
