import json
import statistics

import pytest

from launch.record import read_record
from launch.sweeping.ranking import (
    average_over_seeds,
    find_baseline,
    is_fair,
    list_columns,
    list_rows,
    measure,
    rank,
)
from launch.sweeping.state import Entry, Goal

LOWER, HIGHER = Goal("loss", "lower"), Goal("accuracy", "higher")


def write_run(folder, losses, num_targets=10):
    folder.mkdir(parents=True)
    lines = [
        {"kind": "eval", "step": step, "loss": loss, "accuracy": 1 / loss, "num_targets": num_targets}
        for step, loss in losses.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_sweep(folder, losses_of_run):
    entries = []
    for name, losses in losses_of_run.items():
        write_run(folder / name, losses)
        entries.append(Entry(name, {"training.seed": len(entries)}, state="done", exit_code=0))
    return entries


RUNS = {
    "a": {0: 4.0, 10: 3.0, 20: 3.5},
    "b": {0: 4.0, 10: 2.0, 20: 2.0},
    "c": {0: float("nan")},
    "d": {0: 2.5},
}


@pytest.mark.parametrize("goal", [LOWER, HIGHER])
def test_runs_are_ranked_by_their_best_evaluation_and_those_without_one_are_last(tmp_path, goal):
    entries = make_sweep(tmp_path, RUNS)
    entries.insert(0, Entry("not begun", {}))
    standings = rank(entries, tmp_path, goal)
    assert [one.entry.name for one in standings] == ["b", "d", "a", "c"]
    assert [one.step for one in standings] == [10, 0, 10, None]
    wanted = [2.0, 2.5, 3.0] if goal is LOWER else [1 / 2, 1 / 2.5, 1 / 3]
    assert [one.value for one in standings[:3]] == wanted
    assert measure(read_record(tmp_path / "c"), goal) is None


def test_differences_are_to_the_best_and_to_the_recipes_own_values(tmp_path):
    standings = rank(make_sweep(tmp_path, RUNS), tmp_path, LOWER)
    baseline = find_baseline(standings, {"training.seed": 0})
    assert baseline.entry.name == "a"
    rows = list_rows(standings, baseline)
    assert rows[0] == ["1", "b", "2.0000", "10", "0", "-1.00 (-33.3%)", "done"]
    assert rows[2] == ["3", "a", "3.0000", "10", "+1.00 (+50.0%)", "baseline", "done"]
    assert rows[3] == ["", "c", "", "", "", "", "done"]
    assert {len(row) for row in rows} == {len(list_columns("loss", baseline))}
    # Of the best itself one column says it all, and of a run that does not exist none does.
    assert find_baseline(standings, {"training.seed": 1}) is None
    assert find_baseline(standings, {"training.seed": 7}) is None
    assert find_baseline([], {}) is None
    assert len(list_rows(standings, None)[0]) == len(list_columns("loss", None))


def test_a_failed_run_says_so(tmp_path):
    entries = make_sweep(tmp_path, {"a": {0: 4.0}})
    entries[0].end(5, "diverged")
    assert list_rows(rank(entries, tmp_path, LOWER), None)[0][-1] == "failed (exit 5)"


def test_means_over_seeds_are_those_of_the_runs(tmp_path):
    found = {"x": [3.0, 3.5, 4.0], "y": [2.0, 3.0], "z": [1.0]}
    entries = []
    for rate, losses in found.items():
        for seed, loss in enumerate(losses):
            name = f"{rate}{seed}"
            write_run(tmp_path / name, {5: loss})
            entries.append(Entry(name, {"training.schedule": rate, "training.seed": seed}, state="done"))
    rows = average_over_seeds(rank(entries, tmp_path, LOWER), LOWER)
    assert [row[0] for row in rows] == ["schedule=z", "schedule=y", "schedule=x"]
    for row, losses in zip(rows, [found["z"], found["y"], found["x"]], strict=True):
        assert float(row[1]) == pytest.approx(statistics.fmean(losses), abs=1e-4)
        assert row[3] == str(len(losses))
        assert (
            row[2] == ""
            if len(losses) == 1
            else float(row[2]) == pytest.approx(statistics.stdev(losses), rel=0.01)
        )
    best_first = [row[0] for row in average_over_seeds(rank(entries, tmp_path, HIGHER), HIGHER)]
    assert best_first == ["schedule=z", "schedule=y", "schedule=x"]
    alone = [entry for entry in entries if entry.values["training.seed"] == 0]
    assert average_over_seeds(rank(alone, tmp_path, LOWER), LOWER) == []


def test_runs_on_other_targets_are_no_fair_comparison(tmp_path):
    entries = make_sweep(tmp_path, RUNS)
    (tmp_path / "crashed").mkdir()
    entries.append(Entry("crashed", {}, state="failed", exit_code=1))
    assert is_fair(rank(entries, tmp_path, LOWER)), "one without an evaluation is not asked"
    write_run(tmp_path / "e", {0: 1.0}, num_targets=11)
    assert not is_fair(rank([*entries, Entry("e", {})], tmp_path, LOWER))
