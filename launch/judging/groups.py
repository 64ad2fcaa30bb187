"""Groups of the targets of a pass: by corpus, by frequency of the word, by place in a name.

Shapes: R rows of a sheet, K targets, G groups.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipes.masks.suffixes import find_suffixes, load_suffix_rules
from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from launch.judging.metrics import RecoveryMetric, SummedMetric, TargetMetric, WordMetric
from launch.judging.scored import Scored, Sheet
from launch.judging.words import WordHasher

_PLACES = (1, 2, 3, 5, 9, 17, 33)
_LENGTHS = (1, 9, 13, 17, 25)
_RUNS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Grouping:
    """A metric over the targets of a pass.

    Attributes:
        prefix: of its figures' names, ends in `/` unless empty.
        metric: what adds up.
        read: arrays for the metric.
    """

    prefix: str
    metric: SummedMetric
    read: Callable[[Scored], dict[str, np.ndarray]]

    def add(self, scored: Scored) -> None:
        """Add the targets of a sheet."""
        self.metric.add_batch(**self.read(scored))


def group_all(figures: Sequence[str]) -> Grouping:
    """All targets as one group."""
    return _group("", ("",), lambda sheet: np.zeros(len(sheet.places), np.int64), figures)


def group_by_row(prefix: str, names: Sequence[str], group_of_row: np.ndarray) -> Grouping:
    """By a group that each row of the source has, int64 [rows of the source], -1: none."""
    return _group(prefix, names, lambda sheet: group_of_row[sheet.row_ids][_find_rows(sheet)])


def group_by_corpus(names: Sequence[str], num_rows: Sequence[int], figures: Sequence[str]) -> Grouping:
    """By the source of each row; the rows of a source lie together."""
    source_of_row = np.arange(len(names)).repeat(num_rows)
    return _group("", names, lambda sheet: source_of_row[sheet.row_ids][_find_rows(sheet)], figures)


def group_by_frequency(
    hasher: WordHasher, words: np.ndarray, counts: np.ndarray, bounds: Sequence[int]
) -> Grouping:
    """By how often the word of a target was counted, in groups that begin at the bounds.

    Args:
        hasher: of words.
        words: uint64, hashes of all words that come, ascending.
        counts: float64, of each.
        bounds: ascending; the first group is below the first.
    """
    group_of_word = np.searchsorted(bounds, counts, side="right")

    def read(scored: Scored) -> dict[str, np.ndarray]:
        rows = scored.sheet.rows
        starts = find_words(rows)
        number = np.searchsorted(starts, scored.sheet.places, side="right") - 1
        group = group_of_word[np.searchsorted(words, hasher.hash(rows.pieces, starts)[number])]
        is_first = np.append(True, number[1:] != number[:-1])[: len(number)]
        return {"group": group, "loss": scored.losses, "rank": scored.ranks, "is_first": is_first}

    first = "unseen" if bounds[0] == 1 else f"0-{bounds[0] - 1}"
    return Grouping("rare_words/", WordMetric((first, *name_ranges(bounds))), read)


def group_by_place() -> Grouping:
    """By place in the row, counted from 1."""
    return _group("names/place/", name_ranges(_PLACES), lambda s: _find_range(_PLACES, _find_places(s) + 1))


def group_names(rows: Rows, num_suffixes: int) -> list[Grouping]:
    """Names by place, length and public suffix; `rows` are all of the source.

    Raises:
        ModuleNotFoundError: there is no list of public suffixes.
    """
    starts, ends = find_suffixes(rows.pieces, rows.offsets, load_suffix_rules())
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    suffixes = ["".join(map(chr, rows.pieces[start:end].tolist())).lower() for start, end in spans]
    counts = Counter(suffix for suffix in suffixes if suffix)
    ordered = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    number_of = {suffix: number for number, suffix in enumerate(ordered[:num_suffixes])}
    group_of_row = np.array([number_of.get(suffix, len(number_of)) for suffix in suffixes], np.int64)
    # The dot before a suffix goes with it.
    first_of_suffix = starts - rows.offsets[:-1] - 1

    def find_part(sheet: Sheet) -> np.ndarray:
        return (_find_places(sheet) >= first_of_suffix[sheet.row_ids][_find_rows(sheet)]).astype(np.int64)

    return [
        group_by_place(),
        group_by_row("names/length/", name_ranges(_LENGTHS), _find_range(_LENGTHS, rows.lengths)),
        group_by_row("names/suffix/", (*number_of, "other"), group_of_row),
        _group("names/part/", ("body", "suffix"), find_part),
    ]


def recover(is_word: bool) -> Grouping:
    """Exact recovery of words that are hidden in full, or of runs of targets, by number of pieces."""
    names = name_ranges(_RUNS)

    def read(scored: Scored) -> dict[str, np.ndarray]:
        sheet = scored.sheet
        places = sheet.places
        bounds = find_words(sheet.rows) if is_word else _find_runs(sheet)
        number = np.searchsorted(bounds, places, side="right") - 1
        sizes = np.diff(bounds)
        num_hidden = np.bincount(number, minlength=len(sizes))
        num_right = np.bincount(number, scored.ranks == 0, len(sizes))
        is_whole = (num_hidden == sizes) & (sizes > 0)
        return {
            "group": _find_range(_RUNS, sizes[is_whole]),
            "is_right": num_right[is_whole] == sizes[is_whole],
        }

    return Grouping("recovery/", RecoveryMetric(names), read)


def name_ranges(bounds: Sequence[int]) -> tuple[str, ...]:
    """`1-9`, `10`, `11-up` for groups that begin at these numbers."""
    stops = [*bounds[1:], None]
    return tuple(
        f"{first}-up" if stop is None else str(first) if stop == first + 1 else f"{first}-{stop - 1}"
        for first, stop in zip(bounds, stops, strict=True)
    )


def _group(
    prefix: str,
    names: Sequence[str],
    find: Callable[[Sheet], np.ndarray],
    figures: Sequence[str] = ("perplexity", "accuracy", "num_targets"),
) -> Grouping:
    def read(scored: Scored) -> dict[str, np.ndarray]:
        return {"group": find(scored.sheet), "loss": scored.losses, "rank": scored.ranks}

    return Grouping(prefix, TargetMetric(names, figures), read)


def _find_range(bounds: Sequence[int], values: np.ndarray) -> np.ndarray:
    return np.searchsorted(bounds, values, side="right") - 1


def _find_rows(sheet: Sheet) -> np.ndarray:
    """The row of each target in the sheet, int64 [K]."""
    return np.searchsorted(sheet.rows.offsets, sheet.places, side="right") - 1


def _find_places(sheet: Sheet) -> np.ndarray:
    """The place of each target in its row, from 0, int64 [K]."""
    return sheet.places - sheet.rows.offsets[_find_rows(sheet)]


def _find_runs(sheet: Sheet) -> np.ndarray:
    """Bounds of runs of pieces that are all targets or all not, within rows; int64."""
    is_target = sheet.hidden.is_target
    starts = np.ones(len(is_target) + 1, bool)
    starts[1:-1] = is_target[1:] != is_target[:-1]
    starts[sheet.rows.offsets] = True
    return starts.nonzero()[0]
