"""Tracking: every event of a run into metrics.jsonl, to the terminal and, if asked, to trackers."""

import errno
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.events import Event, parse_event, to_plain
from launch.verdict import MACHINE, RunError
from launch.watching.display import Display, open_display
from launch.watching.flags import Flags, Limits
from launch.watching.trackers import KINDS, Trackers, Wish, describe_config
from launch.watching.view import Facts

if TYPE_CHECKING:
    from launch.build import Job
    from launch.progress import Progress

_OF_EVALUATION = ("eval", "missing", "flag")
"""What is logged for the figures of an evaluation."""


def open_tracker(folder: Path, job: "Job", progress: "Progress") -> "Tracker":
    """The tracker of a job on this rank; on the main one with a display, which the loop's marks reach too.

    `progress` is that which the run starts from.
    """
    if not job.accelerator.is_main_process:
        return Tracker(folder, is_main=False, display=None)
    from launch.engine import describe_environment

    recipe, plan = job.recipe.model_dump(mode="json"), job.plan.model_dump(mode="json")
    facts = Facts.of(plan, recipe)
    config = describe_config(recipe, plan, describe_environment(job.accelerator))
    tracking = job.recipe.tracking
    wish = Wish(job.recipe.report_to, tracking.project, tracking.name or job.recipe.name, config)
    display = open_display(facts, progress.resumed_from or 0)
    try:
        tracker = Tracker(
            folder,
            is_main=True,
            display=display,
            wish=wish,
            limits=facts.limits,
            resumed_step=progress.resumed_from,
            owes_evaluation=progress.is_evaluation_due,
        )
    except RunError:
        display.close()
        raise
    job.stop.display = display
    return tracker


class Tracker:
    """Writes events of the main rank; on other ranks every call does nothing.

    Args:
        folder: the run folder.
        is_main: whether this rank writes.
        display: what a person sees; None on other ranks.
        wish: trackers beside metrics.jsonl, and what goes along with them.
        limits: what the red flags hold a run against.
        resumed_step: events after this step are cut off, as they will be written again.
        owes_evaluation: the evaluation at that step, too, is made again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_main: bool,
        display: Display | None,
        wish: Wish | None = None,
        limits: Limits | None = None,
        resumed_step: int | None = None,
        owes_evaluation: bool = False,
    ):
        self._display = display
        self._file = None
        if not is_main:
            return
        self._flags = Flags(limits or Limits())
        path = folder / "metrics.jsonl"
        kept, logged = _cut_events(path, resumed_step, owes_evaluation=owes_evaluation)
        for event in kept:
            self._flags.warn(event)
            if display is not None:
                display.view.observe(event)
        self._trackers = Trackers(folder, wish or Wish(), resumed_step)
        messages = self._trackers.open(kept, logged)
        # Without a buffer: what a full disk does not take would be tried, and fail, again when it is closed.
        self._file = path.open("ab", buffering=0)
        self._tell(messages, resumed_step or 0)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Write one event, show it, and raise the flags that it raises."""
        if self._file is None:
            return
        if kind not in KINDS:  # those go to trackers, which have clocks of their own
            values = {"time": round(time.time(), 3), **values}
        event = to_plain({"kind": kind, "step": step, **values})
        line = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError(
                MACHINE, f"metrics.jsonl cannot be written ({error}); the last checkpoint is untouched"
            ) from error
        self._show(event)
        messages = self._trackers.log(event)
        for flag in self._flags.warn(event):
            self.log("flag", step, **flag)
        self._tell(messages, step)

    def close(self) -> None:
        """Flush and close what is open."""
        if self._file is None:
            return
        self._tell(self._trackers.close(), 0)
        if self._display is not None:
            self._display.close()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _tell(self, messages: Iterable[str], step: int) -> None:
        for message in messages:
            self.log("tracker", step, message=message)

    def _show(self, event: Event) -> None:
        """Show an event; a display that has nothing to show it on any more is let go."""
        if self._display is None:
            return
        try:
            self._display.show(event)
        except OSError:
            display, self._display = self._display, None
            display.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stopwatch:
    """Where the time of training goes: waiting for data, and working; not evaluating and saving."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._waited = self._worked = 0.0
        self._num_pieces = self._num_rows = self._num_flops = self._num_slots = 0

    def waited(self) -> None:
        """The data has just arrived."""
        self._waited += self._lap()

    def worked(self, num_pieces: int, num_rows: int, num_flops: int = 0, num_slots: int = 0) -> None:
        """A step with so much in it is done; 0 model FLOPs or slots: they are not known."""
        self._worked += self._lap()
        self._num_pieces += num_pieces
        self._num_rows += num_rows
        self._num_flops += num_flops
        self._num_slots += num_slots

    def go_on(self) -> None:
        """Something that is not counted is over."""
        self._lap()

    def read(self, peak_flops: float | None = None) -> dict[str, float]:
        """Speeds and the share of the time spent waiting, since the last reading.

        Tokens are pieces of rows; slots are those and the padding beside them.
        `peak_flops` is that of all devices together; with it comes the share of it (MFU).
        """
        seconds = max(self._waited + self._worked, 1e-9)
        found = {
            "tokens_per_second": self._num_pieces / seconds,
            "rows_per_second": self._num_rows / seconds,
            "data_wait_fraction": self._waited / seconds,
        }
        if self._num_slots:
            found["slots_per_second"] = self._num_slots / seconds
        if self._num_flops:
            found["flops_per_second"] = self._num_flops / seconds
            if peak_flops:
                found["mfu"] = found["flops_per_second"] / peak_flops
        self._waited = self._worked = 0.0
        self._num_pieces = self._num_rows = self._num_flops = self._num_slots = 0
        return found

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


def _cut_events(
    path: Path, resumed_step: int | None, *, owes_evaluation: bool
) -> tuple[list[Event], dict[str, int]]:
    """Keep the events up to a step; a line that a crash cut short goes too, and an evaluation that is owed.

    Returns:
        Those that are kept, and the highest step by kind that was logged before.
    """
    if not path.exists():
        return [], {}
    kept: list[Event] = []
    logged: dict[str, int] = {}
    lines = []
    is_made_again = False
    for line in path.read_bytes().split(b"\n"):
        event = parse_event(line)
        if event is None:
            continue
        kind, step = event["kind"], event["step"]
        if kind in KINDS:
            logged[kind] = max(step, logged.get(kind, -1))
        if owes_evaluation and step == resumed_step:
            is_made_again = is_made_again or kind == "eval"
            if is_made_again and kind in _OF_EVALUATION:
                continue
        # A checkpoint is older than a way back to it, which the run has still before it then.
        last = (resumed_step or 0) - (kind == "rewind")
        if resumed_step is not None and step <= last and kind != "end":
            kept.append(event)
            lines.append(line + b"\n")
    draft = path.with_suffix(".partial")
    draft.write_bytes(b"".join(lines))
    draft.replace(path)
    return kept, logged
