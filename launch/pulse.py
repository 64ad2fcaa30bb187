"""The pulse of a rank: a thread that says that it lives, and sees that its launcher does.

torchrun's workers live in sessions of their own and `accelerate launch` hands no signal on: nothing but this
tells a trainer that the one who started it is dead. It then stops as for a signal, with a checkpoint of all
ranks; if the main thread can no longer come to that, the thread ends the process.
"""

import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from launch.liveness import (
    STARTING,
    Beat,
    Lost,
    Watch,
    clear_beats,
    describe_lost,
    find_dead,
    find_place,
    find_timeout,
    read_beats,
    write_beat,
)
from launch.lock import hold_as_trainer
from launch.process import Process
from launch.verdict import (
    DONE,
    LOST,
    STOPPED,
    UNDER_RUN,
    RunError,
    Verdict,
    clear_verdict,
    reserve_room,
    write_verdict,
)
from launch.world import World

_BEAT_SECONDS = 1.0
_GRACE_SECONDS = 5.0
"""How long the main thread may take to see for itself what the thread has seen."""
_NOTICE_SECONDS = 3.0
"""How long a killed process may take to be gone; freeing much memory takes a while."""
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")


@dataclass(frozen=True)
class Origin:
    """Who started this process.

    Attributes:
        parent: the launcher (torchrun, `accelerate launch`); None for a trainer started by hand, which
            may outlive its shell.
        run: the `maskwright run` behind it, if there is one.
        token: the same for all ranks that it started.
    """

    parent: int | None
    run: Process | None
    token: str

    @classmethod
    def find(cls) -> "Origin":
        """Read it from the environment."""
        parent = os.getppid() if any(name in os.environ for name in _LAUNCHER_VARIABLES) else None
        run = Process.parse(os.environ.get(UNDER_RUN, ""))
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        meeting = "/".join(os.environ.get(name, "") for name in names)
        own = meeting if "WORLD_SIZE" in os.environ else str(Process.of(os.getpid()))
        return cls(parent, run, os.environ.get(UNDER_RUN) or own)

    @property
    def is_dead(self) -> bool:
        """Whether one of them is gone."""
        is_run_dead = self.run is not None and self.run.is_local and not self.run.is_alive
        return is_run_dead or (self.parent is not None and os.getppid() != self.parent)


def join_run(folder: Path, world: World) -> "Pulse":
    """Hold a run folder as one rank of a run and give signs of life in it; ended by `Pulse.leave`.

    Raises:
        RunError: another run holds it. Nothing in it was touched.
    """
    origin = Origin.find()
    is_under_run = UNDER_RUN in os.environ
    hold_as_trainer(
        folder,
        world.rank,
        is_first_machine=world.rank == world.local_rank,
        token=origin.token,
        is_under_run=is_under_run,
    )
    if world.rank == 0:
        reserve_room(folder)
    if world.rank == 0 and not is_under_run:
        clear_verdict(folder)
        clear_beats(folder)
    return Pulse(folder, world.rank, world.size, origin).__enter__()


def keep_streams(folder: Path, streams: Sequence[int] = (1, 2)) -> None:
    """Turn an output that nobody reads any more into RUN/launcher.log.

    The launcher that read it was killed, or the terminal was closed; the next line would be an error, in the
    middle of the last save perhaps.
    """
    outputs = select.poll()
    for stream in streams:
        outputs.register(stream, 0)
    for stream, event in outputs.poll(0):
        if not event & (select.POLLERR | select.POLLHUP):
            continue
        log = os.open(folder / "launcher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, stream)
        os.close(log)


class Pulse:
    """While it is open this rank gives signs of life.

    Attributes:
        is_orphaned: whether its launcher is dead.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, origin: Origin) -> None:
        self.is_orphaned = False
        self._folder, self._origin, self._world_size = folder, origin, world_size
        self._beat = Beat(rank, Process.of(os.getpid()), origin.token, STARTING, 0)
        self._written: Beat | None = None
        self._timeout = find_timeout()
        self._moved = time.monotonic()
        self._orphaned_since: float | None = None
        self._hopeless_since: float | None = None
        # Under `maskwright run` it is the run that watches.
        watches = rank == 0 and world_size > 1 and origin.run is None
        self._watch = Watch(folder, origin.token, self._timeout) if watches else None
        self._is_over = Event()
        self._thread = Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        find_place(self._folder, self._beat.rank).unlink(missing_ok=True)

    def leave(self, verdict: Verdict) -> None:
        """Say how this rank ends, then take its file away: one that is gone without a word keeps it.

        That all is done only rank 0 can say, which writes the report last.

        Raises:
            OSError: the file system lets it not; there are no more signs of life all the same.
        """
        try:
            if verdict.exit_code or self._beat.rank == 0:
                write_verdict(self._folder, verdict)
        finally:
            self.__exit__()
        if self._beat.rank == 0 and self._origin.run is None and verdict.exit_code == DONE:
            clear_beats(self._folder)

    def mark(self, phase: str, step: int, num_done: int = 0, num_all: int = 0) -> None:
        """Say what the main thread does now; written with the next beat."""
        self._beat = replace(self._beat, phase=phase, step=step, num_done=num_done, num_all=num_all)
        self._moved = time.monotonic()

    def sees_dead_launcher(self) -> bool:
        """Whether the launcher is dead by now: another rank may have seen it before the thread here."""
        return self.is_orphaned or self._origin.is_dead

    def explain(self, error: Exception) -> Verdict | None:
        """What an error means that comes of a lost rank; None: it does not.

        A survivor sees no more than a broken connection; the files say whose.
        """
        cause = error.__cause__ if isinstance(error, RunError) else error
        if self._world_size == 1 or not isinstance(cause, RuntimeError):
            return None
        is_of_peers = any(sign in f"{type(cause).__name__} {cause}" for sign in _SIGNS)
        end = time.monotonic() + (_NOTICE_SECONDS if is_of_peers else 0)
        lost: list[Lost] = []
        while not lost:
            with suppress(OSError):  # the word of the error itself is better than that of a file
                lost = self._find_lost()
            if lost or time.monotonic() >= end:
                break
            time.sleep(0.1)
        if lost:
            return Verdict(LOST, describe_lost(lost))
        if not is_of_peers:
            return None
        reason = str(cause).splitlines()[0]
        return Verdict(
            LOST,
            f"the ranks lost touch{self._describe_laggard()}: {reason}. The same command goes on from the "
            "last checkpoint",
        )

    def _find_lost(self) -> list[Lost]:
        """The others of this machine that are gone or stopped."""
        peers = self._find_peers()
        stopped = [beat for beat in peers if beat.process.is_local and beat.process.is_stopped]
        now = time.time_ns()
        silent = [Lost.silent(beat, (now - beat.touched) / 1e9) for beat in stopped]
        return find_dead(self._folder, peers) + silent

    def _find_peers(self) -> list[Beat]:
        beats = read_beats(self._folder, self._origin.token)
        return [beat for beat in beats if beat.rank != self._beat.rank]

    def _describe_laggard(self) -> str:
        behind = [beat for beat in self._find_peers() if beat.step < self._beat.step]
        return "".join(f"; rank {beat.rank} stands {beat.place}" for beat in behind)

    def _run(self) -> None:
        acts = (self._write, self._keep_streams, self._look_at_others, self._look_at_launcher)
        while not self._is_over.wait(_BEAT_SECONDS):
            for act in acts:
                # A file server has its bad moments. Without this thread a healthy rank would count as lost.
                with suppress(OSError):
                    act()

    def _keep_streams(self) -> None:
        keep_streams(self._folder)

    def _look_at_others(self) -> None:
        if self._watch is not None and (lost := self._watch.look()):
            self._give_up(lost)

    def _look_at_launcher(self) -> None:
        if self._orphaned_since is None and self._origin.is_dead:
            self._orphaned_since = time.monotonic()
            self.is_orphaned = True
        if self._orphaned_since is not None:
            self._see_to_end()

    def _write(self) -> None:
        """Touch the file; write it where something has changed. A full disk is no lost rank."""
        place = find_place(self._folder, self._beat.rank)
        try:
            if self._beat != self._written:
                beat = self._beat
                write_beat(self._folder, beat)
                self._written = beat
                return
        except OSError:
            self._written = None  # tried again with the next beat
        if place.exists():
            os.utime(place)

    def _see_to_end(self) -> None:
        """End an orphan that has nothing to save or can no longer come to it."""
        if self._beat.phase == STARTING:
            self._exit(
                Verdict(STOPPED, "the launcher is dead; nothing was trained since the last checkpoint")
            )
        lost: list[Lost] = []
        with suppress(OSError):  # a folder that is not there any more keeps no orphan alive
            lost = self._find_lost()
        if lost:
            self._give_up(lost)
        else:
            self._hopeless_since = None
        if time.monotonic() - max(self._moved, self._orphaned_since or 0) > self._timeout:
            self._exit(
                Verdict(LOST, f"the launcher is dead and this rank has stood {self._beat.place} for too long")
            )

    def _give_up(self, lost: list[Lost]) -> None:
        """Leave the main thread a moment to fail by itself, then end the process."""
        now = time.monotonic()
        self._hopeless_since = self._hopeless_since or now
        if now - self._hopeless_since > _GRACE_SECONDS:
            self._exit(Verdict(LOST, describe_lost(lost)))

    def _exit(self, verdict: Verdict) -> NoReturn:
        """End the process, whatever else fails: its main thread hangs, and would keep the card for ever."""
        try:
            with suppress(OSError):
                write_verdict(self._folder, verdict)
            with suppress(OSError):
                find_place(self._folder, self._beat.rank).unlink(missing_ok=True)
            sys.stderr.write(verdict.message + "\n")
            sys.stderr.flush()
        finally:
            os._exit(verdict.exit_code)


_SIGNS = ("gloo", "NCCL", "ncclRemoteError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""What errors of torch.distributed are known by."""
