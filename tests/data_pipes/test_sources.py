import dataclasses
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.files import hash_file
from data_pipes.reading import lines
from data_pipes.reading.intake import Intake
from data_pipes.sources import (
    AlignedSource,
    CsvSource,
    JsonlSource,
    ParquetSource,
    TextSource,
    count_estimate,
    hash_source,
    parse_source,
    read_batches,
)

ROOT = Path(__file__).parents[2]


def read_texts(source):
    return [text for batch in read_batches(source) for text in batch.texts.to_pylist()]


def test_lines_lose_their_byte_order_mark_and_carriage_returns_and_blank_ones_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  \t\r\ntw\ro \n\nthree\r")
    assert read_texts(TextSource(str(tmp_path / "a.txt"))) == ["one", "tw\ro ", "three"]


@settings(deadline=None)
@given(st.text(st.sampled_from("ab\n\r \u00e9\u65e5\U0001f600"), max_size=60), st.integers(1, 9))
def test_block_size_does_not_change_the_lines(tmp_path_factory, text, block_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(text.encode())
    wanted = [line.removesuffix("\r") for line in text.split("\n")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        assert read_texts(TextSource(str(path))) == [line for line in wanted if line.strip()]


@pytest.mark.parametrize("block_bytes", [1, 5, 4096])
def test_paragraphs_are_parted_by_blank_lines(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    (tmp_path / "a.txt").write_bytes(b"\n\none\ntwo\r\n \t\r\n\nthree\n\n\n\nfour")
    got = read_texts(TextSource(str(tmp_path / "a.txt"), unit="paragraph"))
    assert got == ["one\ntwo", "three", "four"]


def test_a_file_can_be_one_document_and_files_come_in_sorted_order(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n\nend\n")
    assert read_texts(TextSource(str(tmp_path / "*.txt"), unit="file")) == ["a\n\nend\n", "b\n\nend\n"]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files_are_unpacked_and_damaged_ones_named(tmp_path, suffix, pack):
    path = tmp_path / f"a.txt{suffix}"
    data = pack("\n".join(str(number) for number in range(5000)).encode())
    path.write_bytes(data)
    assert read_texts(TextSource(str(path))) == [str(number) for number in range(5000)]
    path.write_bytes(data[:-20])
    with pytest.raises(SourceError, match=path.name):
        read_texts(TextSource(str(path)))
    # In the middle, and no archive at all: reading and estimating alike say so.
    damaged = bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 0xFF, *data[len(data) // 2 + 1 :]])
    for bad in (damaged, b"this is no archive"):
        path.write_bytes(bad)
        with pytest.raises(SourceError, match=f"{path.name} cannot be read"):
            read_texts(TextSource(str(path)))
        with pytest.raises(SourceError, match=f"{path.name} cannot be read"):
            count_estimate([TextSource(str(path))])


def test_a_glob_without_a_match_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no file matches '.*missing-\*\.txt'"):
        read_texts(TextSource(str(tmp_path / "missing-*.txt")))


@pytest.mark.parametrize("block_bytes", [7, 4096])
def test_bytes_that_are_not_utf8_are_located(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    # The second half of a character may not be completed by the next line's first byte either.
    (tmp_path / "a.txt").write_bytes(b"fine\nalso fine\nb\xc3\n\xa9d\n")
    with pytest.raises(SourceError, match=r"a\.txt, line 3: not UTF-8"):
        read_texts(TextSource(str(tmp_path / "a.txt")))


def test_json_lines_give_texts_and_groups(tmp_path):
    records = [{"text": "caf\u00e9\n", "book": 7}, {"text": "\ud800 x", "book": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (batch,) = read_batches(JsonlSource(str(tmp_path / "a.jsonl"), group_key="book", split="train"))
    assert batch.texts.to_pylist() == ["caf\u00e9\n", "\ufffd x"]
    assert batch.groups.to_pylist() == ["7", "b"]
    assert (batch.is_damaged.tolist(), batch.split) == ([False, True], "train")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('{"text": ', "line 3: not JSON"),
        ('["text"]', "line 3: found list, wanted an object with the key 'text'"),
        ('{"txt": "a", "book": 1}', "line 3: no key 'text', wanted a string; its keys are txt, book"),
        ('{"text": 5, "book": 1}', "line 3: int under 'text', wanted a string"),
        ('{"text": "a", "book": null}', "line 3: no key 'book', wanted by group_key"),
    ],
)
def test_a_bad_json_line_is_located_and_says_what_was_wanted(tmp_path, line, wanted):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "book": 1}}\n\n{line}\n')
    with pytest.raises(SourceError, match=rf"a\.jsonl, {wanted}"):
        read_texts(JsonlSource(str(tmp_path / "a.jsonl"), group_key="book"))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"kind": "txt", "path": "a"}, "source kind 'txt' is not known; write one of text, jsonl"),
        ({"kind": "text", "file": "a"}, "has no key 'file'; its keys are path, split, unit, weight"),
        ({"kind": "jsonl"}, "a jsonl source lacks a key: .*path"),
    ],
)
def test_a_wrong_description_says_what_is_known(spec, wanted):
    with pytest.raises(SourceError, match=wanted):
        parse_source(spec)


def test_the_estimate_of_a_small_file_is_exact(tmp_path):
    (tmp_path / "a.txt").write_text("caf\u00e9\n\nabc\n")
    estimate = count_estimate([{"kind": "text", "path": str(tmp_path / "a.txt")}])
    assert (estimate.num_documents, estimate.num_characters, estimate.is_exact) == (2, 7, True)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_estimate_of_a_large_file_is_close_and_reads_one_sample(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    data = "".join(f"{number * 7919 % 1_000_003:07d} \u00e9\n" for number in range(400_000)).encode()
    path.write_bytes(gzip.compress(data, 1) if suffix else data)
    estimate = count_estimate([{"kind": "text", "path": str(path)}])
    assert estimate.num_documents == pytest.approx(400_000, rel=0.02)
    assert estimate.num_characters == pytest.approx(9 * 400_000, rel=0.02)
    assert not estimate.is_exact


def test_a_files_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = hash_file(path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("data_pipes.files.hash_stream", lambda file: pytest.fail("read again"))
        assert hash_file(path, tmp_path / "cache") == first
    path.write_text("another")
    assert hash_file(path, tmp_path / "cache") != first


def write_one_of_each(folder):
    """A folder with the same two documents as every kind of file."""
    import pyarrow.parquet as pq

    records = [{"text": "one", "id": "1"}, {"text": "caf\u00e9", "id": "2"}]
    (folder / "a.txt").write_text("one\ncaf\u00e9\n")
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "a.csv").write_text('text,id\none,1\n"caf\u00e9",2\n')
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet")
    aligned = [{"pub_id": "p", "norm_text": record["text"], "id": record["id"]} for record in records]
    (folder / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in aligned))
    return [
        TextSource(str(folder)),
        JsonlSource(str(folder / "a.jsonl")),
        CsvSource(str(folder)),
        ParquetSource(str(folder)),
        AlignedSource(str(folder / "b.jsonl")),
    ]


def test_every_kind_of_file_gives_the_same_documents_hashes_and_estimates(tmp_path):
    for source in write_one_of_each(tmp_path):
        intake = Intake()
        batches = list(read_batches(source, None, intake, carry=("id",)))
        assert [text for batch in batches for text in batch.texts.to_pylist()] == ["one", "caf\u00e9"]
        carried = [value for batch in batches for value in batch.carried.get("id", pa.nulls(2)).to_pylist()]
        assert carried == ([None, None] if source.kind == "text" else ["1", "2"])
        assert (intake.num_lines, intake.num_good) == (2, 2)
        estimate = count_estimate([source])
        assert (estimate.num_documents, estimate.num_characters, estimate.is_exact) == (2, 7, True)
        first = hash_source(source, tmp_path / "cache")
        json.dumps(first)
        assert "weight" not in first
        assert "path" not in first
        assert hash_source(dataclasses.replace(source, weight=0.3), tmp_path / "cache") == first
        assert parse_source({key: value for key, value in dataclasses.asdict(source).items()}) == source


def test_reading_imports_neither_pandas_nor_torch_nor_datasets(tmp_path):
    sources = write_one_of_each(tmp_path)
    code = (
        "import sys; from data_pipes.sources import *\n"
        f"for source in {sources}: print(sum(batch.num_documents for batch in read_batches(source)))\n"
        "print({'pandas', 'torch', 'transformers', 'datasets'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"] * 5 + ["set()"]


def test_reading_needs_memory_for_a_few_blocks_only(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "x" * 10_000}) + "\n"
    code = (
        "import resource, sys; from data_pipes.sources import *\n"
        "read = lambda path: sum(batch.num_documents for batch in read_batches(JsonlSource(path)))\n"
        "read(sys.argv[1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(read(sys.argv[2]), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    path.write_text(line * 1000)
    small = tmp_path / "small.jsonl"
    small.write_text(line * 1500)
    with path.open("a") as file:
        for _ in range(9):
            file.write(line * 1000)
    command = [sys.executable, "-c", code, str(small), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_documents, grown_mebibytes = map(int, done.stdout.split())
    assert num_documents == 10_000
    assert grown_mebibytes < 60  # the file has 98


def test_the_intake_is_checked_at_the_end_of_a_source_and_by_default_raises(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n" * 98 + b"\xff\n" * 2)
    source = TextSource(str(tmp_path / "a.txt"))
    with pytest.raises(SourceError, match="line 99: not UTF-8"):
        read_texts(source)
    with pytest.raises(SourceError, match=r"2 of 100 lines cannot be used \(2\.0%.*not_utf8 2"):
        list(read_batches(source, None, Intake("skip")))
    intake = Intake("skip", 0.02)
    assert sum(batch.num_documents for batch in read_batches(source, None, intake)) == 98


def test_a_wholly_wrong_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    (tmp_path / "a.jsonl").write_text("no JSON at all\n" * 100_000)
    intake = Intake("skip")
    with pytest.raises(SourceError, match="lines so far cannot be used"):
        list(read_batches(JsonlSource(str(tmp_path / "a.jsonl")), None, intake))
    assert intake.num_lines < 20_000


def test_an_estimate_forgives_a_bad_line_but_not_a_wrong_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n{"txt": 1}\n{"text": "d"}\n')
    estimate = count_estimate([JsonlSource(str(tmp_path / "a.jsonl"))])
    assert (estimate.num_documents, estimate.num_characters) == (2, 4)
    with pytest.raises(SourceError, match=r"(?s)3 of 3 lines cannot be used.*no key 'body'"):
        count_estimate([JsonlSource(str(tmp_path / "a.jsonl"), text_key="body")])


def test_many_small_files_that_are_one_document_each_share_a_batch(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text(f"{number}\n")
    intake = Intake()
    (batch,) = read_batches(TextSource(str(tmp_path), unit="file"), None, intake)
    assert batch.texts.to_pylist() == [f"{number}\n" for number in range(30)]
    assert intake.num_lines == 30


def test_a_file_that_changes_while_it_is_hashed_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one")

    def hash_slowly(file):
        path.write_text("another")
        return "0"

    monkeypatch.setattr("data_pipes.files.hash_stream", hash_slowly)
    with pytest.raises(SourceError, match="a.txt changed while it was read"):
        hash_source(TextSource(str(path)), tmp_path / "cache")


@pytest.mark.parametrize(("key", "value"), [("unit", "page"), ("split", "valid")])
def test_a_value_that_is_not_known_is_refused(key, value):
    with pytest.raises(SourceError, match=f"{key} '{value}' of a text source is not known; write one of"):
        parse_source({"kind": "text", "path": "a", key: value})
