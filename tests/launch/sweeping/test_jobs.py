"""What a sweep costs, before it is begun."""

from types import SimpleNamespace

import pytest

from launch.sweeping.jobs import describe_cost, find_end

HOUR = 3600.0


def make_jobs(*hours):
    return [
        SimpleNamespace(
            name=f"run{number}",
            plan=SimpleNamespace(
                num_steps=100,
                global_batch=8,
                num_tokens=5000,
                num_evaluations=2,
                seconds=None if one is None else one * HOUR,
                time={"origin": "measured"},
            ),
        )
        for number, one in enumerate(hours)
    ]


def tell(jobs, num_slots, *, open_names=None, shares_cores=False):
    names = [job.name for job in jobs] if open_names is None else open_names
    return describe_cost(jobs, num_slots, open_names=names, shares_cores=shares_cores)


@pytest.mark.parametrize(
    ("hours", "num_slots", "end"),
    [
        ([1, 1, 1], 1, 3),
        ([1, 1, 1], 2, 2),
        ([1, 1, 1], 5, 1),
        ([3, 1, 1, 1], 2, 3),
        ([1, 1, 1, 3], 2, 4),
        ([2, 3, 1], 2, 3),
        ([], 2, 0),
    ],
)
def test_each_run_begins_in_the_slot_that_is_free_first(hours, num_slots, end):
    assert find_end(hours, num_slots) == end


def test_slots_of_one_machines_cores_share_them_and_save_no_time():
    jobs = make_jobs(1, 1, 1)
    assert tell(jobs, 2)[1] == "3 runs, 300 steps, 2.0 h predicted (measured), 2 at once"
    shared = tell(jobs, 2, shares_cores=True)[1]
    assert shared == "3 runs, 300 steps, 3.0 h predicted (measured), 2 at once on parts of the same cores"
    assert tell(jobs, 1, shares_cores=True)[1] == "3 runs, 300 steps, 3.0 h predicted (measured)"


def test_runs_that_are_not_run_again_do_not_count():
    jobs = make_jobs(1, 2, None)
    rows, total = tell(jobs, 1, open_names=["run1"])
    assert total == "1 of 3 runs are still to be run, 100 steps, 2.0 h predicted (measured)"
    assert [row[-1] for row in rows] == ["not run again", "2.0 h", "not run again"]
    assert tell(jobs, 1, open_names=[])[1] == "0 of 3 runs are still to be run"
    assert "not predicted" in tell(jobs, 1)[1]
