"""The split: a hash of the text or of its group key decides, the same for ever. Overlaps stop the run.

Shapes: D documents.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipes.documents import Batch
from data_pipes.duplication.duplicates import Arrays, HashSet
from data_pipes.duplication.hashes import hash_texts, mix_bits

__all__ = [
    "HashSet",
    "OverlapError",
    "Overlaps",
    "Splitter",
    "choose_evaluation",
    "hash_texts",
    "mix_bits",
]

SPLIT_NAMES = ("train", "evaluation")
# So many overlaps with their examples tell enough: there is no point in reading on.
NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = 80


class OverlapError(ValueError):
    """The same text, or nearly the same, is in the training and in the evaluation split."""


def choose_evaluation(batch: Batch, text_hashes: np.ndarray, evaluation_share: float) -> np.ndarray:
    """Which documents go to evaluation, bool [D]: by explicit choice, else by group key, else by text."""
    if batch.split != "auto":
        return np.full(batch.num_documents, batch.split == "evaluation")
    hashes = text_hashes if batch.groups is None else hash_texts(batch.groups)
    threshold = int(evaluation_share * 2**64)
    if threshold >= 2**64:
        return np.ones(batch.num_documents, bool)
    return hashes < np.uint64(threshold)


@dataclass
class Overlaps:
    """Counts texts that are in both splits and stops the run with examples.

    Attributes:
        what: of the message: "texts are" or "texts are nearly the same".
        number: texts counted.
        examples: the beginnings of the first ones.
    """

    what: str = "texts are"
    number: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, batch: Batch, is_shared: np.ndarray) -> None:
        """Count the documents where is_shared (bool [D]) is true.

        Raises:
            OverlapError: there are enough of them to stop at once.
        """
        rows = np.flatnonzero(is_shared)
        self.number += len(rows)
        for row in rows[: NUM_EXAMPLES - len(self.examples)]:
            self.examples.append(batch.texts[int(row)].as_py()[:EXAMPLE_CHARACTERS])
        if self.number >= NUM_EXAMPLES:
            self.check()

    def check(self) -> None:
        """Raise OverlapError if there is any."""
        if self.number == 0:
            return
        shown = "; ".join(map(repr, self.examples))
        raise OverlapError(
            f"{self.number} {self.what} in both the training and the evaluation split: {shown}. "
            "Take them out of one file, or let one source with split: auto give both splits; "
            "with a group_key, give such texts the same group"
        )

    def state(self) -> dict[str, Any]:
        """Plain data that `restore` takes."""
        return {"number": self.number, "examples": list(self.examples)}

    def restore(self, plain: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.number, self.examples = plain["number"], list(plain["examples"])


class Splitter:
    """Parts documents into training and evaluation, batch by batch.

    Exact duplicates inside a split are dropped (the first stays). Two different texts of n in all meet in one
    hash with a chance of n^2 / 2^65 (0.2 % for 255 million names), and then one of them is dropped.

    Args:
        evaluation_share: share of the texts (or groups) held out, 0-1.
        folder: for hashes that are too many for memory; see duplicates.HashSet.

    Attributes:
        dropped: documents removed, by reason.
    """

    def __init__(self, evaluation_share: float, folder: Path | str | None = None):
        self.evaluation_share = evaluation_share
        self.dropped: Counter = Counter()
        self._overlaps = Overlaps()
        self._seen = [HashSet(None if folder is None else Path(folder) / name) for name in SPLIT_NAMES]

    def part(self, batch: Batch) -> tuple[Batch, Batch]:
        """The batch's new training documents and its new evaluation documents; raises as `admit` does."""
        hashes = hash_texts(batch.texts)
        is_evaluation = choose_evaluation(batch, hashes, self.evaluation_share)
        is_new = self.admit(batch, hashes, is_evaluation)
        return batch.filter(is_new & ~is_evaluation), batch.filter(is_new & is_evaluation)

    def admit(self, batch: Batch, hashes: np.ndarray, is_evaluation: np.ndarray) -> np.ndarray:
        """Which documents are new in their split, bool [D]; the others are counted as "duplicate".

        Args:
            batch: of its texts the examples are taken.
            hashes: of the texts, uint64 [D], see hash_texts.
            is_evaluation: bool [D], see choose_evaluation.

        Raises:
            OverlapError: several texts have been seen in both splits.
        """
        is_new = np.zeros(len(hashes), bool)
        is_shared = np.zeros(len(hashes), bool)
        for split, is_chosen in enumerate((~is_evaluation, is_evaluation)):
            rows = np.flatnonzero(is_chosen)
            if len(rows) == 0:
                continue
            is_new[rows] = self._seen[split].add(hashes[rows])
            rows = rows[is_new[rows]]
            is_shared[rows] = self._seen[1 - split].contains(hashes[rows])
        num_duplicates = len(hashes) - int(np.count_nonzero(is_new))
        if num_duplicates:
            self.dropped["duplicate"] += num_duplicates
        self._overlaps.note(batch, is_shared)
        return is_new

    def check_overlap(self) -> None:
        """Raise OverlapError if any text was seen in both splits."""
        self._overlaps.check()

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Plain data and arrays that `restore` takes; see HashSet.state."""
        plain: dict[str, Any] = {"dropped": dict(self.dropped), "overlaps": self._overlaps.state()}
        arrays = {}
        for name, seen in zip(SPLIT_NAMES, self._seen, strict=True):
            plain[name], own = seen.state()
            arrays |= {f"{name}_{key}": array for key, array in own.items()}
        return plain, arrays

    def restore(self, plain: dict[str, Any], arrays: Arrays) -> None:
        """Go back to a saved state.

        Raises:
            RunError: a file of hashes is missing or damaged.
        """
        self.dropped = Counter(plain["dropped"])
        self._overlaps.restore(plain["overlaps"])
        for name, seen in zip(SPLIT_NAMES, self._seen, strict=True):
            own = {k.removeprefix(f"{name}_"): v for k, v in arrays.items() if k.startswith(f"{name}_")}
            seen.restore(plain[name], own)
