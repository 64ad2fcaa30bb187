"""The status of a run folder: running, finished, stopped, failed or lost, without touching anything in it."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launch.figure import show_seconds
from launch.liveness import Beat, find_timeout, read_beats
from launch.lock import NAME, Holder, read_content
from launch.verdict import DONE, LOST, STOPPED, Verdict, read_verdict

State = Literal["new", "running", "finished", "stopped", "failed", "lost"]
_QUIET_SECONDS = 10.0
"""Ranks touch their files each second; after so long it is worth a word."""
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        message: why, in words.
        holder: who runs it.
        beats: what its ranks last said.
        exit_code: None while it has none.
    """

    state: State
    message: str
    holder: Holder | None = None
    beats: list[Beat] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, unless somebody starts it again."""
        return self.state in ("finished", "stopped", "failed", "lost")

    @property
    def place(self) -> str:
        """Where it runs, in words; empty where it does not."""
        process = self.holder.process if self.holder else self.beats[0].process if self.beats else None
        return f"{process.host}, process {process.pid}" if process and self.state == "running" else ""

    def __str__(self) -> str:
        return f"{self.state}: {self.message}" if self.message else self.state


def find_status(folder: Path, now: float | None = None) -> Status:
    """Look at the lock file, the ranks, the verdict and the last event.

    Of processes on other machines only the files they touch are known; `now` is compared with their times,
    so clocks that differ by more than the time a rank may be silent mislead.
    """
    now = time.time() if now is None else now
    content, beats = read_content(folder), read_beats(folder, None)
    living = [one for one in content.living() if one.process.is_local or _is_fresh(folder, beats, now)]
    ranks = [beat for beat in beats if _is_alive(beat, now)]
    if living or ranks:
        return Status("running", _describe_silence(beats, now), living[0] if living else None, ranks or beats)
    verdict = _read_verdict(folder)
    if verdict is not None:
        return _judge(verdict)
    if content.holders or beats:
        where = f" {beats[0].place}" if beats else ""
        return Status("lost", f"ended without a word{where}; the same command goes on", None, beats, LOST)
    last = find_last(folder / "metrics.jsonl")
    if last == "end":
        return Status("finished", "", exit_code=DONE)
    if last is None:
        return Status("new", "nothing is logged yet")
    return Status("stopped", "ended without a verdict; the same command goes on", exit_code=None)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((folder / name).exists() for name in ("metrics.jsonl", "plan.json", "verdict.json"))


def find_last(path: Path) -> str | None:
    """The kind of the last whole event of a metrics file; None: there is none."""
    for line in reversed(read_tail(path, _TAIL_BYTES)):
        try:
            return str(json.loads(line)["kind"])
        except (ValueError, KeyError, TypeError):
            continue
    return None


def read_tail(path: Path, num_bytes: int) -> list[bytes]:
    """The whole lines within the last bytes of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return lines[:-1] if size <= num_bytes else lines[1:-1]


def _judge(verdict: Verdict) -> Status:
    state: State = "failed"
    if verdict.exit_code == DONE:
        state = "finished"
    elif verdict.exit_code == STOPPED:
        state = "stopped"
    elif verdict.exit_code == LOST:
        state = "lost"
    return Status(state, verdict.message.splitlines()[0], exit_code=verdict.exit_code)


def _read_verdict(folder: Path) -> Verdict | None:
    try:
        return read_verdict(folder)
    except (OSError, ValueError, TypeError):
        return None


def _is_alive(beat: Beat, now: float) -> bool:
    return beat.process.is_alive if beat.process.is_local else now - beat.touched / 1e9 < find_timeout()


def _is_fresh(folder: Path, beats: list[Beat], now: float) -> bool:
    """Whether a run on another machine has been heard of; before its ranks are there its lock file tells."""
    if beats:
        return any(_is_alive(beat, now) for beat in beats)
    try:
        return now - (folder / NAME).stat().st_mtime < find_timeout()
    except OSError:
        return False


def _describe_silence(beats: list[Beat], now: float) -> str:
    quiet = [beat for beat in beats if now - beat.touched / 1e9 > _QUIET_SECONDS]
    said = [
        f"rank {beat.rank} is not heard of for {show_seconds(now - beat.touched / 1e9)}" for beat in quiet
    ]
    halted = [beat for beat in beats if beat.process.is_local and beat.process.is_stopped]
    return ", ".join([f"rank {beat.rank} is stopped" for beat in halted] or said)
