import json
import math
import re
from html.parser import HTMLParser

import pytest

from launch.events import read_events
from launch.figure import show_number, show_share
from launch.record import judge, read_record
from launch.report import write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "<script>alert('x')</script> & \"quotes\""


class Reader(HTMLParser):
    """Fails on tags that do not close in order; keeps the text and every attribute."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read_page(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


FIGURES = {
    "learning_rate": 1e-3,
    "grad_norm": 1.0,
    "tokens_per_second": 1000.0,
    "data_wait_fraction": 0.01,
    "peak_memory_bytes": 2**30,
}


def evaluation(step, perplexity, accuracy):
    figures = {"loss": math.log(perplexity), "perplexity": perplexity, "accuracy": accuracy}
    return {"kind": "eval", "step": step, **figures, "num_targets": 500}


def make_run(folder, *, perplexity=43.0, num_steps=100, text="goo_le.com", finished=True):
    folder.mkdir(parents=True)
    events = [
        {"kind": "data", "step": 0, "num_documents": 9816, "num_rows": 24_923, "dropped": {"duplicate": 7}}
    ]
    for name, value in (("unigram", 237.0), ("neighbours", 108.0)):
        events.append({"kind": "yardstick", "step": 0, "name": name, "perplexity": value, "num_targets": 500})
    events.append(evaluation(0, 2014.0, 0.0))
    place = {
        "position": 3,
        "candidates": [{"piece": "g", "probability": 0.75}, {"piece": "o", "probability": 0.25}],
    }
    for step in (0, num_steps):
        events.append(
            {"kind": "fill", "step": step, "text": text, "places": [place], "completed": f"filled {step}"}
        )
    for step in range(1, num_steps + 1):
        figures = {"loss": 8 - step / 50, "num_targets": 90, **FIGURES}
        events.append({"kind": "train", "step": step, **figures})
    events.append(evaluation(num_steps, perplexity, 0.25))
    if finished:
        events.append({"kind": "end", "step": num_steps, "reason": "steps"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "plan.json").write_text(
        json.dumps({"recipe": "small", "num_steps": num_steps, "global_batch": 64})
    )
    recipe = "name: small\ndescription: a try\nmodel: {family: canine, source: scratch}\n"
    (folder / "recipe.resolved.yaml").write_text(recipe)
    (folder / "command.txt").write_text("accelerate launch ...\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.13.0"}}))
    return folder


def test_the_report_is_one_file_that_needs_nothing_else(tmp_path):
    path = write_report([make_run(tmp_path / "run")])
    assert path == tmp_path / "run" / "report.html"
    reader, _ = read_page(path)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    assert not [name for name, _ in reader.attributes if name == "src" or name.startswith("on")]
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert all(value[1:] in ids for name, value in reader.attributes if name == "href")


def test_the_verdict_tells_the_logged_figures(tmp_path):
    _, text = read_page(write_report([make_run(tmp_path / "run")]))
    ratios = f"{237 / 43:.1f}\u00d7 below the unigram table (237) and {108 / 43:.1f}\u00d7 below"
    assert f"Perplexity 43.0, {ratios} the neighbour table (108); at step 0 it was 2,014." in text
    assert "finished, step 100 of 100" in text
    assert "24,923" in text
    assert "duplicate" in text


def test_a_model_that_beats_nothing_is_called_so(tmp_path):
    assert "beats neither" in judge(read_record(make_run(tmp_path / "a", perplexity=300.0)))
    assert "does not beat the neighbour table (108)" in judge(
        read_record(make_run(tmp_path / "b", perplexity=150.0))
    )
    assert "not improved" in judge(read_record(make_run(tmp_path / "c", perplexity=2500.0)))


def test_every_curve_is_drawn_and_fills_stand_side_by_side(tmp_path):
    reader, text = read_page(write_report([make_run(tmp_path / "run")]))
    assert reader.tags.count("svg") == 7
    assert "unigram table 237" in text
    for words in ("filled 0", "filled 100", "75.0%", "step 100"):
        assert words in text


def test_text_of_a_corpus_is_never_markup(tmp_path):
    reader, text = read_page(write_report([make_run(tmp_path / "run", text=HOSTILE)]))
    assert "script" not in reader.tags
    assert HOSTILE in text


def test_several_runs_are_compared(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", perplexity=50.0, num_steps=80)]
    (runs[1] / "recipe.resolved.yaml").write_text("name: small\nmodel: {family: canine, source: other}\n")
    assert write_report(runs) == tmp_path / "one" / "comparison.html"
    _, text = read_page(write_report(runs, tmp_path / "both.html"))
    assert "Side by side" in text
    assert "model.source" in text
    assert "model.family" not in text
    assert "perplexity 43.0 50.0 \u25b2 +16.3%, worse" in text
    assert "accuracy 25.0% 25.0% = same" in text


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_run_cut_at_any_place_still_has_a_report_that_says_what_is_missing(keep, tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    data = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(data[: int(len(data) * keep)])
    (folder / "plan.json").unlink()
    (folder / "environment.json").write_text("{")
    _, text = read_page(write_report([folder]))
    assert "plan.json is not there" in text
    assert "environment.json cannot be read" in text
    assert "no end was logged" in text or "has no event in it" in text


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="give a run folder"):
        write_report([tmp_path / "none"])
    with pytest.raises(ValueError, match="no run folder was given"):
        write_report([])


def test_of_events_that_stand_twice_the_later_one_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": step, "loss": 1.0} for step in (1, 2, 3)]
    lines += [{"kind": "resume", "step": 1}, {"kind": "train", "step": 2, "loss": 9.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\nnot json\n{"kind": "train", "st')
    events = read_events(path)
    assert events.curve("train", "loss") == [(1, 1.0), (2, 9.0)]
    assert events.num_unreadable == 1
    assert events.is_cut


def test_waiting_for_data_is_drawn_in_percent(tmp_path):
    page = write_report([make_run(tmp_path / "run")]).read_text(encoding="utf-8")
    figure = page[page.index("Time spent waiting for data") :]
    assert "percent" in figure[:200]
    assert "last: 1.00 at step 100" in figure


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7.696, "7.70"), (43.04, "43.0"), (236.6, "237"), (2013.6, "2,014"), (0.01234, "0.0123"),
     (math.inf, "infinite"), (math.nan, "not a number"), (1.2e12, "1.20e+12")],
)  # fmt: skip
def test_figures_have_about_three_digits(value, text):
    assert show_number(value) == text


def test_shares_are_percents():
    assert show_share(0.217) == "21.7%"
    assert show_share(0.0001) == "under 0.1%"
