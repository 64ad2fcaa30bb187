import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from launch.progress import Progress
from launch.watching import track
from launch.watching.flags import Flags
from launch.watching.track import Stopwatch, Tracker
from tests.saved_job import make_job


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def open_tracker(folder, **arguments):
    return Tracker(folder, **{"is_main": True, "display": None, **arguments})


def test_events_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.log("train", 1, loss=2.5)
        assert read(tmp_path) == [{"kind": "train", "step": 1, "loss": 2.5}]


def test_other_ranks_write_nothing(tmp_path):
    with open_tracker(tmp_path, is_main=False) as tracker:
        tracker.log("train", 1, loss=2.5)
    assert list(tmp_path.iterdir()) == []


def test_a_resume_leaves_no_step_twice_and_none_out(tmp_path):
    with open_tracker(tmp_path) as tracker:
        for step in range(1, 6):
            tracker.log("train", step, loss=float(step))
        tracker.log("end", 3, reason="steps")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    with open_tracker(tmp_path, resumed_step=3) as tracker:
        for step in range(4, 7):
            tracker.log("train", step, loss=step * 10.0)
    assert [(event["step"], event["loss"]) for event in read(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "cut",
    ['{"kind": "note", "message": "grö'.encode()[:-1], b"\0" * 64, b"[1]", b"3", b'{"step": 1}', b"\xff\n"],
)
def test_a_line_that_a_full_disk_or_a_power_loss_left_stops_no_resume(cut, tmp_path):
    with open_tracker(tmp_path) as tracker:
        tracker.log("train", 1, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(cut)
    with open_tracker(tmp_path, resumed_step=1) as tracker:
        tracker.log("train", 2, loss=2.0)
    assert [(event["kind"], event["step"]) for event in read(tmp_path)] == [("train", 1), ("train", 2)]


def test_an_event_with_a_line_separator_in_it_is_kept_over_a_resume(tmp_path):
    texts = ["one\u2028two", "one\u2029two", "one\x85two", "one\x0b\x0c\x1c\x1etwo", "one\r\ntwo"]
    with open_tracker(tmp_path) as tracker:
        for text in texts:
            tracker.log("example", 1, text=text)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with open_tracker(tmp_path, resumed_step=1):
            pass
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [event["text"] for event in read(tmp_path)] == texts


@pytest.mark.parametrize("is_due", [True, False])
def test_an_evaluation_that_a_checkpoint_owes_stands_once_however_often_it_is_made(
    is_due, tmp_path, monkeypatch
):
    """It was stopped in it, made at the next start, and killed before the next checkpoint."""
    warn = Flags.warn
    monkeypatch.setattr(
        Flags,
        "warn",
        lambda flags, event: [*warn(flags, event), *([{"name": "odd"}] if event["kind"] == "eval" else [])],
    )
    with open_tracker(tmp_path) as tracker:
        tracker.log("eval", 0, loss=9.0)
        tracker.log("train", 2, loss=2.0)
        tracker.log("flag", 2, name="of the step")
        tracker.log("save", 2)
    for _ in range(3):
        with open_tracker(tmp_path, resumed_step=2, owes_evaluation=is_due) as tracker:
            if is_due:
                tracker.log("eval", 2, loss=3.0)
                tracker.log("missing", 2, metric="a")
            tracker.log("train", 3, loss=1.0)
    found = [(event["kind"], event["step"], event.get("name")) for event in read(tmp_path)]
    again = [("eval", 2, None), ("flag", 2, "odd"), ("missing", 2, None)] if is_due else []
    assert found == [
        ("eval", 0, None), ("flag", 0, "odd"), ("train", 2, None), ("flag", 2, "of the step"),
        ("save", 2, None), *again, ("train", 3, None),
    ]  # fmt: skip


@pytest.mark.parametrize("is_due", [True, False])
def test_a_tracker_is_opened_from_where_the_run_starts_and_what_it_owes(is_due, tmp_path):
    with open_tracker(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log("eval", step, loss=9.0)
    job: Any = make_job()
    job.plan = SimpleNamespace(model_dump=lambda mode: {})
    job.stop = SimpleNamespace(display=None)
    with track.open_tracker(tmp_path, job, Progress(step=2, resumed_from=2, is_evaluation_due=is_due)):
        pass
    assert [event["step"] for event in read(tmp_path)] == ([1] if is_due else [1, 2])


def test_a_fresh_start_forgets_what_an_attempt_without_a_checkpoint_wrote(tmp_path):
    for _ in range(2):
        with open_tracker(tmp_path) as tracker:
            tracker.log("train", 1, loss=1.0)
    assert len(read(tmp_path)) == 1


def starve(tracker, first, last):
    for step in range(first, last + 1):
        tracker.log("train", step, loss=9.0 - step / 100, data_wait_fraction=0.5)


def test_a_red_flag_is_an_event_of_the_run_and_goes_on_over_a_resume(tmp_path):
    with open_tracker(tmp_path) as tracker:
        starve(tracker, 1, 150)
    with open_tracker(tmp_path, resumed_step=140) as tracker:
        starve(tracker, 141, 160)
        for step in range(161, 301):
            tracker.log("train", step, loss=9.0 - step / 100, data_wait_fraction=0.0)
    flags = [event for event in read(tmp_path) if event["kind"] == "flag"]
    assert [(flag["step"], flag["name"], flag["is_on"]) for flag in flags] == [
        (101, "data_starving", True),
        # Of the 101 steps up to 241 the first 20 waited for half of the time: 9.9 %.
        (241, "data_starving", False),
    ]
    assert flags[0]["message"].startswith("data starving: 50% of the time")


def test_a_flag_of_a_branch_that_is_gone_is_raised_again(tmp_path):
    with open_tracker(tmp_path) as tracker:
        starve(tracker, 1, 150)
    with open_tracker(tmp_path, resumed_step=50) as tracker:
        starve(tracker, 51, 150)
    assert [event["step"] for event in read(tmp_path) if event["kind"] == "flag"] == [101]


def test_the_stopwatch_tells_waiting_from_working():
    watch = Stopwatch()
    time.sleep(0.06)
    watch.waited()
    time.sleep(0.02)
    watch.worked(num_pieces=100, num_rows=10, num_slots=150)
    time.sleep(0.2)
    watch.go_on()
    watch.waited()
    watch.worked(num_pieces=100, num_rows=10, num_slots=100)
    found = watch.read()
    assert 0.4 < found["data_wait_fraction"] < 1
    # 200 pieces in a bit over 0.08 s; the 0.2 s of something else are not counted
    assert 1000 < found["tokens_per_second"] < 2500
    assert found["rows_per_second"] == pytest.approx(found["tokens_per_second"] / 10)
    assert found["slots_per_second"] == pytest.approx(found["tokens_per_second"] * 1.25)
    assert watch.read()["tokens_per_second"] == 0.0
