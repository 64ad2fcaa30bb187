"""Yardsticks: what counting alone predicts at the evaluation targets, which a trained model must beat.

`unigram` knows how common each piece is. `neighbours` also knows the pieces to the left and right of the
target as the model sees them, after corruption. Both are smoothed so that the probabilities of the output
table's classes sum to 1: only then are their perplexities comparable with a model's.

Counts are ranges in sorted arrays of (left, right, piece) packed into 63 bits, so that counting is one sort
and looking up is two binary searches.

Shapes: T targets, M counted pieces.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.order import permute
from data_pipes.rows import Rows, RowSource

_BITS = np.uint64(21)
_TWO = np.uint64(42)
_PIECE = np.uint64((1 << 21) - 1)
_PAIR = np.uint64((1 << 42) - 1)
# Neighbours that are no pieces: a document's edge, and a hidden piece (never counted, so it has no say).
_EDGE = (1 << 21) - 1
_HIDDEN = (1 << 21) - 2

_CHUNK_PIECES = 1 << 20
_CHUNK_ROWS = 1 << 16
_TUNING_SHARE = 0.05
_TUNING_PIECES = 500_000
_WEIGHTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4)
_DEFAULT_WEIGHT = 5.0


class Yardstick(TypedDict):
    """A score: loss in nats per target, its exponential, and the number of targets."""

    loss: float
    perplexity: float
    num_targets: int


class Evidence(NamedTuple):
    """What was counted for each of T targets, int64 [T]: how often its piece, its contexts, and both."""

    total: np.ndarray
    piece: np.ndarray
    left: np.ndarray
    left_piece: np.ndarray
    right: np.ndarray
    right_piece: np.ndarray
    both: np.ndarray
    both_piece: np.ndarray

    def subtract(self, other: "Evidence") -> "Evidence":
        """Give the counts without those of other, whose rows must be among the counted."""
        return Evidence(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Counts:
    """Sorted uint64 [M] of packed contexts and pieces."""

    both: np.ndarray
    left: np.ndarray
    right: np.ndarray
    piece: np.ndarray

    @classmethod
    def build(cls, triples: np.ndarray) -> "Counts":
        """Count packed (left, right, piece), uint64 [M]."""
        left = triples >> _TWO << _BITS | triples & _PIECE
        both, right, piece = triples.copy(), triples & _PAIR, triples & _PIECE
        for keys in (both, left, right, piece):
            keys.sort()
        return cls(both, left, right, piece)

    @property
    def num_classes(self) -> int:
        """Different pieces among the counted."""
        return int(np.count_nonzero(np.diff(self.piece))) + bool(len(self.piece))

    def look_up(self, triples: np.ndarray) -> Evidence:
        """Give what was counted about packed (left, right, piece), uint64 [T]."""
        piece, left, pair = triples & _PIECE, triples >> _TWO, triples & _PAIR
        right, one = pair >> _BITS, np.uint64(1)
        left_piece = left << _BITS | piece
        return Evidence(
            total=np.full(len(triples), len(self.piece)),
            piece=_count_between(self.piece, piece, piece + one),
            left=_count_between(self.left, left << _BITS, (left + one) << _BITS),
            left_piece=_count_between(self.left, left_piece, left_piece + one),
            right=_count_between(self.right, right << _BITS, (right + one) << _BITS),
            right_piece=_count_between(self.right, pair, pair + one),
            both=_count_between(self.both, triples - piece, triples - piece + (one << _BITS)),
            both_piece=_count_between(self.both, triples, triples + one),
        )


def score(
    train: RowSource,
    evaluation: RowSource,
    *,
    masking: Masking,
    seed: int,
    num_classes: int,
    max_pieces: int = 20_000_000,
) -> dict[str, Yardstick]:
    """Score both yardsticks on the targets that FrozenBatches gives for the same masking and seed.

    Args:
        train: rows to count, a random part of them if they hold more than max_pieces.
        evaluation: rows to score on.
        masking: of the evaluation.
        seed: of the evaluation.
        num_classes: size of the output table, the pieces that a model may answer (special ones are not).
        max_pieces: limit on what is counted; memory is about 60 bytes a piece.

    Raises:
        ValueError: nothing to count or to score, or the training rows hold more than num_classes pieces.
    """
    row_ids = _sample_rows(train, seed, max_pieces)
    counts = Counts.build(_join(_pack_pieces(train, row_ids, masking)))
    if not len(counts.piece):
        raise ValueError("the training rows hold no ordinary piece within max_pieces to count")
    if counts.num_classes > num_classes:
        raise ValueError(
            f"num_classes is {num_classes} but the training rows hold {counts.num_classes} different "
            "ordinary pieces: give the size of the output table"
        )
    targets = _join(_pack_targets(evaluation, np.arange(evaluation.num_rows), masking, seed))
    if not len(targets):
        raise ValueError("the evaluation rows hold no target: give rows with ordinary pieces")
    pair_weight, both_weight = _tune(train, row_ids, counts, masking, seed, num_classes)
    evidence = counts.look_up(targets)
    return {
        "unigram": _summarise(predict_unigram(evidence, num_classes)),
        "neighbours": _summarise(predict_neighbours(evidence, num_classes, pair_weight, both_weight)),
    }


def count_pieces(
    train: RowSource, masking: Masking, *, seed: int, num_pieces: int, max_pieces: int = 20_000_000
) -> np.ndarray:
    """Count the ordinary pieces of the training rows that `score` counts, int64 [num_pieces]."""
    counts = np.zeros(num_pieces, np.int64)
    for _, rows in _take_chunks(train, _sample_rows(train, seed, max_pieces)):
        counts += np.bincount(rows.pieces, minlength=num_pieces)
    counts[masking.special_pieces] = 0
    return counts


def predict_unigram(evidence: Evidence, num_classes: int) -> np.ndarray:
    """Give each target's probability from piece counts with add-one smoothing, float64 [T]."""
    return (evidence.piece + 1) / (evidence.total + num_classes)


def predict_neighbours(
    evidence: Evidence, num_classes: int, pair_weight: float, both_weight: float
) -> np.ndarray:
    """Give each target's probability from its neighbours, float64 [T].

    Counts seen n times have weight n / (n + weight) against the next simpler guess: both neighbours, then
    the mean of left and right where both are known, then the unigram.
    """
    unigram = predict_unigram(evidence, num_classes)
    left = (evidence.left_piece + pair_weight * unigram) / (evidence.left + pair_weight)
    right = (evidence.right_piece + pair_weight * unigram) / (evidence.right + pair_weight)
    has_left, has_right = evidence.left > 0, evidence.right > 0
    either = np.where(has_left & has_right, (left + right) / 2, np.where(has_left, left, right))
    return (evidence.both_piece + both_weight * either) / (evidence.both + both_weight)


def _tune(
    train: RowSource, row_ids: np.ndarray, counts: Counts, masking: Masking, seed: int, num_classes: int
) -> tuple[float, float]:
    """Choose both weights on a few training rows, with their own counts taken away."""
    lengths = np.asarray(train.lengths[row_ids], np.int64)
    within = int(np.searchsorted(np.cumsum(lengths), _TUNING_PIECES, side="right"))
    tuning_ids = row_ids[: min(within, int(len(row_ids) * _TUNING_SHARE))]
    targets = _join(_pack_targets(train, tuning_ids, masking, seed))
    if not len(targets):
        return _DEFAULT_WEIGHT, _DEFAULT_WEIGHT
    own = Counts.build(_join(_pack_pieces(train, tuning_ids, masking)))
    evidence = counts.look_up(targets).subtract(own.look_up(targets))
    losses = {
        (pair, both): _summarise(predict_neighbours(evidence, num_classes, pair, both))["loss"]
        for pair in _WEIGHTS
        for both in _WEIGHTS
    }
    return min(losses, key=losses.__getitem__)


def _summarise(probabilities: np.ndarray) -> Yardstick:
    loss = float(-np.log(probabilities).mean())
    return {"loss": loss, "perplexity": float(np.exp(loss)), "num_targets": len(probabilities)}


def _sample_rows(source: RowSource, seed: int, max_pieces: int) -> np.ndarray:
    """Choose rows at random, without replacement, until they hold max_pieces."""
    chosen, num_pieces = [np.zeros(0, np.int64)], 0
    for first in range(0, source.num_rows, _CHUNK_ROWS):
        places = np.arange(first, min(first + _CHUNK_ROWS, source.num_rows))
        row_ids = permute(places, num_rows=source.num_rows, seed=seed, epochs=FROZEN_EPOCH)
        totals = num_pieces + np.cumsum(source.lengths[row_ids], dtype=np.int64)
        fitting = int(np.searchsorted(totals, max_pieces, side="right"))
        chosen.append(row_ids[:fitting])
        if fitting < len(row_ids):
            break
        num_pieces = int(totals[-1])
    return np.concatenate(chosen)


def _take_chunks(source: RowSource, row_ids: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
    chunk_of_row = np.cumsum(source.lengths[row_ids], dtype=np.int64) // _CHUNK_PIECES
    for ids in np.split(row_ids, np.flatnonzero(np.diff(chunk_of_row)) + 1):
        if len(ids):
            yield ids, source.take(ids)


def _pack_pieces(source: RowSource, row_ids: np.ndarray, masking: Masking) -> Iterator[np.ndarray]:
    """Pack every ordinary piece with its neighbours."""
    for _, rows in _take_chunks(source, row_ids):
        yield _pack(rows, rows.pieces, ~np.isin(rows.pieces, masking.special_pieces))


def _pack_targets(
    source: RowSource, row_ids: np.ndarray, masking: Masking, seed: int
) -> Iterator[np.ndarray]:
    """Pack the pieces hidden by the frozen masks with the neighbours that are left to see."""
    for ids, rows in _take_chunks(source, row_ids):
        hidden = hide(rows, masking, row_ids=ids, epochs=FROZEN_EPOCH, seed=seed)
        visible = np.where(hidden.inputs == masking.mask_piece, np.uint32(_HIDDEN), hidden.inputs)
        yield _pack(rows, visible, hidden.is_target)


def _pack(rows: Rows, visible: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    highest = int(max(rows.pieces.max(initial=0), visible[visible != _HIDDEN].max(initial=0)))
    if highest >= _HIDDEN:
        raise ValueError(f"piece {highest} is out of range: yardsticks count pieces below {_HIDDEN}")
    starts = np.append(rows.document_starts, True)
    starts[rows.offsets] = True
    context = visible.astype(np.uint64)
    edge = np.full(1, _EDGE, np.uint64)
    left = np.where(starts[:-1], edge, np.concatenate((edge, context[:-1])))[wanted]
    right = np.where(starts[1:], edge, np.concatenate((context[1:], edge)))[wanted]
    return left << _TWO | right << _BITS | rows.pieces[wanted].astype(np.uint64)


def _join(chunks: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint64), *chunks])


def _count_between(ordered: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    return np.searchsorted(ordered, stop) - np.searchsorted(ordered, first)
