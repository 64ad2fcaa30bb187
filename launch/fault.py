"""Faults on order: MASKWRIGHT_FAULT kills, stops or breaks a run at a named point, to see nothing lost.

`MASKWRIGHT_FAULT="rank=1,step=7,point=before_rename,action=kill"`; several faults are parted by `;`. Each
has a `point` (see POINTS) and an `action` (see ACTIONS); `rank` and `step` narrow it, `pass=N` waits for the
N-th time that the point is reached so, and `count=N` strikes at N passes and not at one. Without the
variable a point costs one comparison.
"""

import difflib
import errno
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TypeVar

from launch.verdict import REQUEST, RunError

VARIABLE = "MASKWRIGHT_FAULT"
POINTS = {
    "before_load": "a checkpoint was chosen and is not read yet",
    "before_step": "a step is next; its batch is there",
    "before_backward": "a micro-batch went forward",
    "before_sum": "all micro-batches of a rank went forward; the loss is not summed over ranks yet",
    "after_step": "the weights are updated; nothing is logged yet",
    "in_evaluation": "before an evaluation batch",
    "before_save": "a checkpoint is due; nothing is written yet",
    "after_shard_write": "a rank has written its part of a checkpoint",
    "before_manifest": "all parts are there, the manifest is not",
    "before_rename": "the folder is whole and flushed and has not its name yet",
    "after_rename": "the folder has its name; its parent is not flushed",
    "before_pointer": "the folder is committed, what names the newest is not changed yet",
    "during_rotate": "before a checkpoint that is no longer kept is removed",
}
ACTIONS = {
    "kill": "SIGKILL to this process",
    "stop": "SIGSTOP to this process: it hangs until SIGCONT",
    "raise": "an error that nobody expects",
    "enospc": "the error of a full disk",
    "nan": "the loss is not a number; before_backward its gradient is none either, before_sum it is",
    "spike": "spike:FACTOR multiplies the loss; before_backward its gradient too, before_sum not",
    "delay": "delay:SECONDS sleeps",
}
_SPOILED = ("before_backward", "before_sum")
"""The points that hand a number on."""
_KEYS = ("rank", "step", "point", "action", "pass", "count")
_Value = TypeVar("_Value")


class FaultError(Exception):
    """The error of the action `raise`; no code of the product knows it."""


@dataclass
class Fault:
    """One fault: where it strikes, and how often it has been reached.

    Attributes:
        amount: the seconds of a delay, the factor of a spike.
        first, count: it strikes at the passes first to first + count - 1, counted from 1.
        rank, step: None: any.
    """

    point: str
    action: str
    amount: float = 0.0
    rank: int | None = None
    step: int | None = None
    first: int = 1
    count: int = 1
    num_passes: int = 0

    def strikes(self, point: str, step: int | None, rank: int) -> bool:
        """Whether it strikes at this pass of a point, which is counted."""
        is_here = point == self.point and self.rank in (None, rank) and self.step in (None, step)
        self.num_passes += is_here
        return is_here and self.first <= self.num_passes < self.first + self.count


class _Place(threading.local):
    """Where a thread stands: a save in the background is of an earlier step than the loop's."""

    step: int = 0


_faults: list[Fault] | None = None
_place = _Place()


def arm(text: str | None = None) -> None:
    """Take the faults of a specification; None: of the variable, where an empty one is none.

    Raises:
        RunError: it is misspelt; says what there is.
    """
    global _faults
    text = os.environ.get(VARIABLE, "") if text is None else text
    _faults, _place.step = parse_faults(text) or None, 0


def check() -> None:
    """Look at the variable, for a process that starts others and has no points of its own.

    Raises:
        RunError: it is misspelt.
    """
    parse_faults(os.environ.get(VARIABLE, ""))


def parse_faults(text: str) -> list[Fault]:
    """The faults of a specification.

    Raises:
        RunError: with exit code 2 and what there is.
    """
    return [_parse_fault(part) for part in text.split(";") if part.strip()]


def at(point: str, *, step: int | None = None, rank: int | None = None) -> bool:
    """Pass a point; whether its value is to be poisoned (the actions `nan` and `spike`).

    Args:
        point: a name of POINTS.
        step: None: that of the point passed last by this thread.
        rank: None: that of the environment.
    """
    if _faults is None:
        return False
    return _pass(point, step, rank) != 1


def poison(point: str, value: _Value) -> _Value:
    """Pass a point with a number or tensor; not-a-number or another one of the kind if a fault says so."""
    factor = 1.0 if _faults is None else _pass(point, None, None)
    return value if factor == 1 else value * factor  # pyright: ignore[reportOperatorIssue, reportReturnType]


def enter_step(step: int) -> None:
    """Say of which step the points are that this thread passes from here on."""
    _place.step = step


def _pass(point: str, step: int | None, rank: int | None) -> float:
    """Pass a point; by what its value is multiplied."""
    assert _faults is not None
    _place.step = step = _place.step if step is None else step
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    struck = [fault for fault in _faults if fault.strikes(point, step, rank)]
    for fault in struck:
        _strike(fault, f"{point} of step {step}, rank {rank}")
    factors = {"nan": math.nan}
    return math.prod(
        fault.amount if fault.action == "spike" else factors.get(fault.action, 1.0) for fault in struck
    )


def _strike(fault: Fault, where: str) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "raise":
        raise FaultError(f"asked for by {VARIABLE} at {where}")
    elif fault.action == "enospc":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (asked for by {VARIABLE} at {where})")
    elif fault.action == "delay":
        time.sleep(fault.amount)


def _parse_fault(part: str) -> Fault:
    given: dict[str, str] = {}
    for item in part.split(","):
        key, equals, value = (text.strip() for text in item.partition("="))
        if not equals or key in given:
            raise _refuse(part, f"{item.strip()!r} is not one key=value")
        _choose(part, "key", key, _KEYS)
        given[key] = value
    for key, known in (("point", POINTS), ("action", ACTIONS)):
        if key not in given:
            raise _refuse(part, f"it names no {key}; known: {', '.join(known)}")
    action, colon, amount = given["action"].partition(":")
    _choose(part, "point", given["point"], tuple(POINTS))
    _choose(part, "action", action, tuple(ACTIONS))
    if (action in _MOST) != bool(colon):
        raise _refuse(part, "delay:SECONDS and spike:FACTOR take a number, and nothing else does")
    if action in ("nan", "spike") and given["point"] not in _SPOILED:
        raise _refuse(part, f"{action} is for point={' or point='.join(_SPOILED)}")
    numbers = {key: _read_number(part, key, given[key]) for key in _KEYS if key in given and key in _LEAST}
    return Fault(
        point=given["point"],
        action=action,
        amount=_read_amount(part, action, amount) if colon else 0.0,
        rank=numbers.get("rank"),
        step=numbers.get("step"),
        first=numbers.get("pass", 1),
        count=numbers.get("count", 1),
    )


_MOST = {"delay": 86_400, "spike": 1e30}
_LEAST = {"rank": 0, "step": 0, "pass": 1, "count": 1}


def _read_number(part: str, key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 19 and int(value) >= _LEAST[key]):
        raise _refuse(part, f"{key} is a whole number of at least {_LEAST[key]}, not {value!r}")
    return int(value)


def _read_amount(part: str, action: str, value: str) -> float:
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not 0 <= amount <= _MOST[action]:
        what = "seconds" if action == "delay" else "a factor"
        raise _refuse(part, f"{action} takes {what} from 0 to {_MOST[action]:g}, not {value!r}")
    return amount


def _choose(part: str, what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise _refuse(part, f"unknown {what} {given!r}{hint} Known: {', '.join(known)}")


def _refuse(part: str, reason: str) -> RunError:
    return RunError(REQUEST, f"{VARIABLE}: {part.strip()!r} cannot be used: {reason}")
