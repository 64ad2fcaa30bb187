import json
import os
import threading
import time

import numpy as np
import pytest

from data_pipes import stream
from data_pipes.building.builder import PROGRESS, STATE
from data_pipes.building.preparation import Preparation
from data_pipes.files import hold_lock
from data_pipes.ordering.stream_order import StreamOrder
from data_pipes.prepare import build_store, prepare_store
from data_pipes.stream import GrowingRows, StreamError, WriterError, open_stream

NUM_FILES, NUM_NAMES, SHARD = 6, 50, 100


@pytest.fixture
def arguments(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(NUM_FILES):
        lines = [f"name{number}x{n}.example" for n in range(NUM_NAMES)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    (folder / f"{NUM_FILES - 1}.txt").write_text("\u0101bc.example\n" + "\n".join(f"z{n}" for n in range(40)))
    source = {"kind": "text", "path": str(folder / "*.txt")}
    return {
        "sources": [source],
        "kind": "characters",
        "row_length": 32,
        "evaluation_share": 0.1,
        "rows_per_shard": SHARD,
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.01)


class SlowWriter:
    """Builds the store in a thread, one batch for each permit."""

    def __init__(self, root, arguments):
        self.permits = threading.Semaphore(0)
        self.num_done = 0
        preparation = Preparation.of(arguments)
        key = preparation.compute_key(root)

        def wait(stage, num_documents):
            self.num_done += 1
            self.permits.acquire()

        def build():
            with hold_lock(root / "stores" / f"{key}.lock"):
                build_store(preparation, key, root, 0, wait)

        self.thread = threading.Thread(target=build, daemon=True)
        self.thread.start()

    def release(self, count):
        for _ in range(count):
            self.permits.release()

    def wait_for(self, num_batches):
        while self.num_done < num_batches:
            assert self.thread.is_alive()
            time.sleep(0.005)


def read_texts(rows, indices):
    taken = rows.take(np.array(indices))
    text = "".join(map(chr, taken.pieces))
    return [text[start:end] for start, end in zip(taken.offsets[:-1], taken.offsets[1:], strict=True)]


def test_training_rows_can_be_read_while_the_rest_is_still_written(arguments, tmp_path):
    root = tmp_path / "c"
    whole = prepare_store(cache_root=tmp_path / "whole", **arguments)
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    store = open_stream(cache_root=root, **arguments)
    assert isinstance(store.train, GrowingRows)
    num_rows, is_ended = store.train.wait_for(SHARD)
    assert SHARD <= num_rows < whole.train.num_rows
    assert not is_ended
    assert read_texts(store.train, range(SHARD)) == read_texts(whole.train, range(SHARD))
    assert store.train.lengths.tolist() == whole.train.lengths[:num_rows].tolist()
    with pytest.raises(IndexError):
        store.train.take(np.array([num_rows]))
    writer.release(NUM_FILES)
    assert store.train.wait_for(10**9) == (whole.train.num_rows, True)
    every = range(whole.train.num_rows)
    assert read_texts(store.train, every) == read_texts(whole.train, every)
    writer.thread.join()


def test_evaluation_and_alphabet_are_those_of_the_first_shard_whenever_one_looks(arguments, tmp_path):
    root = tmp_path / "c"
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    early = open_stream(cache_root=root, **arguments)
    writer.release(NUM_FILES)
    writer.thread.join()
    late = open_stream(cache_root=root, **arguments)
    assert not isinstance(late.train, GrowingRows)
    assert early.code_points.tolist() == late.code_points.tolist()
    assert 0x101 not in late.code_points
    assert early.evaluation.num_rows == late.evaluation.num_rows > 0
    every = range(late.evaluation.num_rows)
    assert read_texts(early.evaluation, every) == read_texts(late.evaluation, every)
    assert late.manifest["dropped"]["evaluation_after_the_first_shard"] > 0
    # Nothing that was held out is trained on.
    held_out = set(read_texts(late.evaluation, every))
    assert not held_out & set(read_texts(late.train, range(late.train.num_rows)))


def test_the_order_of_a_growing_store_is_that_of_the_whole_one(arguments, tmp_path):
    root = tmp_path / "c"
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    growing = StreamOrder(open_stream(cache_root=root, **arguments).train, seed=3)
    first = growing.rows_of_step(0, 64)
    writer.release(NUM_FILES)
    later = [growing.rows_of_step(step, 64) for step in range(1, 9)]
    writer.thread.join()
    whole = StreamOrder(open_stream(cache_root=root, **arguments).train, seed=3)
    for step, (row_ids, epochs) in enumerate([first, *later]):
        wanted_ids, wanted_epochs = whole.rows_of_step(step, 64)
        assert row_ids.tolist() == wanted_ids.tolist()
        assert epochs.tolist() == wanted_epochs.tolist()


def test_a_process_of_its_own_writes_the_stream(arguments, tmp_path):
    store = open_stream(cache_root=tmp_path / "c", **arguments)
    whole = prepare_store(cache_root=tmp_path / "whole", **arguments)
    assert store.train.wait_for(10**9) == (whole.train.num_rows, True)
    assert store.folder.name == whole.folder.name


def test_a_fault_of_the_text_reaches_the_reader(arguments, tmp_path):
    (tmp_path / "corpus" / "3.txt").write_bytes(b"fine\n\xff\xfe\xff\n")

    def read_all():
        open_stream(cache_root=tmp_path / "c", **arguments).train.wait_for(10**9)

    with pytest.raises(StreamError, match=r"3\.txt"):
        read_all()


def test_a_closed_stream_lets_those_go_who_wait(arguments, tmp_path):
    root = tmp_path / "c"
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    rows = open_stream(cache_root=root, **arguments).train
    threading.Timer(0.2, rows.close).start()
    with pytest.raises(StreamError, match="closed while rows were waited for"):
        rows.wait_for(10**9)
    writer.release(NUM_FILES)
    writer.thread.join()


def test_a_lost_writer_is_replaced(arguments, tmp_path):
    root = tmp_path / "c"
    preparation = Preparation.of(arguments)
    writer = stream.Writer(preparation, preparation.compute_key(root), root)
    writer.start()
    writer._process.kill()
    writer._process.join()
    store = open_stream(cache_root=root, **arguments)
    assert store.train.wait_for(10**9)[1]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("bad line"), StreamError),
        (OSError("bad line"), WriterError),
        (ModuleNotFoundError("bad line"), WriterError),
        (KeyError("bad line"), RuntimeError),
    ],
)
def test_whatever_ends_the_writer_is_told_once_by_its_kind(arguments, tmp_path, monkeypatch, error, kind):
    def fail(*_):
        raise error

    monkeypatch.setattr(stream, "build_store", fail)
    monkeypatch.setattr(stream.signal, "signal", lambda *_: None)
    preparation = Preparation.of(arguments)
    writer = stream.Writer(preparation, preparation.compute_key(tmp_path), tmp_path)
    (tmp_path / "stores").mkdir()
    try:
        stream._write(preparation, writer.key, tmp_path, writer._failure, os.getppid())
    except KeyError:
        assert isinstance(error, KeyError)
    with pytest.raises(kind, match="bad line"):
        writer.check()
    assert writer._process is None


class Killed:
    """A process that is killed as soon as it starts."""

    num_started = 0
    exitcode = -9

    def __init__(self, **_):
        Killed.num_started += 1

    def start(self):
        pass

    def is_alive(self):
        return False


def test_a_writer_that_is_lost_again_and_again_is_given_up_unless_shards_come(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(stream, "get_context", lambda _: type("Context", (), {"Process": Killed}))
    monkeypatch.setattr(Killed, "num_started", 0)
    preparation = Preparation.of(arguments)
    writer = stream.Writer(preparation, preparation.compute_key(tmp_path), tmp_path)
    state = writer.folder / STATE
    state.parent.mkdir(parents=True)
    for number in range(5):
        writer.check()
        state.write_text("a shard more")
        os.utime(state, ns=(number + 1, number + 1))
    for _ in range(stream.MAX_LOSSES - 1):
        writer.check()
    with pytest.raises(WriterError, match="3 times without a new shard, with exit code -9"):
        writer.check()
    assert Killed.num_started == 5 + stream.MAX_LOSSES - 1


def test_rows_that_are_there_can_be_read_while_their_file_is_replaced_by_a_wider_one(arguments, tmp_path):
    root = tmp_path / "c"
    whole = prepare_store(cache_root=tmp_path / "whole", **arguments)
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    rows = open_stream(cache_root=root, **arguments).train
    progress = json.loads((rows.folder / PROGRESS).read_text())
    narrow = rows.folder / progress["splits"]["train"]["files"]["pieces"]
    narrow.rename(tmp_path / "gone")
    for _ in range(2):
        assert read_texts(rows, range(SHARD)) == read_texts(whole.train, range(SHARD))
        rows._look()
    threading.Timer(0.2, (tmp_path / "gone").rename, (narrow,)).start()
    late = open_stream(cache_root=root, **arguments).train
    assert read_texts(late, range(SHARD)) == read_texts(whole.train, range(SHARD))
    writer.release(NUM_FILES)
    writer.thread.join()


def test_a_reader_that_started_before_a_look_keeps_all_its_arrays_of_one_time(arguments, tmp_path):
    root = tmp_path / "c"
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    rows = open_stream(cache_root=root, **arguments).train
    before = rows._now
    writer.release(NUM_FILES)
    writer.thread.join()
    num_rows, _ = rows.wait_for(10**9)
    # A thread that maps its files only now, by what was known before, must not leave them to the others.
    assert len(before.lengths) < num_rows == len(rows.lengths)
    assert rows.take(np.array([num_rows - 1])).num_rows == 1


def test_the_first_rows_are_the_same_however_many_are_there(arguments, tmp_path):
    root = tmp_path / "c"
    writer = SlowWriter(root, arguments)
    writer.release(2)
    writer.wait_for(3)
    early = open_stream(cache_root=root, **arguments).train.head(SHARD)
    writer.release(NUM_FILES)
    writer.thread.join()
    late = open_stream(cache_root=root, **arguments).train.head(SHARD)
    assert early.num_rows == late.num_rows == len(late.lengths) == SHARD
    assert early.num_pieces == late.num_pieces == late.lengths.sum()
    assert read_texts(early, range(SHARD)) == read_texts(late, range(SHARD))
    with pytest.raises(IndexError):
        late.take(np.array([SHARD]))
