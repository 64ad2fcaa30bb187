"""An index of MinHash signatures: which ones agree in at least a given share of their places.

Signatures are cut into bands (locality-sensitive hashing, Indyk and Motwani 1998): only those that agree in a
whole band are compared place by place.

Shapes: D new documents, S stored signatures, P permutations, B bands, C pairs to compare.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from data_pipes.duplication.hashes import GOLDEN_GAMMA, mix_bits

# Pairs compared at once: 2 x 32 MB of signatures at 128 permutations.
PAIRS_AT_ONCE = 1 << 16
ROWS_AT_ONCE = 1 << 14
# Of pairs at the threshold so many meet in a band.
RECALL = 0.99
VALUE_BYTES = 4


class SignatureError(ValueError):
    """Stored signatures are not as they were saved, or belong to other settings."""


def choose_bands(threshold: float, num_permutations: int) -> int:
    """The least number of bands in which pairs at the threshold meet with a chance of RECALL."""
    for rows in range(num_permutations, 1, -1):
        bands = num_permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands
    return num_permutations


class SignatureIndex:
    """Signatures, none of which is near an earlier one.

    Args:
        threshold: share of equal places from which on two are near.
        num_permutations: P.
        num_bands: B.
        path: a file for the signatures; None keeps them in memory.
    """

    def __init__(self, threshold: float, num_permutations: int, num_bands: int, path: Path | None = None):
        self._least_equal = int(np.ceil(threshold * num_permutations - 1e-9))
        self._num_permutations, self._num_bands = num_permutations, num_bands
        self._path = path
        self._memory = np.zeros((0, num_permutations), np.uint32)
        self._num_signatures, self._checksum = 0, 0
        # Sorted keys of bands with the rows that they belong to; sizes double.
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def contains(self, signatures: np.ndarray) -> np.ndarray:
        """Which signatures (uint32 [D, P]) are near a stored one, bool [D]."""
        return self._find_near(signatures, self._find_keys(signatures))

    def add(self, signatures: np.ndarray) -> np.ndarray:
        """Store the signatures that are near no earlier one, these included; true for the rest, bool [D]."""
        keys = self._find_keys(signatures)
        is_near = self._find_near(signatures, keys)
        self._find_near_each_other(signatures, keys, is_near)
        if not is_near.all():
            self._append(signatures[~is_near])
            self._insert(keys[~is_near])
        return is_near

    def state(self) -> tuple[dict[str, Any], np.ndarray | None]:
        """Plain data, and the signatures unless they are in a file."""
        plain = {"num_signatures": self._num_signatures, "checksum": self._checksum}
        if self._path is None:
            return plain, self._memory[: self._num_signatures].copy()
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())
        return plain, None

    def restore(self, plain: dict[str, Any], signatures: np.ndarray | None, is_same: bool) -> None:
        """Go back to a saved state.

        Args:
            plain: of `state`.
            signatures: of `state`.
            is_same: whether it was saved with the settings of this index.

        Raises:
            SignatureError: it was not, or the signatures are missing or damaged.
        """
        if not is_same:
            raise SignatureError(
                "the saved signatures were made with other settings of near-duplicates or another version of "
                "the MinHash library: delete what was saved, then start again"
            )
        self._runs, self._num_signatures, self._checksum = [], plain["num_signatures"], plain["checksum"]
        self._memory = self._memory[:0] if signatures is None else signatures
        if self._path is not None:
            wanted = self._num_signatures * self._num_permutations * VALUE_BYTES
            if self._path.stat().st_size < wanted:
                raise SignatureError(
                    f"{self._path} has {self._path.stat().st_size} bytes, wanted {wanted}: delete the folder "
                    f"{self._path.parent} and what was saved with it, then start again"
                )
        self._rebuild()

    def _rebuild(self) -> None:
        stored, checksum = self._open(), 0
        end, self._num_signatures = self._num_signatures, 0
        for at in range(0, end, ROWS_AT_ONCE):
            rows = np.asarray(stored[at : at + ROWS_AT_ONCE])
            checksum += int(rows.sum(dtype=np.uint64))
            self._num_signatures += len(rows)
            self._insert(self._find_keys(rows))
        if checksum % 2**64 != self._checksum:
            raise SignatureError(
                f"{self._path or 'the saved signatures'} changed after saving: delete what was saved, "
                "then start again"
            )

    def _open(self) -> np.ndarray:
        """The stored signatures, uint32 [S, P]."""
        if self._path is None or self._num_signatures == 0:
            return self._memory[: self._num_signatures]
        return np.memmap(self._path, "<u4", "r", shape=(self._num_signatures, self._num_permutations))

    def _append(self, signatures: np.ndarray) -> None:
        start, end = self._num_signatures, self._num_signatures + len(signatures)
        if self._path is not None:
            # Written at its place: there and behind it may lie what a build that died has added.
            with self._path.open("rb+") as file:
                file.seek(start * self._num_permutations * VALUE_BYTES)
                signatures.astype("<u4", copy=False).tofile(file)
        else:
            if end > len(self._memory):
                grown = np.zeros((max(end, 2 * len(self._memory)), self._num_permutations), np.uint32)
                grown[:start] = self._memory[:start]
                self._memory = grown
            self._memory[start:end] = signatures
        self._num_signatures = end
        self._checksum = (self._checksum + int(signatures.sum(dtype=np.uint64))) % 2**64

    def _find_keys(self, signatures: np.ndarray) -> np.ndarray:
        """A hash of each band, uint64 [D, B]."""
        width = self._num_permutations // self._num_bands
        used = signatures[:, : width * self._num_bands].reshape(-1, self._num_bands, width)
        factors = mix_bits(np.arange(width, dtype=np.uint64)) | np.uint64(1)
        totals = (used.astype(np.uint64) * factors).sum(axis=2, dtype=np.uint64)
        return mix_bits(totals ^ (np.arange(self._num_bands, dtype=np.uint64) * GOLDEN_GAMMA))

    def _insert(self, keys: np.ndarray) -> None:
        """Index the last rows by their keys."""
        first = self._num_signatures - len(keys)
        rows = np.repeat(np.arange(first, self._num_signatures, dtype=np.uint32), self._num_bands)
        flat = keys.ravel()
        while True:
            order = np.argsort(flat, kind="stable")
            flat, rows = flat[order], rows[order]
            if not self._runs or len(self._runs[-1][0]) > 2 * len(flat):
                break
            before = self._runs.pop()
            flat, rows = np.concatenate((before[0], flat)), np.concatenate((before[1], rows))
        self._runs.append((flat, rows))

    def _find_near(self, signatures: np.ndarray, keys: np.ndarray) -> np.ndarray:
        is_near = np.zeros(len(signatures), bool)
        stored = self._open()
        flat = keys.ravel()
        for run_keys, run_rows in self._runs:
            starts = np.searchsorted(run_keys, flat, side="left")
            counts = np.searchsorted(run_keys, flat, side="right") - starts
            # Pairs by number, so that a band in which thousands agree does not fill the memory.
            bounds = np.concatenate(([0], np.cumsum(counts)))
            for at in range(0, int(bounds[-1]), PAIRS_AT_ONCE):
                pairs = np.arange(at, min(at + PAIRS_AT_ONCE, int(bounds[-1])))
                places = np.searchsorted(bounds, pairs, side="right") - 1
                documents, rows = places // self._num_bands, run_rows[starts[places] + pairs - bounds[places]]
                codes = np.unique((documents.astype(np.uint64) << np.uint64(32)) | rows)
                documents, rows = (codes >> np.uint64(32)).astype(np.intp), codes & np.uint64(0xFFFFFFFF)
                is_open = ~is_near[documents]
                documents, rows = documents[is_open], rows[is_open].astype(np.intp)
                num_equal = np.count_nonzero(signatures[documents] == stored[rows], axis=1)
                is_near[documents[num_equal >= self._least_equal]] = True
        return is_near

    def _find_near_each_other(self, signatures: np.ndarray, keys: np.ndarray, is_near: np.ndarray) -> None:
        """Mark those that are near an earlier one of the same array that stays."""
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        numbers = inverse.reshape(keys.shape)
        is_common = counts[numbers] > 1
        kept: dict[int, list[int]] = {}
        for document in np.flatnonzero(is_common.any(axis=1) & ~is_near):
            bands = numbers[document][is_common[document]].tolist()
            earlier = sorted({other for band in bands for other in kept.get(band, ())})
            num_equal = np.count_nonzero(signatures[earlier] == signatures[document], axis=1)
            if (num_equal >= self._least_equal).any():
                is_near[document] = True
                continue
            for band in bands:
                kept.setdefault(band, []).append(int(document))
