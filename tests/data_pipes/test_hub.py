import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from data_pipes.documents import SourceError
from data_pipes.prepare import find_store, prepare_store
from data_pipes.reading import hub
from data_pipes.reading.intake import Intake
from data_pipes.sources import HubSource, count_estimate, hash_source, parse_source, read_batches

ROOT = Path(__file__).parents[2]
RECORDS = [
    {"domain": "a.com", "owner": 1, "tags": [1]},
    {"domain": None, "owner": 2, "tags": []},
    {"domain": "b\u00fccher.\U0001f600", "owner": 3, "tags": [2]},
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    # HubSource needs no `datasets` of its own: this is where the library keeps what it has converted.


def write_jsonl(folder):
    for name, records in (("train", RECORDS), ("test", RECORDS[:1])):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)


def write_parquet(folder):
    for name, records in (("train-00000", RECORDS[:2]), ("train-00001", RECORDS[2:]), ("test", RECORDS[:1])):
        pa.parquet.write_table(pa.Table.from_pylist(records), folder / f"{name}.parquet")


@pytest.fixture(params=[write_jsonl, write_parquet])
def folder(request, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    request.param(folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("batch_documents", [1, 2, 10_000])
def test_a_dataset_folder_is_read_by_column_and_null_texts_are_blank(
    folder, monkeypatch, batch_documents, streaming
):
    monkeypatch.setattr(hub, "BATCH_DOCUMENTS", batch_documents)
    source = HubSource(str(folder), text_key="domain", group_key="owner", split="train", streaming=streaming)
    intake = Intake()
    batches = list(read_batches(source, None, intake, carry=("owner", "nowhere", "tags")))
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    groups = [group for batch in batches for group in batch.groups.to_pylist()]
    assert texts == [record["domain"] for record in RECORDS if record["domain"]]
    assert groups == ["1", "3"]
    assert {batch.split for batch in batches} == {"train"}
    for name, wanted in (("owner", ["1", "3"]), ("nowhere", ["", ""]), ("tags", ["[1]", "[2]"])):
        assert [value for batch in batches for value in batch.carried[name].to_pylist()] == wanted
    assert (intake.num_lines, intake.num_good, intake.num_blank) == (3, 2, 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_group_are_skipped_and_counted(folder, monkeypatch, streaming):
    monkeypatch.setattr(hub, "BATCH_DOCUMENTS", 1)
    intake = Intake("skip", 0.5)
    source = HubSource(str(folder), text_key="owner", group_key="domain", streaming=streaming)
    assert [text for batch in read_batches(source, None, intake) for text in batch.texts.to_pylist()] == [
        "1",
        "3",
    ]
    assert intake.skipped == {"no_group": 1}
    assert intake.examples[0]["place"].endswith("row 2")


def test_a_dataset_of_mixed_files_is_an_error_when_streamed_too(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "a", "odd": [1]}\n{"text": \n')
    with pytest.raises(SourceError, match="cannot be loaded: "):
        list(read_batches(HubSource(str(tmp_path), streaming=True)))


def test_the_splits_of_a_dataset_and_their_slices_can_be_read(folder):
    for split, wanted in (("test", ["a.com"]), ("train[2:]", ["b\u00fccher.\U0001f600"])):
        (batch,) = read_batches(HubSource(str(folder), text_key="domain", dataset_split=split))
        assert batch.texts.to_pylist() == wanted


def test_numbers_are_read_as_strings(folder):
    (batch,) = read_batches(HubSource(str(folder), text_key="owner"))
    assert batch.texts.to_pylist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "no column 'text', wanted by text_key; its columns are domain, owner, tags"),
        ({"text_key": "domain", "group_key": "book"}, "no column 'book', wanted by group_key; its columns"),
        ({"text_key": "tags"}, "column 'tags' holds list.*, wanted strings"),
        ({"text_key": "owner", "group_key": "domain"}, "row 2: nothing under 'domain', wanted by group_key"),
        (
            {"text_key": "domain", "dataset_split": "valid"},
            "cannot be loaded: Unknown split .*correct .*split",
        ),
        (
            {"text_key": "domain", "name": "large"},
            "cannot be loaded: .*'large' not found.*correct path, name",
        ),
    ],
)
def test_what_a_dataset_lacks_is_named(folder, changes, wanted):
    with pytest.raises(SourceError, match=wanted):
        list(read_batches(HubSource(str(folder), **changes)))


def test_a_file_that_cannot_be_read_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(SourceError, match=r"cannot be loaded: .*JSON.*; correct path"):
        list(read_batches(HubSource(str(tmp_path))))


def generation_error():
    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = TypeError("odd file")
    return error


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "Couldn't reach"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "doesn't exist"),
        (FileNotFoundError("Couldn't find any data file"), "any data file"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts"),
        (generation_error(), "generating the dataset: odd file"),
    ],
)
def test_a_hub_that_fails_says_to_give_a_folder(monkeypatch, error, wanted):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(SourceError, match=f"dataset 'a/b' cannot be loaded: .*{wanted}.*local folder"):
        list(read_batches(HubSource("a/b")))


def test_a_full_disk_is_not_called_a_wrong_source(monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match="No space left"):
        list(read_batches(HubSource("a/b")))


def test_without_a_network_a_hub_id_is_an_error_in_words():
    code = (
        "from data_pipes.sources import HubSource, SourceError, read_batches\n"
        "try:\n    list(read_batches(HubSource('humbleworth/registered-domains')))\n"
        "except SourceError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "'humbleworth/registered-domains' cannot be loaded: Couldn't reach" in done.stdout
    assert "unset HF_HUB_OFFLINE" in done.stdout


def test_the_hash_of_a_dataset_folder_follows_its_files_and_not_its_place(folder, tmp_path):
    first = hash_source(HubSource(str(folder)), tmp_path / "cache")
    moved = folder.rename(tmp_path / "moved")
    (moved / ".hidden").write_text("not read by datasets")
    assert hash_source(HubSource(str(moved)), tmp_path / "cache") == first
    (moved / "README.md").write_text("---\nconfigs: []\n---\n")
    assert hash_source(HubSource(str(moved)), tmp_path / "cache") != first


def test_the_hash_of_a_hub_id_follows_what_names_it(tmp_path):
    first = hash_source(HubSource("a/b"), tmp_path)
    assert hash_source(HubSource("a/b"), tmp_path) == first
    for changes in ({"path": "a/c"}, {"name": "x"}, {"dataset_split": "test"}, {"revision": "1"}):
        assert hash_source(HubSource(**({"path": "a/b"} | changes)), tmp_path) != first


def test_the_hash_of_a_branch_follows_the_commit_that_the_cache_of_the_hub_knows(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubSource("a/b", revision="main")
    unknown = hash_source(source, tmp_path)
    reference = tmp_path / "hub" / "datasets--a--b" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("0123abcd\n")
    first = hash_source(source, tmp_path)
    assert (unknown["commit"], first["commit"]) == (None, "0123abcd")
    assert hash_source(HubSource("a/b"), tmp_path)["commit"] is None
    assert hash_source(HubSource("a/b", revision="main", weight=2.0), tmp_path) == first


def test_the_size_of_a_folder_is_counted_and_that_of_a_hub_id_is_not_known(folder, monkeypatch):
    spec = {"kind": "hub", "path": str(folder), "text_key": "domain"}
    exact = count_estimate([spec])
    assert exact is not None
    assert (exact.num_documents, exact.num_characters, exact.is_exact) == (2, 13, True)
    monkeypatch.setattr(hub, "BATCH_DOCUMENTS", 2)
    sampled = count_estimate([spec])
    assert sampled is not None
    assert (sampled.num_documents, sampled.num_characters, sampled.is_exact) == (2, round(5 * 3 / 2), False)
    assert count_estimate([spec, {"kind": "hub", "path": "a/b"}]) is None
    # To count what is streamed, all of it would be copied.
    assert count_estimate([spec | {"streaming": True}]) is None


def test_a_description_becomes_a_hub_source():
    spec = {"kind": "hub", "path": "a/b", "text_key": "domain", "revision": None}
    assert parse_source(spec) == HubSource("a/b", text_key="domain")


def test_a_store_is_prepared_from_a_dataset_folder(folder, tmp_path):
    settings = {
        "sources": [{"kind": "hub", "path": str(folder), "text_key": "domain"}],
        "kind": "characters",
        "row_length": 16,
        "evaluation_share": 0.0,
        "cache_root": tmp_path / "cache",
    }
    store = prepare_store(**settings)
    assert (store.train.num_rows, store.manifest["dropped"]) == (2, {})
    found = find_store(**settings)
    assert found is not None
    assert found.folder == store.folder


def test_sources_are_imported_without_the_datasets_library():
    blocked = "datasets=None, torch=None, transformers=None"
    code = f"import sys; sys.modules.update({blocked}); import data_pipes.sources"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_branch_that_is_first_seen_while_it_is_read_does_not_change_the_key(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    reference = tmp_path / "hub" / "datasets--a--b" / "refs" / "main"

    def note(*_, **__):
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text("0123abcd")

    local = hub._load_dataset(HubSource(str(folder)))
    monkeypatch.setattr(hub, "_load_dataset", lambda _: note() or local)
    monkeypatch.setattr("huggingface_hub.snapshot_download", note)
    settings = {
        "sources": [{"kind": "hub", "path": "a/b", "revision": "main", "text_key": "domain"}],
        "kind": "characters",
        "row_length": 16,
        "evaluation_share": 0.0,
        "cache_root": tmp_path / "cache",
    }
    store = prepare_store(**settings)
    found = find_store(**settings)
    assert found is not None
    assert found.folder == store.folder


def test_a_hub_that_cannot_be_asked_for_a_branch_is_left_to_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = HubSource("a/b", revision="main")
    hub.fetch_commit(source)
    assert hub.find_commit(source) is None
