"""Masking: which words of a row are hidden and what stands in their place.

A pure function of (seed, epoch, row number): a row gets the same masks alone, in any batch, on any rank.
Words are chosen by the smallest random keys, not by filling a budget of pieces, so that a word of six
pieces, which is usually the domain's vocabulary, is hidden as often as a word of one.

Shapes: R rows, N pieces, B words with those that are never hidden, U units that may be hidden, H hidden
ones. A unit is what the masking kind hides as one: a whole word, or one piece.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np

from data_pipes.masks.choice import choose_smallest
from data_pipes.masks.draws import Stream, as_below, as_unit, count_from, draw_at, draw_streams
from data_pipes.masks.spans import choose_spans, find_start_chance
from data_pipes.masks.suffixes import SuffixRules, load_suffix_rules
from data_pipes.masks.units import Units, Words, find_units, find_words, flag_pieces
from data_pipes.masks.weights import TermWeights
from data_pipes.rows import Rows

MaskingKind: TypeAlias = Literal["whole_word", "token", "span", "character", "character_span"]
SuffixChoice: TypeAlias = Literal["any", "never", "always"]

# Evaluation always masks with this epoch; training epochs count from 0.
FROZEN_EPOCH = -1

_STREAMS = (Stream.HIDDEN_COUNT, Stream.HIDDEN_WORD, Stream.REPLACEMENT, Stream.RANDOM_PIECE)
_SPAN_STREAMS = (*_STREAMS, Stream.SPAN_START, Stream.SPAN_SLOT, Stream.SPAN_TURN)


@dataclass(frozen=True, eq=False)
class Masking:
    """How rows are hidden.

    Attributes:
        kind: what is hidden as one: a word with all its pieces, or a single piece; in a span kind in runs.
        rate: share of a row's units that is hidden, in (0, 1]; a row with a unit hides at least one.
        mask_piece: the piece that stands for a hidden one.
        random_pieces: uint32, the ordinary pieces that random replacements are drawn from.
        special_pieces: uint32, pieces that are never hidden; mask_piece is always one of them.
        replace: shares of hidden units that become mask pieces, random pieces, or stay as they are.
        mean_span: mean number of units in a span, of the span kinds.
        max_span: most units in a span.
        suffix: character kinds, rows that are domain names: whether the public suffix is hidden by chance as
            all else, never, or always. With the latter two the suffix and the dots in and around it are no
            units. "always" hides every label of the suffix, each as one word, besides the units; dots stay.
            With "never" a name that is nothing but a suffix is treated as any other row.
        suffix_rules: what a public suffix is; the installed package's list if None.
        weights: kind whole_word: terms that are hidden more often; never in the evaluation (FROZEN_EPOCH).
    """

    kind: MaskingKind
    rate: float
    mask_piece: int
    random_pieces: np.ndarray
    special_pieces: np.ndarray
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    mean_span: float = 3.0
    max_span: int = 10
    suffix: SuffixChoice = "any"
    suffix_rules: SuffixRules | None = None
    weights: TermWeights | None = None
    is_special: np.ndarray = field(init=False, repr=False)
    start_chance: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the settings and bring the piece lists into one form."""
        self._check_kind()
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
        object.__setattr__(self, "is_special", flag_pieces(specials))
        object.__setattr__(self, "start_chance", find_start_chance(self.mean_span, self.max_span))
        if self.suffix != "any" and self.suffix_rules is None:
            object.__setattr__(self, "suffix_rules", load_suffix_rules())

    def _check_kind(self) -> None:
        if self.kind not in get_args(MaskingKind):
            raise ValueError(f"masking kind is {self.kind!r}: use one of {', '.join(get_args(MaskingKind))}")
        if self.suffix not in get_args(SuffixChoice):
            raise ValueError(f"suffix is {self.suffix!r}: use one of {', '.join(get_args(SuffixChoice))}")
        if self.suffix != "any" and not self.kind.startswith("character"):
            raise ValueError(
                f"suffix is {self.suffix!r} with kind {self.kind}: it needs names in characters, so use "
                "character or character_span, or suffix any"
            )
        if self.weights is not None and self.kind != "whole_word":
            raise ValueError(f"weights are given with kind {self.kind}: only whole_word can weigh words")


@dataclass(frozen=True)
class Hidden:
    """Rows after corruption.

    Attributes:
        inputs: uint32 [N], what the model sees.
        is_target: bool [N], true where it must tell the original piece.
    """

    inputs: np.ndarray
    is_target: np.ndarray


def hide(rows: Rows, masking: Masking, *, row_ids: np.ndarray, epochs: np.ndarray | int, seed: int) -> Hidden:
    """Hide words of every row.

    Of a row with W units, floor(rate * W + u) are hidden with u uniform in [0, 1), and at least one if
    there is one: any W units alike, without replacement. A word never crosses the start of a document;
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
    units = _find_units(rows, masking)
    streams = _SPAN_STREAMS if masking.kind in ("span", "character_span") else _STREAMS
    row_draws = draw_streams(seed, epochs, row_ids, streams)
    num_hidden = _count_hidden(masking.rate, units.counts, row_draws[0])
    # Draws of a word or piece have its place in its row for an index.
    word_draws = count_from(row_draws[1:4], rows.offsets[:-1])
    if streams is _SPAN_STREAMS:
        chosen = choose_spans(
            units.counts,
            num_hidden,
            (row_draws[4], row_draws[5], row_draws[6]),
            start_chance=masking.start_chance,
            max_span=masking.max_span,
        )
    else:
        keys = draw_at(word_draws[0].repeat(units.counts), units.firsts)
        if masking.weights is not None:
            keys = _weigh(keys, rows, units, masking.weights, epochs)
        chosen = choose_smallest(keys, units.firsts, rows.offsets, units.counts, num_hidden)
    return _replace(rows, masking, _gather(units, chosen, num_hidden), word_draws[1], word_draws[2])


def describe_rate(
    rows: Rows, masking: Masking, *, row_ids: np.ndarray, epochs: np.ndarray | int, seed: int
) -> dict[str, float]:
    """Count what `hide` hides of these rows, and what the target that every row must have adds.

    Returns:
        num_rows, num_units, num_hidden (units); asked_rate; expected_rate, of units, with at least one a row;
        realised_rate, of units; num_short_rows, with a unit but rate * W < 1, and excess_targets, the sum of
        1 - rate * W over them; num_empty_rows, without a unit; num_suffix_words, hidden besides the units,
        and num_suffix_rows, treated as any other row since they are nothing but a suffix.
    """
    units = _find_units(rows, masking)
    is_target = hide(rows, masking, row_ids=row_ids, epochs=epochs, seed=seed).is_target
    expected = masking.rate * units.counts
    is_short = (units.counts > 0) & (expected < 1)
    excess = float((1 - expected[is_short]).sum())
    num_units, num_hidden = len(units.firsts), int(is_target[units.firsts].sum())
    return {
        "num_rows": rows.num_rows,
        "num_units": num_units,
        "num_hidden": num_hidden,
        "asked_rate": masking.rate,
        "expected_rate": (masking.rate * num_units + excess) / max(num_units, 1),
        "realised_rate": num_hidden / max(num_units, 1),
        "num_short_rows": int(is_short.sum()),
        "excess_targets": excess,
        "num_empty_rows": int((units.counts == 0).sum()),
        "num_suffix_words": 0 if units.forced is None else len(units.forced.firsts),
        "num_suffix_rows": units.num_suffix_rows,
    }


def _find_units(rows: Rows, masking: Masking) -> Units:
    is_barred = masking.is_special.take(rows.pieces, mode="clip")
    bounds = find_words(rows) if masking.kind in ("whole_word", "span") else None
    rules = masking.suffix_rules if masking.suffix != "any" else None
    return find_units(rows, is_barred, bounds, rules, is_suffix_hidden=masking.suffix == "always")


def _count_hidden(rate: float, num_units: np.ndarray, row_draws: np.ndarray) -> np.ndarray:
    wanted = (rate * num_units + as_unit(draw_at(row_draws, 0))).astype(np.int64)
    return np.minimum(np.maximum(wanted, 1), num_units)


def _weigh(
    keys: np.ndarray, rows: Rows, units: Units, weights: TermWeights, epochs: np.ndarray | int
) -> np.ndarray:
    is_listed = weights.find(rows, units.bounds)[units.numbers]
    is_trained = np.broadcast_to(np.asarray(epochs) != FROZEN_EPOCH, (rows.num_rows,))
    return weights.weigh(keys, is_listed & is_trained.repeat(units.counts))


def _gather(units: Units, chosen: np.ndarray, num_hidden: np.ndarray) -> Words:
    """The chosen units and what is hidden besides."""
    firsts = units.firsts[chosen]
    lengths = units.bounds[units.numbers[chosen] + 1] - firsts
    hidden = Words(firsts, lengths, np.arange(len(num_hidden)).repeat(num_hidden))
    return hidden if units.forced is None else hidden.join(units.forced)


def _replace(
    rows: Rows, masking: Masking, hidden: Words, word_draws: np.ndarray, piece_draws: np.ndarray
) -> Hidden:
    to_mask, to_random, _ = masking.replace
    chance = as_unit(draw_at(word_draws[hidden.rows], hidden.firsts)).repeat(hidden.lengths)
    targets = hidden.list_pieces()
    inputs, is_target = rows.pieces.copy(), np.zeros(len(rows.pieces), bool)
    is_target[targets] = True
    inputs[targets] = masking.mask_piece
    # The fewer pieces that stay or become random ones are set once more.
    others = (chance >= to_mask).nonzero()[0]
    others_at = targets[others]
    inputs[others_at] = rows.pieces[others_at]
    randomised = others[chance[others] < to_mask + to_random]
    if len(randomised):
        places = targets[randomised]
        draws = draw_at(piece_draws[hidden.rows.repeat(hidden.lengths)[randomised]], places)
        inputs[places] = masking.random_pieces[as_below(draws, len(masking.random_pieces))]
    return Hidden(inputs, is_target)
