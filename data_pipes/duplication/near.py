"""Near-duplicates: texts that share most of their shingles, found by MinHash signatures (Broder 1997).

Signatures come from rensa (MIT; Rust; 0.5.0 of September 2026): unbiased at 3 to 5,000 shingles, 140 million
shingles a second on one core, where datasketch 2.0.0 did 1.7 million and brings scipy along.

Shapes: D documents, P permutations, S stored signatures, B bands.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_pipes.documents import Batch
from data_pipes.duplication.duplicates import Arrays
from data_pipes.duplication.shingles import find_shingles
from data_pipes.duplication.signatures import SignatureIndex, choose_bands
from data_pipes.split import SPLIT_NAMES, Overlaps

SEED = 42


class NearDuplicates:
    """Finds documents that are nearly the same as an earlier one, batch by batch.

    The first of two stays; a document is compared with those that stayed. The share of equal places in two
    signatures estimates the Jaccard similarity of their shingles with a standard deviation of 0.035 at the
    defaults. Of the pairs at the threshold 1 % at most are not compared at all.

    Memory: 12 bytes a band (250 a document at the defaults), and 4 a permutation where there is no folder.

    Args:
        threshold: similarity from which on documents are nearly the same, 0-1.
        num_permutations: numbers in a signature.
        shingle: words or characters in a shingle.
        unit: of the shingles; characters suit scripts without blanks.
        across_splits: whether a document that is nearly the same as one of the other split stops the reading,
            or is dropped where it is met. A split by hash parts nearly the same texts all the time.
        folder: where signatures are kept for a restart.

    Attributes:
        dropped: documents that `admit` removed, by reason.

    Raises:
        ModuleNotFoundError: rensa is not installed.
    """

    def __init__(
        self,
        threshold: float = 0.8,
        num_permutations: int = 128,
        shingle: int = 5,
        unit: Literal["words", "characters"] = "words",
        across_splits: Literal["stop", "drop"] = "stop",
        folder: Path | str | None = None,
    ):
        if not 0 < threshold < 1:
            raise ValueError(f"the threshold of near-duplicates is {threshold}, wanted above 0 and below 1")
        if num_permutations < 16 or shingle < 1:
            raise ValueError(
                f"near-duplicates want at least 16 permutations and shingles of at least 1, "
                f"not {num_permutations} and {shingle}"
            )
        if unit not in ("words", "characters"):
            raise ValueError(f"the unit of shingles is {unit!r}, wanted words or characters")
        self._rensa, self._is_dropped_across = _import_rensa(), across_splits == "drop"
        self._num_permutations, self._shingle, self._unit = num_permutations, shingle, unit
        self._settings = [threshold, num_permutations, shingle, unit, _describe_library(self._rensa)]
        bands = choose_bands(threshold, num_permutations)
        self._indices = [
            SignatureIndex(
                threshold, num_permutations, bands, None if folder is None else Path(folder) / f"{name}.u32"
            )
            for name in SPLIT_NAMES
        ]
        self._overlaps = Overlaps("texts are nearly the same")
        self.dropped: Counter = Counter()

    def sketch(self, texts: pa.StringArray) -> np.ndarray:
        """The signatures of texts, uint32 [D, P]; a pure function of text and settings."""
        if len(texts) == 0:
            return np.zeros((0, self._num_permutations), np.uint32)
        hashes, offsets = find_shingles(texts, self._shingle, self._unit == "words")
        matrix = self._rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.int64), self._num_permutations, SEED
        )
        return np.array(matrix.to_rows(), np.uint32)

    def add(self, signatures: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
        """Add documents (their signatures, uint32 [D, P]) to a split, 0 for training and 1 for evaluation.

        Returns:
            bool [D], true where a document is nearly the same as an earlier one of its split: it is left out;
            bool [D], true where another one is nearly the same as a document of the other split.
        """
        index, other = self._indices[split], self._indices[1 - split]
        is_near = index.add(signatures)
        is_shared = np.zeros(len(signatures), bool)
        is_shared[~is_near] = other.contains(signatures[~is_near])
        return is_near, is_shared

    def admit(
        self, batch: Batch, signatures: np.ndarray, is_evaluation: np.ndarray, is_candidate: np.ndarray
    ) -> np.ndarray:
        """Which candidates stay, bool [D]; the others are counted as "near_duplicate".

        Args:
            batch: of its texts the examples are taken.
            signatures: uint32 [D, P].
            is_evaluation: bool [D].
            is_candidate: bool [D], false where a document has been dropped already.

        Raises:
            OverlapError: several documents are nearly the same as one of the other split.
        """
        stays, is_shared = is_candidate.copy(), np.zeros(len(is_candidate), bool)
        for split, is_chosen in enumerate((~is_evaluation, is_evaluation)):
            rows = np.flatnonzero(is_chosen & is_candidate)
            is_near, is_shared[rows] = self.add(signatures[rows], split)
            stays[rows[is_near]] = False
        num_dropped = int(np.count_nonzero(is_candidate & ~stays))
        if num_dropped:
            self.dropped["near_duplicate"] += num_dropped
        if self._is_dropped_across:
            self.dropped["near_duplicate_of_other_split"] += int(np.count_nonzero(is_shared))
            return stays & ~is_shared
        self._overlaps.note(batch, is_shared)
        return stays

    def check_overlap(self) -> None:
        """Raise OverlapError if any document is nearly the same as one of the other split."""
        self._overlaps.check()

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Plain data and arrays that `restore` takes; with a folder the signatures are in its files."""
        plain: dict[str, Any] = {
            "settings": self._settings,
            "dropped": dict(self.dropped),
            "overlaps": self._overlaps.state(),
        }
        arrays = {}
        for name, index in zip(SPLIT_NAMES, self._indices, strict=True):
            plain[name], signatures = index.state()
            if signatures is not None:
                arrays[name] = signatures
        return plain, arrays

    def restore(self, plain: dict[str, Any], arrays: Arrays) -> None:
        """Go back to a saved state; the index is built again from the signatures.

        Raises:
            SignatureError: the state has other settings or another library, or a file is missing or damaged.
        """
        for name, index in zip(SPLIT_NAMES, self._indices, strict=True):
            index.restore(plain[name], arrays.get(name), plain["settings"] == self._settings)
        self.dropped = Counter(plain["dropped"])
        self._overlaps.restore(plain["overlaps"])


def _import_rensa() -> Any:
    try:
        import rensa
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "looking for near-duplicates needs the package rensa: pip install 'rensa>=0.5'", name="rensa"
        ) from error
    return rensa


def _describe_library(rensa: Any) -> str:
    return f"rensa {rensa.RMinHash.ALGORITHM_VERSION}"
