"""What stands in a report, held against the events that it was made from."""

import json
import math

import pytest

from launch.record import read_record
from launch.report import render, write_report
from launch.reporting.answers import find_band, list_examples, tabulate_words
from launch.reporting.comparison import Comparison, tabulate_results, tabulate_settings
from launch.reporting.curves import draw_charts, draw_further
from launch.reporting.facts import list_asked, tabulate_intake
from launch.reporting.figures import (
    compare,
    read_groups,
    tabulate_families,
    tabulate_fragmentation,
    tabulate_metrics,
)
from launch.reporting.incidents import count_incidents, tabulate_incidents
from launch.reporting.reality import measure, measure_run, tabulate_reality
from tests.launch.reporting.runs import HOSTILE, PLAN, RATE, RECIPE, example, make_run
from tests.launch.test_report import read_page


@pytest.fixture
def record(tmp_path):
    return read_record(make_run(tmp_path / "run"))


def read(table):
    """A table as {name of the row: [texts of its cells, with their remarks]}."""
    return {row[0]: [show(cell) for cell in row[1:]] for row in table.rows}


def show(cell):
    return cell if isinstance(cell, str) else f"{cell.text} {cell.note}".strip()


def test_metrics_stand_beside_step_0_their_interval_and_the_yardsticks(record):
    table = tabulate_metrics(record)
    assert table.head == [
        "metric", "step 0", "step 100", "95% interval", "unigram table", "neighbour table", "measured on",
    ]  # fmt: skip
    rows = read(table)
    fell = f"43.0 \u25bc {100 * (43 / 2014 - 1):.1f}%, better"
    assert rows["perplexity"] == ["2,014", fell, "", "237", "108", "500 targets"]
    assert rows["accuracy"][:2] == ["0.0%", "25.0% \u25b2 +25.0 points, better"]
    assert rows["perplexity (terms)"] == [
        "1,200",
        "60.0 \u25bc -95.0%, better",
        "50.0 to 72.0",
        "333",
        "",
        "90 targets",
    ]
    assert rows["perplexity (general)"][:2] == ["600", "30.0 \u25bc -95.0%, better"]
    assert not any("taxa" in str(name) for name in rows)


def test_groups_of_targets_have_a_table_each(record):
    tables = {table.title: table for table in tabulate_families(record)}
    assert set(tables) == {
        "Terms by category", "Words by frequency", "Names by public suffix", "Exact recovery by size",
        "Probes",
    }  # fmt: skip
    terms = tables["Terms by category"]
    assert terms.head == ["category", "perplexity, step 0", "perplexity", "95% interval", "targets"]
    assert read(terms) == {"taxa": ["1,600", "80.0", "70.0 to 95.0", "40"]}
    assert read(tables["Words by frequency"]) == {
        "unseen": ["18,000", "900", "30"],
        "1-9": ["8,000", "400", "70"],
    }
    assert read(tables["Exact recovery by size"]) == {"1": ["40.0%", "12"]}


def test_fragmentation_is_held_against_the_base_tokenizer(record):
    table = tabulate_fragmentation(record)
    assert table.head == ["", "base tokenizer", "this tokenizer"]
    assert read(table) == {
        "pieces a word": ["2.00", "1.50 \u25bc -25.0%, better"],
        "share of listed terms that are cut": ["90.0%", "20.0% \u25bc -70.0 points, better"],
    }


@pytest.mark.parametrize(
    ("figure", "first", "value", "told", "tone"),
    [
        ("perplexity", 50.0, 40.0, "\u25bc -20.0%, better", "better"),
        ("perplexity", 40.0, 50.0, "\u25b2 +25.0%, worse", "worse"),
        ("accuracy", 0.25, 0.3, "\u25b2 +5.0 points, better", "better"),
        ("accuracy", 0.25, 0.25, "= same", ""),
        ("tokens_per_second", 100.0, 90.0, "\u25bc -10.0%", ""),
        ("loss", 0.0, 1.0, "", ""),
        ("loss", math.nan, 1.0, "", ""),
        ("perplexity", 5.0, math.inf, "", ""),
    ],
)
def test_a_difference_is_told_in_figures_and_words(figure, first, value, told, tone):
    assert compare(figure, first, value) == (told, tone)


def test_what_was_planned_stands_beside_what_was_measured(record):
    rows = read(tabulate_reality(record))
    assert rows["steps"] == ["100 derived", "100 measured", "1.00\u00d7"]
    # Each step is 64 rows at 128 rows a second: half a second.
    assert rows["a step"] == ["250 ms predicted, measured", "500 ms measured", "2.0\u00d7"]
    assert rows["all steps"] == ["25 s predicted, measured", "50 s measured", "2.0\u00d7"]
    assert rows["tokens"] == ["50,000 derived", "50,000 measured", "1.00\u00d7"]
    assert rows["tokens a second"] == ["2,000 predicted, measured", "1,000 measured", "0.50\u00d7"]
    assert rows["CPU memory of the first process"] == ["512 MiB predicted", "1.00 GiB measured", "2.0\u00d7"]
    assert rows["share hidden"] == ["15.00% asked", "14.98% measured", "1.00\u00d7"]
    assert rows["evaluations after step 0"] == ["2 derived", "2 measured", "1.00\u00d7"]


def test_a_step_that_is_logged_stands_for_those_since_the_last_one(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    sparse = [e for e in lines if e["kind"] != "train" or e["step"] % 10 == 0]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in sparse))
    found = measure(read_record(folder))
    assert (found.num_steps, found.seconds, found.num_tokens) == (100, 50.0, 50.0 * RATE)


def test_the_time_of_the_whole_run_is_the_sum_over_its_starts(tmp_path):
    folder = make_run(tmp_path / "run")
    assert read(tabulate_reality(read_record(folder)))["the run, evaluations and saves with it"][1:] == [
        "",
        "",
    ]
    times = [
        {"kind": "data", "step": 0, "time": 1000.0},
        {"kind": "save", "step": 50, "path": "checkpoint-50", "time": 1020.5},
        {"kind": "resume", "step": 50, "time": 5000.0},
        {"kind": "save", "step": 100, "path": "checkpoint-100", "time": 5017.0},
        {"kind": "end", "step": 100, "reason": "steps", "time": 5019.5},
    ]
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*lines[:-1], *(json.dumps(e) + "\n" for e in times)]))
    assert measure_run(read_record(folder)) == 40.0
    row = read(tabulate_reality(read_record(folder)))["the run, evaluations and saves with it"]
    assert row == ["30 s predicted, measured", "40 s measured", "1.3\u00d7"]


def test_plans_with_nonsense_in_them_cost_no_report(tmp_path):
    plan = PLAN | {
        "seconds": math.inf,
        "num_tokens": 10**400,
        "time": "soon",
        "memory": [1],
        "num_steps": -math.inf,
    }
    folder = make_run(tmp_path / "run", plan=plan)
    assert "Plan and reality" in write_report([folder]).read_text()


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "train", "step": 99, "skipped_steps": math.inf},
        {"kind": "train", "step": 10**400, "rows_per_second": 1.0},
        {"kind": "data", "step": 0, "num_documents": math.nan, "dropped": {"a": math.nan}, "read": [1]},
        {"kind": "train", "step": 99, "rows_per_second": 1e-320, "tokens_per_second": 1e308},
        {"kind": "eval", "step": 100, "perplexity": 0, "loss": 0},
        {"kind": "yardstick", "step": 0, "name": "odd", "perplexity": 5e-324},
        {"kind": "eval", "step": 99, "perplexity": math.nan, "loss": "low", "accuracy": -math.inf},
    ],
)
def test_events_with_nonsense_in_them_cost_no_report(event, tmp_path):
    folder = make_run(tmp_path / "run", more=[event])
    assert write_report([folder]).exists()
    assert write_report([folder, folder]).exists()


def test_incidents_are_counted_and_told(tmp_path):
    more = [
        {"kind": "resume", "step": 60, "message": "going on from step 60"},
        {"kind": "spike", "step": 70, "loss": 9.5, "usual": 2.0, "time": 1.7e9},
        {"kind": "rewind", "step": 60, "spike_step": 70, "message": "warning: the run goes back to step 60"},
        {"kind": "save_failed", "step": 75, "message": "warning: no space"},
        {"kind": "damage", "step": 60, "message": "warning: checkpoint-50 is damaged"},
    ]
    record = read_record(make_run(tmp_path / "run", more=more))
    assert dict(count_incidents(record)) == {
        "taken up again": "1", "spike of the loss": "1", "gone back before a spike": "1",
        "save failed": "1", "damaged checkpoint set aside": "1", "step skipped": "2",
    }  # fmt: skip
    told = [[show(cell) for cell in row] for row in tabulate_incidents(record).rows]
    assert told[1] == ["70", "spike of the loss", "loss: 9.5, usual: 2"]
    assert told[2] == ["60", "gone back before a spike", "the run goes back to step 60"]
    assert record.events.last_step == 60, "what came after step 60 is taken back"


def test_a_run_without_incidents_says_so(tmp_path):
    folder = make_run(tmp_path / "run")
    text = (folder / "metrics.jsonl").read_text().replace('"skipped_steps": 2', '"skipped_steps": 0')
    (folder / "metrics.jsonl").write_text(text)
    assert count_incidents(read_record(folder))[0][1] == "none logged"
    assert tabulate_incidents(read_record(folder)) is None


def test_masked_rows_are_coloured_by_the_rank_of_the_truth(record):
    examples = list_examples(record)
    assert [one["places"][0]["band"] for one in examples] == ["r1", "r2", "r3", "r4"]
    first = examples[0]
    assert first["parts"][0] == {"text": "a plain row with ", "band": ""}
    assert first["places"][0]["fills"] == [("thing", "50.0%", 50.0), ("word", "25.0%", 25.0)]
    assert (first["title"], first["loss"]) == ("evaluation row 1", "1.50 nats a target")


@pytest.mark.parametrize(
    ("rank", "band"), [(1, "r1"), (2, "r2"), (5, "r2"), (6, "r3"), (50, "r3"), (51, "r4")]
)
def test_ranks_have_four_bands(rank, band):
    assert find_band(rank) == band


@pytest.mark.parametrize("rank", [math.nan, 0, -3, None, "1"])
def test_a_place_without_a_rank_is_not_shown(rank, tmp_path):
    more = [example() | {"row": 77, "parts": [{"hidden": "a", "rank": rank}, {"hidden": "b", "rank": 2}]}]
    shown = list_examples(read_record(make_run(tmp_path / "run", more=more)))[-1]
    assert [place["text"] for place in shown["places"]] == ["b"]


@pytest.mark.parametrize(
    "parts",
    [None, "text", [], [3, None], [{"hidden": 3}], [{"hidden": "a", "rank": "first"}], [{"rank": math.nan}],
     [{"rank": 10**400}], [{"rank": -1, "fills": "x"}], [{"text": 7}],
     [{"rank": 1, "fills": [{"probability": 9}]}]],
)  # fmt: skip
def test_broken_examples_and_words_cost_no_report(parts, tmp_path):
    more = [
        {"kind": "example", "step": 100, "row": 77, "parts": parts},
        {"kind": "words", "step": 100, "worst": parts, "best": None, "num_units": parts},
    ]
    assert write_report([make_run(tmp_path / "run", more=more)]).exists()


def test_words_with_the_highest_and_lowest_loss_are_listed(record):
    (worst, best), note = tabulate_words(record)
    assert read(worst) == {"goo_le.com": ["9.25", "4"]}
    assert read(best) == {"the": ["0.5", "300"]}
    assert note == (
        "120 different words at 500 hidden places of the evaluation; ranked are those hidden 3 times or more."
    )


def test_records_read_kept_and_dropped_are_counted_with_their_reasons(record):
    assert read(tabulate_intake(record)) == {
        "records read": ["10,033"], "good records": ["10,030"], "blank": ["2"], "skipped: no text": ["1"],
        "dropped: duplicate": ["7"], "dropped: length": ["3"],
        "kept as documents, training and evaluation together": ["10,000"],
    }  # fmt: skip


def test_what_was_asked_is_told_in_few_words(record):
    assert list_asked(record) == [
        ("model", "deberta scratch"),
        ("data", "a-corpus 1.0.0"),
        ("hidden", "whole word, 15.0%"),
        ("a step", "64 rows of up to 64"),
        ("steps", "100"),
        ("learning rate", "0.001"),
        ("profile", "cpu"),
    ]


def test_every_metric_with_a_curve_has_a_chart(record):
    assert [chart.title for chart in draw_charts([record])] == [
        "Training loss", "Evaluation perplexity", "Evaluation accuracy", "Learning rate", "Gradient norm",
        "Tokens per second", "Time spent waiting for data",
    ]  # fmt: skip
    further = {chart.title: chart for chart in draw_further([record])}
    assert set(further) == {
        "Among the first five", "Perplexity (terms)", "Whole spans right (recovery)", "Perplexity (general)",
        "Terms by category", "Words by frequency", "Names by public suffix", "Exact recovery by size",
        "Probes",
    }  # fmt: skip
    assert further["Perplexity (terms)"].note == "logarithmic, area: 95% interval"
    assert "unseen: 18,000 at step 0, 900 at step 100" in further["Words by frequency"].svg


def test_several_runs_share_a_chart_and_a_table_with_differences(tmp_path):
    other = RECIPE.replace("learning_rate: 0.001", "learning_rate: 0.01")
    folders = [
        make_run(tmp_path / "first"),
        make_run(tmp_path / "second", perplexity=50.0, recipe=other),
        make_run(tmp_path / "third", perplexity=40.0),
    ]
    records = [read_record(folder) for folder in folders]
    rows = read(tabulate_results(Comparison.of(records)))
    assert rows["perplexity"] == ["43.0", "50.0 \u25b2 +16.3%, worse", "40.0 \u25bc -7.0%, better"]
    assert rows["best evaluation"] == ["43.0 at step 100", "50.0 at step 100", "40.0 at step 100"]
    assert rows["perplexity (terms)"] == ["60.0", "60.0 = same", "60.0 = same"]
    assert read(tabulate_settings(Comparison.of(records))) == {
        "training.learning_rate": ["0.001", "0.01", "0.001"]
    }
    loss = draw_charts(records)[0].svg
    assert all(f">{name}</text>" in loss for name in ("first", "second", "third"))
    _, text = read_page(write_report(folders))
    assert "+16.3%, worse" in text
    assert "Masked rows of the evaluation: second" in text


def test_a_difference_within_the_interval_of_the_first_run_is_no_verdict(tmp_path):
    records = [read_record(make_run(tmp_path / name)) for name in ("one", "two")]
    key = "eval/main/terms/perplexity"
    for value, told in ((70.0, "within interval"), (73.0, "worse")):
        last = [event for event in records[1].events.rows if event["kind"] == "eval"][-1]
        last[key] = value
        cell = read(tabulate_results(Comparison.of(records)))["perplexity (terms)"][1]
        assert cell.endswith(told), cell


def test_runs_on_other_targets_get_no_differences(tmp_path):
    folders = [make_run(tmp_path / "one"), make_run(tmp_path / "two", perplexity=50.0)]
    text = (folders[1] / "metrics.jsonl").read_text().replace('"num_targets": 500', '"num_targets": 501')
    (folders[1] / "metrics.jsonl").write_text(text)
    rows = read(tabulate_results(Comparison.of([read_record(folder) for folder in folders])))
    assert rows["perplexity"] == ["43.0", "50.0"]


def test_hostile_text_is_text_wherever_a_corpus_or_a_recipe_can_put_it(tmp_path):
    recipe = json.dumps(
        {"name": HOSTILE, "description": HOSTILE, "model": {"family": HOSTILE, "source": HOSTILE}}
    )
    more = [
        example(text=HOSTILE, hidden=HOSTILE, rank=2) | {"row": HOSTILE},
        {"kind": "spike", "step": 100, "message": HOSTILE},
        {"kind": "yardstick", "step": 0, "name": HOSTILE, "perplexity": 99.0},
        {"kind": "data", "step": 0, "dropped": {HOSTILE: 3}, "read": {"skipped": {HOSTILE: 1}}},
        {"kind": "eval", "step": 100, "perplexity": 3.0, f"eval/main/terms/{HOSTILE}/perplexity": 2.0},
    ]
    plan = PLAN | {"profile": HOSTILE, "precision": HOSTILE, "time": {"step": 1.0, "origin": HOSTILE}}
    folder = make_run(tmp_path / "run", text=HOSTILE, recipe=recipe, more=more, plan=plan)
    (folder / "command.txt").write_text(HOSTILE)
    (folder / "environment.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    reader, text = read_page(write_report([folder]))
    assert not {"script", "img", "iframe"} & set(reader.tags)
    assert reader.tags.count("style") == 1
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert text.count("<script>alert('x')</script>") > 12
    assert "49" not in [word.strip("{}") for word in text.split()], "no template is run"


def test_marks_that_turn_the_text_are_shown_as_escapes(tmp_path):
    page = render([read_record(make_run(tmp_path / "run", text="abc\u202edef\x1b[31m"))])
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "abc\\u202edef\\x1b[31m" in page


def test_figures_of_a_name_that_nobody_knows_are_shown_too(tmp_path):
    more = [{"kind": "eval", "step": 100, "perplexity": 43.0, "eval/main/new_thing/odd_figure": 0.123}]
    record = read_record(make_run(tmp_path / "run", more=more))
    assert read_groups(record.evaluation())["main/new_thing"] == {"odd_figure": 0.123}
    assert read(tabulate_metrics(record))["odd figure (new thing)"][1] == "0.123"


def test_the_folder_of_a_run_that_has_just_begun_has_a_report(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert "nothing was measured" in write_report([folder]).read_text()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "eval", "step": 0}\n')
    (folder / "recipe.resolved.yaml").write_text("model: [1]\ndata: text\ntraining: 3\nobjective: null\n")
    (folder / "plan.json").write_text("[1, 2]")
    assert write_report([folder, folder]).exists()
