"""What the runs are called in tables and charts, and which charts several runs have."""

import json

import pytest

from launch.record import read_record
from launch.report import write_report
from launch.reporting.comparison import Comparison, tabulate_results
from launch.reporting.curves import draw_charts, draw_further, label_runs
from launch.reporting.figures import list_headlines
from tests.launch.reporting.runs import make_run
from tests.launch.test_report import read_page


def read_all(*folders):
    return [read_record(folder) for folder in folders]


def test_runs_in_folders_of_one_name_are_told_apart_by_as_much_of_the_path_as_it_takes(tmp_path):
    places = ["a/first/run", "b/first/run", "b/second/run"]
    records = read_all(*(make_run(tmp_path / place) for place in places))
    assert label_runs(records) == places
    assert label_runs(records[1:]) == ["first/run", "second/run"]
    assert label_runs(records[:1]) == ["run"]
    assert label_runs([records[0], records[0], records[2]]) == ["first/run", "first/run (2)", "second/run"]
    assert label_runs([]) == []


def test_tables_and_charts_have_the_same_labels(tmp_path):
    folders = [make_run(tmp_path / place / "run") for place in ("first", "second")]
    records = read_all(*folders)
    assert tabulate_results(Comparison.of(records)).head[1:] == ["first/run", "second/run"]
    for chart in [*draw_charts(records), *draw_further(records)]:
        assert all(f">{label}</text>" in chart.svg for label in ("first/run", "second/run")), chart.title
    _, text = read_page(write_report(folders))
    assert "Masked rows of the evaluation: second/run" in text


@pytest.mark.parametrize("mark", ["\x01", "\x1b", "\ufffe", "\udcff", "\n", "\t", "\u202e"])
def test_a_name_that_no_xml_may_hold_costs_no_comparison(mark, tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / f"t{mark}wo")]
    escape = mark.encode("unicode_escape").decode()
    assert label_runs(read_all(*folders)) == ["one", f"t{escape}wo"]
    _, text = read_page(write_report(folders))
    assert f"Metrics: t{escape}wo" in text
    assert mark not in text or mark == "\n"


def make_crashed(folder):
    make_run(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"kind": "eval"' not in line))
    return folder


def test_a_run_that_crashed_takes_no_chart_from_the_others_wherever_it_stands(tmp_path):
    whole, crashed = make_run(tmp_path / "whole"), make_crashed(tmp_path / "crashed")
    titles = [chart.title for chart in draw_further(read_all(whole, whole))]
    assert len(titles) > 5
    for order in ((whole, crashed), (crashed, whole)):
        assert [chart.title for chart in draw_further(read_all(*order))] == titles


def test_the_order_of_the_runs_changes_no_chart(tmp_path):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other")
    line = {"kind": "eval", "step": 100, "perplexity": 3.0, "eval/main/new/odd": 0.5, "eval/main/new/b": 1.0}
    with (other / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    titles = [
        [chart.title for chart in draw_further(read_all(*pair))] for pair in ((one, other), (other, one))
    ]
    assert titles[0] == titles[1]
    assert "Odd (new)" in titles[0]
    assert "Among the first five" in titles[0]


def test_groups_of_the_general_corpus_are_families_too():
    groups = {"main": {}, "general/terms": {}, "general/terms/taxa": {}, "general/recovery/1": {}}
    assert list_headlines(groups) == ["main", "general/terms"]
