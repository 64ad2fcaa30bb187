"""The ladder on a card whose memory and time are a formula, against a search over everything."""

from itertools import product

import pytest

from launch.costing.ladder import LOSS_CHUNK, Layout, Rung, climb, find_change, list_layouts

SIZES = [64, 32, 16, 8, 4, 2, 1]
ALL = list_layouts(["none", "zero2-offload", "zero3-offload-parameters"])


def gigabytes(layout, micro_batch):
    row = 0.2 if layout.checkpointing else 0.8
    logits = 0.05 if layout.loss_chunk else 0.3
    fixed = {None: 3.0, "optimizer": 1.0, "parameters": 0.5}[layout.offload]
    return fixed + micro_batch * (row + logits)


def seconds(layout, micro_batch):
    slow = 1.0 + (0.3 if layout.checkpointing else 0) + (0.05 if layout.loss_chunk else 0)
    slow += {None: 0.0, "optimizer": 0.2, "parameters": 2.0}[layout.offload]
    return max(slow, 0.02 * 64 / micro_batch)


def card(limit, with_seconds=True):
    def measure(layout, micro_batch):
        size = gigabytes(layout, micro_batch)
        return Rung(
            layout, micro_batch, size <= limit, round(size * 2**30), 0, "activations",
            seconds(layout, micro_batch) if with_seconds else None,
        )  # fmt: skip

    return measure


def test_the_rungs_come_in_the_order_of_their_price():
    assert [layout.describe() for layout in ALL] == [
        "plain",
        "checkpointing",
        "checkpointing, chunked loss",
        "zero2-offload, checkpointing, chunked loss",
        "zero3-offload-parameters, checkpointing, chunked loss",
    ]
    assert list_layouts(["none"], True, "off") == [Layout("none", checkpointing=True)]
    assert list_layouts(["zero2"], False, 64) == [Layout("zero2", loss_chunk=64)]


@pytest.mark.parametrize(
    ("limit", "name", "micro_batch"),
    [
        (80.0, "plain", 64),
        (12.0, "plain", 8),
        (4.2, "plain", 1),
        (3.6, "checkpointing", 1),
        (3.3, "checkpointing, chunked loss", 1),
        (2.2, "zero2-offload, checkpointing, chunked loss", 4),
        (0.8, "zero3-offload-parameters, checkpointing, chunked loss", 1),
    ],
)
def test_the_first_rung_that_fits_is_taken_with_its_largest_micro_batch(limit, name, micro_batch):
    ladder = climb(ALL, SIZES, card(limit))
    assert ladder.taken is not None
    assert (ladder.taken.layout.describe(), ladder.taken.micro_batch) == (name, micro_batch)
    # What was passed over does not fit in any size.
    passed = ALL[: ALL.index(ladder.taken.layout)]
    assert all(gigabytes(layout, size) > limit for layout, size in product(passed, SIZES))
    assert len(ladder.rungs) >= len(passed) + 1


def test_a_later_rung_is_taken_where_it_is_faster():
    def measure(layout, micro_batch):
        rung = card(12.0)(layout, micro_batch)
        starved = 9.0 if layout == ALL[0] else 1.0
        return Rung(layout, micro_batch, rung.fits, rung.gpu_bytes, 0, "", starved)

    ladder = climb(ALL, SIZES, measure)
    assert ladder.taken is not None
    assert ladder.taken.layout == ALL[1]
    assert "0% longer" in ladder.reason


def test_without_a_known_peak_the_first_that_fits_is_taken():
    ladder = climb(ALL, SIZES, card(12.0, with_seconds=False))
    assert ladder.taken is not None
    assert ladder.taken.layout == ALL[0]
    assert ladder.reason == "plain fits"


def test_nothing_is_taken_where_nothing_fits():
    ladder = climb(ALL, SIZES, card(0.3))
    assert ladder.taken is None
    assert len(ladder.rungs) == len(ALL)
    assert not any(rung.fits for rung in ladder.rungs)


@pytest.mark.parametrize(
    ("limit", "micro_batch", "text"),
    [
        (10.0, 8, "--checkpointing on"),
        (6.0, 8, f"--checkpointing on --loss-chunk {LOSS_CHUNK}"),
        (4.2, 64, "--micro-batch 1"),
        (2.2, 2, f"--sharding zero2-offload --checkpointing on --loss-chunk {LOSS_CHUNK} --micro-batch 2"),
        (0.3, 2, "a smaller model, a shorter data.row_length, or a card with more memory"),
    ],
)
def test_the_smallest_change_that_fits_is_named(limit, micro_batch, text):
    measure = card(limit)
    assert not measure(Layout(), micro_batch).fits
    assert find_change(Layout(), micro_batch, SIZES, measure) == text
