"""Spikes of the loss against a plain reckoning, and what they do to the window."""

import math
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import course as course_module
from launch.course import Course, find_earlier
from launch.events import read_events
from launch.progress import Progress
from launch.recipe_file import read_recipe
from launch.recipe_training import Spikes
from launch.spikes import enter_loss, find_spike
from launch.verdict import RunError
from launch.watching.track import Tracker

LOSSES = st.lists(st.floats(0.01, 20, allow_nan=False), max_size=40)


def reckon(losses, loss, window, sigmas):
    """Whether a loss is a spike, with Python's own statistics."""
    last = losses[len(losses) - window :] if len(losses) > window else losses
    if len(last) < window // 2:
        return False
    middle = statistics.median(last)
    spread = 1.4826 * statistics.median([abs(value - middle) for value in last])
    return loss - middle > sigmas * max(spread, 0.001 * abs(middle))


@given(LOSSES, st.floats(0.01, 60), st.integers(8, 24), st.floats(0.5, 12))
def test_a_spike_is_what_a_plain_reckoning_says(losses, loss, window, sigmas):
    found = find_spike(losses, loss, Spikes(window=window, sigmas=sigmas))
    assert (found is not None) == reckon(losses, loss, window, sigmas)


def test_a_single_outlier_in_the_window_hides_no_spike_and_a_standing_loss_makes_none():
    steady = [3.0 + 0.1 * math.sin(number) for number in range(32)]
    wanted = Spikes(window=32)
    assert find_spike([*steady[:-1], 1e6], 4.0, wanted) is not None
    assert find_spike(steady, 3.3, wanted) is None
    assert find_spike([3.0] * 32, 3.01, wanted) is None
    assert find_spike([3.0] * 32, 3.02, wanted) is not None
    assert find_spike(steady, 0.1, wanted) is None, "falling is no spike"
    assert find_spike(steady[:15], 400.0, wanted) is None, "too few to tell"


@given(st.lists(st.floats(0.5, 50), max_size=60), st.integers(8, 16))
def test_the_window_holds_the_last_losses_that_were_no_spikes(stream, window):
    wanted, progress = Spikes(window=window, sigmas=3.0), Progress()
    kept, in_a_row = [], 0
    for loss in stream:
        is_spike = find_spike(progress.losses, loss, wanted) is not None
        assert is_spike == reckon(kept, loss, window, 3.0)
        progress = enter_loss(progress, loss, is_spike, wanted)
        kept, in_a_row = (kept, in_a_row + 1) if is_spike else ([*kept, loss][-window:], 0)
        if in_a_row >= window // 2:
            kept, in_a_row = [], 0
        assert list(progress.losses) == kept
        assert progress.num_spikes_in_a_row == in_a_row


def test_a_loss_that_stays_on_another_level_is_no_spike_for_ever():
    wanted, progress = Spikes(window=8), Progress()
    flagged = []
    for loss in [1.0] * 8 + [5.0] * 20:
        flagged.append(find_spike(progress.losses, loss, wanted) is not None)
        progress = enter_loss(progress, loss, flagged[-1], wanted)
    assert flagged == [False] * 8 + [True] * 4 + [False] * 16


def make_checkpoints(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()


def find_step_before(folder, progress):
    place = find_earlier(folder, progress)
    return None if place is None else int(place.name.split("-")[1])


def test_the_way_back_is_to_the_newest_whole_checkpoint_before_the_spike(tmp_path, monkeypatch):
    damaged: set[str] = set()
    monkeypatch.setattr(course_module, "find_damage", lambda place: "torn" if place.name in damaged else None)
    assert find_step_before(tmp_path, Progress(step=9)) is None
    make_checkpoints(tmp_path, 2, 4, 6, 8)
    assert find_step_before(tmp_path, Progress(step=9)) == 8
    assert find_step_before(tmp_path, Progress(step=8)) == 6, "the one of the spike's step has it in it"
    damaged.add("checkpoint-6")
    assert find_step_before(tmp_path, Progress(step=7)) == 4
    # Back to the same one would be back to the same damage, unless there is no other.
    assert find_step_before(tmp_path, Progress(step=9, rewound_to=8)) == 4
    assert find_step_before(tmp_path, Progress(step=9, rewound_to=4)) == 8
    assert find_step_before(tmp_path, Progress(step=3, rewound_to=2)) == 2


class Told:
    def __init__(self):
        self.events: list[tuple[str, int, dict]] = []

    def log(self, kind, step, **values):
        self.events.append((kind, step, values))


def follow(folder, progress, loss, told, *, is_skipped=False, is_overflow=False, **training):
    wanted = {"spikes": None, "max_skipped_in_a_row": 3, **training}
    job: Any = SimpleNamespace(
        recipe=SimpleNamespace(training=SimpleNamespace(**wanted)),
        accelerator=SimpleNamespace(is_main_process=True),
    )
    saver: Any = SimpleNamespace(settle=lambda: None)
    outcome: Any = SimpleNamespace(loss=loss, is_skipped=is_skipped, is_overflow=is_overflow)
    return Course(job, told, saver, folder).follow(progress, outcome)


STEADY = tuple([2.0] * 8)


def test_without_a_rewind_a_spike_is_told_and_left_out_of_the_window(tmp_path):
    told: Any = Told()
    progress = Progress(step=9, losses=STEADY)
    found = follow(tmp_path, progress, 9.0, told, spikes=Spikes(window=8, rewind=False))
    assert (found.step, found.losses, found.num_spikes_in_a_row) == (9, STEADY, 1)
    ((kind, step, values),) = told.events
    assert (kind, step, values["loss"], values["usual"]) == ("spike", 9, 9.0, 2.0)
    assert follow(tmp_path, progress, 9.0, told, spikes=None) == progress


def test_a_spike_before_the_first_checkpoint_is_told_and_the_run_goes_on(tmp_path):
    told: Any = Told()
    found = follow(tmp_path, Progress(step=9, losses=STEADY), 9.0, told, spikes=Spikes(window=8))
    assert found.step == 9
    assert "no whole checkpoint before it" in told.events[0][2]["message"]


def test_one_spike_more_than_there_may_be_rewinds_ends_the_run(tmp_path):
    told: Any = Told()
    progress = Progress(step=9, losses=STEADY, num_rewinds=2)
    with pytest.raises(RunError, match=r"the loss jumped to 9 at step 9 .*max_rewinds") as caught:
        follow(tmp_path, progress, 9.0, told, spikes=Spikes(window=8, max_rewinds=2))
    assert caught.value.verdict.exit_code == 5


def test_so_many_skipped_steps_in_a_row_end_the_run_and_overflows_do_not(tmp_path):
    told: Any = Told()
    for number in (1, 2):
        follow(tmp_path, Progress(num_skipped_in_a_row=number), math.nan, told, is_skipped=True)
    assert [values["reason"] for _, _, values in told.events] == ["loss", "loss"]
    with pytest.raises(RunError, match="3 steps in a row") as caught:
        follow(tmp_path, Progress(num_skipped_in_a_row=3), 2.0, told, is_skipped=True)
    assert told.events[-1][2]["reason"] == "gradient"
    assert caught.value.verdict.exit_code == 5
    follow(tmp_path, Progress(num_skipped_in_a_row=3), 2.0, told, is_skipped=True, is_overflow=True)
    assert len(told.events) == 3


def test_a_stream_cannot_leave_rows_out():
    name = "canine-tiny-domains-char"
    streaming = ["data.streaming=true", "data.expected_rows=1000"]
    with pytest.raises(ValueError, match=r"training\.spikes\.rewind.*a stream cannot leave rows out"):
        read_recipe(name, [*streaming, "training.spikes={}"])
    assert read_recipe(name, [*streaming, "training.spikes={rewind: false}"]).training.spikes is not None


class Feed:
    """Gives the numbers of data steps, and notes where it was opened."""

    def __init__(self):
        self.opened: list[tuple[int, int]] = []
        self.num_closed = 0

    def steps(self, first, stop):
        self.opened.append((first, stop))

        def give():
            try:
                yield from range(first, stop)
            finally:
                self.num_closed += 1

        return give()


def test_after_a_way_back_the_rows_behind_the_spike_come_next_and_as_many_steps_as_were_planned():
    feed: Any = Feed()
    feed.plan = SimpleNamespace(num_steps=10)
    nothing: Any = None
    taken = []
    with Course(feed, nothing, nothing, nothing) as course:
        for step in range(6):
            taken.append(course.take(Progress(step=step)))
        for step in range(4, 10):  # back to 4 from a spike at 6
            taken.append(course.take(Progress(step=step, num_steps_left_out=2)))
        again = [course.take(Progress(step=step, num_steps_left_out=5)) for step in range(7, 10)]
    assert taken == [*range(6), *range(6, 12)]
    assert again == [12, 13, 14]
    assert feed.num_closed == len(feed.opened) == 3


@pytest.mark.parametrize("resumed_step", [3, 4, 6])
def test_a_way_back_stays_in_the_metrics_for_a_resume_from_behind_it_and_no_other(resumed_step, tmp_path):
    with Tracker(tmp_path, is_main=True, display=None) as tracker:
        for step in range(1, 7):
            tracker.log("train", step, loss=float(step))
        tracker.log("rewind", 4, spike_step=6)
        for step in range(5, 9):
            tracker.log("train", step, loss=step * 10.0)
    with Tracker(tmp_path, is_main=True, display=None, resumed_step=resumed_step):
        pass
    events = read_events(tmp_path / "metrics.jsonl")
    assert len(events.of("rewind")) == (resumed_step > 4)
    losses = [event["loss"] for event in events.of("train")]
    assert losses == [1.0, 2.0, 3.0, 4.0, 50.0, 60.0][:resumed_step]
