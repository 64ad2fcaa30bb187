import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipes.building import builder, encode
from data_pipes.duplication.duplicates import HashSet
from data_pipes.prepare import find_store, prepare_store
from data_pipes.store import StoreError
from tests.data_pipes.tiny_tokenizers import make_unigram

ROOT = Path(__file__).parents[2]
NUM_FILES = 5


@pytest.fixture
def corpus(tmp_path):
    """Several files, each a batch of its own, with duplicates inside and across them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(NUM_FILES):
        lines = [
            f"The Wheeler_Formation {number % 3} yields {n % 70} trilobites. They say 1998."
            for n in range(90)
        ]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    make_unigram().save_pretrained(tmp_path / "tokenizer")
    return folder


def character_settings(corpus, **changes):
    source = {"kind": "text", "path": str(corpus / "*.txt")}
    return {"sources": [source], "kind": "characters", "row_length": 80, "evaluation_share": 0.2} | changes


def word_settings(corpus, **changes):
    tokenizer = str(corpus.parent / "tokenizer")
    return character_settings(corpus, kind="words", row_length=40, tokenizer=tokenizer) | changes


MAKERS = [character_settings, word_settings]


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """What no handler of ours catches."""


@pytest.mark.parametrize("make_settings", MAKERS)
def test_a_build_that_was_killed_anywhere_goes_on_and_gives_the_same_bytes(
    corpus, tmp_path, monkeypatch, make_settings
):
    monkeypatch.setattr(builder, "SAVE_SECONDS", 0.0)
    arguments = make_settings(corpus)
    straight = read_folder(prepare_store(cache_root=tmp_path / "straight", **arguments).folder)
    num_encoded = []
    encode_one = encode.BatchEncoder.encode
    monkeypatch.setattr(encode.BatchEncoder, "encode", lambda *a: num_encoded.append(1) or encode_one(*a))
    for last in range(1, NUM_FILES + 1):
        root, seen = tmp_path / f"killed-{last}", []

        def kill(stage, num_documents, seen=seen, last=last):
            seen.append(num_documents)
            if len(seen) == last:
                raise Killed

        with pytest.raises(Killed):
            prepare_store(cache_root=root, progress=kill, **arguments)
        assert find_store(cache_root=root, **arguments) is None
        num_encoded.clear()
        store = prepare_store(cache_root=root, **arguments)
        assert len(num_encoded) == NUM_FILES - last
        assert read_folder(store.folder) == straight


def test_what_was_written_after_the_last_save_is_cut_off(corpus, tmp_path, monkeypatch):
    arguments = character_settings(corpus)
    straight = read_folder(prepare_store(cache_root=tmp_path / "straight", **arguments).folder)
    seen = []

    def kill(stage, num_documents):
        seen.append(num_documents)
        monkeypatch.setattr(builder, "SAVE_SECONDS", 1e9)  # only the first batch is saved
        if len(seen) == 4:
            raise Killed

    monkeypatch.setattr(builder, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed):
        prepare_store(cache_root=tmp_path / "c", progress=kill, **arguments)
    assert read_folder(prepare_store(cache_root=tmp_path / "c", **arguments).folder) == straight


@pytest.mark.parametrize("make_settings", MAKERS)
def test_other_processes_give_the_same_bytes(corpus, tmp_path, monkeypatch, make_settings):
    arguments = make_settings(corpus)
    monkeypatch.setattr(encode, "INLINE_BYTES", 1000)
    folders = [
        prepare_store(cache_root=tmp_path / str(number), num_workers=number, **arguments).folder
        for number in (0, 2)
    ]
    assert read_folder(folders[0]) == read_folder(folders[1])


def test_rows_of_a_source_lie_together_and_are_counted(corpus, tmp_path):
    sources = [{"kind": "text", "path": str(corpus / name)} for name in ("0.txt", "1.txt", "3.txt")]
    store = prepare_store(
        cache_root=tmp_path / "c", **character_settings(corpus, sources=sources, evaluation_share=0.0)
    )
    # 3.txt holds what 0.txt holds.
    assert store.manifest["splits"]["train"]["source_rows"] == [70, 70, 0]
    assert store.manifest["dropped"] == {"duplicate": 20 + 20 + 90}
    taken = store.train.take(np.arange(140))
    texts = "".join(map(chr, taken.pieces))
    numbers = [texts[start + len("The Wheeler_Formation ")] for start in taken.offsets[:-1]]
    assert numbers == ["0"] * 70 + ["1"] * 70


def test_rows_of_words_are_closed_at_the_end_of_a_source(corpus, tmp_path):
    sources = [{"kind": "text", "path": str(corpus / name)} for name in ("0.txt", "1.txt")]
    both = prepare_store(
        cache_root=tmp_path / "c", **word_settings(corpus, sources=sources, evaluation_share=0.0)
    )
    alone = [
        prepare_store(
            cache_root=tmp_path / "c", **word_settings(corpus, sources=[source], evaluation_share=0.0)
        ).train
        for source in sources
    ]
    assert both.manifest["splits"]["train"]["source_rows"] == [rows.num_rows for rows in alone]
    wanted = np.concatenate([rows.take(np.arange(rows.num_rows)).pieces for rows in alone])
    assert both.train.take(np.arange(both.train.num_rows)).pieces.tolist() == wanted.tolist()


def test_bad_lines_are_counted_in_the_manifest(tmp_path):
    lines = [json.dumps({"text": f"name{n}"}) for n in range(300)]
    lines[7], lines[9] = "no JSON", ""
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    store = prepare_store(
        cache_root=tmp_path / "c",
        sources=[{"kind": "jsonl", "path": str(tmp_path / "t.jsonl")}],
        kind="characters",
        row_length=16,
        bad_input={"policy": "skip", "max_bad_share": 0.01},
    )
    counted = store.manifest["input"]
    assert (counted["lines"], counted["good"], counted["blank"]) == (300, 298, 1)
    assert sum(counted["skipped"].values()) == len(counted["examples"]) == 1


def test_a_normaliser_runs_after_the_cleaning(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(f"AA  {n}   bb" for n in range(30)))
    store = prepare_store(
        cache_root=tmp_path / "c",
        sources=[{"kind": "text", "path": str(tmp_path / "t.txt")}],
        kind="characters",
        row_length=32,
        evaluation_share=0.0,
        clean=["lower"],
        normalize=[{"kind": "whitespace"}],
    )
    pieces = store.train.take(np.array([0, 11])).pieces
    assert "".join(map(chr, pieces)) == "aa 0 bbaa 11 bb"


def test_the_order_of_files_does_not_move_a_document_to_the_other_split(corpus, tmp_path):
    splits = []
    for number, names in enumerate((["0.txt", "1.txt", "2.txt"], ["2.txt", "0.txt", "1.txt"])):
        sources = [{"kind": "text", "path": str(corpus / name)} for name in names]
        store = prepare_store(
            cache_root=tmp_path / str(number), **character_settings(corpus, sources=sources)
        )
        found = []
        for rows in (store.train, store.evaluation):
            taken = rows.take(np.arange(rows.num_rows))
            text = "".join(map(chr, taken.pieces))
            ends = zip(taken.offsets[:-1], taken.offsets[1:], strict=True)
            found.append(Counter(text[start:end] for start, end in ends))
        splits.append(found)
    assert splits[0] == splits[1]
    assert len(splits[0][1]) > 20


KILL = """
import json, sys, time
from data_pipes.building import builder
from data_pipes.prepare import prepare_store
builder.SAVE_SECONDS = 0.0
def show(stage, num_documents):
    print(num_documents, flush=True)
    time.sleep(0.2)
prepare_store(cache_root=sys.argv[1], progress=show, **json.loads(sys.argv[2]))
"""


def test_a_process_killed_by_the_system_leaves_what_the_next_one_takes_up(corpus, tmp_path):
    arguments = character_settings(corpus)
    command = [sys.executable, "-c", KILL, str(tmp_path / "c"), json.dumps(arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline(), process.stdout.readline()] == ["90\n", "180\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    start, seen = time.monotonic(), []
    store = prepare_store(
        cache_root=tmp_path / "c", progress=lambda _, count: seen.append(count), **arguments
    )
    assert time.monotonic() - start < 30  # the dead process holds no lock
    assert seen[0] > 180
    straight = prepare_store(cache_root=tmp_path / "straight", **arguments)
    assert read_folder(store.folder) == read_folder(straight.folder)


def test_a_damaged_save_is_said_and_the_next_build_begins_anew(corpus, tmp_path):
    settings = word_settings(corpus, cache_root=tmp_path / "c")
    wanted = prepare_store(**settings)
    content = read_folder(wanted.folder)
    (wanted.folder / "manifest.json").unlink()
    for damage in (b"", b"PK\x03\x04 cut", b"no zip"):
        wanted.folder.mkdir(exist_ok=True)
        (wanted.folder / builder.STATE).write_bytes(damage)
        with pytest.raises(StoreError, match="is damaged"):
            prepare_store(**settings)
        assert not wanted.folder.exists()
    assert read_folder(prepare_store(**settings).folder) == content


def test_hashes_that_the_tokenizer_wanted_in_files_do_not_stay(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(HashSet.__init__, "__defaults__", (None, 10))
    trained = {"kind": "unigram", "vocab_size": 40}
    store = prepare_store(
        **word_settings(corpus, tokenizer=None, train_tokenizer=trained, cache_root=tmp_path / "c")
    )
    assert not [name for name in read_folder(store.folder) if "hashes" in name]
