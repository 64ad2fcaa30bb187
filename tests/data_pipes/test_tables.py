import csv
import gzip
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.reading import lines, tables
from data_pipes.reading.intake import Intake
from data_pipes.sources import CsvSource, parse_source, read_batches

CELLS = st.text(st.sampled_from('ab ,"\n\t\u00e9\U0001f600'), max_size=6)
PIECES = st.sampled_from(
    [b"a", b",", b",", b'"', b'""', b"\n", b"\n", b"\r\n", b"\r", b" ", b"\0", b"\xff", b"\xc3\xa9", b"\x1c"]
)  # fmt: skip


def read(path, intake=None, carry=(), **settings):
    batches = list(read_batches(CsvSource(str(path), **settings), None, intake, carry))
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    groups = [group for batch in batches if batch.groups is not None for group in batch.groups.to_pylist()]
    carried = [
        value
        for batch in batches
        for value in zip(*(c.to_pylist() for c in batch.carried.values()), strict=True)
    ]
    return texts, groups, carried


def forbid_fast_way(patch):
    def parse(reader, cut, first_line, header):
        held = [row + "\n" for row in cut.texts.to_pylist()]
        return reader._parse_quoted(held, first_line)

    patch.setattr(tables.TableReader, "_split_plain", parse)


@settings(deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8),
    st.sampled_from([",", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([1, 5, 4096]),
)
def test_what_a_csv_writer_wrote_is_read(tmp_path_factory, rows, delimiter, quoting, line_end, block_bytes):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerows([("id", "text", "no"), *rows])
    path.write_bytes(stream.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        intake = Intake()
        texts, _, carried = read(path, intake, ("id", "nowhere"), delimiter=delimiter)
    filled = [row for row in rows if row[1].strip()]
    assert texts == [text for _, text, _ in filled]
    assert carried == [(number, "") for number, _, _ in filled]
    num_physical = stream.getvalue().count("\n") - 1
    assert (intake.num_lines, intake.num_good + intake.num_blank) == (num_physical, num_physical)


@settings(deadline=None)
@given(
    st.lists(st.lists(PIECES, max_size=8).map(b"".join), max_size=8).map(b"".join),
    st.sampled_from([None, "g"]),
    st.sampled_from([3, 9, 4096]),
)
@example(b'1,"open\n2,b\n', None, 4096)
@example(b'x,1\na\xff"b,\n"y,"\n', None, 4096)
def test_both_ways_of_reading_any_bytes_agree_and_account_for_every_line(
    tmp_path_factory, data, group_key, block_bytes
):
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    path.write_bytes(b"text,g\n" + data)
    seen = []
    for is_fast in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "BLOCK_BYTES", block_bytes)
            if not is_fast:
                forbid_fast_way(patch)
            intake = Intake("skip", 1.0)
            seen.append(
                (read(path, intake, ("g",), group_key=group_key), intake.describe() | {"examples": []})
            )
    assert seen[0] == seen[1]
    described = seen[0][1]
    num_physical = data.count(b"\n") + (not data.endswith(b"\n") and data != b"")
    assert described["lines"] == num_physical
    assert described["good"] + described["blank"] + sum(described["skipped"].values()) == num_physical


def test_a_large_plain_table_takes_the_fast_way_and_its_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr("data_pipes.reading.columns.BATCH_ROWS", 3000)
    path = tmp_path / "a.tsv"
    path.write_text("n\ttext\n" + "".join(f"{n}\tname {n}\n" for n in range(30_000)) + "7\n\n8\t \n9\tend\n")
    intake = Intake("skip")
    num_slow = []
    judge = tables.TableReader._judge
    monkeypatch.setattr(tables.TableReader, "_judge", lambda *given: num_slow.append(1) or judge(*given))
    batches = list(read_batches(CsvSource(str(path), group_key="n"), None, intake, ("n",)))
    assert [text for batch in batches for text in batch.texts.to_pylist()] == [
        *(f"name {n}" for n in range(30_000)),
        "end",
    ]
    assert [g for batch in batches for g in batch.groups.to_pylist()] == [*map(str, range(30_000)), "9"]
    assert max(batch.num_documents for batch in batches) <= 3000
    assert intake.describe()["skipped"] == {"wrong_width": 1}
    assert intake.examples[0]["place"] == f"{path}, line 30002"
    assert (intake.num_lines, intake.num_good, intake.num_blank) == (30_004, 30_001, 2)
    assert len(num_slow) < 6000  # the first block, where the header stands, and the bad line


@pytest.mark.parametrize(
    ("data", "reason", "num_lines", "place"),
    [
        (b"1,a,b\n", "wrong_width", 1, 2),
        (b"1\n", "wrong_width", 1, 2),
        (b'1,"a" b\n', "bad_quotes", 1, 2),
        (b'1,"a\nb\n\nc\n', "bad_quotes", 4, 2),
        (b"1,a\rb\n", "bad_quotes", 1, 2),
        (b'1,"a\n\xff\n"\n', "not_utf8", 3, 2),
        (b"1,a\0\n", "nul", 1, 2),
        (b",a\n", "no_group", 1, 2),
        (b'1,"a\n' + b"x" * 60 + b"\n", "too_long", 2, 2),
        (b'1,"' + b"aaaaaaa\n" * 9, "too_long", 5, 2),
    ],
)
def test_a_bad_record_takes_the_lines_that_its_quotes_hold(
    tmp_path, monkeypatch, data, reason, num_lines, place
):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 16)
    path = tmp_path / "a.csv"
    path.write_bytes(b"n,text\n" + data)
    intake = Intake("skip", 1.0)
    read(path, intake, group_key="n")
    assert intake.skipped[reason] == num_lines
    assert intake.examples[0]["place"] == f"{path}, line {place}"
    with pytest.raises(SourceError, match=f"a.csv, line {place}: "):
        read(path, group_key="n")


@pytest.mark.parametrize("block_bytes", [1, 16, 30, 4096])
def test_where_blocks_are_cut_does_not_change_what_becomes_of_a_record_that_is_too_long(
    tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 40)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.csv"
    path.write_bytes(b'n,text\n0,"fine\nhere"\n1,"' + b"aaaaaaa\n" * 6 + b'end"\n2,b\n')
    intake = Intake("skip", 1.0)
    assert read(path, intake)[0] == ["fine\nhere", "b"]
    # After five lines reading goes on inside the record, where two lines are left.
    assert intake.describe()["skipped"] == {"too_long": 5, "wrong_width": 2}


def test_a_line_that_is_too_long_does_not_join_what_stands_before_and_behind_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 40)
    path = tmp_path / "a.csv"
    path.write_bytes(b'n,text\n1,"abc\n' + b"x" * 60 + b'\ndef"\n2,fine\n')
    intake = Intake("skip", 1.0)
    assert read(path, intake)[0] == ["fine"]
    assert intake.skipped == {"too_long": 2, "wrong_width": 1}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (
            b"a,b\n1,2\n",
            "line 1: no column 'text', wanted one by text_key; the columns are a, b; correct text_key",
        ),
        (b"\n text,b\n", "line 2: no column 'text'"),
        (b"text,text\n", "line 1: 2 columns 'text', wanted one"),
        (b'text,"b" c\n', "line 1: the header is not CSV"),
        (b'text,"b\n1,2\n', "line 1: in the header, a quote opened here is never closed"),
        (b"text,b\xff\ntext,b\n", "line 1: not UTF-8"),
    ],
)
def test_a_header_that_is_not_as_described_is_an_error(tmp_path, data, wanted):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SourceError, match=f"a.csv, {wanted}"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"text\n", b"\xef\xbb\xbftext,b\r\n"])
def test_a_table_of_nothing_has_no_documents(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    assert read(tmp_path / "a.csv") == ([], [], [])


@pytest.mark.parametrize(
    ("name", "settings", "data"),
    [
        ("a.csv", {}, b'text,b\n"x,""y""",1\n'),
        ("a.tsv", {}, b'text\tb\n"x,""y"""\t1\n'),
        ("a.tab.gz", {}, b'text\tb\nx,"y"\t1\n'.replace(b'x,"y"', b'"x,""y"""')),
        ("a.csv", {"delimiter": ";"}, b'\xef\xbb\xbftext;b\r\nx,"y";1\r\n'.replace(b'x,"y"', b'"x,""y"""')),
    ],
)
def test_the_delimiter_is_the_one_given_else_that_of_the_suffix(tmp_path, name, settings, data):
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name, **settings)[0] == ['x,"y"']


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", " "])
def test_a_delimiter_that_cannot_be_is_refused(delimiter):
    with pytest.raises(SourceError, match="delimiter .* cannot be used"):
        parse_source({"kind": "csv", "path": "a.csv", "delimiter": delimiter})


def test_the_limit_of_the_csv_module_is_left_as_it_was_and_long_cells_are_read(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text('text\n"' + "x\n" * 300_000 + '"\n')
    assert len(read(tmp_path / "a.csv")[0][0]) == 600_000
    assert csv.field_size_limit() == limit
