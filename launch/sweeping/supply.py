"""The supply of a sweep: which run is next, and the books on what became of each."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.recipe import Recipe
from launch.recipe_change import find_changes, read_kept
from launch.recipe_check import RecipeError
from launch.record import read_record
from launch.strict_yaml import StrictYamlError, load_yaml
from launch.sweeping.jobs import Job, Planner
from launch.sweeping.ranking import measure
from launch.sweeping.runner import describe_end
from launch.sweeping.search import Search, name_trial
from launch.sweeping.state import Entry, State
from launch.verdict import DIVERGED, DONE, REQUEST, RunError

Teller = Callable[[str], None]


class Listed:
    """Runs that are known beforehand."""

    def __init__(self, state: State, waiting: Sequence[Entry], tell: Teller):
        """Run these entries of a state; `tell` shows a line."""
        self.state, self._waiting, self._tell = state, deque(waiting), tell
        self._num_all, self._num_begun = len(waiting), 0
        state.save()

    def take(self) -> Entry | None:
        """The next one."""
        if not self._waiting:
            return None
        return self._begin(self._waiting.popleft())

    def _begin(self, entry: Entry) -> Entry:
        self._num_begun += 1
        self._tell(f"run {self._num_begun} of {self._num_all}: {entry.name}")
        entry.state, entry.exit_code, entry.message = "running", None, ""
        self.state.save()
        return entry

    def give_back(self, entry: Entry, exit_code: int) -> None:
        """Write down how it ended."""
        entry.end(exit_code, describe_end(self.state.folder / entry.name, exit_code))
        self.state.save()
        self._tell(f"{entry.name}: {entry.state}{'' if exit_code == DONE else f' ({entry.message})'}")


class Drawn(Listed):
    """Runs whose values a search draws, after those that were stopped."""

    def __init__(
        self,
        state: State,
        waiting: Sequence[Entry],
        tell: Teller,
        *,
        search: Search,
        planner: Planner,
        num_trials: int,
    ):
        """Draw until the state has so many runs."""
        super().__init__(state, waiting, tell)
        self._search, self._planner, self._num_trials = search, planner, num_trials
        self._num_all += max(0, num_trials - len(state.entries))
        search.drop_unknown({entry.trial for entry in state.entries if entry.trial is not None})

    def take(self) -> Entry | None:
        """One that waits, else a new trial while there may be more."""
        if self._waiting:
            entry = self._waiting.popleft()
            if entry.state == "failed":  # its trial is closed
                entry.trial = self._search.draw_again(entry.values)
            return self._begin(entry)
        if len(self.state.entries) >= self._num_trials:
            return None
        trial, values = self._search.draw()
        entry = Entry(name_trial(trial, values), values, self._find_seed(values), trial=trial)
        self.state.entries.append(entry)
        return self._begin(entry)

    def _find_seed(self, values: dict) -> int | None:
        try:
            return self._planner.read_recipe(values).training.seed
        except RecipeError:
            return None  # the run itself will say what is wrong

    def give_back(self, entry: Entry, exit_code: int) -> None:
        """Write down how it ended, and tell the study what it was worth; of one that diverged its best."""
        super().give_back(entry, exit_code)
        if entry.trial is None or entry.state not in ("done", "failed"):
            return
        found = None
        if exit_code in (DONE, DIVERGED):
            found = measure(read_record(self.state.folder / entry.name), self.state.goal)
        self._search.tell(entry.trial, found[0] if found else None)


def merge_jobs(state: State, jobs: Sequence[Job], *, is_retry: bool) -> list[Entry]:
    """Put the jobs of now into a state, in their order; those that are to be run.

    Runs that the state has beside them stay in it.

    Raises:
        RunError: a run is done, and with another recipe.
    """
    known = {entry.name: entry for entry in state.entries}
    entries = [known.pop(job.name, None) or Entry(job.name, job.values) for job in jobs]
    problems = []
    for job, entry in zip(jobs, entries, strict=True):
        entry.values, entry.seed = job.values, job.recipe.training.seed
        if entry.state == "done":
            problems += _look_at_done(state.folder, job, entry)
    if problems:
        raise RunError(
            REQUEST,
            "\n  ".join(
                ["runs of this sweep are done with another recipe; give another --output", *problems]
            ),
        )
    state.entries = [*entries, *known.values()]
    return [entry for entry in entries if is_open(entry, is_retry=is_retry)]


def is_open(entry: Entry, *, is_retry: bool) -> bool:
    """Whether a run is still to be run."""
    return entry.state in ("waiting", "stopped") or (is_retry and entry.state == "failed")


def _look_at_done(folder: Path, job: Job, entry: Entry) -> list[str]:
    """What is in the way of leaving a run that is done as it is; one that may go on is opened again."""
    then = _read_kept(folder / job.name)
    if then is None:
        entry.state = "waiting"
        return []
    changes = [change for change in find_changes(then, job.recipe) if change.policy != "free"]
    refused = [change for change in changes if not change.is_allowed]
    if not refused and any(change.policy == "longer" for change in changes):
        entry.state = "stopped"
    return [f"{job.name}: {change}" for change in refused]


def _read_kept(folder: Path) -> Recipe | None:
    """The recipe that a run folder holds; None: it has none that can be read."""
    try:
        values = load_yaml((folder / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    except (OSError, StrictYamlError):
        return None
    recipe, _ = read_kept(values) if isinstance(values, dict) else (None, [])
    return recipe
