from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.ordering.division import count_slots, cut, share

EIGHTS = np.maximum(8, -(-np.arange(33) // 8) * 8)


def cut_by_trying_all(needed, num_parts, max_slots):
    """The least slots of num_parts parts within the limit; None if there is no such cut."""
    found = []
    for places in combinations(range(1, len(needed)), num_parts - 1):
        bounds = [0, *places, len(needed)]
        parts = [(last - first) * needed[first] for first, last in zip(bounds, bounds[1:], strict=False)]
        if max(parts) <= max_slots:
            found.append(sum(parts))
    return min(found, default=None)


@settings(max_examples=300, deadline=None)
@given(
    needed=st.lists(st.sampled_from([8, 12, 16, 20, 32]), min_size=1, max_size=10),
    num_parts=st.integers(1, 5),
    limit=st.floats(0.3, 1.5),
)
def test_a_cut_has_the_least_slots_of_all_cuts_within_the_limit(needed, num_parts, limit):
    needed = np.array(sorted(needed, reverse=True))
    num_parts = min(num_parts, len(needed))
    max_slots = int(limit * needed[0] * -(-len(needed) // num_parts))
    bounds = cut(needed, num_parts=num_parts, max_slots=max_slots)
    assert len(bounds) == num_parts + 1
    assert (bounds[0], bounds[-1]) == (0, len(needed))
    assert np.diff(bounds).min() > 0
    slots = count_slots(needed, bounds)
    least = cut_by_trying_all(needed.tolist(), num_parts, max_slots)
    equal = np.arange(num_parts + 1) * len(needed) // num_parts
    if least is None:
        assert bounds.tolist() == equal.tolist()
    else:
        assert slots.sum() == least
        assert slots.max() <= max_slots
        if count_slots(needed, equal).sum() == least and count_slots(needed, equal).max() <= max_slots:
            assert bounds.tolist() == equal.tolist()


@settings(max_examples=100, deadline=None)
@given(
    micro_batch=st.integers(1, 5),
    world_size=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    data=st.data(),
)
def test_ranks_together_hold_a_step_once_with_near_equal_work(micro_batch, world_size, accumulation, data):
    num_rows = micro_batch * world_size * accumulation
    lengths = np.array(data.draw(st.lists(st.integers(0, 32), min_size=num_rows, max_size=num_rows)))
    shares = [
        share(lengths, slots=EIGHTS, micro_batch=micro_batch, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [len(parts) for parts in shares] == [accumulation] * world_size
    own = [np.concatenate(parts) for parts in shares]
    assert [len(rows) for rows in own] == [micro_batch * accumulation] * world_size
    in_order = np.stack(own, axis=1).ravel().tolist()
    assert in_order == sorted(range(num_rows), key=lambda row: (-lengths[row], row))
    work = [EIGHTS[lengths[rows]].sum() for rows in own]
    assert max(work) - min(work) <= EIGHTS[lengths.max()] - EIGHTS[lengths.min()]
    for parts in shares:
        for part in parts:
            assert len(part) * EIGHTS[lengths[part]].max() <= micro_batch * 32


def test_a_few_long_rows_stand_alone_and_short_ones_together():
    lengths = np.array([30, 4, 4, 4, 4, 4, 4, 12])
    parts = share(lengths, slots=EIGHTS, micro_batch=4, rank=0, world_size=1)
    assert [part.tolist() for part in parts] == [[0, 7], [1, 2, 3, 4, 5, 6]]
    parts = share(lengths, slots=EIGHTS, micro_batch=2, rank=0, world_size=1)
    assert [part.tolist() for part in parts] == [[0], [7], [1, 2, 3], [4, 5, 6]]


def test_parts_to_spare_halve_the_largest_part_that_has_two_rows():
    needed = np.array([96] + [8] * 10)
    assert cut(needed, num_parts=3, max_slots=1000).tolist() == [0, 1, 6, 11]
    assert cut(needed, num_parts=4, max_slots=1000).tolist() == [0, 1, 3, 6, 11]


def test_full_rows_are_cut_equally_and_stay_so_when_the_last_row_is_short():
    for lengths in (np.full(12, 32), np.array([32] * 11 + [3])):
        parts = share(lengths, slots=EIGHTS, micro_batch=4, rank=0, world_size=1)
        assert [part.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_rows_are_sorted_by_the_slots_they_need_where_a_longer_row_needs_fewer():
    slots = np.array([4, 4, 16, 8])
    parts = share(np.array([3, 2, 3, 2]), slots=slots, micro_batch=2, rank=0, world_size=1)
    assert [part.tolist() for part in parts] == [[1, 3], [0, 2]]


def test_rows_that_fit_no_other_way_are_cut_equally():
    assert cut(np.full(6, 8), num_parts=3, max_slots=7).tolist() == [0, 2, 4, 6]
    assert cut(np.array([8, 4, 4]), num_parts=1, max_slots=1).tolist() == [0, 3]
    with pytest.raises(ValueError, match="2 rows cannot be cut into 3 parts"):
        cut(np.array([8, 4]), num_parts=3, max_slots=100)
    with pytest.raises(ValueError, match="2 rows cannot be cut into 0 parts"):
        cut(np.array([8, 4]), num_parts=0, max_slots=100)


def test_a_batch_that_does_not_divide_says_what_would():
    def share_rows(num_rows, micro_batch, world_size, rank=0):
        return share(
            np.ones(num_rows, int), slots=EIGHTS, micro_batch=micro_batch, rank=rank, world_size=world_size
        )

    with pytest.raises(ValueError, match=r"100 rows .* 8 rows on 3 ranks \(24 rows at once\).* 96 or 120"):
        share_rows(100, 8, 3)
    with pytest.raises(ValueError, match="use a global batch of 24,"):
        share_rows(10, 8, 3)
    with pytest.raises(ValueError, match="global batch of 0 rows"):
        share_rows(0, 8, 3)
    with pytest.raises(ValueError, match="rank is 2: with 2 ranks it is 0 to 1"):
        share_rows(4, 2, 2, rank=2)
    with pytest.raises(ValueError, match="micro_batch is 0"):
        share_rows(4, 0, 2)
