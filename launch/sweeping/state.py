"""The state of a sweep: which runs it has and how each ended, in sweep.json of its folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipes.files import write_atomically
from launch.verdict import DONE, HELD, LOST, REQUEST, STOPPED, RunError

NAME = "sweep.json"
_STATES = ("waiting", "running", "done", "stopped", "failed")


@dataclass
class Entry:
    """A run of a sweep.

    Attributes:
        name: of its folder, beside sweep.json.
        values: what it has of its own, by key.
        seed: `training.seed` of its recipe.
        state: `waiting`, `running`, `done`, `stopped` or `failed`.
        exit_code: of its last run; None: not run yet.
        message: how that ended.
        trial: number in the study of a search.
    """

    name: str
    values: dict[str, Any]
    seed: int | None = None
    state: str = "waiting"
    exit_code: int | None = None
    message: str = ""
    trial: int | None = None

    def end(self, exit_code: int, message: str) -> None:
        """Note how a run of it ended; one that another holds is still to be run."""
        self.exit_code, self.message = exit_code, message
        self.state = {DONE: "done", STOPPED: "stopped", HELD: "waiting"}.get(exit_code, "failed")


@dataclass(frozen=True)
class Goal:
    """The figure of the evaluations that runs are ranked by."""

    metric: str = "loss"
    direction: Literal["lower", "higher"] = "lower"

    @property
    def sign(self) -> int:
        """What makes a lower value the better one."""
        return -1 if self.direction == "higher" else 1


@dataclass
class State:
    """All runs of a sweep, in their order, with what they share."""

    folder: Path
    recipe: str
    fixed: list[str]
    goal: Goal = Goal()
    search: dict[str, Any] | None = None
    entries: list[Entry] = field(default_factory=list)

    def find(self, name: str) -> Entry | None:
        """The run of a name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def save(self) -> None:
        """Write sweep.json, whole or not at all."""
        values = {**asdict(self), "runs": [asdict(entry) for entry in self.entries]}
        del values["folder"], values["entries"]
        write_atomically(self.folder / NAME, (json.dumps(values, indent=2) + "\n").encode())


def read_state(folder: Path) -> State | None:
    """The state that a sweep left; None: there was none. Runs that were running then were stopped.

    Raises:
        RunError: sweep.json is there and cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries = [Entry(**one) for one in values.pop("runs")]
        state = State(folder=folder, entries=entries, goal=Goal(**values.pop("goal")), **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(
            REQUEST, f"{path} cannot be read ({error}); give another --output, or remove it"
        ) from error
    for entry in state.entries:
        if entry.state not in _STATES:
            raise RunError(REQUEST, f"{path}: {entry.name} is {entry.state!r}; wanted {', '.join(_STATES)}")
        if entry.state == "running":
            entry.state, entry.exit_code, entry.message = "stopped", LOST, "the sweep ended under it"
    return state
