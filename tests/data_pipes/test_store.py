import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.building.writer import SplitWriter, write_manifest
from data_pipes.rows import Rows
from data_pipes.store import BLOCK_ROWS, SPLITS, Store, StoreError, pack_bits


def make_word_rows(lengths, seed=0):
    """Rows with every bit pattern: ids up to 2^30 - 1, flags at random."""
    generator = np.random.default_rng(seed)
    num_pieces = int(np.sum(lengths))
    return Rows(
        generator.integers(0, 2**30, num_pieces).astype(np.uint32),
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        generator.random(num_pieces) < 0.5,
        generator.random(num_pieces) < 0.1,
    )


def write_store(folder, kind, batches, row_length=16):
    """Write batches of (stored pieces, lengths) as the training split; evaluation stays empty."""
    folder.mkdir()
    writers = {name: SplitWriter(folder, name, kind, row_length) for name in SPLITS}
    for pieces, lengths in batches:
        writers["train"].append(pieces, lengths)
    splits = {name: writer.close() for name, writer in writers.items()}
    manifest = {"kind": kind, "rows_per_shard": 0, "splits": splits, "tokenizer": None}
    write_manifest(folder, manifest | {"code_points": [97]}, None)
    return folder


def gather_slowly(rows, indices):
    """The named rows as lists of (piece, word start, document start)."""
    found = []
    for index in indices:
        span = slice(int(rows.offsets[index]), int(rows.offsets[index + 1]))
        columns = (rows.pieces[span], rows.word_starts[span], rows.document_starts[span])
        found.append(list(zip(*(column.tolist() for column in columns), strict=True)))
    return found


@pytest.fixture(scope="module")
def word_store(tmp_path_factory):
    lengths = np.random.default_rng(1).integers(0, 9, 103)
    rows = make_word_rows(lengths)
    stored, ends = pack_bits(rows), np.cumsum(lengths)
    # Batches that do not end where the blocks of 16 rows do.
    cuts = [0, 3, 3, 47, 48, 103]
    batches = [
        (stored[ends[a - 1] if a else 0 : ends[b - 1] if b else 0], lengths[a:b])
        for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    folder = write_store(tmp_path_factory.mktemp("store") / "words", "words", batches)
    return Store.open(folder), rows


@settings(max_examples=80, deadline=None)
@given(indices=st.lists(st.integers(0, 102), max_size=60))
def test_take_equals_a_slow_gather_over_several_blocks(word_store, indices):
    store, rows = word_store
    taken = store.train.take(np.array(indices, np.int64))
    assert taken.num_rows == len(indices)
    assert gather_slowly(taken, range(len(indices))) == gather_slowly(rows, indices)
    assert (taken.pieces.dtype, taken.word_starts.dtype) == (np.uint32, bool)


def test_the_sizes_of_a_split_are_those_of_its_rows(word_store):
    store, rows = word_store
    assert (store.train.num_rows, store.train.num_pieces) == (103, len(rows.pieces))
    assert store.train.lengths.tolist() == rows.lengths.tolist()
    assert store.train.wait_for(10**9) == (103, True)
    assert (store.evaluation.num_rows, store.evaluation.take(np.zeros(0, int)).num_rows) == (0, 0)


@pytest.mark.parametrize("indices", [[-1], [103], [0, 500]])
def test_a_row_that_is_not_there_is_an_index_error(word_store, indices):
    with pytest.raises(IndexError, match="were asked of 103"):
        word_store[0].train.take(np.array(indices))


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0xFF, "uint8"), (0x100, "uint16"), (0xFFFF, "uint16"), (0x10000, "uint32"), (0x10FFFF, "uint32")],
)
def test_characters_take_the_smallest_type_that_holds_them_all(tmp_path, largest, dtype):
    pieces = np.array([97, largest, 98], np.uint32)
    batches = [(pieces[2:], np.array([1])), (pieces, np.array([2, 1])), (pieces[:1], np.array([1]))]
    folder = write_store(tmp_path / "s", "characters", batches)
    train = Store.open(folder).train
    assert train.summary["pieces_type"] == dtype
    assert [path.name for path in folder.glob("train-*")] == [f"train-{dtype}.pieces"]
    assert (folder / f"train-{dtype}.pieces").stat().st_size == 5 * np.dtype(dtype).itemsize
    taken = train.take(np.array([2, 1, 1, 3, 0]))
    assert taken.pieces.tolist() == [98, 97, largest, 97, largest, 97, 98]
    assert taken.pieces.dtype == np.uint32
    assert taken.document_starts.tolist() == [True, True, False, True, False, True, True]
    assert taken.word_starts.all()


@pytest.mark.parametrize(
    ("row_length", "dtype"), [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32")]
)
def test_lengths_take_the_smallest_type_that_holds_a_row(tmp_path, row_length, dtype):
    lengths = np.array([row_length, 1])
    stored = (np.arange(row_length + 1) % 7).astype(np.uint32)
    train = Store.open(write_store(tmp_path / "s", "words", [(stored, lengths)], row_length)).train
    assert train.lengths.tolist() == lengths.tolist()
    assert train.lengths.dtype == dtype
    assert train.take(np.array([1])).pieces.tolist() == [row_length % 7]


def test_a_name_of_14_characters_takes_at_most_20_bytes(tmp_path):
    num_names = 10 * BLOCK_ROWS
    batch = (np.full(14 * num_names, 97, np.uint32), np.full(num_names, 14))
    folder = write_store(tmp_path / "s", "characters", [batch], 64)
    num_bytes = sum(path.stat().st_size for path in folder.glob("train*"))
    assert num_bytes == num_names * 15.5


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), max_size=60),
    num_saved=st.integers(0, 60),
    code_point=st.sampled_from([98, 300, 70_000]),
)
def test_a_writer_goes_back_to_what_was_flushed_and_writes_the_same_bytes_again(
    tmp_path_factory, lengths, num_saved, code_point
):
    folder = tmp_path_factory.mktemp("w")
    lengths = np.array(lengths, np.int64)
    pieces = np.full(lengths.sum(), 97, np.uint32)
    pieces[len(pieces) // 2 :] = code_point
    num_saved = min(num_saved, len(lengths))
    end = int(lengths[:num_saved].sum())
    writer = SplitWriter(folder, "train", "characters", 8)
    writer.append(pieces[:end], lengths[:num_saved])
    saved = json.loads(json.dumps(writer.flush()))
    writer.append(pieces[end:], lengths[num_saved:])
    writer.flush()
    again = SplitWriter(folder, "train", "characters", 8)
    again.restore(saved)
    again.append(pieces[end:], lengths[num_saved:])
    summary = again.close()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    straight = tmp_path_factory.mktemp("w")
    once = SplitWriter(straight, "train", "characters", 8)
    once.append(pieces, lengths)
    assert once.close() == summary
    assert {path.name: path.read_bytes() for path in straight.iterdir()} == files


def copy_store(store, folder):
    folder.mkdir()
    for path in store.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def all_file_names(store):
    return sorted(path.name for path in store.folder.iterdir())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_an_error_that_names_it(word_store, tmp_path, damage):
    store, _ = word_store
    names = [name for name in all_file_names(store) if (store.folder / name).stat().st_size]
    assert names == ["manifest.json", "train-uint32.pieces", "train.blocks", "train.lengths"]
    for number, name in enumerate(names):
        folder = copy_store(store, tmp_path / str(number))
        DAMAGES[damage](folder / name)
        with pytest.raises(StoreError, match=name.replace(".", r"\.")) as caught:
            Store.open(folder)
        assert f"delete {folder}" in str(caught.value)


def test_a_number_changed_in_the_manifest_is_found_even_without_hashing_the_files(word_store, tmp_path):
    folder = copy_store(word_store[0], tmp_path / "s")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["num_rows"] -= 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=r"manifest\.json has changed"):
        Store.open(folder, verify=False)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format_version": 99}', "not JSON", "\xff"])
def test_a_manifest_of_another_kind_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"manifest\.json"):
        Store.open(tmp_path)


def test_a_half_written_store_is_not_opened(tmp_path):
    writer = SplitWriter(tmp_path, "train", "words", 16)
    rows = make_word_rows([4] * 25)
    writer.append(pack_bits(rows), rows.lengths)
    writer.close()
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        Store.open(tmp_path)
