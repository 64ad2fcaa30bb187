"""Exact duplicates among hundreds of millions of documents: a set of 64-bit hashes in bounded memory.

Hashes lie in sorted runs of doubling size, so that each is merged a logarithmic number of times. With a
folder, memory holds a limited number of them and files hold the rest. A Bloom filter of 1 to 2 bytes an entry
knows most of the hashes that are not in the set; runs are searched for the others only.

Shapes: Q hashes asked for, F words in the filter.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_pipes.duplication.runs import CHUNK, StoredRun, merge, merge_runs, open_run, search, write_run

# 64 MB of hashes, and three times as much while they are merged.
ENTRIES_IN_MEMORY = 1 << 23
# Four bits for each entry in one word: of hashes that are not there 3 % pass at 8 bits an entry (measured).
BITS_PER_ENTRY = 8
BIT_SHIFTS = (32, 38, 44, 50)
ONE, SIX_BITS = np.uint64(1), np.uint64(63)
Arrays = dict[str, np.ndarray]


class BlockedFilter:
    """A Bloom filter with all bits of a hash in one 64-bit word (Putze, Sanders and Singler 2007)."""

    def __init__(self, num_entries: int):
        num_words = 1 << max(10, (num_entries * BITS_PER_ENTRY // 64 - 1).bit_length())
        self.capacity = num_words * 64 // BITS_PER_ENTRY
        self._words = np.zeros(num_words, np.uint64)

    def add(self, hashes: np.ndarray) -> None:
        """Add hashes, uint64 [Q]."""
        # In chunks: what is worked out on the way takes five times the hashes.
        for at in range(0, len(hashes), CHUNK):
            chunk = hashes[at : at + CHUNK]
            np.bitwise_or.at(self._words, self._find_words(chunk), _choose_bits(chunk))

    def may_contain(self, hashes: np.ndarray) -> np.ndarray:
        """False where a hash has certainly not been added, bool [Q]."""
        bits = _choose_bits(hashes)
        return (self._words[self._find_words(hashes)] & bits) == bits

    def _find_words(self, hashes: np.ndarray) -> np.ndarray:
        # The low bits: the high ones decide the split, so they are alike within one.
        return (hashes & np.uint64(len(self._words) - 1)).astype(np.intp)


def _choose_bits(hashes: np.ndarray) -> np.ndarray:
    bits = np.zeros(len(hashes), np.uint64)
    for shift in BIT_SHIFTS:
        bits |= ONE << ((hashes >> np.uint64(shift)) & SIX_BITS)
    return bits


class HashSet:
    """A set of 64-bit hashes, 9 to 10 bytes each; with a folder 1 to 2 bytes each, and 8 in files.

    Args:
        folder: made if it is not there; nobody else may write to it. None: all stays in memory.
        entries_in_memory: more of them go to files; without a folder it says nothing.
    """

    def __init__(self, folder: Path | str | None = None, entries_in_memory: int = ENTRIES_IN_MEMORY):
        self._folder = None if folder is None else Path(folder)
        self._entries_in_memory = entries_in_memory
        self._filter = BlockedFilter(0)
        self._runs: list[np.ndarray] = []
        self._stored: list[StoredRun] = []
        self._num_files = 0
        # Files of the last two saved states: the later one may not have reached its reader.
        self._saved: tuple[set[str], set[str]] = (set(), set())
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def num_entries(self) -> int:
        """How many hashes are in the set."""
        return self._count_in_memory() + sum(run.num_entries for run in self._stored)

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the hashes (uint64 [Q]) are in the set, bool [Q]."""
        found = np.zeros(len(hashes), bool)
        asked = np.flatnonzero(self._filter.may_contain(hashes))
        asked = asked[np.argsort(hashes[asked])]
        for run in [*self._runs, *self._stored]:
            if len(asked) == 0:
                break
            here = hashes[asked]
            is_here = run.contains(here) if isinstance(run, StoredRun) else search(run, here)
            found[asked[is_here]] = True
            asked = asked[~is_here]
        return found

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add hashes (uint64 [Q]); true where one was neither in the set nor earlier among them, bool [Q]."""
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        is_first = np.ones(len(ordered), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
        candidates = ordered[is_first]
        is_unknown = ~self.contains(candidates)
        is_new = np.zeros(len(hashes), bool)
        is_new[order[is_first][is_unknown]] = True
        if is_unknown.any():
            self._insert(candidates[is_unknown])
        return is_new

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Plain data and arrays that `restore` takes; with a folder the hashes go to files, not to arrays.

        Call it only after the state before has been kept: files that only older states name are deleted.
        """
        if self._folder is None:
            return {}, {"entries": np.concatenate([np.zeros(0, np.uint64), *self._runs])}
        self._spill()
        for run in self._stored:
            run.sync()
        self._saved = (self._saved[1], {run.path.name for run in self._stored})
        self._delete_unnamed()
        return {"runs": [run.describe() for run in self._stored], "num_files": self._num_files}, {}

    def restore(self, plain: dict[str, Any], arrays: Arrays) -> None:
        """Go back to a saved state; what was added later is forgotten, its files are deleted.

        Raises:
            RunError: a file is missing or damaged.
        """
        self._runs, self._stored = [], []
        if self._folder is None:
            self._filter = BlockedFilter(len(arrays["entries"]))
            self.add(arrays["entries"])
            return
        self._filter = BlockedFilter(sum(described["num_entries"] for described in plain["runs"]))
        self._stored = [open_run(self._folder, described, self._filter.add) for described in plain["runs"]]
        self._num_files = plain["num_files"]
        self._saved = (set(), {run.path.name for run in self._stored})
        self._delete_unnamed()

    def _count_in_memory(self) -> int:
        return sum(len(run) for run in self._runs)

    def _insert(self, run: np.ndarray) -> None:
        if self.num_entries + len(run) > self._filter.capacity:
            # The old one goes first: both at once would be the peak of the memory.
            self._filter = BlockedFilter(0)
            self._filter = BlockedFilter(self.num_entries + len(run))
            for entries in chain(self._runs, *(stored.read_chunks() for stored in self._stored)):
                self._filter.add(entries)
        self._filter.add(run)
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = merge(self._runs.pop(), run)
        self._runs.append(run)
        if self._folder is not None and self._count_in_memory() > self._entries_in_memory:
            self._spill()

    def _spill(self) -> None:
        """Move all hashes from memory to a file, and merge files that have become alike in size."""
        if not self._runs:
            return
        run = self._runs.pop()
        while self._runs:
            run = merge(self._runs.pop(), run)
        self._stored.append(write_run(self._name_file(), [run]))
        while len(self._stored) > 1 and self._stored[-2].num_entries <= 2 * self._stored[-1].num_entries:
            second, first = self._stored.pop(), self._stored.pop()
            self._stored.append(merge_runs(self._name_file(), first, second))
        self._delete_unnamed()

    def _name_file(self) -> Path:
        assert self._folder is not None
        self._num_files += 1
        return self._folder / f"run-{self._num_files:06}.u64"

    def _delete_unnamed(self) -> None:
        assert self._folder is not None
        named = {run.path.name for run in self._stored}.union(*self._saved)
        for path in self._folder.glob("run-*.u64"):
            if path.name not in named:
                path.unlink()
