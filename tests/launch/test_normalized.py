import gzip
import json
from pathlib import Path

import pytest

from data_pipes.align import AlignMap
from data_pipes.sources import read_batches
from launch.normalized import Tally, normalize_corpus
from launch.verdict import MACHINE, REQUEST, RunError

STEPS = [{"kind": "whitespace"}, {"kind": "terms", "file": "chronostratigraphy"}]
RECORDS = [
    {"doc_id": "a-0", "pub_id": "a", "cap_id": "c1", "text": "The  Wheeler Fm. of Utah"},
    {"doc_id": "a-1", "pub_id": "a", "text": "Nothing here."},
    {"doc_id": "b-0", "pub_id": "b", "text": "Olenoides gilberti, O. serratus and\nthe Wheeler Formation"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def read(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["out.jsonl", "deep/er/out.jsonl.gz"])
def test_the_corpus_is_written_as_records_whose_maps_join_both_texts(source, tmp_path, name, capsys):
    out = tmp_path / name
    assert normalize_corpus([source], STEPS, out) == 0
    records = read(out)
    assert [list(record) for record in records] == [
        ["doc_id", "pub_id", "cap_id", "raw_text", "norm_text", "align_map"]
    ] * 3
    assert [record["raw_text"] for record in records] == [record["text"] for record in RECORDS]
    assert [record["norm_text"] for record in records] == [
        "The Wheeler_Formation of Utah",
        "Nothing here.",
        "Olenoides_gilberti, O._serratus and\nthe Wheeler_Formation",
    ]
    assert [(r["doc_id"], r["pub_id"], r["cap_id"]) for r in records] == [
        ("a-0", "a", "c1"),
        ("a-1", "a", None),
        ("b-0", "b", None),
    ]
    for record in records:
        align = AlignMap.from_json(record["align_map"], len(record["raw_text"]), len(record["norm_text"]))
        place = record["norm_text"].find("Wheeler")
        if place >= 0:
            start, end = align.norm_to_raw(place, place + len("Wheeler_Formation"))
            assert record["raw_text"][start:end] in ("Wheeler Fm.", "Wheeler Formation")
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    said = capsys.readouterr().out
    assert "3 documents, 2 changed, 4 terms bound" in said
    assert "formation: 2" in said
    assert "Wheeler_Formation (2)" in said


def test_a_packed_corpus_is_the_same_bytes_each_time(source, tmp_path, monkeypatch):
    for day, name in enumerate(("a.jsonl.gz", "b.jsonl.gz")):
        monkeypatch.setattr("gzip.time.time", lambda day=day: 86_400.0 * day)
        normalize_corpus([source], STEPS, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_the_written_corpus_can_be_read_as_an_aligned_source(source, tmp_path):
    out, again = tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    normalize_corpus([source], STEPS, out)
    aligned = {"kind": "aligned", "path": str(out)}
    with pytest.raises(RunError, match="normalised already; give text_key: raw_text"):
        normalize_corpus([aligned], STEPS, again)
    normalize_corpus([aligned | {"text_key": "raw_text"}], STEPS, again)
    assert again.read_bytes() == out.read_bytes()


def test_documents_without_keys_get_their_number_and_a_group_that_equal_texts_share(source, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("one  bed\ntwo\none bed\n", encoding="utf-8")
    normalize_corpus([{"kind": "text", "path": str(lines)}], STEPS, tmp_path / "a.jsonl")
    records = read(tmp_path / "a.jsonl")
    assert [(r["doc_id"], r["cap_id"]) for r in records] == [("0", None), ("1", None), ("2", None)]
    assert records[0]["norm_text"] == records[2]["norm_text"]
    assert records[0]["pub_id"] == records[2]["pub_id"] != records[1]["pub_id"]
    lines.write_text('{"text": "one", "book": "x"}\n', encoding="utf-8")
    spec = {"kind": "jsonl", "path": str(lines), "group_key": "book"}
    normalize_corpus([source, spec], STEPS, tmp_path / "b.jsonl")
    assert [(r["doc_id"], r["pub_id"]) for r in read(tmp_path / "b.jsonl")][2:] == [("b-0", "b"), ("3", "x")]


def test_a_limit_counts_documents_of_all_sources(source, tmp_path):
    normalize_corpus([source, source], STEPS, tmp_path / "a.jsonl", limit=4)
    assert [record["doc_id"] for record in read(tmp_path / "a.jsonl")] == ["a-0", "a-1", "b-0", "a-0"]


def test_nothing_is_read_beyond_the_limit(source, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "data_pipes.building.input.read_batches", lambda *a, **k: opened.append(1) or read_batches(*a, **k)
    )
    normalize_corpus([source] * 3, STEPS, tmp_path / "a.jsonl", limit=3)
    assert len(opened) == 1


def test_a_sample_shows_places_in_their_context(source, tmp_path, capsys):
    normalize_corpus([source], STEPS, tmp_path / "a.jsonl", num_samples=99)
    said = capsys.readouterr().out
    assert "formation  The Wheeler Fm. of Utah  -> Wheeler_Formation" in said
    assert "abbreviated_binomial  Olenoides gilberti, O. serratus and the" in said
    assert said.count("->") == 4


def test_every_bound_place_is_as_likely_in_a_sample():
    from data_pipes.normalize import normalize_batch, parse_normalizers

    raws = ["Wheeler Formation " * 40]
    done = normalize_batch(raws, parse_normalizers(STEPS))
    counts = [0] * 40
    for seed in range(400):
        tally = Tally(10)
        tally._random.seed(seed)
        tally.add(raws, done)
        assert len(tally.samples) == 10
        for place in tally.samples:
            # With 40 places on each side at most, the length of what stands before tells the first ones.
            counts[min(len(place.before) // 18, 39)] += 1
    # Places 0, 1 and 2 or later: 400 * 10 / 40 each, deviation sqrt(400 * .25 * .75) = 8.7.
    assert abs(counts[0] - 100) < 40
    assert abs(counts[1] - 100) < 40


def test_an_existing_file_is_refused_and_kept(source, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(RunError, match="is there already") as caught:
        normalize_corpus([source], STEPS, out)
    assert caught.value.verdict.exit_code == REQUEST
    assert out.read_text() == "mine"


def test_a_file_that_comes_in_the_meantime_is_kept(source, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr("launch.normalized._write", lambda *_: out.write_text("mine"))
    with pytest.raises(RunError, match="cannot be written") as caught:
        normalize_corpus([source], STEPS, out)
    assert caught.value.verdict.exit_code == MACHINE
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "out.jsonl"]


def test_nothing_is_left_where_a_line_cannot_be_read(source, tmp_path):
    with Path(source["path"]).open("a") as file:
        file.write("no json\n")
    with pytest.raises(RunError, match="corpus.jsonl, line 4") as caught:
        normalize_corpus([source], STEPS, tmp_path / "out.jsonl")
    assert caught.value.verdict.exit_code == REQUEST
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    skipping = {"policy": "skip", "max_bad_share": 0.5}
    assert normalize_corpus([source], STEPS, tmp_path / "out.jsonl", bad_input=skipping) == 0
    assert len(read(tmp_path / "out.jsonl")) == 3


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [([], "data.normalize is empty"), (["whitspace"], "did you mean 'whitespace'")],
)
def test_wrong_normalisers_are_refused_before_anything_is_written(source, tmp_path, steps, wanted):
    with pytest.raises(RunError, match=wanted):
        normalize_corpus([source], steps, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_lines_that_were_skipped_are_counted_and_shown(tmp_path, capsys):
    (tmp_path / "bad.txt").write_bytes(b"one\n\xff\ntwo\n")
    spec = {"kind": "text", "path": str(tmp_path / "bad.txt")}
    bad_input = {"policy": "skip", "max_bad_share": 0.5}
    for limit in (None, 2):
        name = f"{limit}.jsonl"
        normalize_corpus([spec], STEPS, tmp_path / name, limit=limit, bad_input=bad_input)
        told = capsys.readouterr().out
        assert "3 lines, 2 good, 0 blank" in told
        assert "skipped, not_utf8: 1" in told
        assert "bad.txt, line 2: not UTF-8" in told
