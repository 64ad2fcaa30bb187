"""The lock of a run folder: one run at a time, held by the kernel for as long as one of its writers lives.

`RUN/.lock` is held shared by `maskwright run` and by rank 0 of its trainers, each for itself: a trainer
that outlives its launcher still holds it. A newcomer wants it exclusive for a moment, and so finds it held
while any of them lives. What stands in the file says who they are; a file alone holds nothing.
"""

import atexit
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from launch.process import Process
from launch.verdict import HELD, MACHINE, RunError

NAME = ".lock"
NO_LOCK = "MASKWRIGHT_NO_LOCK"
"""Set to 1 (`--no-lock`) it takes no lock: for file systems that have none."""
_PATIENCE_SECONDS = 600.0
_LOOK_SECONDS = 0.5
"""How long a lock may be in the hands of those who only look; they have it for microseconds."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """One of those who hold a folder.

    Attributes:
        role: `maskwright run`, or a trainer.
        started: when it took the lock.
    """

    role: Literal["run", "trainer"]
    process: Process
    started: str

    def __str__(self) -> str:
        return f"{self.role} {self.process.pid} on {self.process.host}, since {self.started}"


@dataclass(frozen=True)
class Content:
    """What stands in a lock file.

    Attributes:
        token: the same for all processes of one run.
        holders: those who took it and have not given it back.
    """

    token: str = ""
    holders: tuple[Holder, ...] = ()

    def living(self) -> list[Holder]:
        """Those that may still be writers: of another machine nothing else is known."""
        return [one for one in self.holders if not one.process.is_local or one.process.is_alive]


@contextmanager
def hold(folder: Path, token: str, role: Literal["run", "trainer"] = "run") -> Iterator[Holder | None]:
    """Hold a folder; gives the holder that died without giving it back, if there was one.

    Raises:
        RunError: it is held (HELD), or its file system has no locks (MACHINE).
    """
    if has_no_lock():
        yield None
        return
    descriptor = _open(folder)
    try:
        left = _take(descriptor, folder, token, role)
        try:
            yield left
        finally:
            # The kernel gives the lock back below; how the run went is not lost for words in its file.
            with suppress(OSError):
                _write(descriptor, Content())
    finally:
        os.close(descriptor)


def hold_as_trainer(
    folder: Path, rank: int, *, is_first_machine: bool, token: str, is_under_run: bool
) -> None:
    """Hold a folder until this process ends, as one rank of a run.

    Rank 0 takes the lock, or joins that of the `maskwright run` which started it. The others of its machine
    wait until it has, so that ranks of a refused run write nothing; other machines look at no lock.

    Raises:
        RunError: another run holds it, or the file system has no locks.
    """
    if has_no_lock() or not is_first_machine:
        return
    if rank == 0:
        descriptor = _open(folder)  # closed by the kernel with this process
        if is_under_run:
            _join(descriptor, folder, token)
        else:
            left = _take(descriptor, folder, token, "trainer")
            atexit.register(_write, descriptor, Content())
            if left is not None:
                _LOG.info("the lock of %s was left behind by %s", folder, left)
    else:
        _await(folder, token)


def find_holders(folder: Path) -> list[Holder]:
    """Those who hold a folder now; none: it is free."""
    if has_no_lock() or not (folder / NAME).exists():
        return []
    descriptor = _open(folder)
    try:
        if _lock(descriptor, fcntl.LOCK_EX):
            return []
        content = _read(descriptor)
        return content.living() or list(content.holders)
    finally:
        os.close(descriptor)


def read_content(folder: Path) -> Content:
    """What stands in the lock file of a folder; the lock is not touched, and no run is refused for it."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return Content()
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def refuse_held(folder: Path) -> None:
    """Stop early where somebody holds a folder, before data is prepared for nothing.

    Raises:
        RunError: it is held. A further machine of the same run is not refused.
    """
    if os.environ.get("NODE_RANK", "0") != "0":
        return
    holders = find_holders(folder)
    if holders:
        raise _refusal(folder, holders)


def has_no_lock() -> bool:
    """Whether the user has said to take no lock."""
    return os.environ.get(NO_LOCK, "") not in ("", "0")


def _open(folder: Path) -> int:
    try:
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            MACHINE, f"the run folder {folder} cannot be locked: {error}; name another --output"
        ) from error


def _lock(descriptor: int, kind: int) -> bool:
    """Take a lock at once; False: somebody else holds it.

    Raises:
        RunError: there are no locks here.
    """
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(
            MACHINE,
            f"the file system of the run folder has no locks ({error}), so a second run could not be "
            "refused; name an --output on another one, or give --no-lock and see to it yourself",
        ) from error
    return True


def _lock_soon(descriptor: int, kind: int) -> bool:
    """Take a lock; False: somebody else holds it, and does not only look at it."""
    end = time.monotonic() + _LOOK_SECONDS
    while not (is_taken := _lock(descriptor, kind)) and time.monotonic() < end:
        time.sleep(0.02)
    return is_taken


def _take(descriptor: int, folder: Path, token: str, role: Literal["run", "trainer"]) -> Holder | None:
    """Take a free lock; who left it behind, if somebody did."""
    if not _lock_soon(descriptor, fcntl.LOCK_EX):
        raise _held(descriptor, folder)
    before = _read(descriptor)
    _write(descriptor, Content(token, (_myself(role),)))
    # The change from exclusive to shared is no single act: another may come in between.
    if not _lock_soon(descriptor, fcntl.LOCK_SH) or _read(descriptor).token != token:
        raise _held(descriptor, folder)
    return before.holders[-1] if before.holders else None


def _join(descriptor: int, folder: Path, token: str) -> None:
    """Share the lock of one's own launcher. Had it died, another run may have the folder by now."""
    if not _lock(descriptor, fcntl.LOCK_SH):
        raise _held(descriptor, folder)
    content = _read(descriptor)
    if content.token != token:
        raise _held(descriptor, folder)
    _write(descriptor, Content(token, (*content.holders, _myself("trainer"))))


def _await(folder: Path, token: str) -> None:
    """Wait until rank 0 of one's own run holds the folder."""
    end = time.monotonic() + _PATIENCE_SECONDS
    descriptor = _open(folder)
    try:
        while True:
            content = _read(descriptor)
            if content.token == token and content.living():
                return
            if time.monotonic() > end:
                raise _held(descriptor, folder)
            time.sleep(0.05)
    finally:
        os.close(descriptor)


def _held(descriptor: int, folder: Path) -> RunError:
    content = _read(descriptor)
    return _refusal(folder, content.living() or list(content.holders))


def _refusal(folder: Path, holders: Sequence[Holder]) -> RunError:
    who = f"another run ({'; '.join(map(str, holders))})" if holders else "another run"
    return RunError(
        HELD, f"{folder} is held by {who}; wait for it, stop it with SIGTERM, or name another --output"
    )


def _myself(role: Literal["run", "trainer"]) -> Holder:
    now = datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
    return Holder(role, Process.of(os.getpid()), now)


def _write(descriptor: int, content: Content) -> None:
    """Write in place: a new file would be another lock."""
    rows = [
        {"role": one.role, "process": str(one.process), "started": one.started} for one in content.holders
    ]
    text = json.dumps({"token": content.token, "holders": rows}) + "\n" if content.holders else ""
    os.pwrite(descriptor, text.encode(), 0)
    os.ftruncate(descriptor, len(text.encode()))  # second, so that a reader never finds it empty by chance


def _read(descriptor: int) -> Content:
    """What stands in the file; one that is just being written is read again."""
    for _ in range(20):
        text = os.pread(descriptor, 1 << 16, 0).decode("utf-8", "replace")
        try:
            found: dict[str, Any] = json.loads(text)
            rows = [(row["role"], Process.parse(row["process"]), row["started"]) for row in found["holders"]]
        except (ValueError, KeyError, TypeError):
            if not text:
                return Content()
            time.sleep(0.01)
            continue
        return Content(
            found["token"], tuple(Holder(role, process, when) for role, process, when in rows if process)
        )
    return Content()
