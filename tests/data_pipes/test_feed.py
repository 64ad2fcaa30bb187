import dataclasses
import gc
import threading
import time

import numpy as np
import pytest
import torch

from data_pipes.collate import Layout
from data_pipes.feed import Feed, FrozenBatches
from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.order import rows_of_step
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
    assert numbers == (46, 178, 224)


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


def test_steps_in_advance_equal_steps_loaded_one_by_one():
    feed = make_feed(make_rows(29))
    ahead = list(feed.steps(5, 11))
    assert len(ahead) == 6
    for number, step in enumerate(ahead, start=5):
        alone = feed.load(number)
        assert step.epoch == alone.epoch
        for ours, theirs in zip(step.micro_batches, alone.micro_batches, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert list(feed.steps(4, 4)) == []
    assert not feed_threads()


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


def test_an_error_in_the_thread_is_raised_at_its_step():
    feed = make_feed(Failing(make_rows(29), failing_call=3), micro_batch=12)
    steps = feed.steps(0, 10)
    next(steps)
    next(steps)
    with pytest.raises(OSError, match="shard 3 is gone"):
        next(steps)
    assert not feed_threads()


def test_a_consumer_that_stops_early_leaves_no_thread():
    feed = make_feed(make_rows(29))
    for _ in feed.steps(0, 1_000_000):
        assert len(feed_threads()) == 1
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


def test_no_more_than_two_steps_are_prepared_ahead():
    source = Failing(make_rows(29), failing_call=10**9)
    steps = make_feed(source, micro_batch=12).steps(0, 1000)
    for taken in range(1, 4):
        next(steps)
        deadline = time.monotonic() + 5
        while source.calls < taken + 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.05)
        assert source.calls == taken + 2
    steps.close()


def test_closing_waits_for_the_step_under_way_only():
    class Slow(Failing):
        def take(self, indices):
            time.sleep(0.2)
            return super().take(indices)

    source = Slow(make_rows(29), failing_call=10**9)
    steps = make_feed(source, micro_batch=12).steps(0, 1000)
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


def make_frozen(rows, *, micro_batch=4, rank=0, world_size=1, seed=3):
    return FrozenBatches(
        rows,
        layout=LAYOUT,
        masking=MASKING,
        seed=seed,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
    )


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
