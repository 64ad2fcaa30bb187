import json
import time

import pytest

from launch.watching.track import Stopwatch, Tracker


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
