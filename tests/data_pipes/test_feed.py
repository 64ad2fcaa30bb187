import dataclasses
import gc
import os
import threading
import time

import numpy as np
import pytest
import torch

from data_pipes.collate import Layout
from data_pipes.feed import Feed, FrozenBatches, count_workers, move_batch
from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.order import rows_of_step
from data_pipes.ordering.mixture import Mixture
from data_pipes.ordering.stream_order import StreamOrder
from data_pipes.rows import Rows

LAYOUT = Layout(kind="words", row_length=24)
MASKING = Masking(
    kind="whole_word",
    rate=0.25,
    mask_piece=4,
    random_pieces=np.arange(10, 60),
    special_pieces=np.arange(5),
)


def make_rows(num_rows, *, seed=0):
    """Rows that begin with a piece of their own, 1000 + number, so that a batch tells what is in it."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(1, 25, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    pieces = chance.integers(10, 60, offsets[-1]).astype(np.uint32)
    pieces[offsets[:-1]] = 1000 + np.arange(num_rows)
    word_starts = chance.random(len(pieces)) < 0.7
    word_starts[offsets[:-1]] = True
    document_starts = np.zeros(len(pieces), bool)
    document_starts[offsets[:-1]] = True
    return Rows(pieces, offsets, word_starts, document_starts)


def make_feed(rows, *, global_batch=12, micro_batch=2, rank=0, world_size=1, seed=3):
    return Feed(
        rows,
        layout=LAYOUT,
        masking=MASKING,
        seed=seed,
        global_batch=global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
    )


def read_rows(batches):
    """What each row became, as sorted (length, inputs, labels)."""
    seen = []
    for batch in batches:
        for inputs, real, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            length = int(real.sum())
            seen.append((length, inputs[:length].tolist(), labels[:length].tolist()))
    return sorted(seen)


def feed_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 12), (1, 1), (2, 3), (3, 2), (4, 3), (6, 1)])
def test_a_step_is_the_same_however_it_is_divided(world_size, micro_batch):
    rows = make_rows(29)
    for step in (0, 2, 1000):
        whole = make_feed(rows, micro_batch=12).load(step)
        parts = [
            make_feed(rows, micro_batch=micro_batch, rank=rank, world_size=world_size).load(step)
            for rank in range(world_size)
        ]
        batches = [batch for part in parts for batch in part.micro_batches]
        assert read_rows(batches) == read_rows(whole.micro_batches)
        assert {len(part.micro_batches) for part in parts} == {12 // world_size // micro_batch}
        assert sum(part.num_targets for part in parts) == whole.num_targets
        assert sum(part.num_pieces for part in parts) == whole.num_pieces
        assert sum(part.num_slots for part in parts) <= whole.num_slots
        assert {part.num_rows for part in parts} == {12 // world_size}
        assert {part.epoch for part in parts} == {(step + 1) * 12 / 29}


def test_a_step_holds_the_ordered_rows_with_their_own_masks():
    rows = make_rows(29)
    step = make_feed(rows).load(2)
    row_ids, epochs = rows_of_step(2, global_batch=12, num_rows=29, seed=3)
    assert sorted(epochs.tolist()) == [0] * 5 + [1] * 7
    expected = []
    for row_id, epoch in zip(row_ids, epochs, strict=True):
        row = rows.take(np.array([row_id]))
        hidden = hide(row, MASKING, row_ids=np.array([row_id]), epochs=int(epoch), seed=3)
        labels = np.where(hidden.is_target, row.pieces.astype(int), -100).tolist()
        expected.append((len(labels), hidden.inputs.tolist(), labels))
    assert read_rows(step.micro_batches) == sorted(expected)
    targets = sum(label != -100 for _, _, labels in expected for label in labels)
    assert step.num_targets == targets
    assert step.num_pieces == sum(length for length, _, _ in expected)
    assert step.num_slots == sum(batch["input_ids"].numel() for batch in step.micro_batches)


def test_the_first_step_never_changes():
    step = make_feed(make_rows(29)).load(0)
    numbers = (step.num_targets, step.num_pieces, step.num_slots)
    assert numbers == (46, 178, 216)


def test_an_epoch_shows_every_row_once():
    rows = make_rows(36)
    feed = make_feed(rows)
    pieces = [read_rows(feed.load(step).micro_batches) for step in range(3)]
    originals = [
        label if label != -100 else piece
        for part in pieces
        for _, inputs, labels in part
        for piece, label in zip(inputs[:1], labels[:1], strict=True)
    ]
    assert sorted(originals) == list(range(1000, 1036))


@pytest.mark.parametrize("num_workers", [None, 0, 1, 2, 4])
def test_steps_in_advance_equal_steps_loaded_one_by_one(num_workers):
    feed = make_feed(Uneven(make_rows(29)))
    ahead = list(feed.steps(5, 11, num_workers=num_workers))
    assert len(ahead) == 6
    for number, step in enumerate(ahead, start=5):
        alone = feed.load(number)
        assert step.epoch == alone.epoch
        for ours, theirs in zip(step.micro_batches, alone.micro_batches, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert list(feed.steps(4, 4)) == []
    assert not feed_threads()


class Uneven:
    """Rows of which some calls take longer, so that threads overtake each other."""

    def __init__(self, rows):
        self.rows, self.num_rows, self.lengths = rows, rows.num_rows, rows.lengths

    def take(self, indices):
        time.sleep(0.01 * (int(indices[0]) % 3 == 0))
        return self.rows.take(indices)


class Failing:
    """Rows that cannot be read from the given call on."""

    def __init__(self, rows, *, failing_call):
        self.rows, self.calls, self.failing_call = rows, 0, failing_call
        self.num_rows, self.lengths = rows.num_rows, rows.lengths

    def take(self, indices):
        self.calls += 1
        if self.calls >= self.failing_call:
            raise OSError("shard 3 is gone")
        return self.rows.take(indices)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_the_thread_is_raised_at_its_step(num_workers):
    feed = make_feed(Failing(make_rows(29), failing_call=3), micro_batch=12)
    steps = feed.steps(0, 10, num_workers=num_workers)
    next(steps)
    next(steps)
    with pytest.raises(OSError, match="shard 3 is gone"):
        next(steps)
    assert not feed_threads()


def test_an_error_waits_for_the_steps_before_it_when_threads_overtake():
    class FailingAtTwo(Uneven):
        """Step 2 fails at once; the steps before it take a while."""

        def take(self, indices):
            if (indices[0] in step_2) and (indices[1] in step_2):
                raise OSError("shard 3 is gone")
            time.sleep(0.05)
            return self.rows.take(indices)

    step_2 = set(rows_of_step(2, global_batch=12, num_rows=36, seed=3)[0].tolist())
    steps = make_feed(FailingAtTwo(make_rows(36)), micro_batch=12).steps(0, 3, num_workers=3)
    assert next(steps).epoch == 12 / 36
    assert next(steps).epoch == 24 / 36
    with pytest.raises(OSError, match="shard 3 is gone"):
        next(steps)
    assert not feed_threads()


def test_a_consumer_that_stops_early_leaves_no_thread():
    feed = make_feed(make_rows(29))
    for _ in feed.steps(0, 1_000_000, num_workers=3):
        assert 1 <= len(feed_threads()) <= 3  # the pool starts one only when no other is idle
        break
    gc.collect()
    assert not feed_threads()
    steps = feed.steps(0, 1_000_000)
    next(steps)
    steps.close()
    assert not feed_threads()


def test_a_consumer_that_raises_leaves_no_thread():
    def train():
        for _ in make_feed(make_rows(29)).steps(0, 1_000_000):
            raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError):
        train()
    gc.collect()
    assert not feed_threads()


@pytest.mark.parametrize(("num_workers", "num_ahead"), [(1, None), (1, 1), (3, None), (2, 5), (3, 1)])
def test_no_more_than_so_many_steps_are_prepared_ahead(num_workers, num_ahead):
    source = Failing(make_rows(29), failing_call=10**9)
    steps = make_feed(source, micro_batch=12).steps(0, 1000, num_workers=num_workers, num_ahead=num_ahead)
    most = num_workers + 1 if num_ahead is None else num_ahead
    for taken in range(1, 4):
        next(steps)
        deadline = time.monotonic() + 5
        while source.calls < taken + most and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05)
        assert source.calls == taken + most
    steps.close()


def test_closing_waits_for_the_step_under_way_only():
    class Slow(Failing):
        def take(self, indices):
            time.sleep(0.2)
            return super().take(indices)

    source = Slow(make_rows(29), failing_call=10**9)
    steps = make_feed(source, micro_batch=12).steps(0, 1000, num_workers=1)
    next(steps)
    steps.close()
    assert source.calls <= 2


def test_a_feed_that_cannot_work_is_refused_at_once():
    with pytest.raises(ValueError, match="does not divide"):
        make_feed(make_rows(29), global_batch=10, micro_batch=3)
    with pytest.raises(ValueError, match="rank is 1"):
        make_feed(make_rows(29), rank=1)
    with pytest.raises(ValueError, match="no rows to train on"):
        make_feed(make_rows(29).take(np.zeros(0, np.int64)))
    for workers in ({"num_workers": -1}, {"num_workers": 2, "num_ahead": 0}):
        with pytest.raises(ValueError, match="give 0 or more threads, and at least one step ahead"):
            make_feed(make_rows(29)).steps(0, 1, **workers)


def test_an_order_of_ones_own_says_which_rows_a_step_has():
    rows = make_rows(29)
    order = Mixture([20, 9], [0.25, 0.75], seed=8)
    feed = dataclasses.replace(make_feed(rows), order=order)
    for step in (0, 7):
        row_ids, epochs = order.rows_of_step(step, 12)
        hidden = hide(rows.take(row_ids), MASKING, row_ids=row_ids, epochs=epochs, seed=3)
        taken = dataclasses.replace(rows.take(row_ids), pieces=hidden.inputs)
        expected = [taken.pieces[taken.offsets[n] : taken.offsets[n + 1]].tolist() for n in range(12)]
        assert sorted(inputs for _, inputs, _ in read_rows(feed.load(step).micro_batches)) == sorted(expected)
        assert feed.load(step).epoch == (step + 1) * 12 / 29


class Growing(Uneven):
    """Rows that arrive one by one while they are waited for; those that have not are not there."""

    rows_per_shard = 8

    def __init__(self, rows):
        self.rows, self.num_rows, self.changed = rows, 0, threading.Condition()
        threading.Thread(target=self.arrive, daemon=True).start()

    @property
    def lengths(self):
        return self.rows.lengths[: self.num_rows]

    def take(self, indices):
        assert indices.max() < self.num_rows
        return self.rows.take(indices)

    def arrive(self):
        while self.num_rows < self.rows.num_rows:
            time.sleep(0.001)
            with self.changed:
                self.num_rows += 1
                self.changed.notify_all()

    def wait_for(self, num_rows):
        with self.changed:
            self.changed.wait_for(lambda: self.num_rows >= min(num_rows, self.rows.num_rows), timeout=10)
            return self.num_rows, self.num_rows == self.rows.num_rows


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_that_still_arrive_give_the_steps_of_rows_that_are_there(num_workers):
    rows = make_rows(53)

    def list_steps(source, **division):
        order = StreamOrder(source, seed=3)
        feed = dataclasses.replace(make_feed(rows), rows=source, order=order, **division)
        return list(feed.steps(0, 9, num_workers=num_workers))

    whole = Growing(rows)
    whole.wait_for(53)
    expected = [read_rows(step.micro_batches) for step in list_steps(whole)]
    assert [read_rows(step.micro_batches) for step in list_steps(Growing(rows))] == expected
    ranks = [list_steps(Growing(rows), rank=rank, world_size=2) for rank in range(2)]
    parts = [[*first.micro_batches, *second.micro_batches] for first, second in zip(*ranks, strict=True)]
    assert [read_rows(batches) for batches in parts] == expected


@pytest.mark.parametrize(("accumulation", "world_size"), [(2, 1), (6, 1), (3, 2)])
def test_a_rank_cuts_its_rows_unequally_where_that_pads_less(accumulation, world_size):
    rows = make_rows(29)
    micro_batch = 12 // accumulation // world_size
    for step in range(6):
        for rank in range(world_size):
            feed = make_feed(rows, micro_batch=micro_batch, rank=rank, world_size=world_size)
            batch = feed.load(step)
            shapes = [tuple(part["labels"].shape) for part in batch.micro_batches]
            assert len(shapes) == accumulation
            assert sum(number for number, _ in shapes) == 12 // world_size
            assert max(number * slots for number, slots in shapes) <= micro_batch * 24
    sizes = {len(part["labels"]) for part in make_feed(rows, micro_batch=2).load(0).micro_batches}
    assert sizes != {2}


def test_pinned_steps_are_pinned_by_the_threads_and_hold_the_same(monkeypatch):
    pinned_by = []

    def pin(tensor):
        pinned_by.append(threading.current_thread().name)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    feed = make_feed(make_rows(29))
    plain = list(feed.steps(0, 3, num_workers=2))
    assert pinned_by == []
    pinned = list(feed.steps(0, 3, num_workers=2, pin=True))
    assert len(pinned_by) == 3 * 6 * 3
    assert all(name.startswith("feed") for name in pinned_by)
    for ours, theirs in zip(pinned, plain, strict=True):
        assert read_rows(ours.micro_batches) == read_rows(theirs.micro_batches)
        assert (ours.num_targets, ours.epoch) == (theirs.num_targets, theirs.epoch)


def test_threads_use_the_gpu_of_the_thread_that_asked(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, feed_thread_name())))
    list(make_feed(make_rows(29)).steps(0, 9, num_workers=2))
    assert {device for device, _ in chosen} == {3}
    assert all(name.startswith("feed") for _, name in chosen)


def feed_thread_name():
    return threading.current_thread().name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_pinned_step_is_in_pinned_memory_and_arrives_on_the_gpu():
    step = next(make_feed(make_rows(29)).steps(0, 1, num_workers=1, pin=True))
    batch = step.micro_batches[0]
    assert all(tensor.is_pinned() for tensor in batch.values())
    moved = move_batch(batch, torch.device("cuda"))
    assert all(torch.equal(moved[name].cpu(), batch[name]) for name in batch)


def test_a_batch_is_copied_to_a_device_without_waiting(monkeypatch):
    batch = make_feed(make_rows(29)).load(0).micro_batches[0]
    asked = []

    def to(tensor, device, non_blocking=False):
        asked.append((device, non_blocking))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "to", to)
    moved = move_batch(batch, torch.device("cpu"))
    assert asked == [(torch.device("cpu"), True)] * len(batch)
    assert all(torch.equal(moved[name], batch[name]) for name in batch)


@pytest.mark.parametrize(
    ("num_cores", "num_ranks", "expected"),
    [(1, 1, 1), (2, 1, 2), (64, 1, 4), (64, 8, 4), (16, 8, 2), (4, 8, 1)],
)
def test_threads_follow_the_cores_of_a_rank(monkeypatch, num_cores, num_ranks, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    assert count_workers(num_ranks) == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    assert count_workers(num_ranks) == expected


def make_frozen(rows, *, micro_batch=4, rank=0, world_size=1, seed=3, is_even=False):
    return FrozenBatches(
        rows,
        layout=LAYOUT,
        masking=MASKING,
        seed=seed,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        is_even=is_even,
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 10])
def test_ranks_that_must_stay_together_get_equally_many_batches(world_size):
    rows = make_rows(29)
    plain = [list(make_frozen(rows, rank=rank, world_size=world_size)) for rank in range(world_size)]
    frozen = [make_frozen(rows, rank=rank, world_size=world_size, is_even=True) for rank in range(world_size)]
    assert {len(part) for part in frozen} == {-(-8 // world_size)}
    assert {part.num_batches for part in frozen} == {8}
    for ours, theirs in zip(map(list, frozen), plain, strict=True):
        assert len(ours) == -(-8 // world_size)
        assert [number for number, _ in ours[: len(theirs)]] == [number for number, _ in theirs]
        for (_, batch), (_, same) in zip(ours, theirs, strict=False):
            assert all(torch.equal(batch[name], same[name]) for name in same)
        for number, batch in ours[len(theirs) :]:
            assert number is None
            assert batch["input_ids"].shape == (1, 8)
            assert batch["attention_mask"].sum() > 0
            assert (batch["labels"] == -100).all()
    assert list(make_frozen(rows.take(np.zeros(0, np.int64)), rank=1, world_size=2, is_even=True)) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 10])
def test_evaluation_shows_every_row_once_over_all_ranks_with_equal_masks(world_size):
    rows = make_rows(29)
    parts = [make_frozen(rows, rank=rank, world_size=world_size) for rank in range(world_size)]
    numbered = [pair for part in parts for pair in part]
    assert {part.num_batches for part in parts} == {8}
    assert [len(part) for part in parts] == [len(range(rank, 8, world_size)) for rank in range(world_size)]
    assert sorted(number for number, _ in numbered) == list(range(8))
    hidden = hide(rows, MASKING, row_ids=np.arange(29), epochs=FROZEN_EPOCH, seed=3)
    expected = []
    for row in range(29):
        inside = slice(rows.offsets[row], rows.offsets[row + 1])
        labels = np.where(hidden.is_target[inside], rows.pieces[inside].astype(int), -100).tolist()
        expected.append((len(labels), hidden.inputs[inside].tolist(), labels))
    assert read_rows(batch for _, batch in numbered) == sorted(expected)


def test_evaluation_gives_equal_batches_each_time_and_whatever_the_micro_batch():
    rows = make_rows(29)
    frozen = make_frozen(rows)
    for (first, ours), (second, theirs) in zip(frozen, frozen, strict=True):
        assert first == second
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = make_frozen(rows, micro_batch=29)
    assert read_rows(batch for _, batch in frozen) == read_rows(batch for _, batch in other)
    assert read_rows(batch for _, batch in make_frozen(rows, seed=4)) != read_rows(
        batch for _, batch in frozen
    )


def test_evaluation_of_nothing_is_empty_and_wrong_requests_are_refused():
    rows = make_rows(5)
    assert list(make_frozen(rows.take(np.zeros(0, np.int64)))) == []
    with pytest.raises(ValueError, match="micro_batch is 0"):
        make_frozen(rows, micro_batch=0)
    with pytest.raises(ValueError, match="rank is 3"):
        make_frozen(rows, rank=3, world_size=3)


def test_character_rows_count_their_added_pieces_as_real():
    rows = make_rows(12)
    feed = make_feed(rows, micro_batch=12)
    characters = Feed(
        rows,
        layout=dataclasses.replace(LAYOUT, kind="characters"),
        masking=dataclasses.replace(MASKING, kind="character"),
        seed=3,
        global_batch=12,
        micro_batch=12,
    )
    assert characters.load(0).num_pieces == feed.load(0).num_pieces + 2 * 12
