import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipes.building.preparation import Preparation
from data_pipes.documents import SourceError
from data_pipes.prepare import find_store, prepare_store
from data_pipes.reading import packages
from data_pipes.split import OverlapError
from data_pipes.store import StoreError

ROOT = Path(__file__).parents[2]
WORD = re.compile(r"\w+|[^\w\s]")
NAMES = [f"name{number}.example" for number in range(400)]
PROSE = [
    f"The {kind} beds yield {number} fossils, says report {number}."
    for number in range(60)
    for kind in ("shale", "reef", "coal")
]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus"
    path.mkdir()
    (path / "names.txt").write_text("\n".join(NAMES))
    (path / "prose.txt").write_text("\n".join(PROSE))
    return path


def name_settings(corpus, **changes):
    source = {"kind": "text", "path": str(corpus / "names.txt")}
    return {"sources": [source], "kind": "characters", "row_length": 32, "evaluation_share": 0.1} | changes


def prose_settings(corpus, **changes):
    source = {"kind": "text", "path": str(corpus / "prose.txt")}
    trained = {"kind": "unigram", "vocab_size": 60}
    return {
        "sources": [source],
        "kind": "words",
        "row_length": 32,
        "train_tokenizer": trained,
        "evaluation_share": 0.1,
    } | changes


def read_texts(rows):
    """Character rows as strings."""
    taken = rows.take(np.arange(rows.num_rows))
    text = "".join(map(chr, taken.pieces))
    return [text[a:b] for a, b in zip(taken.offsets[:-1], taken.offsets[1:], strict=True)]


def key_of(root, arguments):
    return prepare_store(cache_root=root, **arguments).folder.name


def test_every_document_is_in_one_split(corpus, tmp_path):
    store = prepare_store(cache_root=tmp_path / "cache", **name_settings(corpus))
    train, evaluation = read_texts(store.train), read_texts(store.evaluation)
    assert sorted(train + evaluation) == sorted(NAMES)
    assert 20 <= len(evaluation) <= 62  # 40 expected, standard deviation 6
    assert train == [name for name in NAMES if name in set(train)]


def test_code_points_are_sorted_and_counted_over_the_training_split(corpus, tmp_path):
    store = prepare_store(cache_root=tmp_path / "cache", **name_settings(corpus))
    wanted = Counter("".join(read_texts(store.train)))
    assert store.code_points.tolist() == sorted(map(ord, wanted))
    counts = zip(store.code_points.tolist(), store.manifest["code_point_counts"], strict=True)
    assert {chr(code_point): count for code_point, count in counts} == wanted


def test_reserved_characters_are_dropped_with_a_reason(tmp_path):
    bad = ["a\0b", *(f"x{chr(0xE000 + number)}" for number in range(5))]
    kept = ["plain", "edge \ue005 \udfff".replace("\udfff", "\uf8ff")]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*bad, *kept]))
    (tmp_path / "u.jsonl").write_text('{"text": "half \\ud800"}\n')
    sources = [{"kind": "jsonl", "path": str(tmp_path / name)} for name in ("t.jsonl", "u.jsonl")]
    store = prepare_store(
        cache_root=tmp_path / "c", sources=sources, kind="characters", row_length=32, evaluation_share=0.0
    )
    assert read_texts(store.train) == kept
    assert store.manifest["dropped"] == {"lone_surrogate": 1, "reserved_character": 6}


def test_long_names_are_cut_where_both_special_characters_still_fit_and_counted(tmp_path):
    texts = ["a" * 6, "b" * 7, "\U0001f600" * 9]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    source = {"kind": "text", "path": str(tmp_path / "t.txt")}
    store = prepare_store(
        cache_root=tmp_path / "c", sources=[source], kind="characters", row_length=8, evaluation_share=0
    )
    assert read_texts(store.train) == [text[:6] for text in texts]
    assert store.manifest["splits"]["train"]["num_cut_documents"] == 2
    assert store.manifest["splits"]["train"]["fill"] == 1.0


def test_the_limit_counts_over_all_sources_in_order(corpus, tmp_path):
    sources = [{"kind": "text", "path": str(corpus / name)} for name in ("names.txt", "prose.txt")]
    arguments = name_settings(corpus, sources=sources, evaluation_share=0.0, row_length=128)
    store = prepare_store(cache_root=tmp_path / "c", **arguments, limit=403)
    assert read_texts(store.train) == NAMES + PROSE[:3]


def test_a_source_behind_the_limit_is_not_opened(corpus, tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("fetched for nothing")

    monkeypatch.setattr(packages, "fetch_wheel", fail)
    package = {"kind": "package", "name": "p", "version": "1", "sha256": "0", "member": "m"}
    arguments = name_settings(corpus)
    arguments["sources"] = [*arguments["sources"], package | {"format": "json_list"}]
    assert prepare_store(cache_root=tmp_path / "c", **arguments, limit=400).train.num_rows > 300


@pytest.mark.parametrize("make_settings", [name_settings, prose_settings])
def test_a_result_without_documents_is_a_source_error_with_the_reasons(corpus, tmp_path, make_settings):
    arguments = make_settings(corpus, clean=[{"kind": "length", "max": 2}])
    with pytest.raises(SourceError, match=r"no document is left .* check data\.sources and data\.clean"):
        prepare_store(cache_root=tmp_path / "c", **arguments)
    assert not [path for path in (tmp_path / "c" / "stores").iterdir() if path.is_dir()]


def test_a_training_file_given_for_evaluation_too_stops_the_run_and_leaves_no_store(corpus, tmp_path):
    source = {"kind": "text", "path": str(corpus / "prose.txt")}
    sources = [source | {"split": "train"}, source | {"split": "evaluation"}]
    for make_settings in (name_settings, prose_settings):
        with pytest.raises(OverlapError, match="180 texts are in both"):
            prepare_store(cache_root=tmp_path / "c", **make_settings(corpus, sources=sources))
    assert not [path for path in (tmp_path / "c" / "stores").iterdir() if path.is_dir()]


def test_word_rows_hold_every_word_of_every_document(corpus, tmp_path):
    from transformers import AutoTokenizer

    store = prepare_store(cache_root=tmp_path / "c", **prose_settings(corpus))
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_folder)
    got, num_rows = Counter(), 0
    for rows in (store.train, store.evaluation):
        taken = rows.take(np.arange(rows.num_rows))
        assert taken.lengths.max() <= 32
        # A part stands between its own [CLS] and [SEP]; the parts of a document may be in any row.
        for part in np.split(taken.pieces, np.flatnonzero(taken.document_starts))[1:]:
            got.update(WORD.findall(tokenizer.decode(part[1:-1].tolist())))
        num_rows += rows.num_rows
        summary = rows.summary
        assert summary["fill"] == pytest.approx(len(taken.pieces) / (rows.num_rows * 32), abs=1e-12)
    assert got == Counter(WORD.findall(" ".join(PROSE)))
    assert num_rows == store.train.num_rows + store.evaluation.num_rows


CHANGES = {
    "row_length": {"row_length": 33},
    "evaluation_share": {"evaluation_share": 0.2},
    "clean": {"clean": ["lower"]},
    "limit": {"limit": 10_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_setting_gives_another_key(corpus, tmp_path, change):
    first = key_of(tmp_path / "c", name_settings(corpus))
    assert key_of(tmp_path / "c", name_settings(corpus, **CHANGES[change])) != first


def test_another_text_gives_another_key_and_its_own_rows(corpus, tmp_path):
    first = key_of(tmp_path / "c", name_settings(corpus))
    (corpus / "names.txt").write_text("\n".join([*NAMES[:-1], "changed.example"]))
    store = prepare_store(cache_root=tmp_path / "c", **name_settings(corpus))
    assert store.folder.name != first
    assert "changed.example" in read_texts(store.train) + read_texts(store.evaluation)


def test_a_renamed_or_touched_file_keeps_the_key(corpus, tmp_path):
    first = key_of(tmp_path / "c", name_settings(corpus))
    os.utime(corpus / "names.txt", (1, 1))
    assert key_of(tmp_path / "c", name_settings(corpus)) == first
    (corpus / "names.txt").rename(corpus / "other.txt")
    moved = {"kind": "text", "path": str(corpus / "other.txt")}
    assert key_of(tmp_path / "c", name_settings(corpus, sources=[moved])) == first


def test_a_renamed_tokenizer_folder_keeps_the_key_and_another_vocabulary_does_not(corpus, tmp_path):
    from tests.data_pipes.tiny_tokenizers import make_unigram

    keys = []
    for name, score in (("one", 0.0), ("two", 0.0), ("three", -1.0)):
        make_unigram(score).save_pretrained(tmp_path / name)
        arguments = prose_settings(corpus, train_tokenizer=None, tokenizer=str(tmp_path / name))
        keys.append(Preparation.of(arguments).compute_key(tmp_path / "c"))
    assert keys[0] == keys[1] != keys[2]


BUILD = """
import json, sys
from data_pipes import prepare
build = prepare.build_store
def announce(*arguments):
    print("built", flush=True)
    build(*arguments)
prepare.build_store = announce
root, settings = sys.argv[1], json.loads(sys.argv[2])
print(prepare.prepare_store(cache_root=root, **settings).folder.name)
"""


def start_build(root, arguments, seed):
    command = [sys.executable, "-c", BUILD, str(root), json.dumps(arguments)]
    environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_processes_agree_on_key_and_bytes_and_two_at_once_build_once(corpus, tmp_path):
    arguments = prose_settings(corpus)
    roots = [tmp_path / "one", tmp_path / "one", tmp_path / "two"]
    builds = [start_build(root, arguments, str(seed)) for seed, root in enumerate(roots)]
    outputs = [build.communicate(timeout=120)[0].split() for build in builds]
    assert [build.returncode for build in builds] == [0, 0, 0]
    (key,) = {output[-1] for output in outputs}
    assert sorted(len(output) for output in outputs[:2]) == [1, 2]
    assert outputs[2] == ["built", key]
    first, second = (read_folder(root / "stores" / key) for root in roots[1:])
    assert first == second
    assert len(first) > 5


def test_finding_a_store_builds_nothing_and_imports_neither_torch_nor_transformers(corpus, tmp_path):
    code = (
        "import json, sys\n"
        "sys.modules.update(torch=None, transformers=None, datasets=None, sentencepiece=None)\n"
        "from data_pipes.prepare import find_store\n"
        "store = find_store(cache_root=sys.argv[1], **json.loads(sys.argv[2]))\n"
        "print(store and store.train.num_rows)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c"), json.dumps(prose_settings(corpus))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert not (tmp_path / "c" / "stores").exists()
    num_rows = prepare_store(cache_root=tmp_path / "c", **prose_settings(corpus)).train.num_rows
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{num_rows}\n"


def test_a_damaged_store_is_not_given_out(corpus, tmp_path):
    arguments = name_settings(corpus)
    folder = prepare_store(cache_root=tmp_path / "c", **arguments).folder
    path = folder / "train-uint8.pieces"
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert find_store(cache_root=tmp_path / "c", **arguments) is not None  # compares sizes only
    with pytest.raises(StoreError, match=r"train-uint8\.pieces has changed"):
        prepare_store(cache_root=tmp_path / "c", **arguments)


def test_what_a_process_left_that_died_before_its_first_save_is_no_store(corpus, tmp_path):
    arguments = name_settings(corpus)
    whole = prepare_store(cache_root=tmp_path / "first", **arguments).folder
    left = tmp_path / "c" / "stores" / whole.name
    left.mkdir(parents=True)
    (left / "train.lengths").write_bytes(b"1234")
    assert find_store(cache_root=tmp_path / "c", **arguments) is None
    prepare_store(cache_root=tmp_path / "c", **arguments)
    assert read_folder(left) == read_folder(whole)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sources": []}, "sources is empty"),
        ({"evaluation_share": 1.0}, "evaluation_share is 1.0"),
        ({"row_length": 2}, "row_length is 2"),
        ({"tokenizer": "folder"}, "want no tokenizer"),
        ({"kind": "words"}, "want one of tokenizer and train_tokenizer"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_words(corpus, changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        find_store(**name_settings(corpus, **changes))


def test_a_file_that_changes_while_it_is_read_gives_no_store(corpus, tmp_path):
    arguments = name_settings(corpus)

    def change(stage, num_documents):
        (corpus / "names.txt").write_text("\n".join(NAMES[1:]))

    with pytest.raises(SourceError, match="changed"):
        prepare_store(cache_root=tmp_path / "c", progress=change, **arguments)
    assert not [path for path in (tmp_path / "c" / "stores").iterdir() if path.is_dir()]
