"""`maskwright run` before it launches: what it prepares, and what it refuses first."""

import pytest

from launch import cli, cli_run, console
from launch import run as execution
from launch.steps import SIZE_WANTED
from launch.verdict import DONE, REQUEST, Verdict

RECIPE = "canine-tiny-domains-char"
UNKNOWN = [
    f"the number of steps is unknown: training.epochs {SIZE_WANTED}.",
    f"evaluation.every: epoch {SIZE_WANTED}",
]


@pytest.fixture
def prepared(monkeypatch):
    """What was prepared and executed, in order; nothing of it is done."""
    done = []
    monkeypatch.setattr(console, "prepare_with_progress", lambda recipe: done.append("prepared"))
    monkeypatch.setattr(execution, "execute", lambda *_: done.append("executed") or Verdict(DONE, "done"))
    return done


def plan_with(monkeypatch, errors):
    """The first plan has these errors and an unknown corpus; once data are prepared there are none."""
    origins = iter([("unknown", errors), ("prepared", [])])

    def make(request, memory=None):
        origin, found = next(origins)
        plan = request.plan("none")
        return plan.model_copy(update={"corpus_origin": origin, "errors": found})

    monkeypatch.setattr(cli_run, "_make_plan", make)


def test_data_whose_size_alone_is_wanting_are_prepared_first(monkeypatch, prepared, tmp_path):
    plan_with(monkeypatch, UNKNOWN)
    assert cli.main(["run", RECIPE, "--profile", "cpu", "--output", str(tmp_path / "run")]) == DONE
    assert prepared == ["prepared", "executed"]


def test_what_cannot_work_anyway_is_refused_before_data_are_prepared(monkeypatch, prepared, tmp_path):
    plan_with(monkeypatch, [*UNKNOWN, "another"])
    assert cli.main(["run", RECIPE, "--profile", "cpu", "--output", str(tmp_path / "run")]) == REQUEST
    assert prepared == []
