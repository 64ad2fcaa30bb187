"""The watch: shows a run that is somewhere else, from what it leaves in its folder. It only ever reads."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from launch.events import Event, number
from launch.terminal import Console
from launch.verdict import REQUEST, RunError
from launch.watching.display import Display, LivePanel, describe, open_display
from launch.watching.panel import RunPanel
from launch.watching.status import Status, find_status, is_run
from launch.watching.view import Phase, View, read_facts

_LOOK_SECONDS = 0.5
_RESTART_SECONDS = 3.0
"""How long a run that has ended may take to be started again and still be the one that is watched."""
_NUMBERS = {
    "train": ("learning_rate", "tokens_per_second", "data_wait_fraction"),
    "eval": ("accuracy", "num_targets"),
    "yardstick": ("perplexity", "num_targets"),
}
_KEYS = {"train": ("loss",), "eval": ("loss", "perplexity"), "yardstick": ("name",), "save": ("path",)}


@dataclass
class Tail:
    """Follows a metrics file, also one that is cut and written anew when its run is resumed.

    Attributes:
        is_new: whether the last reading began a file from its start.
    """

    path: Path
    is_new: bool = False
    _place: tuple[int, int] | None = None
    _offset: int = 0
    _rest: bytes = b""

    def read(self) -> list[Event]:
        """The whole events since the last reading; of a new file all of them."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                place = (found.st_dev, found.st_ino)
                self.is_new = place != self._place or found.st_size < self._offset
                if self.is_new:
                    self._place, self._offset, self._rest = place, 0, b""
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self.is_new = False
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return list(parse_events(lines))


def parse_events(lines: Iterable[bytes]) -> Iterator[Event]:
    """The events of whole lines that have what showing them needs."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
            continue
        event.setdefault("step", 0)
        has_keys = all(key in event for key in _KEYS.get(event["kind"], ()))
        has_numbers = all(number(event, key) is not None for key in _NUMBERS.get(event["kind"], ()))
        if isinstance(event["step"], int) and has_keys and has_numbers:
            yield event


class Follower:
    """Follows the run of a folder on a display; nothing in the folder is changed or locked.

    Attributes:
        status: at the last look.
    """

    def __init__(self, folder: Path, display: Display | None = None):
        self.status = Status("new", "")
        self.display = display or open_display(read_facts(folder), 0)
        self._folder = folder
        self._tail = Tail(folder / "metrics.jsonl")
        self._said = ""
        self._is_first = True

    def look(self) -> Status:
        """Show what is new; how the run stands."""
        # Before the events, so that those of a run that is over are all read.
        self.status = find_status(self._folder)
        events = self._tail.read()
        num_old = 0
        if self._tail.is_new:
            self._renew()
            num_old = self._count_old(events)
        for event in events[:num_old]:
            self.display.view.observe(event)
        if num_old:
            self._sum_up()
        for event in events[num_old:]:
            self.display.show(event)
        self._mark()
        self._is_first = self._is_first and not self._tail.is_new
        return self.status

    def sum_up_end(self) -> None:
        """Say how the run ended."""
        self._mark()
        self.display.say(f"{self._folder}: {self.status}")

    def _renew(self) -> None:
        """Begin anew, as for a run that was taken up again: its plan may be another one."""
        self.display.renew(View(read_facts(self._folder)))

    def _count_old(self, events: list[Event]) -> int:
        """How many events of a file that is read from its start were shown, or are too many to be."""
        resumes = [index for index, event in enumerate(events) if event["kind"] == "resume"]
        if not self._is_first and resumes:
            return resumes[-1]
        return len(events) if any(event["kind"] == "train" for event in events) else 0

    def _sum_up(self) -> None:
        if not self._is_first:
            return
        view = self.display.view
        self.display.say(f"{self._folder}: {self._describe()}")
        if isinstance(self.display, LivePanel):
            return
        for event in (view.evaluation, view.train, *view.flags.values()):
            self.display.say(describe(event, view) if event else "")

    def _describe(self) -> str:
        place = f" on {self.status.place}" if self.status.place else ""
        more = f", {self.status.message}" if self.status.message else ""
        return f"{self.status.state}{place}{more}"

    def _mark(self) -> None:
        """Show the phase of rank 0, and what is odd about the run."""
        view, status = self.display.view, self.status
        leaders = [beat for beat in status.beats if beat.rank == 0]
        if leaders and status.state == "running":
            beat = leaders[0]
            view.mark(Phase(beat.phase, beat.step, beat.num_done, beat.num_all))
        is_going = status.state == "running"
        note = self._describe() if is_going else status.message
        self.display.head(None if is_going else status.state, note)
        if is_going and status.message != self._said:
            self._said = status.message
            if status.message:
                self.display.say(status.message)


def watch(folder: Path, *, is_once: bool = False, waits: bool = False) -> int:
    """Follow a run to its end; the exit code.

    Args:
        folder: of the run.
        is_once: say how it stands now, and end.
        waits: for a run that has not begun yet.

    Raises:
        RunError: there is no run in the folder.
    """
    try:
        _await(folder, waits=waits and not is_once)
        if is_once:
            _print_once(folder)
            return 0
        return _follow(folder)
    except KeyboardInterrupt:
        return 130


def _await(folder: Path, *, waits: bool) -> None:
    while not is_run(folder) and find_status(folder).state == "new":
        if not waits:
            what = "has no run in it yet" if folder.is_dir() else "is not there"
            raise RunError(REQUEST, f"{folder} {what}; name a run folder, or wait for it with --wait")
        time.sleep(_LOOK_SECONDS)


def _follow(folder: Path) -> int:
    follower = Follower(folder)
    over_since: float | None = None
    try:
        while True:
            status = follower.look()
            over_since = (over_since or time.monotonic()) if status.is_over else None
            patience = 0.0 if status.state == "finished" else _RESTART_SECONDS
            if over_since is not None and time.monotonic() - over_since >= patience:
                follower.sum_up_end()
                return 0
            time.sleep(_LOOK_SECONDS)
    except OSError:
        if follower.display.is_gone:
            return 0
        raise
    finally:
        follower.display.close()


def _print_once(folder: Path) -> None:
    view = View(read_facts(folder))
    for event in Tail(folder / "metrics.jsonl").read():
        view.observe(event)
    status = find_status(folder)
    if status.state == "running" and status.beats:
        beat = status.beats[0]
        view.mark(Phase(beat.phase, beat.step, beat.num_done, beat.num_all))
    console = Console(highlight=False)
    place = f"on {status.place}" if status.place else ""
    note = ", ".join(part for part in (place, status.message) if part)
    if console.is_terminal:
        panel = RunPanel(view)
        panel.state = None if status.state == "running" else status.state
        panel.note = note
        console.print(panel)
        return
    lines = [f"{folder}: {status.state}{f', {note}' if note else ''}"]
    lines += [describe(event, view) for event in (view.evaluation, view.train, *view.flags.values()) if event]
    for line in lines:
        console.print(escape(line), soft_wrap=True)
