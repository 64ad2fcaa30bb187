"""Metrics that count: answers of a classifier, and pieces of words.

Shapes: E examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from launch.judging.metrics import State, SummedMetric


class ClassMetric(SummedMetric):
    """Accuracy and macro-F1 of a classifier beside always answering the most common training label."""

    _features = {"predictions": "int64", "references": "int64"}
    _description = "Accuracy and macro-F1 with a majority baseline."

    def __init__(self, num_classes: int, majority: int):
        """Say how many classes there are and which is most common in training."""
        self.num_classes, self.majority = num_classes, majority
        super().__init__()

    def _clear(self) -> State:
        return {"confusion": np.zeros((self.num_classes, self.num_classes))}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        pairs = arrays["references"] * self.num_classes + arrays["predictions"]
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        return {"confusion": counts.reshape(self.num_classes, -1).astype(np.float64)}

    def _compute(self, **state: Any) -> dict[str, float]:
        confusion = state["confusion"]
        count = confusion.sum()
        if not count:
            return {}
        constant = np.zeros_like(confusion)
        constant[:, self.majority] = confusion.sum(1)
        return {
            "accuracy": float(np.trace(confusion) / count),
            "macro_f1": average_f1(confusion),
            "majority_accuracy": float(np.trace(constant) / count),
            "majority_macro_f1": average_f1(constant),
            "num_examples": int(count),
        }


def average_f1(confusion: np.ndarray) -> float:
    """The mean F1 of the classes that occur, from counts by (true, predicted) class."""
    wanted, given = confusion.sum(1), confusion.sum(0)
    occurs = wanted + given > 0
    return float((2 * np.diag(confusion)[occurs] / (wanted + given)[occurs]).mean())


class FragmentationMetric(SummedMetric):
    """Pieces a word, and the share of the occurrences of terms with more pieces than words."""

    _features = {"num_pieces": "int64", "num_words": "int64", "is_term": "bool"}
    _description = "Fragmentation of words and domain terms in context."

    def _clear(self) -> State:
        return {name: np.zeros(2) for name in ("pieces", "words", "count", "cut")}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        num_pieces, num_words = arrays["num_pieces"], arrays["num_words"]
        group = arrays["is_term"].astype(np.int64)
        weights = {"pieces": num_pieces, "words": num_words, "count": None, "cut": num_pieces > num_words}
        return {name: np.bincount(group, weight, 2).astype(np.float64) for name, weight in weights.items()}

    def _compute(self, **state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        pieces, words, count, cut = (state[name] for name in ("pieces", "words", "count", "cut"))
        if words[0]:
            found |= {"pieces_per_word": float(pieces[0] / words[0]), "num_words": int(words[0])}
        if count[1]:
            found |= {"terms_cut": float(cut[1] / count[1]), "pieces_per_term": float(pieces[1] / count[1])}
            found["num_terms"] = int(count[1])
        return found
