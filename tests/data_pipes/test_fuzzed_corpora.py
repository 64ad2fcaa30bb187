"""Corpora from strangers: every kind of source takes any bytes, and every line of them has one fate."""

import gzip
import hashlib
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.prepare import prepare_store
from data_pipes.reading import lines, packages, parquet
from data_pipes.reading.intake import Intake, describe_example
from data_pipes.sources import count_estimate, hash_source, parse_source, read_batches

FUZZ = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
SOURCES = {
    "line": ({"kind": "text"}, ".txt"),
    "paragraph": ({"kind": "text", "unit": "paragraph"}, ".txt"),
    "file": ({"kind": "text", "unit": "file"}, ".txt"),
    "jsonl": ({"kind": "jsonl", "group_key": "id"}, ".jsonl"),
    "aligned": ({"kind": "aligned"}, ".jsonl"),
    "csv": ({"kind": "csv", "group_key": "id"}, ".csv"),
    "tsv": ({"kind": "csv"}, ".tsv"),
    "parquet": ({"kind": "parquet"}, ".parquet"),
}
KINDS = pytest.mark.parametrize("kind", list(SOURCES))
SNIPPETS = [
    b"\n",
    b"\r\n",
    b"\r",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\x1b[2J",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b",
    b"\x0c",
    b" ",
    b"\t",
    b",",
    b'"',
    b"text",
    b"id",
    b"a word",
    b"[MASK]",
    "\ue000\u202e".encode(),
    b'{"text": "fine", "id": 1}',
    b'{"text": "x", "text": "y"}',
    b'{"text": null}',
    b'{"text": ["a"]}',
    b'{"text": NaN}',
    b'{"text": "\\ud800"}',
    b'{"text": "\\u0000"}',
    b'{"id": ' + b"9" * 5000 + b', "text": "a"}',
    b"[" * 1200,
    b"{}",
    b"null",
    b'{"norm_text": "n", "pub_id": "p", "raw_text": "r", "doc_id": 1, "cap_id": 2, "align_map": []}',
    b'"text","id"',
    b"3",
    b'""',
]
CONTENT = st.one_of(
    st.binary(max_size=120),
    st.lists(st.sampled_from(SNIPPETS), max_size=14).map(b"".join),
    st.lists(st.sampled_from(SNIPPETS), max_size=10).map(lambda parts: b"text,id\n" + b"\n".join(parts)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def write(folder, kind, data, suffix=""):
    spec, ending = SOURCES[kind]
    path = folder / f"{kind}{ending}{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == ".gz" else data)
    return parse_source({**spec, "path": str(path)})


def check_message(text):
    assert text
    assert text.replace("\n", " ").replace("\t", " ").isprintable()
    assert len(text) < 4000


def read(source, policy="skip"):
    """Documents, groups and the intake; None where the file as a whole is refused."""
    intake = Intake(policy, 1.0)
    try:
        batches = list(read_batches(source, None, intake))
    except SourceError as error:
        check_message(str(error))
        return None
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    return texts, intake


def read_whole(source):
    found = read(source)
    assert found is not None
    return found


@KINDS
@FUZZ
@given(data=CONTENT, suffix=st.sampled_from(["", ".gz"]), block_bytes=st.sampled_from([1, 3, 64, 1 << 20]))
@example(data=b"", suffix="", block_bytes=64)
@example(data=b"\xff\xfea\x00", suffix="", block_bytes=64)
@example(data=b'text\n"open', suffix="", block_bytes=1)
def test_any_bytes_are_documents_and_counted_faults_or_one_error(folder, kind, data, suffix, block_bytes):
    suffix = "" if kind == "parquet" else suffix
    source = write(folder, kind, data, suffix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        first, again = read(source), read(source)
    assert (first is None) == (again is None)
    if first is None or again is None:
        return
    texts, intake = first
    assert texts == again[0]
    assert intake.describe() == again[1].describe()
    assert intake.num_good + intake.num_blank + intake.num_skipped == intake.num_lines
    assert intake.num_good <= intake.num_lines
    for text in texts:
        text.encode("utf-8")
    for one in intake.examples:
        assert describe_example(one).isprintable()


@KINDS
@FUZZ
@given(data=CONTENT)
def test_the_strict_policy_gives_all_or_one_error_for_the_same_bytes(folder, kind, data):
    source = write(folder, kind, data)
    lenient, strict = read(source), read(source, "raise")
    if lenient is None or lenient[1].num_skipped:
        assert strict is None
    else:
        assert strict is not None
        assert strict[0] == lenient[0]


@KINDS
@settings(deadline=None, max_examples=60)
@given(data=CONTENT)
@example(data=b"")
def test_an_estimate_and_a_hash_of_any_bytes_end_in_a_number_or_one_error(folder, kind, data):
    source = write(folder, kind, data)
    assert hash_source(source, None) == hash_source(source, None)
    try:
        estimate = count_estimate([source])
    except SourceError:
        return
    assert estimate is None or estimate.num_documents >= 0


@KINDS
@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_damaged_archive_is_one_error_or_whole(folder, kind, cut, flip):
    if kind == "parquet":
        return
    body = b'text,id\n{"text": "fine", "norm_text": "n", "pub_id": "p"}\n' * 40
    packed = bytearray(gzip.compress(body, mtime=0))
    packed[flip % len(packed)] ^= 0x10
    spec, ending = SOURCES[kind]
    path = folder / f"damaged-{kind}{ending}.gz"
    path.write_bytes(bytes(packed[: len(packed) - cut % len(packed)]))
    read(parse_source({**spec, "path": str(path)}))


def test_parquet_that_is_cut_or_flipped_is_one_error_or_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"line {number}" for number in range(200)]}), path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for trial in range(120):
        data = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            data[place] ^= 1 << int(random.integers(8))
        path.write_bytes(data[: int(random.integers(1, len(data)))] if trial % 3 == 0 else data)
        read(parse_source({"kind": "parquet", "path": str(path)}))


def test_a_dictionary_page_cannot_fill_the_memory(tmp_path, monkeypatch):
    """A file of kilobytes holds any number of copies of one long value; a step of them must stay small."""
    path, value = tmp_path / "a.parquet", "long value " * 6000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([value]))
    short = pa.array([f"short {number}" for number in range(3000)])
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        for column in (texts.cast(pa.string()), short):
            writer.write_table(pa.table({"text": column}))
    assert path.stat().st_size < 100_000
    sizes = []
    monkeypatch.setattr(parquet, "STEP_BYTES", 1 << 20)
    read_step = parquet._read_step

    def measure(steps, path):
        step = read_step(steps, path)
        sizes.append((len(step), step.nbytes) if step is not None else (0, 0))
        return step

    monkeypatch.setattr(parquet, "_read_step", measure)
    texts, intake = read_whole(parse_source({"kind": "parquet", "path": str(path)}))
    assert texts == [value] * 300 + short.to_pylist()
    assert intake.num_good == 3300
    assert max(size for _, size in sizes) <= 1 << 20
    assert max(rows for rows, _ in sizes) == parquet.STEP_ROWS  # where nothing is long


def test_a_column_that_unpacks_to_far_too_much_is_one_error(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 10_000_000], "other": ["y"]}), path, compression="zstd")
    source = parse_source({"kind": "parquet", "path": str(path)})
    assert len(read_whole(source)[0]) == 1  # far below a gigabyte
    monkeypatch.setattr(parquet, "MIN_BOMB_BYTES", 1000)
    assert read(source) is None
    assert len(read_whole(parse_source({"kind": "parquet", "path": str(path), "text_key": "other"}))[0]) == 1


# Packages


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "x @ file:///tmp/folder#"),
        ("name", "x @ https://example.org/x.tar.gz#"),
        ("name", "-rhttps://e.org/r#"),
        ("name", "--index-url=https://e.org/#"),
        ("name", "../../x"),
        ("name", "a/b"),
        ("name", "."),
        ("name", ""),
        ("name", "-e."),
        ("name", "a b"),
        ("name", "a\n"),
        ("name", "\u0430"),
        ("name", "x[extra]"),
        ("name", "a" * 101),
        ("version", "1.0 --no-binary=:all:"),
        ("version", "../1"),
        ("version", "1; x"),
        ("version", "-1"),
        ("version", "*"),
        ("version", ""),
        ("version", "1.0\n"),
    ],
)
def test_nothing_but_a_name_and_a_version_reaches_pip_or_the_cache(key, value, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("pip was started")

    monkeypatch.setattr(packages.subprocess, "run", fail)
    spec = {
        "kind": "package",
        "name": "demo",
        "version": "1.0",
        "sha256": "0" * 64,
        "member": "m",
        "format": "json_list",
    }
    source = parse_source({**spec, key: value})
    for use in (
        lambda: list(read_batches(source, tmp_path / "cache")),
        lambda: count_estimate([source], tmp_path / "cache"),
    ):
        with pytest.raises(SourceError, match=f"is no {key} of a package"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "version"), [("a", "1"), ("ovos-skill_wiki.offline", "1.0.2.20250101"), ("A1", "1!2.0rc1+cu12")]
)
def test_names_and_versions_of_pypi_are_fine(name, version):
    spec = {"kind": "package", "sha256": "0" * 64, "member": "m", "format": "json_list"}
    packages.check_pin(parse_source({**spec, "name": name, "version": version}))


def test_a_member_that_unpacks_to_far_too_much_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MIN_BOMB_BYTES", 10_000)
    wheel = tmp_path / "packages" / "demo-1.0" / "demo-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b" " * 30_000_000 + b"[]")
        archive.writestr("fine", b'["a.com"]')
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for member, words in (("bomb", "times as many"), ("fine", None)):
        spec = {"kind": "package", "name": "demo", "version": "1.0", "sha256": digest, "format": "json_list"}
        source = parse_source({**spec, "member": member})
        if words:
            with pytest.raises(SourceError, match=words):
                list(read_batches(source, tmp_path))
        else:
            assert [text for batch in read_batches(source, tmp_path) for text in batch.texts.to_pylist()] == [
                "a.com"
            ]


# Whole stores


HOSTILE = [
    "[MASK] [CLS] [SEP]",
    "\x1b[31mred",
    "\u202eevil",
    "a\x00b",
    "\ue000\ue003",
    "\ufeffbom",
    "\u2028sep",
    "\x85nel",
    "x" * 5000,
    " \t ",
    "\U0010ffff\u0301\u0301",
    "\u0e01\u0e33",
    "e\u0301",
    "\ud7ff",
    "\ufdd0\ufdd1",
    "\ufffe\uffff",
]


def prepare(path, cache, kind, **more):
    settings = {
        "sources": [{"kind": "text", "path": str(path)}],
        "kind": kind,
        "row_length": 64,
        "evaluation_share": 0.2,
        "bad_input": {"policy": "skip", "max_bad_share": 1.0},
    }
    if kind == "words":
        settings["train_tokenizer"] = {"kind": "unigram", "vocab_size": 50}
    return prepare_store(**settings, **more, cache_root=cache, num_workers=1)


def take_bytes(store):
    taken = [rows.take(np.arange(rows.num_rows)) for rows in (store.train, store.evaluation)]
    return [(rows.pieces.tobytes(), rows.offsets.tobytes()) for rows in taken]


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_a_hostile_corpus_becomes_the_same_rows_twice_and_every_line_is_accounted_for(kind, tmp_path):
    plain = [f"{word} number {n} is text" for n in range(40) for word in ("one", "two", "quick", "brown")]
    path = tmp_path / "corpus.txt"
    path.write_bytes("\n".join([*HOSTILE, *plain]).encode("utf-8", "surrogatepass") + b"\n\xff\xfe bad\n")
    first, again = (prepare(path, tmp_path / cache, kind) for cache in ("a", "b"))
    assert take_bytes(first) == take_bytes(again)
    assert first.manifest["key"] == again.manifest["key"]
    taken = first.manifest["input"]
    assert taken["lines"] == len(HOSTILE) + len(plain) + 1
    assert taken["good"] + taken["blank"] + sum(taken["skipped"].values()) == taken["lines"]
    assert taken["skipped"] == {"not_utf8": 1, "nul": 1}
    splits = first.manifest["splits"].values()
    kept = sum(split["num_documents"] for split in splits)
    assert kept + sum(first.manifest["dropped"].values()) == taken["good"]
    json.dumps(first.manifest)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=CONTENT)
def test_any_bytes_are_a_store_or_one_error_and_an_error_leaves_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    path = folder / "corpus.txt"
    path.write_bytes(data)
    try:
        store = prepare(path, folder / "cache", "characters")
    except ValueError as error:
        check_message(str(error))
        assert list((folder / "cache" / "stores").glob("*/")) == []
        return
    pieces = np.concatenate(
        [rows.take(np.arange(rows.num_rows)).pieces for rows in (store.train, store.evaluation)]
    )
    assert not np.isin(pieces, [0, *range(0xE000, 0xE005)]).any()


def test_no_file_of_a_corpus_is_ever_written_to(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f"line {number}" for number in range(200)))
    path.chmod(0o444)
    before = (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir()))
    prepare(path, tmp_path / "cache", "characters")
    (tmp_path / "cache").rename(tmp_path.parent / f"{tmp_path.name}-cache")
    assert (path.read_bytes(), path.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before
