"""The list of mutations fits the code: stale entries show here, at once, and not in the long run of them."""

import re
from pathlib import Path

import pytest

from tests.mutate import mutate, read_mutations

ROOT = Path(__file__).parent.parent
ENTRIES = read_mutations()


def test_names_are_unique_and_entries_have_what_is_needed():
    assert len({entry["name"] for entry in ENTRIES}) == len(ENTRIES) > 50
    for entry in ENTRIES:
        assert set(entry) == {"name", "file", "old", "new", "tests"}
        assert entry["old"] != entry["new"]
        assert entry["tests"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_each_guard_stands_once_in_its_file_and_its_tests_are_there(entry):
    mutated = mutate((ROOT / entry["file"]).read_text(encoding="utf-8"), entry)
    if entry["file"].endswith(".py"):
        compile(mutated, entry["file"], "exec")
    for test in entry["tests"]:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name.partition('[')[0]}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_a_mutation_whose_text_is_gone_is_an_error():
    entry = {"file": "x", "old": "a", "new": "b"}
    assert mutate("cac", entry) == "cbc"
    for text in ("", "aa"):
        with pytest.raises(ValueError, match="stale"):
            mutate(text, entry)
