"""The split: a hash of the text or of its group key decides, the same for ever. Overlaps stop the run.

Shapes: D documents, N code points in all of them.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipes.clean import keep_documents
from data_pipes.documents import Batch, flatten_code_points

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
# Code points need 21 bits; the position goes above them.
POSITION_BITS = np.uint64(21)


class OverlapError(ValueError):
    """The same text is in the training and in the evaluation split."""


def mix_bits(values: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014) on uint64 of any shape."""
    values = values + GOLDEN_GAMMA
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def hash_texts(texts: pa.StringArray) -> np.ndarray:
    """A 64-bit hash of each text, uint64 [D]; it must never change, or splits would.

    The sum over characters of mix(code point + position * 2^21), with the length, mixed once more.
    """
    code_points, offsets = flatten_code_points(texts)
    lengths = np.diff(offsets)
    sums = np.zeros(len(texts), np.uint64)
    if len(code_points):
        positions = np.arange(len(code_points)) - np.repeat(offsets[:-1], lengths)
        mixed = mix_bits((positions.astype(np.uint64) << POSITION_BITS) | code_points)
        is_filled = lengths > 0  # reduceat gives an empty span its first neighbour instead of zero
        sums[is_filled] = np.add.reduceat(mixed, offsets[:-1][is_filled])
    return mix_bits(sums + lengths.astype(np.uint64) * GOLDEN_GAMMA)


def choose_evaluation(batch: Batch, text_hashes: np.ndarray, evaluation_share: float) -> np.ndarray:
    """Which documents go to evaluation, bool [D]: by explicit choice, else by group key, else by text."""
    if batch.split != "auto":
        return np.full(batch.num_documents, batch.split == "evaluation")
    hashes = text_hashes if batch.groups is None else hash_texts(batch.groups)
    threshold = int(evaluation_share * 2**64)
    if threshold >= 2**64:
        return np.ones(batch.num_documents, bool)
    return hashes < np.uint64(threshold)


class HashSet:
    """A set of 64-bit hashes in sorted runs, 8 bytes each; the runs double in size, so adding stays cheap."""

    def __init__(self):
        self._runs: list[np.ndarray] = []

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Which of the hashes are in the set, bool."""
        found = np.zeros(len(hashes), bool)
        for run in self._runs:
            places = np.searchsorted(run, hashes)
            found |= run[np.minimum(places, len(run) - 1)] == hashes
        return found

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add hashes; true where one was neither in the set nor earlier in this array."""
        is_first = np.zeros(len(hashes), bool)
        is_first[np.unique(hashes, return_index=True)[1]] = True
        is_new = is_first & ~self.contains(hashes)
        if is_new.any():
            run = np.sort(hashes[is_new])
            while self._runs and len(self._runs[-1]) <= 2 * len(run):
                run = np.sort(np.concatenate((self._runs.pop(), run)), kind="stable")
            self._runs.append(run)
        return is_new


@dataclass
class Splitter:
    """Parts documents into training and evaluation, batch by batch.

    Exact duplicates inside a split are dropped (the first stays). Two different texts of n in all meet in one
    hash with a chance of n^2 / 2^65 (0.2 % for 255 million names), and then one of them is dropped.
    """

    evaluation_share: float
    dropped: Counter = field(default_factory=Counter)
    num_overlaps: int = 0
    examples: list[str] = field(default_factory=list)
    _seen: tuple[HashSet, HashSet] = field(default_factory=lambda: (HashSet(), HashSet()))

    def part(self, batch: Batch) -> tuple[Batch, Batch]:
        """The batch's new training documents and its new evaluation documents."""
        hashes = hash_texts(batch.texts)
        is_evaluation = choose_evaluation(batch, hashes, self.evaluation_share)
        parts = []
        for split, is_chosen in enumerate((~is_evaluation, is_evaluation)):
            chosen = keep_documents(batch, pa.array(is_chosen), "other_split", Counter())
            is_new = self._seen[split].add(hashes[is_chosen])
            parts.append(keep_documents(chosen, pa.array(is_new), "duplicate", self.dropped))
            is_shared = self._seen[1 - split].contains(hashes[is_chosen][is_new])
            self._note_overlaps(parts[-1], is_shared)
        return parts[0], parts[1]

    def _note_overlaps(self, batch: Batch, is_shared: np.ndarray) -> None:
        self.num_overlaps += int(np.count_nonzero(is_shared))
        for row in np.flatnonzero(is_shared)[: 3 - len(self.examples)]:
            self.examples.append(batch.texts[int(row)].as_py())

    def check_overlap(self) -> None:
        """Raise OverlapError if any text was seen in both splits."""
        if self.num_overlaps == 0:
            return
        shown = "; ".join(repr(text[:80]) for text in self.examples)
        raise OverlapError(
            f"{self.num_overlaps} texts are in both the training and the evaluation split: {shown}. "
            "Take them out of one file, or let one source with split: auto give both splits; "
            "with a group_key, give equal texts the same group"
        )
