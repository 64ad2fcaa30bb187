"""Which figures of several runs are held against each other, and what is said of the others."""

import json

import pytest

from launch.record import read_record
from launch.report import render
from launch.reporting.comparison import Comparison, is_same_measure, tabulate_groups, tabulate_results
from tests.launch.reporting.runs import make_run
from tests.launch.reporting.test_sections import read

FRAGMENTS = {"num_words": 10_000, "num_terms": 980, "pieces_per_term": 3.0}
OCCURRENCES = {"term_perplexity": 400.0, "exact": 0.5, "num_occurrences": 915, "num_terms": 296}
PROBE = {"macro_f1": 0.7, "majority_macro_f1": 0.2, "num_examples": 400}
PSEUDO = {"bits_per_character": 2.5, "num_targets": 800, "num_characters": 3000}


def name(group, figures):
    return {f"eval/{group}/{figure}": value for figure, value in figures.items()}


def further():
    """The figures of a last evaluation by which runs with other tokenizers are compared."""
    groups = {
        "main/fragmentation": FRAGMENTS,
        "main/terms": OCCURRENCES,
        "main/terms/taxa": OCCURRENCES,
        "main/probes/topics": PROBE,
        "main/pseudo": PSEUDO,
    }
    return {key: value for group, figures in groups.items() for key, value in name(group, figures).items()}


def change_last_evaluation(folder, changes):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max((e for e in lines if e["kind"] == "eval"), key=lambda event: event["step"])
    last |= changes
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))


def leave_without_evaluation(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"kind": "data"' in line))
    return folder


def compare(*folders):
    return Comparison.of([read_record(folder) for folder in folders])


@pytest.fixture
def extended(tmp_path):
    """A run and one with another tokenizer, which has one target more."""
    folders = [make_run(tmp_path / "base"), make_run(tmp_path / "extended", perplexity=50.0)]
    change_last_evaluation(folders[0], further())
    other = {
        "num_targets": 501,
        **name("main/fragmentation", {"pieces_per_word": 1.2, "num_words": 10_040}),
        **name("main/terms", {"term_perplexity": 300.0, "exact": 0.6}),
        **name("main/pseudo", {"bits_per_character": 2.0}),
    }
    change_last_evaluation(folders[1], further() | other)
    return folders


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_run_without_an_evaluation_leaves_the_others_their_differences(place, tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", perplexity=50.0)]
    folders.insert(place, leave_without_evaluation(make_run(tmp_path / "none")))
    comparison = compare(*folders)
    told = ["43.0", "50.0 \u25b2 +16.3%, worse"]
    told.insert(place, "")
    assert read(tabulate_results(comparison))["perplexity"] == told
    assert comparison.describe() == ""
    assert "Differences are against one:" in tabulate_results(comparison).note
    assert "other targets" not in render(comparison.records)


def test_runs_of_which_none_was_evaluated_are_told_apart_by_nothing(tmp_path):
    folders = [leave_without_evaluation(make_run(tmp_path / name)) for name in ("one", "two")]
    assert compare(*folders).describe() == ""
    assert "perplexity" not in read(tabulate_results(compare(*folders)))


def test_with_another_tokenizer_only_figures_of_the_same_words_or_texts_have_a_difference(extended):
    comparison = compare(*extended)
    rows = read(tabulate_results(comparison)) | read(tabulate_groups(comparison))
    found = {key: cells[1] for key, cells in rows.items()}
    assert (
        found
        | {
            "perplexity": "50.0",
            "loss": "3.9120",
            "accuracy": "25.0%",
            "perplexity (terms)": "60.0",
            "perplexity (general)": "30.0",
            "whole spans right (recovery)": "30.0%",
            "perplexity a term (terms)": "300 \u25bc -25.0%, better",
            "whole spans right (terms)": "60.0% \u25b2 +10.0 points, better",
            "perplexity a term (terms, taxa)": "400 = same",
            "bits a character (pseudo)": "2.00 \u25bc -20.0%, better",
            "pieces a word (fragmentation)": "1.20 \u25bc -20.0%, better",
            "share of listed terms that are cut (fragmentation)": "20.0% = same",
            "accuracy (probes, topics)": "80.0% = same",
            "macro F1 (probes, topics)": "0.7 = same",
        }
        == found
    )


def test_the_page_says_what_is_compared_and_why_the_rest_is_not(extended):
    page = render([read_record(folder) for folder in extended])
    note = compare(*extended).describe()
    assert note in page.replace("&#39;", "'")
    assert note.startswith("extended: evaluated on other targets than base (their number or the yardsticks")
    assert "cannot be compared" in note
    listed = note.partition("Compared are figures of the same words or texts: ")[2]
    assert set(listed.rstrip(".").split(", ")) == {
        "perplexity a term (terms)", "whole spans right (terms)", "pieces a word (fragmentation)",
        "share of listed terms that are cut (fragmentation)", "pieces a term (fragmentation)",
        "accuracy (probes)", "macro F1 (probes)", "bits a character (pseudo)",
    }  # fmt: skip


def test_where_nothing_is_of_the_same_texts_that_is_said(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    change_last_evaluation(folders[1], {"num_targets": 501})
    assert compare(*folders).describe().endswith("so that none is compared.")


def test_of_three_runs_the_two_on_the_same_targets_are_compared_in_full(extended, tmp_path):
    third = make_run(tmp_path / "third", perplexity=40.0)
    rows = read(tabulate_results(compare(*extended, third)))
    assert rows["perplexity"] == ["43.0", "50.0", "40.0 \u25bc -7.0%, better"]
    assert compare(*extended, third).describe().startswith("extended: evaluated")


@pytest.mark.parametrize(
    ("group", "figure", "counts", "other"),
    [
        ("main/terms", "term_perplexity", OCCURRENCES, {"num_occurrences": 914}),
        ("main/terms", "exact", OCCURRENCES, {"num_terms": 297}),
        ("main/probes/topics", "accuracy", PROBE | {"majority_accuracy": 0.5}, {"num_examples": 401}),
        ("main/probes/topics", "accuracy", PROBE | {"majority_accuracy": 0.5}, {"majority_accuracy": 0.4}),
        ("main/pseudo", "bits_per_character", PSEUDO, {"num_characters": 3001}),
        ("main/fragmentation", "pieces_per_word", FRAGMENTS, {"num_words": 10_101}),
        ("main/fragmentation", "terms_cut", FRAGMENTS, {"num_terms": 1000}),
        ("general/terms", "exact", OCCURRENCES, {"num_occurrences": 1}),
    ],
)
def test_other_counts_or_none_are_of_other_texts(group, figure, counts, other):
    assert is_same_measure(group, figure, counts, counts)
    assert not is_same_measure(group, figure, counts, counts | other)
    gone = {key: value for key, value in counts.items() if key not in other}
    assert not is_same_measure(group, figure, gone, gone)


@pytest.mark.parametrize("figure", ["perplexity", "loss", "accuracy", "exact", "word_perplexity"])
def test_figures_of_targets_are_never_of_the_same_texts(figure):
    assert not is_same_measure("main", figure, {"num_targets": 5}, {"num_targets": 5})
    assert not is_same_measure("main/recovery", figure, {"num_spans": 5}, {"num_spans": 5})
