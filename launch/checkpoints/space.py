"""Free space: whether a save has room, looked at before the first byte of it is written."""

import shutil
from pathlib import Path

_MARGIN_RATE = 0.05
_MARGIN_BYTES = 1 << 20


def find_shortage(folder: Path, num_bytes: int) -> str | None:
    """What is wanted and what is there, where a save of so many bytes has no room; None: it has.

    Raises:
        OSError: the file system does not say.
    """
    wanted = round(num_bytes * (1 + _MARGIN_RATE)) + _MARGIN_BYTES
    free = shutil.disk_usage(folder).free
    if free >= wanted:
        return None
    return f"{wanted / 1e6:,.1f} MB are wanted and {free / 1e6:,.1f} MB are free in {folder}"
