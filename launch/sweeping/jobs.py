"""Jobs: each combination of a sweep as a request with its plan, before anything runs."""

import argparse
import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.costing.timing import describe_hours
from launch.plan import Plan
from launch.recipe import Recipe
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe
from launch.request import Request, add_arguments, parse
from launch.sweeping.axes import Space, name_values, shorten_keys, write_override
from launch.verdict import REQUEST, RunError

PASSED_ON = (
    "profile", "devices", "nodes", "micro_batch", "checkpointing", "attention", "prefer", "sharding",
    "loss_chunk", "rendezvous", "gpu_memory_gb", "compute_capability", "accept_changes", "no_lock",
)  # fmt: skip
"""Options of `run` that every run of a sweep gets as they are."""
_SHOWN_NAMES, _SHOWN_ROWS = 3, 30


@dataclass(frozen=True)
class Job:
    """A run as it would be.

    Attributes:
        name: of its folder.
        values: what it has of its own, by key.
        request: what `maskwright run` is asked for.
        plan: without a memory prediction.
    """

    name: str
    values: dict[str, Any]
    request: Request
    plan: Plan

    @property
    def recipe(self) -> Recipe:
        """Its recipe."""
        return self.request.recipe


def list_options(arguments: argparse.Namespace) -> list[str]:
    """The options of `run` that were given, as words of a command line."""
    empty = argparse.ArgumentParser()
    add_arguments(empty)
    words: list[str] = []
    for name in PASSED_ON:
        value = getattr(arguments, name)
        if value == empty.get_default(name):
            continue
        option = f"--{name.replace('_', '-')}"
        words += (
            [option] if value is True else [option, f"{value:g}" if isinstance(value, float) else str(value)]
        )
    return words


class Planner:
    """Makes requests and commands of combinations."""

    def __init__(self, arguments: argparse.Namespace, space: Space):
        """Keep what all runs share.

        Raises:
            RunError: an option is not for sweeps.
        """
        if arguments.nodes != 1:
            raise RunError(REQUEST, f"--nodes {arguments.nodes}: a sweep runs on one machine; leave it out")
        if arguments.resume != "auto":
            raise RunError(
                REQUEST,
                f"--resume {arguments.resume}: a sweep goes on where it was; leave it out, or give another "
                "--output",
            )
        self._reference, self._space = arguments.recipe, space
        self._options = list_options(arguments)
        self._first: Request | None = None

    def write_command(self, values: Mapping[str, Any], folder: Path) -> list[str]:
        """The words after `maskwright run`."""
        own = [write_override(key, value) for key, value in values.items()]
        return [self._reference, *self._options, "--output", str(folder), *self._space.fixed, *own]

    def read_recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a combination.

        Raises:
            RecipeError: it cannot be used.
        """
        own = (write_override(key, value) for key, value in values.items())
        return read_recipe(self._reference, [*self._space.fixed, *own])

    def request(self, values: Mapping[str, Any], folder: Path) -> Request:
        """What `maskwright run` is asked for; the machine is looked at once.

        Raises:
            RecipeError, ProfileError, RunError: it cannot be used.
        """
        if self._first is None:
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            self._first = Request.of(parse(parser, self.write_command(values, folder)))
        own = tuple(write_override(key, value) for key, value in values.items())
        return replace(
            self._first,
            recipe=self.read_recipe(values),
            overrides=(*self._space.fixed, *own),
            output=folder,
        )

    def choose_folder(self, combinations: Iterable[Mapping[str, Any]]) -> Path:
        """The default folder: runs/<recipe>-by-<keys>, by the first combination that is a recipe."""
        keys = "-".join(shorten_keys(self._space.keys).values())
        name = Path(self._reference).stem
        for values in combinations:
            try:
                name = self.read_recipe(values).name
            except RecipeError:
                continue
            break
        return Path("runs") / f"{name}-by-{keys}"

    def read_own_values(self) -> dict[str, Any]:
        """What the recipe itself has at the varied keys; empty where it is none without them.

        A run with these values is the one that others are held against.
        """
        try:
            tree: Any = self.read_recipe({}).model_dump(mode="json")
        except RecipeError:
            return {}
        found = {}
        for key in self._space.keys:
            place = tree
            for part in key.split("."):
                place = place.get(part) if isinstance(place, dict) else None
            found[key] = place
        return found

    def plan_all(self, combinations: Iterable[Mapping[str, Any]], folder: Path) -> list[Job]:
        """Every combination with its plan.

        Raises:
            RunError: with every reason why some cannot work, and which ones these are.
        """
        jobs: list[Job] = []
        reasons: dict[str, list[str]] = {}
        for values in combinations:
            name = name_values(values)
            try:
                request = self.request(values, folder / name)
                plan = request.plan()
            except RecipeError as error:
                found = [str(problem) for problem in error.problems]
            except RunError as error:
                found = [str(error)]
            else:
                found = list(plan.errors)
                jobs.append(Job(name, dict(values), request, plan))
            for reason in found:
                reasons.setdefault(reason, []).append(name)
        _refuse(reasons, len(jobs))
        return jobs


def _refuse(reasons: Mapping[str, Sequence[str]], num_jobs: int) -> None:
    if not reasons:
        return
    count = "one reason" if len(reasons) == 1 else f"{len(reasons)} reasons"
    lines = [f"the sweep cannot work, for {count}; nothing was started"]
    for reason, names in reasons.items():
        if len(names) >= num_jobs and len(names) > 1:
            where = f"all {len(names)} runs" if len(names) > _SHOWN_NAMES else ", ".join(names)
        else:
            where = ", ".join(names[:_SHOWN_NAMES])
            where += f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        lines.append(f"{where}: {reason}")
    raise RunError(REQUEST, "\n  ".join(lines))


def describe_cost(
    jobs: Sequence[Job], num_slots: int, *, open_names: Collection[str], shares_cores: bool
) -> tuple[list[list[str]], str]:
    """A row for each run (name, steps, rows a step, tokens, predicted time), and what all take in a line.

    Args:
        jobs: all runs.
        num_slots: runs at once.
        open_names: of the runs that are still to be run; the line leaves the others out. One that was stopped
            counts in full.
        shares_cores: the slots have parts of the same cores, so that all take as long as one after the other.
    """
    rows = [
        [
            job.name,
            _count(job.plan.num_steps),
            f"{job.plan.global_batch:,}",
            _count(job.plan.num_tokens),
            _count(job.plan.num_evaluations),
            _tell_time(job, is_open=job.name in open_names),
        ]
        for job in jobs[:_SHOWN_ROWS]
    ]
    if len(jobs) > _SHOWN_ROWS:
        rows.append([f"and {len(jobs) - _SHOWN_ROWS} more", *[""] * 5])
    left = [job for job in jobs if job.name in open_names]
    runs = "1 run" if len(jobs) == 1 else f"{len(jobs):,} runs"
    if len(left) < len(jobs):
        runs = f"{len(left):,} of {len(jobs):,} runs are still to be run"
    if not left:
        return rows, runs
    steps = [job.plan.num_steps for job in left if job.plan.num_steps is not None]
    seconds = [job.plan.seconds for job in left if job.plan.seconds is not None]
    known = f"{sum(steps):,} steps" if len(steps) == len(left) else "an unknown number of steps"
    if len(seconds) == len(left):
        origins = sorted({job.plan.time["origin"] for job in left})
        whole = sum(seconds) if shares_cores else find_end(seconds, num_slots)
        time = f"{describe_hours(whole)} predicted ({', '.join(origins)})"
        time += f", {num_slots} at once" if num_slots > 1 else ""
        time += " on parts of the same cores" if num_slots > 1 and shares_cores else ""
    else:
        time = "their time is not predicted: `maskwright plan RECIPE --calibrate` measures it here"
    return rows, f"{runs}, {known}, {time}"


def find_end(seconds: Iterable[float], num_slots: int) -> float:
    """When the last of some runs ends, in seconds, if each begins in the slot that is free first."""
    slots = [0.0] * num_slots
    for one in seconds:
        heapq.heapreplace(slots, slots[0] + one)
    return max(slots)


def _tell_time(job: Job, *, is_open: bool) -> str:
    if not is_open:
        return "not run again"
    return "unknown" if job.plan.seconds is None else describe_hours(job.plan.seconds)


COST_COLUMNS = ("run", "steps", "rows a step", "tokens", "evaluations", "predicted time")


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"
