"""The verb, with runs that only write down what a run leaves."""

import argparse
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.recipe_file import read_recipe, resolved_yaml
from launch.request import add_arguments, parse
from launch.sweep import add_sweep
from launch.sweeping import runner
from launch.sweeping.jobs import PASSED_ON, list_options
from launch.sweeping.state import NAME, read_state
from launch.verdict import RunError, Verdict, clear_verdict, write_verdict

RECIPE = "canine-tiny-domains-char"
RATES = "training.learning_rate=[1e-3,2e-3,4e-3]"


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("".join(f"name{n}.com\n" for n in range(500)))
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return SimpleNamespace(
        folder=tmp_path / "sweep", source=f"data.sources=[{{kind: text, path: {tmp_path / 'names.txt'}}}]"
    )


@pytest.fixture
def runs(monkeypatch):
    """What was started; `outcomes` has the exit code of runs by a part of their name, one each time."""
    found = SimpleNamespace(commands=[], outcomes={}, environments=[], logs=[])

    class Fake:
        def __init__(self, command, environment, log):
            found.commands.append(command)
            found.environments.append(environment)
            found.logs.append(log)
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            given = parse(parser, command)
            recipe = read_recipe(given.recipe, given.overrides)
            name = given.output
            key = next((key for key in found.outcomes if key in name), None)
            self.code = found.outcomes[key].pop(0) if key and found.outcomes[key] else 0
            folder = Path(name)
            folder.mkdir(parents=True, exist_ok=True)
            clear_verdict(folder)
            write_verdict(folder, Verdict(self.code, f"ended with {self.code}"))
            (folder / "recipe.resolved.yaml").write_text(resolved_yaml(recipe))
            loss = abs(recipe.training.learning_rate - 2.1e-3) * 1000 + 1 + 0.01 * (recipe.training.seed % 7)
            event = {"kind": "eval", "step": 5, "loss": loss, "num_targets": 9}
            (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
            if self.code == 143:
                os.kill(os.getpid(), signal.SIGTERM)

        def poll(self):
            return self.code

        def stop(self):
            pass

    monkeypatch.setattr(runner, "RunWorker", Fake)
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0)
    return found


def sweep(place, *words):
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()

    def add(name, function, summary, example, **more):
        verb = verbs.add_parser(name)
        verb.set_defaults(verb=function)
        return verb

    add_sweep(add)
    fixed = ["--profile", "cpu", place.source, "evaluation.every=50", "checkpoint.every=50"]
    output = [] if "--output" in words else ["--output", str(place.folder)]
    arguments = parse(parser, ["sweep", RECIPE, *words, *fixed, *output])
    return arguments.verb(arguments)


def list_started(runs):
    return [command[command.index("--output") + 1].rpartition("/")[2] for command in runs.commands]


def list_states(place):
    return {entry.name: entry.state for entry in read_state(place.folder).entries}


NAMES = ["learning_rate=0.001", "learning_rate=0.002", "learning_rate=0.004"]


def test_runs_come_one_after_the_other_are_ranked_and_reported(place, runs, capsys):
    assert sweep(place, RATES) == 0
    assert list_started(runs) == NAMES
    assert runs.logs == [None] * 3
    told = capsys.readouterr().out
    lines = [line.split()[:3] for line in told.splitlines() if line[:1] in "123" and "done" in line]
    assert lines == [["1", NAMES[1], "1.1000"], ["2", NAMES[0], "2.1000"], ["3", NAMES[2], "2.9000"]]
    assert "3 of 3 runs are done" in told
    assert "3 runs, 2,400 steps" in told
    page = (place.folder / "comparison.html").read_text()
    assert all(name in page for name in NAMES)
    state = json.loads((place.folder / NAME).read_text())
    assert [(run["values"], run["seed"], run["state"]) for run in state["runs"]] == [
        ({"training.learning_rate": rate}, 42, "done") for rate in (0.001, 0.002, 0.004)
    ]


def test_started_again_it_runs_nothing_and_ranks_again(place, runs, capsys):
    sweep(place, RATES)
    runs.commands.clear()
    capsys.readouterr()
    assert sweep(place, RATES) == 0
    assert runs.commands == []
    told = capsys.readouterr().out
    assert NAMES[1] in told
    assert told.count("sweep  0 of 3 runs are still to be run; in ") == 1
    assert told.count("not run again") == 3, "their time is not counted again"


def test_a_stopped_run_goes_on_and_the_rest_follows(place, runs, capsys):
    runs.outcomes["0.002"] = [143]
    assert sweep(place, RATES) == 143
    assert list_states(place) == dict(zip(NAMES, ["done", "stopped", "waiting"], strict=True))
    assert "the same command goes on" in capsys.readouterr().out
    runs.commands.clear()
    assert sweep(place, RATES) == 0
    assert list_started(runs) == NAMES[1:]
    told = capsys.readouterr().out
    assert "sweep  2 of 3 runs are still to be run, 1,600 steps, " in told
    assert told.count("not run again") == 1


def test_a_failed_run_is_named_left_alone_and_run_again_on_demand(place, runs, capsys):
    runs.outcomes["0.001"] = [5, 0]
    assert sweep(place, RATES) == 5
    assert list_started(runs) == NAMES, "one that fails does not keep the others from running"
    assert f"failed: {NAMES[0]}, exit 5 (ended with 5)" in capsys.readouterr().out
    runs.commands.clear()
    assert sweep(place, RATES) == 5
    assert runs.commands == []
    assert sweep(place, RATES, "--retry") == 0
    assert list_started(runs) == NAMES[:1]


def test_a_run_that_is_held_by_another_is_still_to_be_run(place, runs):
    runs.outcomes["0.004"] = [7]
    assert sweep(place, RATES) == 7
    assert list_states(place)[NAMES[2]] == "waiting"
    assert sweep(place, RATES) == 0


def test_a_sweep_that_was_killed_takes_up_what_was_running(place, runs):
    sweep(place, RATES)
    state = read_state(place.folder)
    state.entries[1].state = "running"
    state.save()
    runs.commands.clear()
    assert sweep(place, RATES) == 0
    assert list_started(runs) == [NAMES[1]]


def test_values_may_be_added_and_a_run_whose_folder_is_gone_is_run_again(place, runs):
    sweep(place, RATES)
    for file in (place.folder / NAMES[0]).iterdir():
        file.unlink()
    runs.commands.clear()
    assert sweep(place, "training.learning_rate=[1e-3,8e-3]") == 0
    assert list_started(runs) == [NAMES[0], "learning_rate=0.008"]
    assert list(list_states(place)) == [NAMES[0], "learning_rate=0.008", *NAMES[1:]]


def test_another_recipe_under_runs_that_are_done_is_refused_and_a_longer_one_goes_on(place, runs):
    sweep(place, RATES)
    runs.commands.clear()
    with pytest.raises(RunError, match=r"weight_decay: was 0.01, is 0.2") as error:
        sweep(place, RATES, "training.weight_decay=0.2")
    assert error.value.verdict.exit_code == 2
    assert str(error.value).count("weight_decay") == 3
    assert runs.commands == []
    assert sweep(place, RATES, "logging.every=7") == 0
    assert runs.commands == []
    assert sweep(place, RATES, "training.max_steps=900") == 0
    assert list_started(runs) == NAMES


def test_what_cannot_work_is_said_of_all_runs_before_one_is_started(place, runs):
    with pytest.raises(RunError) as error:
        sweep(place, "training.learning_rate=[1e-3,7]", "training.max_steps=[800,20]", "training.sed=3")
    told = str(error.value)
    assert "unknown key; did you mean seed?" in told
    assert (
        "learning_rate=7,max_steps=800, learning_rate=7,max_steps=20: training.learning_rate: wanted" in told
    )
    with pytest.raises(RunError) as error:
        sweep(place, "training.learning_rate=[1e-3,7]", "training.max_steps=[800,20]")
    assert "learning_rate=0.001,max_steps=20: evaluation.every 50: no evaluation" in str(error.value)
    assert "learning_rate=7" in str(error.value)
    assert error.value.verdict.exit_code == 2
    assert runs.commands == []
    assert not place.folder.exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--nodes", "2"], "one machine"),
        (["--resume", "never"], "goes on where it was"),
        (["--trials", "3"], "go together"),
        (["--search", "optuna"], "go together"),
    ],
)
def test_options_that_a_sweep_cannot_have_are_refused(place, runs, words, wanted):
    with pytest.raises(RunError, match=wanted):
        sweep(place, RATES, *words)


def test_a_dry_run_prints_the_commands_and_leaves_nothing(place, runs, capsys):
    assert (
        sweep(place, RATES, "training.betas=[[0.9,0.98],[0.9,0.999]]", "--dry-run", "--micro-batch", "8") == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(
        f"maskwright run {RECIPE} --profile cpu --micro-batch 8 --output {place.folder}/"
    )
    assert lines[1].endswith("training.learning_rate=0.001 'training.betas=[0.9, 0.999]'")
    assert runs.commands == []
    assert not place.folder.exists()


@pytest.mark.parametrize(("gpu", "is_shared"), [(None, True), (object(), False)])
def test_runs_at_once_share_the_cores_but_not_the_gpus(gpu, is_shared, place, monkeypatch):
    from launch.sweep import _Sweep
    from launch.sweeping import jobs

    asked = []

    def describe(jobs, num_slots, *, open_names, shares_cores):
        asked.append((num_slots, open_names, shares_cores))
        return [], ""

    monkeypatch.setattr(jobs, "describe_cost", describe)
    job = SimpleNamespace(request=SimpleNamespace(profile=SimpleNamespace(gpu=gpu)))
    arguments = argparse.Namespace(parallel=2, search=None)
    _Sweep(arguments, None, None, [job], place.folder)._print_cost(["a"])
    assert asked == [(2, ["a"], is_shared)]


def test_several_at_once_have_logs_and_cores_of_their_own(place, runs):
    assert sweep(place, RATES, "--parallel", "2") == 0
    assert [log.parent.name for log in runs.logs] == NAMES
    assert all(int(one["OMP_NUM_THREADS"]) >= 1 for one in runs.environments)


def test_a_second_sweep_on_the_folder_is_refused_while_the_first_runs(place, runs, monkeypatch):
    from launch.lock import hold

    place.folder.mkdir()
    with hold(place.folder, "another"), pytest.raises(RunError) as error:
        sweep(place, RATES)
    assert error.value.verdict.exit_code == 7
    assert runs.commands == []


def test_a_broken_state_is_named(place, runs):
    place.folder.mkdir()
    for text in ("{", "[]", '{"runs": [{"nome": "x"}]}'):
        (place.folder / NAME).write_text(text)
        with pytest.raises(RunError, match=r"sweep.json cannot be read"):
            sweep(place, RATES)


def test_seeds_are_averaged(place, runs, capsys):
    assert sweep(place, "training.learning_rate=[1e-3,2e-3]", "training.seed=[1,2,3]") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["learning_rate=0.002", "1.1200", "0.01", "3"] in lines


def test_every_option_of_run_is_passed_on_or_a_sweeps_own():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    own = {"help", "recipe", "overrides", "output", "resume"}
    assert {action.dest for action in parser._actions} == {*PASSED_ON, *own}
    words = ["--no-lock", "--gpu-memory-gb", "11.5", "--micro-batch", "4", "--checkpointing", "on"]
    found = list_options(parse(parser, [RECIPE, *words]))
    assert found == ["--micro-batch", "4", "--checkpointing", "on", "--gpu-memory-gb", "11.5", "--no-lock"]


SEARCH = ["training.learning_rate=5e-4..8e-3:log", "--search", "optuna", "--trials"]


def test_a_search_without_optuna_says_how_to_get_it(place, runs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(RunError, match="pip install") as error:
        sweep(place, *SEARCH, "3")
    assert error.value.verdict.exit_code == 3
    assert runs.commands == []


def test_a_search_draws_goes_on_and_finds_better_values(place, runs, capsys):
    pytest.importorskip("optuna")
    runs.outcomes["003-"] = [143]
    runs.outcomes["001-"] = [2]
    assert sweep(place, *SEARCH, "6") == 143
    assert [list_states(place)[name] for name in list_started(runs)] == ["done", "failed", "done", "stopped"]
    stopped = list_started(runs)[-1]
    runs.commands.clear()
    assert sweep(place, *SEARCH, "6") == 2
    assert list_started(runs)[0] == stopped
    assert len(list_states(place)) == 6
    runs.commands.clear()
    # A failed one is a new trial with the old values and the old folder.
    assert sweep(place, *SEARCH, "20", "--retry") == 0
    assert list_started(runs)[0].startswith("001-")
    entries = read_state(place.folder).entries
    assert len(entries) == 20
    assert len({entry.trial for entry in entries}) == 20
    assert capsys.readouterr().out.splitlines()[-1] == "sweep  20 of 20 runs are done"
    with pytest.raises(RunError, match="another --output"):
        sweep(place, "training.learning_rate=1e-4..8e-3:log", *SEARCH[1:], "6")
    with pytest.raises(RunError, match="is a search"):
        sweep(place, RATES)
