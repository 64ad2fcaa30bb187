from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.reading import lines
from data_pipes.reading.intake import Intake
from data_pipes.sources import JsonlSource, TextSource, read_batches

# Bytes from which lines of every kind are made: ends, blanks, halves of characters, NUL, marks.
PIECES = st.sampled_from(
    [
        b"a", b"bc ", b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b" ", b"\t", b"\x0b", b"\x0c", b"\x1c", b"\0",
        b"\xff", b"\xc3", b"\xa9", b"\xc3\xa9", b"\xe2\x80\xa8", b"\xc2\x85", b"\xef\xbb\xbf",
        b"\xe3\x80\x80", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98\x80",
        b"0123456789",
    ]
)  # fmt: skip
CONTENTS = st.one_of(st.lists(PIECES, max_size=40).map(b"".join), st.binary(max_size=60))


def judge(line):
    """The fate of a line of bytes, without its LF, and its text: an independent oracle."""
    line = line.removesuffix(b"\r")
    if b"\0" in line:
        return "nul", None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8", None
    return ("good", text) if text.strip() else ("blank", None)


def cut(data):
    """Physical lines, by LF alone, after one byte order mark."""
    found = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return found if found[-1] else found[:-1]


def read(path, intake, **settings):
    return [
        text
        for b in read_batches(TextSource(str(path), **settings), None, intake)
        for text in b.texts.to_pylist()
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


def is_file_error(data):
    marks = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
    archives = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh91AY&", b"PAR1\x15")
    return data.startswith(marks + archives)


@settings(deadline=None)
@given(CONTENTS, st.sampled_from([1, 2, 5, 4096]))
@example(b"fine\nb\xc3\n\xa9d\n", 4096)
@example(b"a\r", 1)
def test_every_line_of_any_bytes_is_good_blank_or_skipped_as_an_oracle_says(folder, data, block_bytes):
    path = folder / "a.txt"
    path.write_bytes(data)
    intake = Intake("skip", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        if is_file_error(data):
            with pytest.raises(SourceError, match="cannot be read as text"):
                read(path, intake)
            return
        texts = read(path, intake)
    judged = [judge(line) for line in cut(data)]
    assert texts == [text for fate, text in judged if fate == "good"]
    fates = [fate for fate, _ in judged]
    described = intake.describe()
    assert described["skipped"] == {fate: fates.count(fate) for fate in sorted({*fates} - {"good", "blank"})}
    assert (described["lines"], described["good"]) == (len(fates), fates.count("good"))
    assert described["good"] + described["blank"] + sum(described["skipped"].values()) == described["lines"]


@settings(deadline=None)
@given(CONTENTS, st.sampled_from([1, 2, 5, 4096]))
@example(b"one\n\n  \nthree", 1)
@example(b"  \nthree\n  ", 4096)
def test_paragraphs_are_runs_of_lines_that_are_not_blank(folder, data, block_bytes):
    path = folder / "p.txt"
    path.write_bytes(data)
    if is_file_error(data):
        return
    intake = Intake("skip", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        texts = read(path, intake, unit="paragraph")
    is_filled = [bool(line.decode("utf-8", "surrogateescape").strip()) for line in cut(data)]
    runs = groupby(zip(is_filled, cut(data), strict=True), key=lambda pair: pair[0])
    wanted = []
    for filled, run in runs:
        fates = [judge(line) for _, line in run]
        if filled:
            wanted.append([text for _, text in fates] if {fate for fate, _ in fates} == {"good"} else None)
    assert texts == ["\n".join(run) for run in wanted if run is not None]
    assert (intake.num_lines, intake.num_good) == (len(wanted), len(texts))
    assert intake.num_skipped == wanted.count(None)


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.sampled_from([1, 3, 16, 4096]), st.booleans())
def test_lines_that_are_too_long_are_skipped_wherever_blocks_are_cut(folder, sizes, block_bytes, has_end):
    data = b"\n".join(bytes([97 + place]) * size for place, size in enumerate(sizes)) + b"\n" * has_end
    path = folder / "long.txt"
    path.write_bytes(data)
    intake = Intake("skip", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        patch.setattr(lines, "MAX_LINE_BYTES", 20)
        texts = read(path, intake)
    assert texts == [line.decode() for line in cut(data) if 0 < len(line) <= 20]
    assert intake.skipped.get("too_long", 0) == sum(len(line) > 20 for line in cut(data))
    assert intake.num_lines == len(cut(data))
    numbers = [number for number, line in enumerate(cut(data), 1) if len(line) > 20]
    assert [int(one["place"].rsplit(" ", 1)[1]) for one in intake.examples] == numbers[:10]


def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_cap_is_not_held(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"short\n" + b"x" * 10_000_000 + b"\nend\n")
    assert [len(text) for text in read(path, Intake())] == [5, 10_000_000, 3]
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    sizes = []
    blocks = lines.read_blocks(path)
    for block in blocks:
        sizes.append((len(block.data), block.first_line, block.is_too_long))
    assert sizes == [(6, 1, False), (lines.EXCERPT_BYTES, 2, True), (4, 3, False)]
    with pytest.raises(SourceError, match=r"line 2: is longer than 1048576 bytes; part it; it begins: xxx"):
        read(path, Intake())


def test_a_paragraph_that_is_too_long_is_skipped_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 7)
    (tmp_path / "a.txt").write_bytes(
        b"one\n\nabcdefghij\nabcdefghij\nabcdef\n\n" + b"y" * 50 + b"\nz\n\nlast"
    )
    intake = Intake("skip", 1.0)
    assert read(tmp_path / "a.txt", intake, unit="paragraph") == ["one", "last"]
    assert intake.skipped == {"too_long": 2}
    assert [item["place"].rsplit(" ", 1)[1] for item in intake.examples] == ["3", "7"]


@pytest.mark.parametrize(
    ("data", "texts", "fate"),
    [
        (b"a\r\n\r\nb\xe2\x80\xa8c", ["a\n\nb\u2028c"], "good"),
        (b"", [], "blank"),
        (b"\xef\xbb\xbf \n\n", [], "blank"),
        (b"a\nb\0", [], "nul"),
        (b"a\nb\xe9", [], "not_utf8"),
        (b"x" * 99, [], "too_long"),
        (b"xxxxxxx\n" * 9, [], "too_long"),
    ],
)
def test_a_file_that_is_one_document_has_one_fate(tmp_path, monkeypatch, data, texts, fate):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 40)
    (tmp_path / "a.txt").write_bytes(data)
    intake = Intake("skip", 1.0)
    assert read(tmp_path / "a.txt", intake, unit="file") == texts
    described = intake.describe()
    fates = {"good": described["good"], "blank": described["blank"]} | described["skipped"]
    assert {name: count for name, count in fates.items() if count} == {fate: 1}
    assert described["lines"] == 1


@pytest.mark.parametrize("kind", [TextSource, JsonlSource])
@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"\xff\xfea\0", "UTF-16; convert it to UTF-8"),
        (b"\xfe\xff\0a", "UTF-16; convert it to UTF-8"),
        (b"\xff\xfe\0\0a\0\0\0", "UTF-32; convert it to UTF-8"),
        (b"\0\0\xfe\xff\0\0\0a", "UTF-32; convert it to UTF-8"),
        (b"\x1f\x8b\x08\0", "a gzip archive; name it .gz"),
        (b"PK\x03\x04rest", "a zip archive; unpack it first"),
        (b"PAR1\x15\x04", "a Parquet file; read it with kind: parquet"),
    ],
)
def test_a_file_that_is_no_text_as_a_whole_is_an_error_under_both_policies(tmp_path, kind, data, wanted):
    (tmp_path / "a.txt").write_bytes(data)
    for intake in (Intake(), Intake("skip", 1.0)):
        with pytest.raises(SourceError, match=f"a.txt cannot be read as text: it is {wanted}"):
            list(read_batches(kind(str(tmp_path / "a.txt")), None, intake))


def test_batches_are_bounded_and_the_same_each_time(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(250_000)) + b"y" * 9_000_000)
    first, again = (list(read_batches(TextSource(str(path)))) for _ in range(2))
    assert [batch.texts.to_pylist() for batch in first] == [batch.texts.to_pylist() for batch in again]
    assert max(batch.num_documents for batch in first) == 100_000
    assert sum(batch.num_documents for batch in first) == 250_001
    assert first[-1].texts.to_pylist() == ["y" * 9_000_000]
