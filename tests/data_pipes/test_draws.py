import warnings

import numpy as np
import pytest

from data_pipes.masks.draws import (
    Stream,
    as_below,
    as_unit,
    count_from,
    draw,
    draw_at,
    draw_rows,
    draw_streams,
    mix,
)


def test_indices_of_one_row_are_the_published_splitmix64_sequence():
    # First outputs for seed 1234567, as listed for splitmix64 on Rosetta Code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert draw_at(np.array(1234567, np.uint64), np.arange(4)).tolist() == published


def test_draws_never_change():
    assert int(draw(0, 0, 0, 0, 0)) == 8695987549771912286
    assert int(draw(42, 3, 1_000_000_007, 511, Stream.HIDDEN_WORD)) == 15230437441044301135
    assert int(draw(2**64 - 1, -1, 255_000_000, 0, Stream.ORDER)) == 17269406317724950383
    assert [int(stream) for stream in Stream] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_draws_equal_a_plain_python_version():
    def mix_slowly(value):
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return value ^ (value >> 31)

    def draw_slowly(*keys):
        state = 0
        for key in keys:
            state = mix_slowly((state + (key + 1) * 0x9E3779B97F4A7C15) % 2**64)
        return state

    epochs, rows, indices = np.array([[0], [-1], [2**62]]), np.array([5, 2**40]), np.array([7, 0])
    got = draw(-3, epochs, rows, indices, 4)
    want = [
        [draw_slowly(-3, 4, int(e), int(r), int(i)) for r, i in zip(rows, indices, strict=True)]
        for e in epochs[:, 0]
    ]
    assert got.dtype == np.uint64
    assert got.tolist() == want


def test_draws_warn_of_nothing_and_leave_their_keys_alone():
    rows = np.arange(3)
    state = draw_rows(1, 2, rows, 3)
    kept = state.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(2**63, 2**62, 1, 1, 1)
        draw_at(state, 9)
    assert state.tolist() == kept.tolist()
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize("varied", ["seed", "epoch", "row", "index", "stream"])
def test_each_key_alone_gives_uniform_uncorrelated_draws(varied):
    num = 200_000
    keys = {"seed": 7, "epoch": 0, "row": 0, "index": 0, "stream": 1}
    if varied in ("seed", "stream"):
        num = 20_000
        units = np.array([float(as_unit(draw(**{**keys, varied: value}))) for value in range(num)])
    else:
        units = as_unit(draw(**{**keys, varied: np.arange(num)}))
    counts = np.bincount((units * 256).astype(int), minlength=256)
    chi2 = ((counts - num / 256) ** 2 / (num / 256)).sum()
    assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)
    for lag in (1, 2, 16, 512):
        correlation = np.corrcoef(units[:-lag], units[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(num)


def test_neighbouring_rows_epochs_and_streams_are_uncorrelated_at_equal_indices():
    indices = np.arange(200_000)
    base = as_unit(draw(1, 5, 9, indices, 2))
    for other in (
        draw(1, 5, 10, indices, 2),
        draw(1, 6, 9, indices, 2),
        draw(1, 5, 9, indices, 3),
        draw(2, 5, 9, indices, 2),
        draw(1, 9, 5, indices, 2),
    ):
        assert abs(np.corrcoef(base, as_unit(other))[0, 1]) < 5 / np.sqrt(len(indices))


def test_one_flipped_key_bit_flips_half_of_the_bits():
    rows = np.arange(20_000) * 977
    before = draw(3, 1, rows, 4, 1)
    for bit in range(0, 40, 3):
        differences = before ^ draw(3, 1, rows ^ (1 << bit), 4, 1)
        changed = np.unpackbits(differences.view(np.uint8)).reshape(len(rows), 64).sum(axis=1)
        # Mean of 20,000 binomials(64, 1/2) has a standard error of 4 / 141.
        assert abs(changed.mean() - 32) < 5 * 4 / np.sqrt(len(rows))


def test_mix_is_one_to_one_on_a_sample():
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000


def test_units_stay_below_one_and_limits_are_kept():
    ends = np.array([0, 2**64 - 1], np.uint64)
    assert as_unit(ends).tolist() == [0.0, 1 - 2**-53]
    assert as_below(ends, 1).tolist() == [0, 0]
    assert as_below(ends, 128_000).tolist() == [0, 127_999]
    assert as_below(ends, 2**32).tolist() == [0, 2**32 - 1]


def test_draws_below_a_limit_are_uniform():
    counts = np.bincount(as_below(draw(0, 0, 0, np.arange(70_000), 5), 7), minlength=7)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 6 + 5 * np.sqrt(12)


def test_limits_may_differ_from_draw_to_draw():
    draws = draw(0, 0, 0, np.arange(1000), 5)
    limits = np.arange(1000) % 9
    one_by_one = [int(as_below(draws, int(limit))[at]) for at, limit in enumerate(limits)]
    assert as_below(draws, limits).tolist() == one_by_one
    assert max(one_by_one) == 7


@pytest.mark.parametrize("epochs", [3, np.full(4, 3), np.array([3, -1, 0, 2**40])], ids=str)
def test_several_streams_at_once_are_the_streams_one_by_one(epochs):
    rows = np.array([5, 2**40, 0, 7])
    streams = (Stream.REPLACEMENT, Stream.HIDDEN_COUNT)
    together = draw_streams(2**63, epochs, rows, streams)
    assert together.tolist() == [draw_rows(2**63, epochs, rows, stream).tolist() for stream in streams]
    # What is kept between calls must not be what a caller may change.
    together[:] = 0
    assert draw_streams(2**63, epochs, rows, streams).all()


def test_indices_may_be_counted_from_anywhere():
    row_draws = draw_rows(1, 2, np.arange(6), 3)
    firsts = np.array([0, 1, 500, 2**31, 7, 2**40])
    moved = count_from(row_draws, firsts)
    for index in (0, 1, 511):
        assert draw_at(moved, firsts + index).tolist() == draw_at(row_draws, index).tolist()
