import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import SourceError
from data_pipes.reading import intake as module
from data_pipes.reading.intake import Intake, escape, shorten


def test_the_default_policy_raises_at_the_first_bad_line_with_its_place_and_beginning():
    with pytest.raises(SourceError, match=r"^a\.txt, line 3: not UTF-8; convert it; it begins: b\\x00d$"):
        Intake().reject("not_utf8", "a.txt, line 3", "not UTF-8; convert it", "b\0d")


def test_skipped_lines_are_counted_by_reason_and_the_first_ten_are_kept():
    intake = Intake("skip", 0.5)
    intake.count(num_lines=100, num_good=60, num_blank=5)
    for number in range(8):
        intake.reject("nul", f"line {number}", "holds NUL")
    intake.reject_each("not_json", 25, lambda index: (f"row {index}", "not JSON", "{"))
    intake.reject("too_long", "line 99", "too long", num_lines=2)
    intake.check()
    assert intake.skipped == {"nul": 8, "not_json": 25, "too_long": 2}
    assert [example["place"] for example in intake.examples] == [f"line {n}" for n in range(8)] + [
        "row 0",
        "row 1",
    ]


@pytest.mark.parametrize(("num_bad", "is_over"), [(10, False), (11, True)])
def test_the_cap_is_a_share_of_all_lines_and_its_message_names_reasons_and_examples(num_bad, is_over):
    intake = Intake("skip")
    intake.count(num_lines=1000, num_good=1000 - num_bad)
    intake.reject_each("not_json", num_bad - 1, lambda index: (f"a, line {index}", "not JSON", "{{"))
    intake.reject("nul", "b, line 7", "holds NUL")
    if not is_over:
        intake.check()
        return
    with pytest.raises(
        SourceError, match=r"11 of 1000 lines cannot be used \(1\.1%, at most 1\.0% allowed\)"
    ) as caught:
        intake.check()
    assert "not_json 10, nul 1" in str(caught.value)
    assert "a, line 0: not JSON; it begins: {{" in str(caught.value)


def test_a_wholly_wrong_file_stops_soon_and_bad_lines_at_its_beginning_alone_do_not(monkeypatch):
    monkeypatch.setattr(module, "EARLY_LINES", 1000)
    intake = Intake("skip", 0.01)
    for _ in range(9):
        intake.reject("nul", "x", "y", num_lines=10)
        intake.count(num_lines=100, num_good=90)
    intake.reject("nul", "x", "y", num_lines=10)
    intake.count(num_lines=100, num_good=90)  # 10 %: ten times the cap, and not more
    intake.reject("nul", "x", "y")
    with pytest.raises(SourceError, match=r"101 of 1001 lines so far cannot be used"):
        intake.count(num_lines=1)


def test_a_reader_that_loses_lines_is_a_defect():
    intake = Intake("skip")
    intake.count(num_lines=3, num_good=2)
    with pytest.raises(RuntimeError, match="lost count: 3 lines, and 2 accounted for"):
        intake.check()


def test_an_intake_survives_json_and_merges():
    first, second = Intake("skip", 0.5), Intake("skip", 0.5)
    for intake in (first, second):
        intake.count(num_lines=9, num_good=5, num_blank=1)
        intake.reject("nul", "a", "b", "c", num_lines=3)
    stored = json.loads(json.dumps(first.describe()))
    again = Intake.from_dict(stored, "skip", 0.5)
    assert again.describe() == first.describe()
    again.merge(second)
    assert again.describe() | {"examples": []} == {
        "lines": 18,
        "good": 10,
        "blank": 2,
        "skipped": {"nul": 6},
        "examples": [],
    }
    assert len(again.examples) == 2
    assert stored == first.describe()


@pytest.mark.parametrize("wrong", [("ignore", 0.1), ("skip", -0.1), ("skip", 1.5), ("skip", float("nan"))])
def test_a_policy_or_share_that_cannot_be_is_refused(wrong):
    with pytest.raises(SourceError, match="wanted|write one of"):
        Intake(*wrong)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_excerpts_are_printable_encodable_and_short(text):
    shown = shorten(text)
    assert len(shown) <= 80
    assert shown.isprintable()
    shown.encode("utf-8")
    assert escape(text).isprintable()


def test_escapes_hide_what_steers_a_terminal():
    assert escape("a\x1b[31m\u202e\ud800\n\u00e9") == "a\\x1b[31m\\u202e\\ud800\\n\u00e9"
