"""Masking: which words of a row are hidden and what stands in their place.

A pure function of (seed, epoch, row number): a row gets the same masks alone, in any batch, on any rank.
Words are chosen by the smallest random keys, not by filling a budget of pieces, so that a word of six
pieces, which is usually the domain's vocabulary, is hidden as often as a word of one.

Shapes: R rows, N pieces, W words that may be hidden, H of them hidden. A "word" here is the unit of the
masking kind: a whole word, or one piece.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from data_pipes.draws import Stream, as_below, as_unit, draw, draw_at, draw_rows
from data_pipes.rows import Rows

MaskingKind: TypeAlias = Literal["whole_word", "token", "character"]

# Evaluation always masks with this epoch; training epochs count from 0.
FROZEN_EPOCH = -1

_CHOICE_BITS = 32


@dataclass(frozen=True, eq=False)
class Masking:
    """How rows are hidden.

    Attributes:
        kind: what is hidden as one: a word with all its pieces, or a single piece.
        rate: share of a row's words that is hidden, in (0, 1]; a row with a word hides at least one.
        mask_piece: the piece that stands for a hidden one.
        random_pieces: uint32, the ordinary pieces that random replacements are drawn from.
        special_pieces: uint32, pieces that are never hidden; mask_piece is always one of them.
        replace: shares of hidden words that become mask pieces, random pieces, or stay as they are.
    """

    kind: MaskingKind
    rate: float
    mask_piece: int
    random_pieces: np.ndarray
    special_pieces: np.ndarray
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def __post_init__(self) -> None:
        """Check the settings and bring the piece lists into one form."""
        if self.kind not in get_args(MaskingKind):
            raise ValueError(f"masking kind is {self.kind!r}: use one of {', '.join(get_args(MaskingKind))}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"masking rate is {self.rate}: it is a share above 0 and at most 1")
        shares = self.replace
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"replace is {shares}: give three shares (mask, random, stay) that sum to 1")
        randoms = np.asarray(self.random_pieces, np.uint32)
        specials = np.union1d(np.asarray(self.special_pieces, np.uint32), np.uint32(self.mask_piece))
        if shares[1] > 0 and not len(randoms):
            raise ValueError(f"replace {shares} wants random pieces but random_pieces is empty: list some")
        both = np.intersect1d(randoms, specials)
        if len(both):
            raise ValueError(
                f"random_pieces holds special pieces {both[:5].tolist()}: list ordinary ones only"
            )
        object.__setattr__(self, "random_pieces", randoms)
        object.__setattr__(self, "special_pieces", specials)


@dataclass(frozen=True)
class Hidden:
    """Rows after corruption.

    Attributes:
        inputs: uint32 [N], what the model sees.
        is_target: bool [N], true where it must tell the original piece.
    """

    inputs: np.ndarray
    is_target: np.ndarray


@dataclass(frozen=True)
class _Words:
    """Words in order: first piece, number of pieces, row, and place in the row, all int64 [W]."""

    firsts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    places: np.ndarray

    def take(self, indices: np.ndarray) -> "_Words":
        return _Words(self.firsts[indices], self.lengths[indices], self.rows[indices], self.places[indices])


def hide(rows: Rows, masking: Masking, *, row_ids: np.ndarray, epochs: np.ndarray | int, seed: int) -> Hidden:
    """Hide words of every row.

    Of a row with W words, floor(rate * W + u) are hidden with u uniform in [0, 1), and at least one if
    there is one: any W words alike, without replacement. A word never crosses the start of a document;
    a word with a special piece in it is none of them.

    Args:
        rows: R rows.
        masking: what is hidden and how.
        row_ids: int64 [R], the number of each row in its store.
        epochs: int64 [R] or one for all; FROZEN_EPOCH for evaluation.
        seed: with row_ids and epochs the only source of chance.
    """
    row_ids = np.asarray(row_ids, np.int64)
    if row_ids.shape != (rows.num_rows,):
        raise ValueError(f"row_ids has shape {row_ids.shape} for {rows.num_rows} rows: give one number a row")
    words, num_words = _find_words(rows, masking)
    share = as_unit(draw(seed, epochs, row_ids, 0, Stream.HIDDEN_COUNT))
    wanted = np.floor(masking.rate * num_words + share).astype(np.int64)
    num_hidden = np.minimum(np.maximum(wanted, 1), num_words)
    keys = draw_at(draw_rows(seed, epochs, row_ids, Stream.HIDDEN_WORD)[words.rows], words.places)
    hidden = words.take(_choose_smallest(keys, words, num_words, num_hidden))
    inputs, is_target = _replace(rows, masking, hidden, row_ids=row_ids, epochs=epochs, seed=seed)
    return Hidden(inputs, is_target)


def _find_words(rows: Rows, masking: Masking) -> tuple[_Words, np.ndarray]:
    """Find the words that may be hidden and how many each row has, int64 [R]."""
    is_special = np.isin(rows.pieces, masking.special_pieces)
    if masking.kind == "whole_word":
        starts = rows.word_starts | rows.document_starts
        starts[rows.offsets[:-1][rows.lengths > 0]] = True
        all_firsts = np.flatnonzero(starts)
        # [UNK] is special too: the rest of such a word cannot be hidden without hiding a part of a word.
        num_special = np.diff(np.append(0, np.cumsum(is_special))[np.append(all_firsts, len(starts))])
        is_eligible = num_special == 0
        firsts = all_firsts[is_eligible]
        lengths = np.diff(all_firsts, append=len(starts))[is_eligible]
    else:
        firsts = np.flatnonzero(~is_special)
        lengths = np.ones_like(firsts)
    num_words = np.diff(np.searchsorted(firsts, rows.offsets))
    word_rows = np.repeat(np.arange(rows.num_rows), num_words)
    return _Words(firsts, lengths, word_rows, firsts - rows.offsets[word_rows]), num_words


def _choose_smallest(
    keys: np.ndarray, words: _Words, num_words: np.ndarray, num_hidden: np.ndarray
) -> np.ndarray:
    """Find the num_hidden words of each row with the smallest (upper half of key, place), int64 [H]."""
    if not len(keys):
        return np.zeros(0, np.int64)
    # (row, key, place) in one integer makes all values different and lets a plain sort of values do: it is
    # several times faster than an argsort. The key has 32 bits in any batch, so choices do not depend on it.
    place_bits = int(words.places.max()).bit_length()
    row_bits = (len(num_hidden) - 1).bit_length()
    if row_bits + place_bits > 64 - _CHOICE_BITS:
        raise ValueError(
            f"{len(num_hidden)} rows of up to {int(words.places.max()) + 1} pieces are too many to hide at "
            "once: call hide with fewer rows"
        )
    ranked = keys >> np.uint64(64 - _CHOICE_BITS) << np.uint64(place_bits)
    ranked |= words.places.astype(np.uint64)
    ranked |= words.rows.astype(np.uint64) << np.uint64(_CHOICE_BITS + place_bits)
    occupied = num_words > 0
    row_firsts = np.cumsum(num_words) - num_words
    last_hidden = np.sort(ranked)[(row_firsts + num_hidden - 1)[occupied]]
    return np.flatnonzero(ranked <= np.repeat(last_hidden, num_words[occupied]))


def _replace(
    rows: Rows, masking: Masking, hidden: _Words, *, row_ids: np.ndarray, epochs: np.ndarray | int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    to_mask, to_random, _ = masking.replace
    chance = as_unit(
        draw_at(draw_rows(seed, epochs, row_ids, Stream.REPLACEMENT)[hidden.rows], hidden.places)
    )
    inputs = rows.pieces.copy()
    is_target = np.zeros(len(inputs), bool)
    is_target[_pieces_of(hidden)] = True
    inputs[_pieces_of(hidden.take(np.flatnonzero(chance < to_mask)))] = masking.mask_piece
    randomised = hidden.take(np.flatnonzero((chance >= to_mask) & (chance < to_mask + to_random)))
    pieces = _pieces_of(randomised)
    if len(pieces):
        piece_rows = np.repeat(randomised.rows, randomised.lengths)
        row_draws = draw_rows(seed, epochs, row_ids, Stream.RANDOM_PIECE)[piece_rows]
        draws = draw_at(row_draws, pieces - rows.offsets[piece_rows])
        inputs[pieces] = masking.random_pieces[as_below(draws, len(masking.random_pieces))]
    return inputs, is_target


def _pieces_of(words: _Words) -> np.ndarray:
    ends = np.cumsum(words.lengths)
    num_pieces = int(ends[-1]) if len(ends) else 0
    return np.repeat(words.firsts - (ends - words.lengths), words.lengths) + np.arange(num_pieces)
