"""How a run ended: the exit code and one line for a person, in a file of the run folder.

`accelerate launch` and torchrun turn every failure of a worker into 1; the file keeps the worker's own word.
"""

import errno
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.redaction import show

DONE, DEFECT, REQUEST, MACHINE, RESUME, DIVERGED, LOST, HELD, STOPPED = 0, 1, 2, 3, 4, 5, 6, 7, 143
"""LOST: a rank was killed or is not heard of. HELD: another run holds the folder; nothing was touched."""
_NAME = "verdict.json"
_RESERVE = ".reserve"
_RESERVE_BYTES = 1 << 16
"""Room of a run folder that is given up when the disk is full, so that a verdict can still be written."""
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
UNDER_RUN = "MASKWRIGHT_UNDER_RUN"
"""Set for trainers that `maskwright run` starts, to its process: it prints their verdict, they need not."""


@dataclass(frozen=True)
class Verdict:
    """An exit code (see the names above) and why, in one line."""

    exit_code: int
    message: str

    def __post_init__(self):
        object.__setattr__(self, "message", show(self.message))


class RunError(Exception):
    """A run cannot go on for a known reason; carries its verdict."""

    def __init__(self, exit_code: int, message: str):
        self.verdict = Verdict(exit_code, message)
        super().__init__(self.verdict.message)


def find_disk_failure(error: Exception) -> Verdict | None:
    """What an error means that comes of a full, a read-only or a broken disk; None: it is another.

    Saves have a say of their own in it (`checkpoint.on_failure`); this is for all other files.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK_ERRORS:
        return None
    file = f" ({error.filename})" if error.filename else ""
    return Verdict(
        MACHINE,
        f"{_find_act(error)} failed: {os.strerror(error.errno)}{file}; the last checkpoint is untouched. "
        "Make room, or see to the disk, and repeat the command",
    )


def _find_act(error: Exception) -> str:
    """The innermost public function of ours that an error came through: a write itself names no file."""
    name, trace = "a file operation", error.__traceback__
    while trace is not None:
        module, code = str(trace.tb_frame.f_globals.get("__name__")), trace.tb_frame.f_code
        if module.startswith(("launch.", "data_pipes.")) and not code.co_name.startswith(("_", "<")):
            name = f"{module}.{code.co_name}"
        trace = trace.tb_next
    return name


def make_folder(folder: Path) -> Path:
    """Make a run folder that can be written to.

    Raises:
        RunError: it cannot be made, or not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(
            MACHINE, f"the run folder {folder} cannot be used: {error}; name another --output"
        ) from error
    return folder


def reserve_room(folder: Path) -> None:
    """Keep room in a run folder that is held for the verdict of a run that ends on a full disk.

    Raises:
        RunError: there is none now.
    """
    try:
        if not (folder / _RESERVE).exists():
            (folder / _RESERVE).write_bytes(bytes(_RESERVE_BYTES))
    except OSError as error:
        raise RunError(MACHINE, f"the run folder {folder} cannot be used: {error}") from error


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Leave the verdict in a run folder. The first rank that fails is the one that knows why."""
    draft = folder / f".{_NAME}.{os.getpid()}"
    text = json.dumps(asdict(verdict)) + "\n"
    try:
        draft.write_text(text, encoding="utf-8")
    except OSError:
        (folder / _RESERVE).unlink(missing_ok=True)
        draft.write_text(text, encoding="utf-8")
    place = folder / _NAME
    try:
        os.link(draft, place)
    except FileExistsError:
        pass
    except OSError:  # exFAT, SMB and many FUSE mounts have no hard links, and each its own error for it
        with suppress(FileExistsError):
            place.open("x").close()  # whose name it is
            draft.replace(place)
    finally:
        draft.unlink(missing_ok=True)


def has_verdict(folder: Path) -> bool:
    """Whether a trainer has said how it ends."""
    try:
        return (folder / _NAME).stat().st_size > 0
    except FileNotFoundError:
        return False


def read_verdict(folder: Path) -> Verdict | None:
    """The verdict of the last run in a folder, if its trainer came to one."""
    try:
        text = (folder / _NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Verdict(**json.loads(text)) if text else None  # an empty one is just being written


def clear_verdict(folder: Path) -> None:
    """Forget an earlier run's verdict."""
    (folder / _NAME).unlink(missing_ok=True)
