"""Signs of life: each rank keeps a small file in RUN/ranks; who looks at them sees which rank is lost.

A file is there from a rank's start to its orderly end. A rank without a process but with a file was killed;
one whose file is no longer touched is stopped or hangs. Contents change with the step, the time of the file
each second.
"""

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from launch.process import Process

FOLDER = "ranks"
RANK_TIMEOUT = "MASKWRIGHT_RANK_TIMEOUT"
_DEFAULT_TIMEOUT_SECONDS = 600.0
_SLACK_SECONDS = 10.0
STARTING = "starting"
_PHASES = {
    STARTING: "at the start",
    "step": "in step {step:,}",
    "evaluation": "in the evaluation of step {step:,}",
    "save": "in the save of step {step:,}",
}


def find_timeout() -> float:
    """How long a rank may be silent, in seconds."""
    text = os.environ.get(RANK_TIMEOUT, "")
    try:
        seconds = float(text) if text else _DEFAULT_TIMEOUT_SECONDS
    except ValueError:
        return _DEFAULT_TIMEOUT_SECONDS
    return seconds if seconds > 0 else _DEFAULT_TIMEOUT_SECONDS


def find_group_timeout() -> float:
    """How long ranks wait for each other, in seconds: longer than a rank may be silent.

    When it runs out survivors end too, some without a word; who watches has named the right one by then.
    """
    return find_timeout() + _SLACK_SECONDS


@dataclass(frozen=True)
class Beat:
    """What a rank last said.

    Attributes:
        token: the same for all ranks of one start on one machine.
        phase: a key of the table above.
        touched: when, in nanoseconds by the file system's clock; only differences count.
        num_done, num_all: parts of the phase, batches of an evaluation; 0: it has none that are counted.
    """

    rank: int
    process: Process
    token: str
    phase: str
    step: int
    touched: int = 0
    num_done: int = 0
    num_all: int = 0

    @property
    def place(self) -> str:
        """Where it stood, in words."""
        return _PHASES.get(self.phase, self.phase).format(step=self.step)


@dataclass(frozen=True)
class Lost:
    """A rank that is no longer with the others.

    Attributes:
        silent_seconds: how long nothing was heard of it; None: its process is gone.
        is_stopped: whether its process was stopped then.
    """

    beat: Beat
    silent_seconds: float | None = None
    is_stopped: bool = False

    @classmethod
    def silent(cls, beat: Beat, seconds: float) -> "Lost":
        """One of which nothing was heard for so long."""
        return cls(beat, seconds, beat.process.is_local and beat.process.is_stopped)

    def describe(self, signals: Mapping[int, int] | None = None) -> str:
        """In one clause; `signals` gives the signal that ended a process, by its number."""
        beat = self.beat
        number = (signals or {}).get(beat.process.pid)
        if self.silent_seconds is not None:
            stopped = "; its process was stopped" if self.is_stopped else ""
            return (
                f"rank {beat.rank} has not been heard of for {self.silent_seconds:.0f} s (it last stood "
                f"{beat.place}{stopped})"
            )
        if number is None:
            who = f"process {beat.process.pid} on {beat.process.host}"
            return f"rank {beat.rank} ({who}) ended without a word {beat.place}"
        name = Signals(number).name
        hint = "; the kernel does so when memory runs out" if name == "SIGKILL" else ""
        return f"rank {beat.rank} was killed ({name}) {beat.place}{hint}"


def describe_lost(lost: Sequence[Lost], signals: Mapping[int, int] | None = None) -> str:
    """All lost ranks, and what to do, in one line."""
    found = "; ".join(one.describe(signals) for one in sorted(lost, key=lambda one: one.beat.rank))
    return f"{found}. The same command goes on from the last checkpoint"


def write_beat(folder: Path, beat: Beat) -> None:
    """Write a rank's file, whole or not at all."""
    values = {"rank": beat.rank, "pid": beat.process.pid, "host": beat.process.host}
    values |= {"process": str(beat.process), "run": beat.token, "phase": beat.phase, "step": beat.step}
    values |= {"done": beat.num_done, "all": beat.num_all, "time": time.time()}
    place = find_place(folder, beat.rank)
    place.parent.mkdir(exist_ok=True)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    draft.write_text(json.dumps(values) + "\n", encoding="utf-8")
    draft.replace(place)


def find_place(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / FOLDER / f"{rank}.json"


def read_beats(folder: Path, token: str | None) -> list[Beat]:
    """The ranks of one start, by number, of any with None; a file that is not readable is no rank's."""
    beats = []
    for place in (folder / FOLDER).glob("[0-9]*.json"):
        try:
            touched = place.stat().st_mtime_ns
            values = json.loads(place.read_text(encoding="utf-8"))
            process = Process.parse(values["process"])
            rank, run, phase, step = (values[name] for name in ("rank", "run", "phase", "step"))
            counts = (values.get("done", 0), values.get("all", 0))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if process is not None and token in (None, run):
            beats.append(Beat(rank, process, run, phase, step, touched, *counts))
    return sorted(beats, key=lambda beat: beat.rank)


def clear_beats(folder: Path) -> None:
    """Remove what ranks of earlier runs left on this machine, and an empty folder with it."""
    places = folder / FOLDER
    host = socket.gethostname()
    for place in places.glob("*.json*"):
        try:
            is_foreign = json.loads(place.read_text(encoding="utf-8"))["host"] != host
        except (OSError, ValueError, KeyError, TypeError):
            is_foreign = False
        if not is_foreign:
            place.unlink(missing_ok=True)
    if places.is_dir() and not any(places.iterdir()):
        places.rmdir()


def find_dead(folder: Path, beats: Sequence[Beat]) -> list[Lost]:
    """The ranks of this machine whose process ended without a word."""
    return [
        Lost(beat)
        for beat in beats
        # Its file is looked at again: one that ends in order removes it first.
        if beat.process.is_local and not beat.process.is_alive and find_place(folder, beat.rank).exists()
    ]


@dataclass
class Watch:
    """Looks at the ranks of one start again and again.

    Silence is measured by the clock of the one who looks, from change to change of a file: clocks of
    machines and file systems differ. If it was itself held up, all silences start anew.

    Attributes:
        timeout_seconds: silence after which a rank is lost.
        beats: what the ranks said at the last look.
    """

    folder: Path
    token: str
    timeout_seconds: float
    beats: list[Beat] = field(default_factory=list)
    _heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    _looked: float | None = None

    def look(self, now: float | None = None) -> list[Lost]:
        """The ranks that are lost by now; `now` is in seconds of a clock that never goes back."""
        now = time.monotonic() if now is None else now
        if self._looked is not None and now - self._looked > self.timeout_seconds / 2:
            self._heard.clear()
        self._looked = now
        self.beats = read_beats(self.folder, self.token)
        dead = find_dead(self.folder, self.beats)
        silent = []
        for beat in self.beats:
            touched, since = self._heard.get(beat.rank, (None, now))
            if touched != beat.touched:
                self._heard[beat.rank] = (beat.touched, now)
            elif now - since > self.timeout_seconds:
                silent.append(Lost.silent(beat, now - since))
        gone = {one.beat.rank for one in dead}
        return dead + [one for one in silent if one.beat.rank not in gone]


def read_signals(log: str) -> dict[int, int]:
    """The signals that ended processes, by what a launcher says of its workers.

    torchrun gives the number of the process; `accelerate launch` with one process does not, so its word
    stands under 0.
    """
    found = {int(pid): int(number) for number, pid in _TORCHRUN.findall(log)}
    alone = _ACCELERATE.findall(log)
    return {0: int(alone[-1]), **found} if alone else found


_TORCHRUN = re.compile(r"exitcode\s*:\s*-(\d+)\)?[^\n]*?\(pid:\s*(\d+)\)")
_ACCELERATE = re.compile(r"died with <Signals\.\w+: (\d+)>")
