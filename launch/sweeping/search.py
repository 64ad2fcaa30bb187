"""The search: values drawn by Optuna from ranges and lists, by what earlier runs of the sweep came to.

The study lies in study.journal beside sweep.json, so that a sweep that is started again goes on in it.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweeping.axes import Space, name_values
from launch.verdict import MACHINE, REQUEST, RunError

JOURNAL = "study.journal"
_STUDY = "sweep"


def check_installed() -> None:
    """Stop where Optuna is not there.

    Raises:
        RunError: exit code 3, with the line that installs it.
    """
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise RunError(
            MACHINE, f"--search optuna wants {error.name}, which is not installed: pip install 'optuna>=4'"
        ) from error


class Search:
    """A study that draws values and is told what they were worth."""

    def __init__(self, space: Space, folder: Path, *, higher_is_better: bool, seed: int, num_slots: int):
        """Open the study of a folder, or begin one.

        Args:
            space: to draw from.
            folder: of the sweep.
            higher_is_better: of the metric.
            seed: of the draws.
            num_slots: runs at once; the draws then keep away from those that are running.
        """
        check_installed()
        import optuna  # pyright: ignore[reportMissingImports]
        from optuna.storages import JournalStorage  # pyright: ignore[reportMissingImports]
        from optuna.storages.journal import JournalFileBackend  # pyright: ignore[reportMissingImports]

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        direction = "maximize" if higher_is_better else "minimize"
        self._space = space
        self._study: Any = optuna.create_study(
            storage=storage, study_name=_STUDY, direction=direction, load_if_exists=True
        )
        self._failed = optuna.trial.TrialState.FAIL
        # A sampler begins its draws anew with the process: the same seed would draw the first ones again.
        num_before = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(seed + num_before) % 2**32, constant_liar=num_slots > 1
        )

    def draw(self) -> tuple[int, dict[str, Any]]:
        """The number of a new trial and its values."""
        trial = self._study.ask()
        values: dict[str, Any] = {}
        for axis in self._space.axes:
            texts = [json.dumps(value, sort_keys=True) for value in axis.values]
            values[axis.key] = json.loads(trial.suggest_categorical(axis.key, texts))
        for one in self._space.ranges:
            suggest = trial.suggest_int if one.is_whole else trial.suggest_float
            values[one.key] = suggest(one.key, one.low, one.high, log=one.is_log)
        return trial.number, values

    def draw_again(self, values: Mapping[str, Any]) -> int:
        """The number of a new trial with these values."""
        listed = {axis.key for axis in self._space.axes}
        texts = {
            key: json.dumps(value, sort_keys=True) if key in listed else value
            for key, value in values.items()
        }
        self._study.enqueue_trial(texts)
        return self.draw()[0]

    def tell(self, trial: int, value: float | None) -> None:
        """Say what a trial was worth; None: it failed."""
        if value is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, value)

    def drop_unknown(self, known: set[int]) -> None:
        """Close trials that were drawn and then never written down: the process ended between the two."""
        for trial in self._study.get_trials(deepcopy=False):
            if not trial.state.is_finished() and trial.number not in known:
                self.tell(trial.number, None)


def list_corners(space: Space) -> Iterator[dict[str, Any]]:
    """All lows and all highs with every listed value: what is planned before anything is drawn."""
    ends = [(one.low, one.high) for one in space.ranges]
    for values in itertools.product(*(axis.values for axis in space.axes)):
        listed = dict(zip((axis.key for axis in space.axes), values, strict=True))
        for side in range(2 if ends else 1):
            drawn = {one.key: end[side] for one, end in zip(space.ranges, ends, strict=True)}
            yield {key: {**listed, **drawn}[key] for key in space.keys}


def describe_space(space: Space, fixed: Sequence[str]) -> dict[str, Any]:
    """What is drawn and what is fixed, as plain data to be kept in sweep.json."""
    ranges = {one.key: f"{one.low}..{one.high}{':log' if one.is_log else ''}" for one in space.ranges}
    return {**{axis.key: list(axis.values) for axis in space.axes}, **ranges, "fixed": list(fixed)}


def check_space(then: Mapping[str, Any], space: Space, fixed: Sequence[str]) -> None:
    """Refuse another search than the study was begun with.

    Raises:
        RunError: they differ.
    """
    now = describe_space(space, fixed)
    if dict(then) != now:
        raise RunError(
            REQUEST,
            f"the search was begun over {json.dumps(dict(then))}, and is now over {json.dumps(now)}; give "
            "another --output",
        )


def name_trial(number: int, values: Mapping[str, Any]) -> str:
    """A folder's name for a trial: its number, and its values in short."""
    short = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()
    }
    return f"{number:03d}-{name_values(short)}"
