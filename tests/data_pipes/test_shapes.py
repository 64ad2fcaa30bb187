from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.collate import Layout
from data_pipes.ordering.division import share
from data_pipes.ordering.shapes import choose_accumulation, choose_shapes, expect_slots, tabulate_slots

NAMES = Layout(kind="characters", row_length=66)


def count_eights(pieces):
    return max(8, -(-pieces // 8) * 8)


def count_padded(histogram, count_slots, shapes):
    """Slots when every row takes the first shape that holds it."""
    return sum(
        count * min(shape for shape in shapes if shape >= count_slots(pieces))
        for pieces, count in enumerate(histogram)
    )


@settings(max_examples=150, deadline=None)
@given(
    histogram=st.lists(st.integers(0, 30), min_size=1, max_size=50),
    num_shapes=st.integers(1, 4),
    layout=st.sampled_from([count_eights, Layout("characters", 64).count_slots]),
)
def test_the_shapes_are_the_best_of_all(histogram, num_shapes, layout):
    values = sorted({layout(pieces) for pieces in range(len(histogram))})
    shapes = choose_shapes(np.array(histogram), layout, num_shapes)
    assert list(shapes) == sorted(set(shapes))
    assert set(shapes) <= set(values)
    assert shapes[-1] == values[-1]
    assert len(shapes) <= num_shapes
    least = min(
        count_padded(histogram, layout, [*others, values[-1]])
        for number in range(num_shapes)
        for others in combinations(values[:-1], number)
    )
    assert count_padded(histogram, layout, shapes) == least


def test_shapes_of_a_table_that_does_not_ascend_hold_every_row():
    count_slots = Layout("characters", 300).count_slots
    assert count_slots(126) > count_slots(127)  # a window of the local attention begins
    histogram = np.ones(301)
    shapes = choose_shapes(histogram, count_slots, 5)
    assert shapes[-1] == max(count_slots(pieces) for pieces in range(301))


def test_one_shape_holds_all_and_enough_shapes_are_exact():
    histogram = np.bincount([3, 9, 9, 30])
    assert choose_shapes(histogram, count_eights, 1) == (32,)
    assert count_padded(histogram, count_eights, choose_shapes(histogram, count_eights, 9)) == 8 + 2 * 16 + 32
    assert choose_shapes(np.array([5]), count_eights, 8) == (8,)
    assert choose_shapes(np.zeros(30), count_eights, 3) == (32,)
    assert choose_shapes(np.bincount([17] * 5, minlength=33), count_eights, 3) == (24, 32)


def test_no_shape_and_no_histogram_are_refused():
    with pytest.raises(ValueError, match="num_shapes is 0"):
        choose_shapes(np.ones(4), count_eights, 0)
    with pytest.raises(ValueError, match="histogram of 0 entries"):
        choose_shapes(np.ones(0), count_eights, 3)


def test_a_table_holds_what_the_function_gives():
    assert tabulate_slots(NAMES.count_slots, 66).tolist() == [NAMES.count_slots(n) for n in range(67)]


def draw_lengths(num_rows):
    return np.clip(np.random.default_rng(0).normal(16, 5, num_rows).round(), 4, 63).astype(int)


@pytest.mark.parametrize(("num_micro_batches", "world_size"), [(1, 1), (2, 1), (4, 1), (2, 4), (64, 1)])
def test_expected_slots_are_those_of_real_steps(num_micro_batches, world_size):
    lengths, slots = draw_lengths(64 * 200), tabulate_slots(NAMES.count_slots, 66)
    expected = expect_slots(
        np.bincount(lengths),
        slots,
        global_batch=64,
        num_micro_batches=num_micro_batches,
        world_size=world_size,
        num_steps=200,
    )
    taken = 0
    for step in lengths.reshape(200, 64):
        for rank in range(world_size):
            parts = share(
                step,
                slots=slots,
                micro_batch=64 // num_micro_batches // world_size,
                rank=rank,
                world_size=world_size,
            )
            taken += sum(len(part) * NAMES.count_slots(int(step[part].max())) for part in parts)
    assert expected == pytest.approx(taken / lengths.size, rel=0.01)


def test_rows_cut_one_by_one_take_their_exact_slots():
    histogram = np.bincount([5, 5, 5, 30])
    slots = tabulate_slots(count_eights, 32)
    found = expect_slots(histogram, slots, global_batch=400, num_micro_batches=400, num_steps=50)
    assert found == pytest.approx((3 * 8 + 32) / 4, rel=0.02)
    with pytest.raises(ValueError, match="holds no rows"):
        expect_slots(np.zeros(4), slots, global_batch=4, num_micro_batches=1)


def test_the_fewest_micro_batches_within_the_ratio_are_chosen():
    histogram = np.bincount(draw_lengths(20_000))
    slots = tabulate_slots(NAMES.count_slots, 66)
    exact = (histogram * slots[: len(histogram)]).sum() / histogram.sum()
    arguments = {"exact_slots": slots, "global_batch": 256}
    number = choose_accumulation(histogram, slots, **arguments)
    assert number == 2
    few, enough = (
        expect_slots(histogram, slots, global_batch=256, num_micro_batches=n) / exact for n in (1, 2)
    )
    assert enough <= 1.35 < few
    assert choose_accumulation(histogram, slots, **arguments, max_ratio=1.1) > number
    assert choose_accumulation(histogram, slots, **arguments, max_ratio=9) == 1
    # No number does it: the least padding, which one micro-batch a shape has already.
    assert choose_accumulation(histogram, slots + 100, **arguments) == 32
