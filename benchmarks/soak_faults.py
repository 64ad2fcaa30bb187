"""The faults of a soak: what is done to a run, and how it may end of it."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from launch.checkpoints.manifest import find_checkpoints, find_damage
from launch.checkpoints.removal import MANIFEST
from launch.liveness import FOLDER
from launch.process import Process

_RANDOM_POINTS = ("before_step", "before_backward", "after_step")
_SAVE_POINTS = (
    "before_save", "after_shard_write", "before_manifest", "before_rename", "after_rename", "before_pointer",
    "during_rotate",
)  # fmt: skip


@dataclass(frozen=True)
class Situation:
    """Where a run stands.

    Attributes:
        step: of its newest whole checkpoint.
        room: how many steps on a fault may strike.
    """

    folder: Path
    step: int
    num_steps: int
    room: int
    draw: random.Random

    def draw_step(self) -> int:
        """A step to strike at."""
        return self.step + self.draw.randint(1, self.room)

    def next_due(self, every: int) -> int:
        """A step that is a multiple of `every`."""
        step = self.draw_step()
        return min(max(every, -(-step // every) * every), self.num_steps)

    def ranks(self) -> dict[Process, int]:
        """The ranks that live, with the step that each is at (its file is written once a second)."""
        found = {}
        for place in sorted((self.folder / FOLDER).glob("[0-9]*.json")):
            try:
                values = json.loads(place.read_text(encoding="utf-8"))
                process = Process.parse(values["process"])
            except (OSError, ValueError, KeyError):
                continue
            if process is not None and process.is_alive:
                found[process] = values["step"]
        return found

    def send_to_rank(self, which: int, number: int) -> None:
        """Send a signal to a rank; to none where the run has just ended."""
        ranks = list(self.ranks())
        if ranks:
            ranks[which % len(ranks)].send(number)


def _nothing(_: Situation, __: "subprocess.Popen[bytes]") -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: for the record.
        exit_codes: how the run may end.
        specification: for MASKWRIGHT_FAULT.
        settings: of this start only; of those that may change freely.
        act: what is done from outside while the run runs.
    """

    name: str
    exit_codes: frozenset[int]
    specification: str = ""
    settings: tuple[str, ...] = ()
    act: Callable[[Situation, "subprocess.Popen[bytes]"], None] = field(default=_nothing)


def _kill_in_step(at: Situation) -> Fault:
    point, step, rank = at.draw.choice(_RANDOM_POINTS), at.draw_step(), at.draw.randint(0, 1)
    text = f"point={point},action=kill,step={step},rank={rank}"
    return Fault(f"SIGKILL to rank {rank}, {point}", frozenset({6}), text)


def _kill_in_save(at: Situation) -> Fault:
    """At a point of one of the next saves."""
    point = at.draw.choice(_SAVE_POINTS)
    times = at.draw.randint(1, max(1, at.room // 40))
    return Fault(
        f"SIGKILL to rank 0, {point}", frozenset({6}), f"point={point},action=kill,rank=0,pass={times}"
    )


def _kill_in_evaluation(at: Situation) -> Fault:
    rank = at.draw.randint(0, 1)
    number = at.draw.randint(2, 12)
    text = f"point=in_evaluation,action=kill,rank={rank},pass={number}"
    return Fault(f"SIGKILL to rank {rank}, in_evaluation", frozenset({6}), text)


def _kill_in_load(at: Situation) -> Fault:
    if at.step == 0:
        return _kill_in_step(at)
    return Fault("SIGKILL to rank 1, before_load", frozenset({6}), "point=before_load,action=kill,rank=1")


def _raise(at: Situation) -> Fault:
    return Fault(
        "an error nobody expects, after_step",
        frozenset({1}),
        f"point=after_step,action=raise,step={at.draw_step()}",
    )


def _fill_disk(at: Situation) -> Fault:
    """The disk is full at one save; the run stops, or goes on and meets a kill later."""
    point = at.draw.choice(("after_shard_write", "before_manifest", "before_rename"))
    full = f"point={point},action=enospc,rank=0"
    if at.draw.random() < 0.5:
        return Fault(f"full disk, {point}; it stops", frozenset({3}), full, ("checkpoint.on_failure=stop",))
    kill = f"point=before_step,action=kill,step={at.draw_step()},rank=0"
    return Fault(
        f"full disk, {point}; later SIGKILL",
        frozenset({6}),
        f"{full};{kill}",
        ("checkpoint.on_failure=go_on",),
    )


def _wait_for_step(at: Situation, process: "subprocess.Popen[bytes]", step: int) -> bool:
    """Whether the run came to a step; False: it ended before."""
    while process.poll() is None:
        if any(reached >= step for reached in at.ranks().values()):
            return True
        time.sleep(0.05)
    return False


def _signal_run(at: Situation) -> Fault:
    number = at.draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    times, step = at.draw.randint(1, 2), at.draw_step()

    def act(at: Situation, process: "subprocess.Popen[bytes]") -> None:
        if _wait_for_step(at, process, step):
            for _ in range(times):
                process.send_signal(number)
                time.sleep(0.05)

    name = f"{number.name} to the run" + (", twice" if times > 1 else "")
    return Fault(name, frozenset({143}), act=act)


def _signal_rank(at: Situation) -> Fault:
    number, which = at.draw.choice((signal.SIGTERM, signal.SIGUSR1)), at.draw.randint(0, 1)
    step = at.draw_step()

    def act(at: Situation, process: "subprocess.Popen[bytes]") -> None:
        if _wait_for_step(at, process, step):
            at.send_to_rank(which, number)

    return Fault(f"{number.name} to rank {which}", frozenset({143}), act=act)


def _kill_launcher(at: Situation) -> Fault:
    step = at.draw_step()

    def act(at: Situation, process: "subprocess.Popen[bytes]") -> None:
        if _wait_for_step(at, process, step):
            process.kill()

    return Fault("SIGKILL to maskwright run", frozenset({-9}), act=act)


def _kill_all(at: Situation) -> Fault:
    """As when the machine loses its power."""
    step = at.draw_step()

    def act(at: Situation, process: "subprocess.Popen[bytes]") -> None:
        if _wait_for_step(at, process, step):
            for rank in at.ranks():
                rank.send(signal.SIGKILL)
            process.kill()

    return Fault("SIGKILL to all at once", frozenset({-9}), act=act)


def _stop_rank(at: Situation) -> Fault:
    which, step = at.draw.randint(0, 1), at.draw_step()

    def act(at: Situation, process: "subprocess.Popen[bytes]") -> None:
        if _wait_for_step(at, process, step):
            at.send_to_rank(which, signal.SIGSTOP)

    return Fault(f"SIGSTOP to rank {which}", frozenset({6}), act=act)


KINDS: dict[str, Callable[[Situation], Fault]] = {
    "kill in a step": _kill_in_step,
    "kill in a save": _kill_in_save,
    "kill in an evaluation": _kill_in_evaluation,
    "kill in a load": _kill_in_load,
    "error": _raise,
    "full disk": _fill_disk,
    "signal to the run": _signal_run,
    "signal to a rank": _signal_rank,
    "kill of the launcher": _kill_launcher,
    "kill of all": _kill_all,
    "stopped rank": _stop_rank,
}


def damage_newest(at: Situation) -> str | None:
    """Damage the newest checkpoint where an older one is whole; what was done."""
    whole = [place for place in find_checkpoints(at.folder) if find_damage(place) is None]
    if len(whole) < 2:
        return None
    names = sorted(
        str(path.relative_to(whole[0]))
        for path in whole[0].rglob("*")
        if path.is_file() and path.name != MANIFEST and path.stat().st_size > 16
    )
    name = at.draw.choice(names)
    path = whole[0] / name
    size = path.stat().st_size
    way = at.draw.choice(("truncated", "with a flipped byte", "with a hole", "removed", "without a manifest"))
    if way == "truncated":
        with path.open("r+b") as file:
            file.truncate(size // 2)
    elif way == "with a flipped byte":
        with path.open("r+b") as file:
            place = at.draw.randrange(size)
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    elif way == "with a hole":
        with path.open("r+b") as file:
            file.seek(size // 4)
            file.write(bytes(size // 4))
    elif way == "removed":
        path.unlink()
    else:
        (whole[0] / MANIFEST).write_text("", encoding="utf-8")
        name = "it"
    return f"{whole[0].name}: {name} {way}"
