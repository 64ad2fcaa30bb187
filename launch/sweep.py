"""The verb `sweep`: one recipe with several values, planned first, then run, and ranked at the end."""

import argparse
import os
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.request import add_arguments, positive
from launch.verdict import DEFECT, DONE, MACHINE, REQUEST, STOPPED, RunError, make_folder

if TYPE_CHECKING:
    from launch.sweeping.axes import Space
    from launch.sweeping.jobs import Job, Planner
    from launch.sweeping.runner import RunWorker
    from launch.sweeping.state import Entry, State
    from launch.sweeping.supply import Listed

_HELP = """what is varied:
  key=[a,b,c]           these values; of several such keys every combination
  key=[[a,b],[c,d]]     the same for a key whose own value is a list: training.betas=[[0.9,0.98],[0.9,0.999]]
  key=[a,b]             of such a key is one value, for all runs
  key=low..high         a range, with --search optuna; whole numbers where both bounds are
  key=low..high:log     the same on a log scale

Every run has a folder of its own below --output (default runs/<recipe>-by-<keys>), with sweep.json beside.
Started again, the sweep goes on: runs that are done are left alone, stopped ones go on from their checkpoint,
failed ones are named and left alone.

exit codes:
  0 all runs are done   143 stopped by a signal; the same command goes on
  else that of the first run that failed, or of what is wrong (2: the request, 3: the machine, 7: held)"""
_MOST_IN_REPORT = 30


def add_sweep(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = add(
        "sweep", _sweep, "train a recipe with several values, and rank the runs",
        "sweep deberta-tiny-encyclopedia-wwm 'training.learning_rate=[2e-3,4e-3]' 'training.seed=[1,2]'",
        after=_HELP,
    )  # fmt: skip
    add_arguments(verb)
    group = verb.add_argument_group("sweep")
    group.add_argument(
        "--parallel", type=positive, default=1, metavar="N", help="runs at once: on GPUs of their own, or on "
        "a part of the cores",
    )  # fmt: skip
    group.add_argument("--retry", action="store_true", help="run those again that failed")
    group.add_argument("--search", choices=["optuna"], help="draw values from ranges and lists")
    group.add_argument("--trials", type=positive, metavar="N", help="runs of a search, in all")
    group.add_argument("--dry-run", action="store_true", help="print the commands that would be executed")


def _sweep(arguments: argparse.Namespace) -> int:
    from launch.sweeping.axes import read_space
    from launch.sweeping.jobs import Planner
    from launch.sweeping.search import check_installed, list_corners

    is_search = arguments.search is not None
    if is_search != (arguments.trials is not None):
        raise RunError(REQUEST, "--search and --trials go together: --search optuna --trials 20")
    space = read_space(arguments.overrides, is_search=is_search)
    if is_search:
        check_installed()
    planner = Planner(arguments, space)
    combinations = list(list_corners(space) if is_search else space.combine())
    folder = Path(arguments.output) if arguments.output else planner.choose_folder(combinations)
    jobs = planner.plan_all(combinations, folder)
    if arguments.dry_run:
        for job in jobs:
            command = ["maskwright", "run", *planner.write_command(job.values, job.request.output)]
            print(shlex.join(command))  # noqa: T201
        return DONE
    return _Sweep(arguments, space, planner, jobs, folder).run()


class _Sweep:
    """A sweep that was planned."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        space: "Space",
        planner: "Planner",
        jobs: "Sequence[Job]",
        folder: Path,
    ):
        from launch.terminal import Console

        self._arguments, self._space, self._planner = arguments, space, planner
        self._jobs, self._folder = jobs, folder
        self._console = Console(highlight=False)

    def run(self) -> int:
        """Run what is not done yet, then rank all; the exit code."""
        from launch.lock import hold
        from launch.process import Process
        from launch.run import signals_noted
        from launch.sweeping.runner import run_all

        slots = self._share_devices()
        make_folder(self._folder)
        with hold(self._folder, str(Process.of(os.getpid()))):
            supply = self._open_supply()
            with signals_noted() as came:
                run_all(
                    supply,
                    lambda entry, slot: self._start(entry, slots[slot], is_alone=len(slots) == 1),
                    num_slots=len(slots),
                    came=came,
                )
            self._print_ranking(supply.state)
            return self._conclude(supply.state, is_stopped=bool(came))

    def _print_cost(self, open_names: Collection[str]) -> None:
        from launch.sweeping.jobs import COST_COLUMNS, describe_cost

        rows, total = describe_cost(
            self._jobs,
            self._arguments.parallel,
            open_names=open_names,
            shares_cores=self._jobs[0].request.profile.gpu is None,
        )
        if self._arguments.search:
            total = f"{self._arguments.trials} runs are drawn between these; these themselves are not run"
        self._print_rows(COST_COLUMNS, rows)
        self._tell(f"{total}; in {self._folder}")

    def _print_rows(self, columns: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> None:
        from rich.markup import escape
        from rich.table import Table

        from launch.terminal import Console

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            # A name that is cut short names nothing.
            table.add_column(column, overflow="fold" if column == "run" else "ellipsis")
        for row in rows:
            table.add_row(*map(escape, row))
        # Into a file it may be as wide as it is.
        console = self._console if self._console.is_terminal else Console(highlight=False, width=200)
        console.print(table)

    def _tell(self, line: str) -> None:
        self._console.print(f"sweep  {line}", markup=False, soft_wrap=True)

    def _share_devices(self) -> list[dict[str, str]]:
        from launch.sweeping.runner import share_devices

        visible, num_slots = None, self._arguments.parallel
        if self._jobs[0].request.profile.gpu is not None and num_slots > 1:
            from launch.doctor.gpu import find_gpus

            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            visible = [str(n) for n in range(len(find_gpus()))] if named is None else named.split(",")
        num_devices = max(job.plan.devices for job in self._jobs)
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return share_devices(num_slots, num_devices, visible, num_cores)

    def _open_supply(self) -> "Listed":
        from launch.sweeping.state import Goal, State, read_state
        from launch.sweeping.supply import Listed, is_open, merge_jobs

        fixed, best = list(self._space.fixed), self._jobs[0].recipe.best
        goal = Goal(best.metric, best.direction)
        state = read_state(self._folder)
        if state is not None and (state.search is None) != (self._arguments.search is None):
            kind = "lists its runs" if state.search is None else "is a search"
            raise RunError(REQUEST, f"the sweep in {self._folder} {kind}; give another --output")
        state = state or State(self._folder, self._arguments.recipe, fixed, goal)
        state.recipe, state.fixed, state.goal = self._arguments.recipe, fixed, goal
        is_retry = self._arguments.retry
        if self._arguments.search:
            self._print_cost([job.name for job in self._jobs])
            return self._open_search(state, [e for e in state.entries if is_open(e, is_retry=is_retry)])
        waiting = merge_jobs(state, self._jobs, is_retry=is_retry)
        self._print_cost([entry.name for entry in waiting])
        return Listed(state, waiting, self._tell)

    def _open_search(self, state: "State", waiting: "list[Entry]") -> "Listed":
        from launch.sweeping.search import Search, check_space, describe_space
        from launch.sweeping.supply import Drawn

        if state.search is not None:
            check_space(state.search, self._space, state.fixed)
        state.search = describe_space(self._space, state.fixed)
        search = Search(
            self._space,
            self._folder,
            higher_is_better=state.goal.direction == "higher",
            seed=self._jobs[0].recipe.training.seed,
            num_slots=self._arguments.parallel,
        )
        num_trials = self._arguments.trials
        return Drawn(state, waiting, self._tell, search=search, planner=self._planner, num_trials=num_trials)

    def _start(self, entry: "Entry", environment: dict[str, str], *, is_alone: bool) -> "RunWorker":
        from launch.sweeping.runner import LOG, RunWorker

        folder = self._folder / entry.name
        command = self._planner.write_command(entry.values, folder)
        return RunWorker(command, environment, None if is_alone else folder / LOG)

    def _print_ranking(self, state: "State") -> None:
        from launch.sweeping import ranking

        standings = ranking.rank(state.entries, self._folder, state.goal)
        if not standings:
            return
        baseline = ranking.find_baseline(standings, self._planner.read_own_values())
        self._print_rows(
            ranking.list_columns(state.goal.metric, baseline), ranking.list_rows(standings, baseline)
        )
        means = ranking.average_over_seeds(standings, state.goal)
        if means:
            self._print_rows(["over seeds", f"mean best {state.goal.metric}", "spread", "seeds"], means)
        if not ranking.is_fair(standings):
            self._tell("the runs were judged on different targets: their figures cannot be compared")
        self._write_report([self._folder / one.entry.name for one in standings if one.value is not None])

    def _write_report(self, folders: list[Path]) -> None:
        from launch.report import write_report

        if not folders:
            return
        try:
            path = write_report(folders[:_MOST_IN_REPORT], self._folder / "comparison.html")
        except OSError as error:
            raise RunError(MACHINE, f"the comparison cannot be written: {error}") from error
        left_out = len(folders) - _MOST_IN_REPORT
        self._tell(f"comparison: {path}" + (f", without the last {left_out}" if left_out > 0 else ""))

    def _conclude(self, state: "State", *, is_stopped: bool) -> int:
        own = {job.name for job in self._jobs}
        entries = [entry for entry in state.entries if state.search is not None or entry.name in own]
        failed = [entry for entry in entries if entry.state == "failed"]
        num_done = sum(entry.state == "done" for entry in entries)
        for entry in failed:
            self._tell(f"failed: {entry.name}, exit {entry.exit_code} ({entry.message})")
        num_all = self._arguments.trials if state.search is not None else len(entries)
        self._tell(
            f"{num_done} of {num_all} runs are done"
            + (f", {len(failed)} failed: --retry runs them again" if failed else "")
            + ("; stopped, the same command goes on" if is_stopped else "")
        )
        if is_stopped:
            return STOPPED
        left = [entry for entry in entries if entry.state != "done"]
        return DONE if not left else (failed or left)[0].exit_code or DEFECT
