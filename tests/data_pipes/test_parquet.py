import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipes.documents import SourceError
from data_pipes.reading import columns, lines, parquet
from data_pipes.reading.intake import Intake
from data_pipes.sources import ParquetSource, count_estimate, hash_source, read_batches

ROWS = [
    {"text": "a", "pub": "p", "n": 1, "map": [1, 2], "when": None},
    {"text": None, "pub": None, "n": 2, "map": None, "when": "x"},
    {"text": "b\u00fccher \U0001f600\n", "pub": "q", "n": None, "map": [], "when": "y"},
    {"text": "", "pub": "p", "n": 4, "map": [3], "when": "z"},
]


def write(path, rows=ROWS, **settings):
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path, **settings)
    return path


def read(path, intake=None, carry=(), **settings):
    batches = list(read_batches(ParquetSource(str(path), **settings), None, intake, carry))
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    return texts, batches


def test_rows_give_texts_groups_and_carried_fields_and_null_texts_are_blank(tmp_path):
    intake = Intake()
    texts, (batch,) = read(
        write(tmp_path / "a.parquet"), intake, ("n", "map", "nowhere", "when"), group_key="pub", split="train"
    )
    assert texts == ["a", "b\u00fccher \U0001f600\n", ""]
    assert (batch.groups.to_pylist(), batch.split) == (["p", "q", "p"], "train")
    assert {name: column.to_pylist() for name, column in batch.carried.items()} == {
        "n": ["1", "", "4"],
        "map": ["[1, 2]", "[]", "[3]"],
        "nowhere": ["", "", ""],
        "when": ["", "y", "z"],
    }
    assert intake.describe() == {"lines": 4, "good": 3, "blank": 1, "skipped": {}, "examples": []}


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
)
def test_every_type_of_string_is_read(tmp_path, kind):
    table = pa.table(
        {"text": pa.array(["a", None, "\u00e9"]).cast(kind), "g": pa.array(["x", "y", "z"]).cast(kind)}
    )
    texts, batches = read(write(tmp_path / "a.parquet", table), group_key="g")
    assert texts == ["a", "\u00e9"]
    assert batches[0].groups.to_pylist() == ["x", "z"]


def test_bad_rows_are_located_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    raw = [b"fine", b"b\xe9d", b"x" * 21, None, b"no group", b"end", b"\xc3"]
    bad = pa.array(raw, pa.binary()).view(pa.string())
    groups = pa.array(["g", "g", "g", None, None, "g", "g"])
    path = write(tmp_path / "a.parquet", pa.table({"text": bad, "group": groups}))
    intake = Intake("skip", 1.0)
    texts, batches = read(path, intake, group_key="group")
    assert texts == ["fine", "end"]
    assert batches[0].groups.to_pylist() == ["g", "g"]
    assert intake.describe()["skipped"] == {"no_group": 1, "not_utf8": 2, "too_long": 1}
    assert (intake.num_lines, intake.num_good, intake.num_blank) == (7, 2, 1)
    with pytest.raises(SourceError, match=r"a\.parquet, row 2: not UTF-8; .*it begins: b\\xe9d"):
        read(path)


def test_rows_are_numbered_through_the_whole_file_and_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "STEP_ROWS", 7)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 50)
    rows = [{"text": f"{number}", "g": None if number == 170 else "g"} for number in range(200)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=60)
    intake = Intake("skip")
    texts, batches = read(path, intake, group_key="g")
    assert texts == [f"{number}" for number in range(200) if number != 170]
    assert intake.examples[0]["place"] == f"{path}, row 171"
    assert max(batch.num_documents for batch in batches) <= 50
    monkeypatch.setattr(columns, "BATCH_BYTES", 10)
    assert max(sum(map(len, batch.texts.to_pylist())) for batch in read(path)[1]) <= 10


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"text_key": "body"},
            "no column 'body', wanted by text_key; its columns are text, pub, n, map, when",
        ),
        ({"group_key": "book"}, "no column 'book', wanted by group_key"),
        ({"text_key": "map"}, "column 'map' holds list.*, wanted strings; correct the key"),
        ({"group_key": "map"}, "column 'map' holds list.*, wanted strings"),
    ],
)
def test_a_column_that_is_not_there_or_holds_no_strings_is_an_error(tmp_path, settings, wanted):
    for intake in (Intake(), Intake("skip", 1.0)):
        with pytest.raises(SourceError, match=f"a.parquet: {wanted}"):
            read(write(tmp_path / "a.parquet"), intake, **settings)


def test_numbers_are_read_as_strings(tmp_path):
    assert read(write(tmp_path / "a.parquet"), text_key="n")[0] == ["1", "2", "4"]


@pytest.mark.parametrize("data", [b"", b"PAR1", b'{"text": "a"}\n' * 9])
def test_a_file_that_is_no_parquet_file_is_an_error(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match="a.parquet cannot be read as Parquet: "):
        read(tmp_path / "a.parquet", Intake("skip", 1.0))


def test_damage_anywhere_is_an_error_of_the_file_or_changes_nothing(tmp_path):
    rows = [{"text": f"text {number % 50} of {number}", "n": number} for number in range(400)]
    path = write(tmp_path / "a.parquet", rows, write_page_checksum=True, row_group_size=150)
    whole, wanted = path.read_bytes(), [row["text"] for row in rows]
    generator = random.Random(0)
    num_errors = 0
    for turn in range(300):
        place = generator.randrange(len(whole))
        changed = whole[:place] if turn % 3 == 0 else bytes([whole[place] ^ (1 << generator.randrange(8))])
        path.write_bytes(changed if turn % 3 == 0 else whole[:place] + changed + whole[place + 1 :])
        try:
            texts, _ = read(path, Intake("skip", 1.0))
        except SourceError:
            num_errors += 1
        else:
            assert texts == wanted
    assert num_errors > 200


def test_the_estimate_knows_the_rows_from_the_metadata_and_samples_the_characters(tmp_path, monkeypatch):
    path = write(
        tmp_path / "a.parquet", [{"text": f"{number:09d}"} for number in range(30_000)], row_group_size=999
    )
    exact = count_estimate([ParquetSource(str(path))])
    assert (exact.num_documents, exact.num_characters, exact.is_exact) == (30_000, 270_000, True)
    monkeypatch.setattr("data_pipes.sources.SAMPLE_BYTES", 1000)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2000)
    sampled = count_estimate([ParquetSource(str(path))])
    assert (sampled.num_documents, sampled.num_characters, sampled.is_exact) == (30_000, 270_000, False)


def test_the_hash_follows_the_content_and_the_keys_and_not_the_weight(tmp_path):
    path = write(tmp_path / "a.parquet")
    first = hash_source(ParquetSource(str(path)), tmp_path / "c")
    assert hash_source(ParquetSource(str(path), weight=3.0), tmp_path / "c") == first
    assert hash_source(ParquetSource(str(path), text_key="n"), tmp_path / "c") != first
    write(path, ROWS[:2])
    assert hash_source(ParquetSource(str(path)), tmp_path / "c") != first
