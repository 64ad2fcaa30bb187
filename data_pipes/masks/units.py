"""Units: what may be hidden of rows, and what must be.

Shapes: R rows, N pieces, B words with those that are never hidden, U units that may be hidden.
"""

from typing import NamedTuple

import numpy as np

from data_pipes.masks.suffixes import DOT, SuffixRules, find_suffixes
from data_pipes.rows import Rows

# Piece ids and code points are below; a table of more flags would not be small.
_MAX_PIECE = 1 << 24


class Words(NamedTuple):
    """Words to hide: first piece, number of pieces and row, int64 of one length."""

    firsts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray

    def list_pieces(self) -> np.ndarray:
        """Their pieces, word after word, int64."""
        ends = self.lengths.cumsum()
        pieces = (self.firsts - ends + self.lengths).repeat(self.lengths)
        pieces += np.arange(len(pieces))
        return pieces

    def join(self, other: "Words") -> "Words":
        """These and others."""
        return Words(*map(np.concatenate, zip(self, other, strict=True)))


class Units(NamedTuple):
    """The units of rows, in order, and words that are hidden besides.

    Attributes:
        bounds: int64 [B + 1], the first piece of each word and N.
        numbers: int64 [U], which of the words the units are.
        firsts: int64 [U], the first piece of each unit.
        counts: int64 [R], units of each row.
        forced: words that are hidden in any case; they are no units.
        num_suffix_rows: names that are nothing but a suffix and may be hidden all the same.
    """

    bounds: np.ndarray
    numbers: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    forced: Words | None = None
    num_suffix_rows: int = 0


def flag_pieces(pieces: np.ndarray) -> np.ndarray:
    """A table of flags, true at these pieces, with a false one at the end for `take(..., mode="clip")`."""
    most = int(pieces.max(initial=0))
    if most >= _MAX_PIECE:
        raise ValueError(
            f"piece {most} is no id of a vocabulary nor a code point: ids end at {_MAX_PIECE - 1}"
        )
    flags = np.zeros(most + 2, bool)
    flags[pieces] = True
    return flags


def find_words(rows: Rows) -> np.ndarray:
    """Bounds of the words of rows, special pieces included, int64 [B + 1]."""
    starts = np.empty(len(rows.pieces) + 1, bool)
    np.logical_or(rows.word_starts, rows.document_starts, out=starts[:-1])
    starts[rows.offsets] = True
    return starts.nonzero()[0]


def find_units(
    rows: Rows,
    is_barred: np.ndarray,
    bounds: np.ndarray | None,
    rules: SuffixRules | None = None,
    *,
    is_suffix_hidden: bool = False,
) -> Units:
    """Find what may be hidden.

    Args:
        rows: R rows.
        is_barred: bool [N], pieces that no unit may hold; it is changed.
        bounds: words that are hidden as one, from `find_words`; None: each piece is a unit of its own.
        rules: rows are names, and their public suffixes are no units.
        is_suffix_hidden: the labels of suffixes are hidden in any case.
    """
    forced, num_suffix_rows = None, 0
    if rules is not None and is_suffix_hidden:
        forced = _force_suffixes(rows, is_barred, rules)
    elif rules is not None:
        num_suffix_rows = _spare_suffixes(rows, is_barred, rules)
    if bounds is None:
        numbers = (~is_barred).nonzero()[0]
        bounds, firsts = np.arange(len(is_barred) + 1), numbers
    else:
        is_unit = np.ones(len(bounds) - 1, bool)
        # [UNK] is barred too: the rest of such a word cannot be hidden without hiding a part of a word.
        is_unit[bounds.searchsorted(is_barred.nonzero()[0], side="right") - 1] = False
        numbers = is_unit.nonzero()[0]
        firsts = bounds[numbers]
    row_bounds = firsts.searchsorted(rows.offsets)
    return Units(bounds, numbers, firsts, row_bounds[1:] - row_bounds[:-1], forced, num_suffix_rows)


def _spare_suffixes(rows: Rows, is_barred: np.ndarray, rules: SuffixRules) -> int:
    """Bar suffixes and the dots in and around them unless nothing else is left; gives the number of such."""
    in_suffix, is_around = _flag_suffixes(rows, rules)
    num_before = np.append(0, (~(is_barred | is_around)).cumsum())[rows.offsets]
    is_only = (np.diff(num_before) == 0) & _any_of_row(in_suffix & ~is_barred, rows)
    is_barred |= is_around & ~is_only.repeat(rows.lengths)
    return int(is_only.sum())


def _force_suffixes(rows: Rows, is_barred: np.ndarray, rules: SuffixRules) -> Words:
    """Bar suffixes and the dots in and around them, and give the labels of the suffixes as words."""
    in_suffix, is_around = _flag_suffixes(rows, rules)
    is_label = in_suffix & ~is_barred & (rows.pieces != DOT)
    is_barred |= is_around
    is_first = is_label.copy()
    is_first[1:] &= ~is_label[:-1]
    row_firsts = rows.offsets[:-1][rows.lengths > 0]
    is_first[row_firsts] = is_label[row_firsts]
    firsts = is_first.nonzero()[0]
    row_bounds = np.searchsorted(firsts, rows.offsets)
    sizes = np.add.reduceat(is_label, firsts, dtype=np.int64) if len(firsts) else firsts
    return Words(firsts, sizes, np.arange(rows.num_rows).repeat(np.diff(row_bounds)))


def _flag_suffixes(rows: Rows, rules: SuffixRules) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of the suffix of each row with all that follows, and these with the dot before; two bool [N]."""
    starts, _ = find_suffixes(rows.pieces, rows.offsets, rules)
    in_suffix = np.arange(len(rows.pieces)) >= starts.repeat(rows.lengths)
    is_around = in_suffix.copy()
    is_around[starts[(starts > rows.offsets[:-1]) & (starts < rows.offsets[1:])] - 1] = True
    return in_suffix, is_around


def _any_of_row(flags: np.ndarray, rows: Rows) -> np.ndarray:
    return np.diff(np.append(0, flags.cumsum())[rows.offsets]) > 0
