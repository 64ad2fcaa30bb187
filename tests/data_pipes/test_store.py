import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.rows import Rows
from data_pipes.store import (
    SPLITS,
    SplitWriter,
    Store,
    StoreError,
    choose_rows_per_shard,
    pack_bits,
    write_manifest,
)


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


def write_store(folder, kind, batches, rows_per_shard):
    """Write batches of (stored pieces, lengths) as the training split; evaluation stays empty."""
    folder.mkdir()
    writers = {name: SplitWriter(folder, name, kind, rows_per_shard) for name in SPLITS}
    for pieces, lengths in batches:
        writers["train"].append(pieces, lengths)
    splits = {name: writer.finish() for name, writer in writers.items()}
    manifest = {"kind": kind, "rows_per_shard": rows_per_shard, "splits": splits, "tokenizer": None}
    write_manifest(folder, manifest | {"code_points": [97]})
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
    # Batches that do not end where the shards of 10 rows do.
    cuts = [0, 3, 3, 47, 48, 103]
    batches = [
        (stored[ends[a - 1] if a else 0 : ends[b - 1] if b else 0], lengths[a:b])
        for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    folder = write_store(tmp_path_factory.mktemp("store") / "words", "words", batches, 10)
    return Store.open(folder), rows


@settings(max_examples=80, deadline=None)
@given(indices=st.lists(st.integers(0, 102), max_size=60))
def test_take_equals_a_slow_gather_over_several_shards(word_store, indices):
    store, rows = word_store
    taken = store.train.take(np.array(indices, np.int64))
    assert taken.num_rows == len(indices)
    assert gather_slowly(taken, range(len(indices))) == gather_slowly(rows, indices)
    assert (taken.pieces.dtype, taken.word_starts.dtype) == (np.uint32, bool)


def test_the_sizes_of_a_split_are_those_of_its_rows(word_store):
    store, rows = word_store
    assert (store.train.num_rows, store.train.num_pieces) == (103, len(rows.pieces))
    assert store.train.lengths.tolist() == rows.lengths.tolist()
    assert len(store.train.summary["shards"]) == 11
    assert (store.evaluation.num_rows, store.evaluation.take(np.zeros(0, int)).num_rows) == (0, 0)


@pytest.mark.parametrize("indices", [[-1], [103], [0, 500]])
def test_a_row_that_is_not_there_is_an_index_error(word_store, indices):
    with pytest.raises(IndexError, match="were asked of 103"):
        word_store[0].train.take(np.array(indices))


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0xFF, "uint8"), (0x100, "uint16"), (0xFFFF, "uint16"), (0x10000, "uint32"), (0x10FFFF, "uint32")],
)
def test_characters_take_the_smallest_type_that_holds_their_shard(tmp_path, largest, dtype):
    pieces = np.array([97, largest, 98], np.uint32)
    folder = write_store(tmp_path / "s", "characters", [(pieces, np.array([2, 1]))], 1)
    train = Store.open(folder).train
    assert [shard["dtype"] for shard in train.summary["shards"]] == [dtype, "uint8"]
    taken = train.take(np.array([1, 0, 0]))
    assert taken.pieces.tolist() == [98, 97, largest, 97, largest]
    assert taken.pieces.dtype == np.uint32
    assert taken.document_starts.tolist() == [True, True, False, True, False]
    assert taken.word_starts.all()


def test_a_shard_fits_in_memory_and_its_offsets_in_32_bits():
    for row_length in (3, 64, 128, 512, 2048, 1 << 27):
        num_rows = choose_rows_per_shard(row_length)
        assert num_rows == 1 or num_rows * row_length <= 1 << 26
        assert 1 <= num_rows <= 1 << 20


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
    assert len(names) > 20
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
    writer = SplitWriter(tmp_path, "train", "words", 10)
    rows = make_word_rows([4] * 25)
    writer.append(pack_bits(rows), rows.lengths)
    writer.finish()
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        Store.open(tmp_path)
