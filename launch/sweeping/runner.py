"""The runner: the runs of a sweep, one after the other or several at once, each a `maskwright run`.

Each has a process of its own, so that it sees the signals and the variables that are meant for it.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Protocol

from launch.sweeping.state import Entry
from launch.verdict import LOST, REQUEST, STOPPED, RunError, read_verdict

LOG = "output.log"
_LOOK_SECONDS = 0.2


class Worker(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code; None: it is running."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...


class Supply(Protocol):
    """Where runs come from, and where what became of them goes."""

    def take(self) -> Entry | None:
        """The next run; None: there is none for now."""
        ...

    def give_back(self, entry: Entry, exit_code: int) -> None:
        """A run has ended."""
        ...


def run_all(
    supply: Supply,
    start: Callable[[Entry, int], Worker],
    *,
    num_slots: int,
    came: Sequence[int],
) -> None:
    """Run what the supply has until it has no more; after a signal only what is running, to its end.

    Args:
        supply: the runs.
        start: starts one in a slot.
        num_slots: so many at once.
        came: signals, noted by somebody else as they come.
    """
    running: dict[int, tuple[Entry, Worker]] = {}
    num_passed = 0
    while True:
        if len(came) > num_passed:
            num_passed = len(came)
            for _, worker in running.values():
                worker.stop()
        for slot, (entry, worker) in list(running.items()):
            exit_code = worker.poll()
            if exit_code is not None:
                del running[slot]
                supply.give_back(entry, exit_code)
        for slot in range(num_slots):
            if slot in running or came:
                continue
            entry = supply.take()
            if entry is not None:
                running[slot] = entry, start(entry, slot)
        if not running:
            return
        time.sleep(_LOOK_SECONDS)


class RunWorker:
    """A `maskwright run` in a process of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path | None):
        """Start it.

        Args:
            command: of the verb `run`, without its name.
            environment: variables that it has of its own.
            log: a file for what it prints; None: the terminal.
        """
        self._is_stopped = False
        self._process = get_context("spawn").Process(
            target=_run, args=(list(command), dict(environment), log), name="maskwright run"
        )
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code; one that was ended by a signal was lost, unless it was asked to stop."""
        code = self._process.exitcode
        if code is None or code >= 0:
            return code
        return STOPPED if self._is_stopped else LOST

    def stop(self) -> None:
        """Pass a SIGTERM on."""
        self._is_stopped = True
        if self._process.is_alive():
            self._process.terminate()


def _run(command: list[str], environment: dict[str, str], log: Path | None) -> None:
    # Ctrl-C reaches all processes of a terminal's group; this one is told by the sweep, once.
    os.setsid()
    Thread(target=_follow_parent, daemon=True).start()
    os.environ.update(environment)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)
    from launch.cli import main

    sys.exit(main(["run", *command]))


def _follow_parent() -> None:
    """End as if stopped when the sweep is gone: a new one wants the folder."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def describe_end(folder: Path, exit_code: int) -> str:
    """How a run ended, in its trainer's own words where it left some."""
    verdict = read_verdict(folder)
    if verdict is not None and verdict.exit_code == exit_code:
        return verdict.message
    known = {0: "done", STOPPED: "stopped before it began", LOST: "its process was killed"}
    return known.get(exit_code, f"exit {exit_code}, before a trainer could say why")


def share_devices(
    num_slots: int, num_devices: int, visible: Sequence[str] | None, num_cores: int
) -> list[dict[str, str]]:
    """The variables of each slot: the GPUs it has, or its part of the cores.

    Args:
        num_slots: runs at once.
        num_devices: processes of one run.
        visible: GPUs by number or name; None: the runs are on the CPU.
        num_cores: of the machine.

    Raises:
        RunError: there are too few GPUs.
    """
    if num_slots == 1:
        return [{}]
    if visible is None:
        return [{"OMP_NUM_THREADS": str(max(1, num_cores // (num_slots * num_devices)))}] * num_slots
    if num_slots * num_devices > len(visible):
        raise RunError(
            REQUEST,
            f"--parallel {num_slots} with {num_devices} GPUs a run wants {num_slots * num_devices} GPUs, "
            f"and {len(visible)} are visible; run fewer at once, or give --devices",
        )
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(visible[slot * num_devices : (slot + 1) * num_devices])}
        for slot in range(num_slots)
    ]
