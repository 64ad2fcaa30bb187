"""A sweep of real runs, by the command."""

import json
import sys

import pytest

from tests.commands import QUICK, start

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
RECIPE = "canine-tiny-domains-char"


def test_two_short_runs_differ_in_what_is_varied_alone_and_are_not_run_twice(tmp_path):
    words = ["training.learning_rate=[1e-3,4e-3]", "training.max_steps=6", "evaluation.every=3"]
    options = ["--profile", "cpu", "--output", str(tmp_path / "sweep"), "checkpoint.every=3"]
    command = [sys.executable, "-m", "launch", "sweep", RECIPE, *words, *options, *QUICK[RECIPE]]
    first = start(command, tmp_path)
    assert first.exit_code == 0, first.stdout + first.stderr
    folders = [tmp_path / "sweep" / f"learning_rate={rate}" for rate in ("0.001", "0.004")]
    events = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    starts, ends = ([e for e in one if e["kind"] == "eval" and e["step"] == 0] for one in events), []
    assert len({one[0]["loss"] for one in starts}) == 1, "the same weights before training"
    for one in events:
        ends.append(min(e["loss"] for e in one if e["kind"] == "eval"))
        assert sum(e["kind"] == "train" for e in one) == 6
    assert ends[0] != ends[1]
    best = folders[ends.index(min(ends))].name
    assert [line.split()[1] for line in first.stdout.splitlines() if line.startswith("1  ")] == [best]
    assert all(folder.name in (tmp_path / "sweep" / "comparison.html").read_text() for folder in folders)
    again = start(command, tmp_path)
    assert again.exit_code == 0
    assert "0 of 2 runs are still to be run" in again.stdout
    assert "step 0/6" not in again.stdout
