import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.order import permute
from data_pipes.ordering.stream_order import StreamOrder


class Arriving:
    """Rows that arrive a few at a time, on their own or each time that somebody waits."""

    def __init__(
        self, num_rows, rows_per_shard, *, at_once=1, seconds=None, error_at=None, is_end_late=False
    ):
        self.rows_per_shard = rows_per_shard
        self.num_rows, self.at_once, self.error_at = num_rows, at_once, error_at
        self.complete, self.asked, self.is_end_late = 0, [], is_end_late
        self.changed = threading.Condition()
        if seconds is not None:
            threading.Thread(target=self.arrive, args=(seconds,), daemon=True).start()
        self.is_lazy = seconds is None

    def arrive(self, seconds):
        while self.complete < self.num_rows:
            time.sleep(seconds)
            self.add()

    def add(self):
        with self.changed:
            self.complete = min(self.num_rows, self.complete + self.at_once)
            self.changed.notify_all()

    def wait_for(self, num_rows):
        self.asked.append(num_rows)
        while self.is_lazy and self.complete < min(num_rows, self.num_rows):
            self.add()
        with self.changed:
            while self.complete < min(num_rows, self.num_rows):
                self.changed.wait(10)
                if self.error_at is not None and self.complete >= self.error_at:
                    raise OSError("the builder is gone")
            is_seen = num_rows > self.num_rows or not self.is_end_late
            return self.complete, self.complete == self.num_rows and is_seen


def list_samples(num_rows, rows_per_shard, seed, num_epochs):
    """Row and epoch of every sample, written out: shards in turn, then whole epochs."""
    rows = []
    for shard, first in enumerate(range(0, num_rows, rows_per_shard)):
        size = min(rows_per_shard, num_rows - first)
        inside = permute(np.arange(size), num_rows=size, seed=seed, epochs=0, parts=-1 - shard)
        rows += (first + inside).tolist()
    for epoch in range(1, num_epochs):
        rows += permute(np.arange(num_rows), num_rows=num_rows, seed=seed, epochs=epoch).tolist()
    return rows, np.repeat(np.arange(num_epochs), num_rows).tolist()


def take_steps(order, steps, global_batch):
    parts = [order.rows_of_step(step, global_batch) for step in steps]
    return tuple(np.concatenate(part).tolist() for part in zip(*parts, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    rows_per_shard=st.integers(1, 20),
    global_batch=st.integers(1, 25),
    at_once=st.integers(1, 70),
    first=st.integers(0, 3),
    is_end_late=st.booleans(),
)
def test_a_stream_has_one_order_however_it_arrives_and_wherever_one_begins(
    num_rows, rows_per_shard, global_batch, at_once, first, is_end_late
):
    last = 2 * num_rows // global_batch
    first = min(first, last)
    source = Arriving(num_rows, rows_per_shard, at_once=at_once, is_end_late=is_end_late)
    order = StreamOrder(source, seed=3)
    rows, epochs = take_steps(order, range(first, last + 1), global_batch)
    all_rows, all_epochs = list_samples(num_rows, rows_per_shard, 3, 3 + global_batch // num_rows)
    assert rows == all_rows[first * global_batch : (last + 1) * global_batch]
    assert epochs == all_epochs[first * global_batch : (last + 1) * global_batch]


def test_every_epoch_shows_every_row_once():
    rows, epochs = take_steps(StreamOrder(Arriving(53, 10), seed=0), range(53), 4)
    for epoch in range(4):
        seen = [row for row, its in zip(rows, epochs, strict=True) if its == epoch]
        assert sorted(seen) == list(range(53))
    for first in range(0, 53, 10):
        last = min(first + 10, 53)
        assert sorted(rows[first:last]) == list(range(first, last))


def test_shards_have_orders_of_their_own():
    rows, _ = take_steps(StreamOrder(Arriving(200, 50), seed=0), range(8), 25)
    inside = np.array(rows).reshape(4, 50) % 50
    assert len({tuple(shard) for shard in inside.tolist()}) == 4


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_two_ranks_and_many_threads_see_the_same_rows_of_a_slow_or_fast_stream(seconds):
    orders = [StreamOrder(Arriving(40, 8, at_once=3, seconds=seconds), seed=1) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        found = [[pool.submit(order.rows_of_step, step, 6) for step in range(14)] for order in orders]
    ours, theirs = ([future.result()[0].tolist() for future in rank] for rank in found)
    assert ours == theirs
    assert np.concatenate(ours).tolist()[:80] == list_samples(40, 8, 1, 3)[0][:80]


def test_training_waits_for_one_shard_only():
    source = Arriving(1000, 10)
    order = StreamOrder(source, seed=0)
    order.rows_of_step(0, 4)
    order.rows_of_step(1, 4)
    assert source.complete == 10
    order.rows_of_step(2, 4)
    assert source.complete == 20
    assert source.asked == [10, 10, 20]


def test_epochs_are_counted_whole_and_do_not_tell_when_rows_arrived():
    late, early = Arriving(10, 4, at_once=1), Arriving(10, 4, at_once=100)
    for order in (StreamOrder(late, seed=0), StreamOrder(early, seed=0)):
        assert [order.count_epochs(n) for n in (0, 1, 10, 11, 20, 21)] == [0, 0, 0, 1, 1, 2]


def test_the_stream_order_never_changes():
    rows, epochs = StreamOrder(Arriving(10, 4), seed=42).rows_of_step(0, 13)
    assert rows.tolist() == [1, 3, 0, 2, 6, 4, 5, 7, 9, 8, 8, 5, 9]
    assert epochs.tolist() == [0] * 10 + [1] * 3


def test_an_error_of_the_builder_comes_through():
    order = StreamOrder(Arriving(40, 8, at_once=3, seconds=0.001, error_at=12), seed=1)
    assert len(order.rows_of_step(0, 8)[0]) == 8
    with pytest.raises(OSError, match="the builder is gone"):
        order.rows_of_step(3, 8)


def test_an_empty_stream_and_a_wait_that_broke_its_word_are_refused():
    with pytest.raises(ValueError, match="ended without a row"):
        StreamOrder(Arriving(0, 4), seed=0).rows_of_step(0, 2)

    class Hasty(Arriving):
        def wait_for(self, num_rows):
            return 1, False

    with pytest.raises(RuntimeError, match=r"wait_for\(4\) came back with 1 rows"):
        StreamOrder(Hasty(9, 4), seed=0).rows_of_step(0, 2)
    with pytest.raises(ValueError, match="step is -1"):
        StreamOrder(Arriving(9, 4), seed=0).rows_of_step(-1, 2)
