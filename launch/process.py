"""Processes, told apart for good: a number is given again, a number with its start time is not."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process by its machine, number and start.

    Attributes:
        ticks: when it started, in clock ticks after the machine did; 0 where there is no /proc.
    """

    host: str
    pid: int
    ticks: int

    @classmethod
    def of(cls, pid: int) -> "Process":
        """A process of this machine by its number; one that is not there counts as gone."""
        found = _read_stat(pid)
        return cls(socket.gethostname(), pid, found[1] if found else 0)

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """From what `str` gave; None: it is no such text."""
        host, *numbers = text.rsplit(":", 2)
        if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
            return None
        return cls(host, int(numbers[0]), int(numbers[1]))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.ticks}"

    @property
    def is_local(self) -> bool:
        """Whether it is of this machine; of another one nothing more can be known."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it runs or is stopped; one that ended and was not waited for does not."""
        return self._state() not in ("", "Z", "X")

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP, a debugger) and can go on."""
        return self._state() in ("T", "t")

    def send(self, number: int) -> bool:
        """Send a signal; whether it was there to get it."""
        if not self.is_alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _state(self) -> str:
        """The letter of /proc, empty when it is gone."""
        if _PROC.is_dir():
            found = _read_stat(self.pid)
            return found[0] if found and found[1] == self.ticks else ""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass  # it is somebody else's, so it is there
        return "R"


def find_marked(name: str, value: str) -> Iterator[Process]:
    """The living processes of this machine, but for this one, that were started with a variable so set."""
    mark = f"{name}={value}".encode()
    for place in _PROC.glob("[0-9]*/environ"):
        pid = int(place.parent.name)
        if pid == os.getpid():
            continue
        try:
            is_marked = mark in place.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is somebody else's
            continue
        if is_marked and (process := Process.of(pid)).is_alive:
            yield process


def _read_stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process; None: it is gone, or there is no /proc."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the program's name in brackets, which may hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])
