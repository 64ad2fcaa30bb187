"""Agreement between ranks: what one of them decides or meets, all of them know.

A rank that gave up alone would leave the others waiting for it in their next exchange.
"""

import os
import secrets
import time
from pathlib import Path
from typing import TypeVar

from torch import distributed

from launch.verdict import MACHINE, RunError

_NONCE_SECONDS = 15.0
"""A file may take so long to be seen on another machine of a network file system."""
_Value = TypeVar("_Value")


def share(value: _Value) -> _Value:
    """Rank 0's value, on every rank. All ranks call it."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: _Value) -> list[_Value]:
    """The values of all ranks by rank, on every rank. All ranks call it."""
    if not distributed.is_initialized():
        return [value]
    found: list[_Value] = [value] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def find_error(errors: list[str | None]) -> str | None:
    """What the first rank that failed says, with its number where there are several; None: none did."""
    for rank, error in enumerate(errors):
        if error is not None:
            return f"rank {rank}: {error}" if len(errors) > 1 else error
    return None


def check_folder(folder: Path, seconds: float = _NONCE_SECONDS) -> None:
    """See that all ranks write into the same run folder. All ranks call it.

    Raises:
        RunError: on every rank, if one does not see what rank 0 writes.
    """
    name = share(f".meeting-{secrets.token_hex(8)}")
    is_first = not distributed.is_initialized() or distributed.get_rank() == 0
    try:
        if is_first:
            (folder / name).touch()
        share(None)  # it is there from here on
        blind = [rank for rank, sees in enumerate(gather(_await(folder / name, seconds))) if not sees]
    finally:
        if is_first:
            (folder / name).unlink(missing_ok=True)
    if blind:
        ranks = ", ".join(map(str, blind))
        raise RunError(
            MACHINE,
            f"rank {ranks} does not see the run folder that rank 0 writes ({folder}): checkpoints would be "
            "torn apart; give all machines the same --output on a file system that they share",
        )


def _await(place: Path, seconds: float) -> bool:
    """Whether a file appears; a listing makes a network file system look again."""
    end = time.monotonic() + seconds
    while not place.exists():
        if time.monotonic() > end:
            return False
        if place.parent.is_dir():
            os.listdir(place.parent)  # noqa: PTH208 - what it finds does not matter
        time.sleep(0.1)
    return True
