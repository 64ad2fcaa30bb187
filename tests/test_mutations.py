"""The list of mutations fits the code: stale entries show here, at once, and not in the long run of them.

And a mutation is noticed only by tests that are green without it and come to an end.
"""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from tests import mutate as mutations
from tests.mutate import main, mutate, read_mutations

ROOT = Path(__file__).parent.parent
ENTRIES = read_mutations()


def test_names_are_unique_and_entries_have_what_is_needed():
    assert len({entry["name"] for entry in ENTRIES}) == len(ENTRIES) > 50
    for entry in ENTRIES:
        assert set(entry) - {"hangs"} == {"name", "file", "old", "new", "tests"}
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


TESTS = """
import time
import guarded

def test_limit():
    assert guarded.LIMIT == 3

def test_limit_of_others():
    assert guarded.LIMIT > 0

def test_that_nothing_mends():
    raise ValueError

def test_that_waits():
    while guarded.LIMIT != 3:
        time.sleep(0.1)

def test_that_never_ends():
    while True:
        time.sleep(0.1)
"""


def write_entry(name, *tests, **values):
    named = [f"test_guarded.py::{test}" for test in tests]
    return {"name": name, "file": "guarded.py", "old": "3", "new": "4", "tests": named, **values}


def run_tiny(tmp_path, entries, *arguments, **seconds):
    """Judge mutations of a tree of three files; the exit code, and what was said."""
    tree = tmp_path / "tiny"
    tree.mkdir()
    (tree / "guarded.py").write_text("LIMIT = 3\n")
    (tree / "test_guarded.py").write_text(TESTS)
    (tree / "test_empty.py").touch()
    (tmp_path / "list.json").write_text(json.dumps(entries))
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        for name, value in {"ROOT": tree, "LIST": tmp_path / "list.json", **seconds}.items():
            patch.setattr(mutations, name, value)
        code = main(arguments)
    return code, said.getvalue().splitlines()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    entries = [
        write_entry("noticed", "test_limit"),
        write_entry("noticed-by-one", "test_limit", "test_limit_of_others"),
        write_entry("red-anyway", "test_limit", "test_that_nothing_mends"),
        write_entry("without-a-test", tests=["test_empty.py::test_that_is_gone"]),
        write_entry("stale", "test_limit", old="5"),
        write_entry("other-name", "test_that_never_ends"),
    ]
    return run_tiny(
        tmp_path_factory.mktemp("judged"), entries, "noticed", "r*way", "with", "stale", "-j", "2"
    )


def test_each_mutation_that_is_asked_for_is_told_with_its_place_in_the_count(judged):
    code, said = judged
    assert code == 1
    told = [re.fullmatch(r"(\d/3)  (red|GREEN) +\d+\.\d s  (\S+).*", line) for line in said]
    told = [found.groups() for found in told if found]
    assert [count for count, _, _ in told] == ["1/3", "2/3", "3/3"]
    assert {name: how for _, how, name in told} == {
        "noticed": "red",
        "noticed-by-one": "GREEN",
        "stale": "GREEN",
    }
    assert said[-5] == "1 of 5 mutations were noticed"


@pytest.mark.parametrize(
    "problem",
    [
        "noticed-by-one: not noticed by test_guarded.py::test_limit_of_others",
        "red-anyway: test_guarded.py::test_that_nothing_mends is failed, unmutated",
        "without-a-test: test_empty.py::test_that_is_gone is not run (pytest ended with 4: ",
        "stale: stale: its old text stands 0 times in guarded.py",
    ],
)
def test_problems_are_named_at_the_end_and_red_anyway_is_one(problem, judged):
    _, said = judged
    assert [line for line in said[-4:] if line.startswith(problem)]


def test_a_test_that_hangs_notices_a_mutation_only_where_that_was_said(tmp_path):
    entries = [write_entry("a", "test_that_waits"), write_entry("b", "test_that_waits", hangs=True)]
    code, said = run_tiny(tmp_path, entries, "-j", "2", MUTATION_SECONDS=5)
    assert code == 1
    assert said[-2:] == [
        "1 of 2 mutations were noticed",
        'a: not over after 5 s: say "hangs": true if that is how it is noticed',
    ]


def test_a_test_that_hangs_without_the_mutation_notices_nothing(tmp_path):
    entries = [write_entry("a", "test_that_never_ends", hangs=True)]
    code, said = run_tiny(tmp_path, entries, BASELINE_SECONDS=5)
    assert code == 1
    assert said[-1] == (
        "a: test_guarded.py::test_that_never_ends and others of its file are not over after 5 s, unmutated"
    )


def test_the_tests_without_mutations_may_be_all_that_is_asked_for(tmp_path):
    entries = [write_entry("a", "test_limit"), write_entry("b", "test_that_nothing_mends", old="stale")]
    code, said = run_tiny(tmp_path, entries, "--baseline-only")
    assert (code, len(said)) == (1, 2)
    assert said[-1] == "1 named tests are not green without a mutation"
