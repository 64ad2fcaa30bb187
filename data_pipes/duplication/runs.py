"""Runs: sorted 64-bit hashes, in memory or in a file of which only single blocks are read.

Files are read, not mapped: the kernel maps up to 2 MB for one hash looked up, and all of that would count as
resident.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ENTRY_BYTES = 8
# Entries in a block: a page of 4 KB. The first entry of each is in memory, 0.2 % of the run.
BLOCK = 512
# Entries handled at once where a run goes through memory: 2 MB, and some times that for what is worked out.
CHUNK = 1 << 18
EMPTY = np.zeros(0, np.uint64)


class RunError(ValueError):
    """A file of hashes is not as it was written."""


@dataclass
class StoredRun:
    """A sorted run in a file.

    Attributes:
        path: the file, little-endian uint64.
        num_entries: how many.
        checksum: their sum, modulo 2^64.
        fences: the first entry of each block.
        is_synced: whether the file has reached the disk.
    """

    path: Path
    num_entries: int
    checksum: int
    fences: np.ndarray
    is_synced: bool = False

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the sorted hashes are in the run, bool."""
        found = np.zeros(len(hashes), bool)
        blocks = np.searchsorted(self.fences, hashes, side="right") - 1
        bounds = np.flatnonzero(np.diff(blocks, prepend=-2, append=-2))
        with self.path.open("rb", buffering=0) as file:
            for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                if blocks[start] >= 0:
                    place = int(blocks[start]) * BLOCK * ENTRY_BYTES
                    entries = np.frombuffer(os.pread(file.fileno(), BLOCK * ENTRY_BYTES, place), "<u8")
                    found[start:end] = search(entries, hashes[start:end])
        return found

    def read_chunks(self) -> Iterator[np.ndarray]:
        """All entries in order, a few megabytes at a time."""
        with self.path.open("rb") as file:
            for _ in range(0, self.num_entries, CHUNK):
                yield np.fromfile(file, "<u8", CHUNK)

    def sync(self) -> None:
        """See to it that the file survives a power cut."""
        if not self.is_synced:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            self.is_synced = True

    def describe(self) -> dict[str, int | str]:
        """Plain data that `open_run` takes."""
        return {"file": self.path.name, "num_entries": self.num_entries, "checksum": self.checksum}


def open_run(folder: Path, described: dict, visit: Callable[[np.ndarray], None]) -> StoredRun:
    """Open a run that was written earlier; all its entries are shown to `visit`.

    Raises:
        RunError: its file is missing or not as it was written.
    """
    path = folder / described["file"]
    wanted = described["num_entries"] * ENTRY_BYTES
    found = path.stat().st_size if path.is_file() else None
    if found != wanted:
        state = "is missing" if found is None else f"has {found} bytes"
        raise RunError(f"{path} {state}, wanted {wanted} bytes: {_advise(folder)}")
    run = StoredRun(path, described["num_entries"], described["checksum"], EMPTY, is_synced=True)
    checksum, fences = 0, []
    for chunk in run.read_chunks():
        visit(chunk)
        fences.append(chunk[::BLOCK].copy())
        checksum += _add_up(chunk)
    if checksum % 2**64 != run.checksum:
        raise RunError(f"{path} has changed since it was written: {_advise(folder)}")
    run.fences = np.concatenate([EMPTY, *fences])
    return run


def _advise(folder: Path) -> str:
    return f"delete the folder {folder} and what was saved with it, then start again"


def _add_up(entries: np.ndarray) -> int:
    return int(entries.sum(dtype=np.uint64))


def write_run(path: Path, chunks: Iterable[np.ndarray]) -> StoredRun:
    """Write sorted hashes to a file."""
    num_entries, checksum, fences = 0, 0, []
    with path.open("wb") as file:
        for chunk in chunks:
            chunk.astype("<u8", copy=False).tofile(file)
            fences.append(chunk[-num_entries % BLOCK :: BLOCK].copy())
            num_entries += len(chunk)
            checksum += _add_up(chunk)
    return StoredRun(path, num_entries, checksum % 2**64, np.concatenate([EMPTY, *fences]))


def merge_runs(path: Path, first: StoredRun, second: StoredRun) -> StoredRun:
    """Merge two runs into a new file, a few megabytes at a time."""
    return write_run(path, _merge_chunks(first.read_chunks(), second.read_chunks()))


def _merge_chunks(first: Iterator[np.ndarray], second: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    rest = EMPTY
    for chunk in first:
        # All entries of the second that belong before the chunk's last one.
        while len(rest) == 0 or rest[-1] < chunk[-1]:
            following = next(second, EMPTY)
            if len(following) == 0:
                break
            rest = np.concatenate((rest, following))
        end = int(np.searchsorted(rest, chunk[-1]))
        yield merge(chunk, rest[:end])
        rest = rest[end:]
    yield rest
    yield from second


def merge(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge two sorted arrays."""
    # The stable sort of numpy finds the two runs and merges them: 4.5 ns an entry, 7 by the default one.
    return np.sort(np.concatenate((first, second)), kind="stable")


def search(entries: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Which of the hashes are among the sorted entries, bool."""
    places = np.searchsorted(entries, hashes)
    return entries[np.minimum(places, len(entries) - 1)] == hashes
