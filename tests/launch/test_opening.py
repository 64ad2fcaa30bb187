"""What a run says of its data, and the card after it."""

import hashlib
from types import SimpleNamespace

import pytest

from launch.card import write_card
from launch.opening import _log_data
from tests.launch.reporting.runs import make_run
from tests.saved_job import Notes

SPLIT = {"num_documents": 3, "num_rows": 2, "num_pieces": 9, "fill": 0.5}
MANIFEST = {
    "key": "17f5c04a", "splits": {"train": SPLIT, "evaluation": SPLIT}, "dropped": {}, "input": {"lines": 3},
}  # fmt: skip


def log_data(tokenizer_folder):
    notes = Notes()
    store = SimpleNamespace(manifest=MANIFEST, tokenizer_folder=tokenizer_folder)
    _log_data(SimpleNamespace(store=store), notes)  # pyright: ignore[reportArgumentType]
    (event,) = notes.of("data")
    return event


def test_the_data_are_logged_with_their_key_and_the_hash_of_what_cut_them(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    event = log_data(tmp_path)
    assert event["key"] == "17f5c04a"
    assert event["tokenizer_sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert log_data(None)["tokenizer_sha256"] is None
    assert log_data(tmp_path / "none")["tokenizer_sha256"] is None


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({"key": "17f5"}, "The rows are those of the data `17f5`.\n"),
        (
            {"key": "17f5", "tokenizer_sha256": "ab`12"},
            "The rows are those of the data `17f5`, cut by the tokenizer whose `tokenizer.json` has the "
            "SHA-256 `ab 12`.\n",
        ),
        ({"key": None, "tokenizer_sha256": "ab12"}, None),
        ({}, None),
    ],
)
def test_a_card_names_the_data_and_the_tokenizer_that_its_figures_are_of(known, told, tmp_path):
    run = make_run(tmp_path / "run", more=[{"kind": "data", "step": 0, **known}])
    (run / "final").mkdir()
    text = write_card(run / "final", run_folder=run).read_text()
    assert ("The rows are those" in text) == (told is not None)
    assert (told or "") in text
