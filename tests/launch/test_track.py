import json
import time

import pytest

from launch.track import Stopwatch, Tracker


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


def test_tensorboard_gets_the_same_numbers(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_tracker(tmp_path, report_to=["tensorboard"]) as tracker:
        tracker.log("train", 1, loss=2.5, grad_norm=0.5)
        tracker.log("train", 2, loss=1.25, grad_norm=0.25)
        tracker.log("eval", 2, perplexity=7.0)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/grad_norm", "eval/perplexity"}
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 2.5), (2, 1.25)]


def test_the_stopwatch_tells_waiting_from_working():
    watch = Stopwatch()
    time.sleep(0.06)
    watch.waited()
    time.sleep(0.02)
    watch.worked(num_pieces=100, num_rows=10)
    time.sleep(0.2)
    watch.go_on()
    watch.waited()
    watch.worked(num_pieces=100, num_rows=10)
    found = watch.read()
    assert 0.4 < found["data_wait_fraction"] < 1
    # 200 pieces in a bit over 0.08 s; the 0.2 s of something else are not counted
    assert 1000 < found["tokens_per_second"] < 2500
    assert found["rows_per_second"] == pytest.approx(found["tokens_per_second"] / 10)
    assert watch.read()["tokens_per_second"] == 0.0
