"""Scores: what new pieces of a Unigram model must score to win in their place and disturb nothing else."""

import math
import re
from collections.abc import Sequence
from typing import Any

# Far above what a file or another order of a sum changes, far below what tells two cuts apart.
MARGIN = 1e-6
# `tokenizers` scores an unknown character so far below the lowest piece.
UNKNOWN_PENALTY = 10.0
# Between the end of a word and what is no part of one.
_BORDER = re.compile(r"(?<=\w)(?=\W)")


class Scores:
    """Scores of a Unigram model and the best cut of a string."""

    def __init__(self, vocabulary: Sequence[Sequence[Any]], special: set[str]):
        self.of = {piece: score for piece, score in vocabulary}
        self._longest = max(map(len, self.of))
        self._lowest = min(self.of.values())
        single = {piece for piece in self.of if len(piece) == 1}
        # The lowest score of all decides what an unknown character costs. That can change a cut only if some
        # longer piece holds a character that has no piece of its own.
        self._is_closed = set().union(*(set(self.of) - special)) <= single
        self._unknown = self._lowest - UNKNOWN_PENALTY

    def limit(self, score: float) -> float:
        """The score, or the lowest one that leaves unknown characters as they are."""
        return score if self._is_closed else max(score, self._lowest)

    def find_best(self, text: str) -> float:
        """The highest sum of scores of a cut of the text."""
        best = [0.0] + [-math.inf] * len(text)
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + self._longest) + 1):
                score = self.of.get(text[start:end])
                if score is None and end == start + 1:
                    score = self._unknown
                if score is not None:
                    best[end] = max(best[end], best[start] + score)
        return best[-1]

    def add(self, piece: str, score: float) -> None:
        """Let a new piece take part in cuts."""
        self.of[piece] = score
        self._longest = max(self._longest, len(piece))


def choose_scores(
    vocabulary: Sequence[Sequence[Any]], special: set[str], pieces: Sequence[str]
) -> list[float]:
    """A score for each new piece, just above the best cut of its own letters.

    Args:
        vocabulary: (piece, score) of the model.
        special: names of special and added pieces, which are no part of words.
        pieces: the new ones, as the model meets them.
    """
    scores = Scores(vocabulary, special)
    borders = _find_borders(scores)
    new: dict[str, float] = {}
    # Short ones first, so that a longer one also beats cuts that hold a shorter one.
    for piece in sorted(pieces, key=len):
        least = max([scores.find_best(piece), *_score_rivals(piece, scores, borders)])
        new[piece] = scores.limit(math.ceil(least / MARGIN + 1) * MARGIN)
        scores.add(piece, new[piece])
    return [new[piece] for piece in pieces]


def _find_borders(scores: Scores) -> dict[str, list[tuple[str, str]]]:
    """{part before: [(part behind, piece)]} of the pieces that hold the end of a word and what follows it."""
    borders: dict[str, list[tuple[str, str]]] = {}
    for piece in scores.of:
        for border in _BORDER.finditer(piece):
            at = border.start()
            borders.setdefault(piece[:at], []).append((piece[at:], piece))
    return borders


def _score_rivals(piece: str, scores: Scores, borders: dict[str, list[tuple[str, str]]]) -> list[float]:
    """What the piece must score to win even where an old piece holds its end and the comma after it."""
    return [
        scores.find_best(piece[:start]) + scores.of[rival] - scores.find_best(behind)
        for start in range(len(piece))
        for behind, rival in borders.get(piece[start:], [])
    ]
