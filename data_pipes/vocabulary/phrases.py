"""Phrases: listed terms of several words that a corpus writes with spaces, counted.

Shapes: W words in a chunk of the corpus.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data_pipes.documents import pc
from data_pipes.tokens.characters import SPACE
from data_pipes.vocabulary.census import Words


class PhraseCounter:
    """Counts terms of the form `Burgess_Shale` where the text has `Burgess Shale`."""

    def __init__(self, terms: Sequence[str]):
        self._parts = {term: term.split("_") for term in terms if "_" in term.strip("_")}
        self._vocabulary = pa.array(
            sorted({part for parts in self._parts.values() for part in parts}), pa.string()
        )
        number = {part: place for place, part in enumerate(self._vocabulary.to_pylist())}
        self._numbers = {term: [number[part] for part in parts] for term, parts in self._parts.items()}
        self._counts = dict.fromkeys(self._parts, 0)

    def add(self, words: Words, texts: pa.StringArray) -> None:
        """Count in some words under the names `texts` [W] (their own, or those in lower case)."""
        if not self._parts or not len(texts):
            return
        numbers_W = pc.fill_null(pc.index_in(texts, self._vocabulary), -1).to_numpy()
        num_solid = np.append(0, np.cumsum(words.classes != SPACE))
        # Nothing but white space up to the next word.
        is_near_W = np.append(num_solid[words.starts[1:]] == num_solid[words.ends[:-1]], False)
        order = np.argsort(numbers_W, kind="stable")
        ordered = numbers_W[order]
        for term, numbers in self._numbers.items():
            # A word that is not followed is the last one: no place behind it is looked at.
            at = order[
                np.searchsorted(ordered, numbers[0]) : np.searchsorted(ordered, numbers[0], side="right")
            ]
            for number in numbers[1:]:
                at = at[is_near_W[at]] + 1
                at = at[numbers_W[at] == number]
            self._counts[term] += len(at)

    def finish(self) -> dict[str, int]:
        """{term: occurrences with spaces}, of those that were met."""
        return {term: count for term, count in self._counts.items() if count}
