"""AlignMap: which characters of a text stand where in a text made of it.

A map is a monotone pairing of characters. What has no partner lies in a changed segment, a span of the raw
text and the span of the normal text that took its place (either may be empty); only these are stored. A
character that another one replaced may keep its partner: `a b` -> `a_b` needs no segment at all. Between two
segments stands at least one pair, so that equal pairings are equal maps, and composing is associative.

Shapes: S changed segments; spans are half-open, in characters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

RAW_START, RAW_END, NORM_START, NORM_END = range(4)


class AlignError(ValueError):
    """Segments or spans that cannot belong to one pair of texts."""


@dataclass(frozen=True, eq=False)
class AlignMap:
    """Character spans between a raw and a normal text.

    Attributes:
        segments: int64 [S, 4]: raw start and end, normal start and end of each changed segment, in order.
        num_raw: characters of the raw text.
    """

    segments: np.ndarray
    num_raw: int

    @property
    def num_norm(self) -> int:
        """Characters of the normal text."""
        return self.num_raw + _last_shift(self.segments)

    @classmethod
    def identity(cls, num_characters: int) -> "AlignMap":
        """The map of a text that did not change."""
        return cls(np.zeros((0, 4), np.int64), num_characters)

    @classmethod
    def from_segments(cls, segments: Iterable[Sequence[int]] | np.ndarray, num_raw: int) -> "AlignMap":
        """Make a map of changed segments (raw start, raw end, normal start, normal end); touching ones merge.

        Raises:
            AlignError: they are not in order, overlap, leave the text, or differ in length in between.
        """
        given = np.asarray(segments if isinstance(segments, np.ndarray) else list(segments), np.int64)
        given = given.reshape(-1, 4)
        starts, ends = given[:, [RAW_START, NORM_START]], given[:, [RAW_END, NORM_END]]
        befores = np.concatenate((np.zeros((1, 2), np.int64), ends))[:-1]
        gaps = starts - befores
        if (starts > ends).any() or (gaps < 0).any() or (len(given) and ends[-1, 0] > num_raw):
            raise AlignError(
                f"segments must be in order, apart, and inside a text of {num_raw} characters; "
                "give raw start, raw end, normal start, normal end of each"
            )
        if (gaps[:, 0] != gaps[:, 1]).any():
            place = int(np.flatnonzero(gaps[:, 0] != gaps[:, 1])[0])
            raw, norm = gaps[place].tolist()
            raise AlignError(
                f"before segment {place} lie {raw} raw and {norm} normal characters that did not change; "
                "the two must be equal"
            )
        return cls(_merge(given), num_raw)

    @classmethod
    def from_changes(cls, changes: np.ndarray, num_raw: int) -> "AlignMap":
        """Make a map of changes (int64 [S, 3]: raw start, raw end, characters put there), in order.

        A single character in the place of a single one stays its partner.
        """
        starts, ends, lengths = changes.T.astype(np.int64)
        shifts = np.cumsum(lengths - (ends - starts))
        norm_ends = ends + shifts
        segments = np.stack((starts, ends, norm_ends - lengths, norm_ends), axis=1)
        is_pair = (ends - starts == 1) & (lengths == 1)
        return cls.from_segments(segments[~is_pair], num_raw)

    def compose(self, other: "AlignMap") -> "AlignMap":
        """This map, then `other`, whose raw text is this map's normal text."""
        if self.num_norm != other.num_raw:
            raise AlignError(
                f"a map onto {self.num_norm} characters cannot go before one of {other.num_raw}; "
                "compose maps in the order in which the texts were made"
            )
        if len(other.segments) == 0 or len(self.segments) == 0:
            return AlignMap(self.segments if len(other.segments) == 0 else other.segments, self.num_raw)
        first, second = _find_runs(self), _find_runs(other.invert())
        # Both runs are [raw start, middle start, middle end]; cut the middle text at every bound of either.
        cuts = np.unique(np.concatenate((first[:, 1:].ravel(), second[:, 1:].ravel())))
        left, right = cuts[:-1], cuts[1:]
        in_first, in_second = (np.searchsorted(runs[:, 1], left, "right") - 1 for runs in (first, second))
        is_kept = (in_first >= 0) & (in_second >= 0)
        is_kept &= (right <= first[in_first, 2]) & (right <= second[in_second, 2])
        left, right, in_first, in_second = (part[is_kept] for part in (left, right, in_first, in_second))
        raw = left - first[in_first, 1] + first[in_first, 0]
        norm = left - second[in_second, 1] + second[in_second, 0]
        return AlignMap(_find_gaps(raw, norm, right - left, self.num_raw, other.num_norm), self.num_raw)

    def invert(self) -> "AlignMap":
        """The map from the normal to the raw text."""
        return AlignMap(self.segments[:, [NORM_START, NORM_END, RAW_START, RAW_END]], self.num_norm)

    def slice(self, start: int, end: int) -> "AlignMap":
        """The map of the raw characters from start to end, counted from start; no segment may be cut."""
        first = np.searchsorted(self.segments[:, RAW_START], start, "left")
        last = np.searchsorted(self.segments[:, RAW_END], end, "right")
        shift = _last_shift(self.segments[:first])
        base = np.array([start, start, start + shift, start + shift])
        return AlignMap.from_segments(self.segments[first:last] - base, end - start)

    @overload
    def raw_to_norm(self, start: int, end: int) -> tuple[int, int]: ...
    @overload
    def raw_to_norm(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def raw_to_norm(self, start: Any, end: Any) -> tuple[Any, Any]:
        """Project raw spans, one or arrays of them, to the normal text.

        A span that cuts into a changed segment takes the whole of it. An empty span stays empty, before
        whatever was put in at its place, unless it lies inside a changed segment.

        Raises:
            AlignError: a span is not within the text.
        """
        return _project(self.segments, self.num_raw, start, end)

    @overload
    def norm_to_raw(self, start: int, end: int) -> tuple[int, int]: ...
    @overload
    def norm_to_raw(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def norm_to_raw(self, start: Any, end: Any) -> tuple[Any, Any]:
        """Project spans of the normal text to the raw text, by the rules of `raw_to_norm`."""
        inverse = self.invert()
        return _project(inverse.segments, inverse.num_raw, start, end)

    def to_json(self) -> dict[str, Any]:
        """Plain data: the raw length, and per segment three numbers end to end.

        They are the unchanged characters before it, its raw and its normal length.
        """
        segments = self.segments
        before = np.diff(segments[:, RAW_START], prepend=0)
        before[1:] -= np.diff(segments[:, [RAW_START, RAW_END]], axis=1)[:-1, 0]
        raw, norm = (
            segments[:, RAW_END] - segments[:, RAW_START],
            segments[:, NORM_END] - segments[:, NORM_START],
        )
        return {"length": self.num_raw, "changes": np.stack((before, raw, norm), axis=1).ravel().tolist()}

    @classmethod
    def from_json(cls, data: Any, num_raw: int | None = None, num_norm: int | None = None) -> "AlignMap":
        """Read what `to_json` gave, or an older corpus's null or {raw index: normal index}.

        Args:
            data: plain data; the keys of the old form may be strings.
            num_raw: the raw text's length, which null does not tell.
            num_norm: the normal text's length, which the old form does not tell; without it the last
                character is taken to have become one character.

        Raises:
            AlignError: the data is none of these, or does not fit the lengths.
        """
        if data is None:
            if num_raw is None:
                raise AlignError("null says nothing of the text; give num_raw, its length")
            return cls.identity(num_raw)
        if not isinstance(data, Mapping):
            raise AlignError(
                f"an align map is an object, not {type(data).__name__}; wanted length and changes"
            )
        read = _read_compact(data) if "length" in data else _read_indices(data, num_norm)
        for name, wanted, found in (("raw", num_raw, read.num_raw), ("normal", num_norm, read.num_norm)):
            if wanted is not None and wanted != found:
                raise AlignError(f"the map is of {found} {name} characters, the text has {wanted}")
        return read

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AlignMap):
            return NotImplemented
        return self.num_raw == other.num_raw and np.array_equal(self.segments, other.segments)

    def __hash__(self) -> int:
        return hash((self.num_raw, self.segments.tobytes()))


def _last_shift(segments: np.ndarray) -> int:
    return int(segments[-1, NORM_END] - segments[-1, RAW_END]) if len(segments) else 0


def _merge(segments: np.ndarray) -> np.ndarray:
    """Segments of which no two touch; those empty on both sides go."""
    segments = segments[(segments[:, [RAW_START, NORM_START]] < segments[:, [RAW_END, NORM_END]]).any(axis=1)]
    if len(segments) == 0:
        return segments
    is_first = np.append(True, segments[1:, RAW_START] > segments[:-1, RAW_END])
    is_last = np.append(is_first[1:], True)
    merged = segments[is_first]
    merged[:, [RAW_END, NORM_END]] = segments[is_last][:, [RAW_END, NORM_END]]
    return merged


def _find_runs(align: AlignMap) -> np.ndarray:
    """Unchanged runs as int64 [S + 1, 3]: raw start, normal start and normal end; some may be empty."""
    segments = align.segments
    raw_starts = np.append(0, segments[:, RAW_END])
    norm_starts = np.append(0, segments[:, NORM_END])
    return np.stack((raw_starts, norm_starts, np.append(segments[:, NORM_START], align.num_norm)), axis=1)


def _find_gaps(
    raw: np.ndarray, norm: np.ndarray, lengths: np.ndarray, num_raw: int, num_norm: int
) -> np.ndarray:
    """The segments between unchanged runs; runs that follow each other in both texts leave none."""
    starts = np.stack((np.append(0, raw + lengths), np.append(0, norm + lengths)), axis=1)
    ends = np.stack((np.append(raw, num_raw), np.append(norm, num_norm)), axis=1)
    gaps = np.stack((starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]), axis=1)
    return gaps[(starts < ends).any(axis=1)]


def _project(segments: np.ndarray, num_raw: int, start: Any, end: Any) -> tuple[Any, Any]:
    starts, ends = np.asarray(start, np.int64), np.asarray(end, np.int64)
    is_bad = (starts < 0) | (ends < starts) | (ends > num_raw)
    if is_bad.any():
        place = int(np.flatnonzero(is_bad)[0])
        raise AlignError(
            f"span {starts.ravel()[place]} to {ends.ravel()[place]} is not within {num_raw} characters; "
            "spans are half-open, with 0 <= start <= end"
        )
    if len(segments) == 0:
        return (int(start), int(end)) if starts.ndim == 0 else (starts, ends)
    raw_starts, raw_ends, norm_starts, norm_ends = segments.T
    shifts = np.append(0, norm_ends - raw_ends)
    after = np.searchsorted(raw_ends, starts, "right")
    touched = np.minimum(after, len(segments) - 1)
    is_inside = (after < len(segments)) & (raw_starts[touched] < starts)
    from_norm = np.where(is_inside, norm_starts[touched], starts + shifts[after])
    before = np.searchsorted(raw_starts, ends, "left")
    touched = np.maximum(before - 1, 0)
    is_within = (before > 0) & (ends <= raw_ends[touched])
    to_norm = np.where(is_within, norm_ends[touched], ends + shifts[before])
    from_norm = np.where((starts == ends) & ~is_inside, to_norm, from_norm)
    if starts.ndim == 0:
        return int(from_norm), int(to_norm)
    return from_norm, to_norm


def _read_compact(data: Mapping) -> AlignMap:
    length, given = data["length"], data.get("changes")
    changes = given if isinstance(given, list) else []
    is_whole = changes is given and len(changes) % 3 == 0 and set(data) == {"length", "changes"}
    if not is_whole or not all(type(number) is int and number >= 0 for number in [length, *changes]):
        raise AlignError(
            "wanted {length: N, changes: [unchanged, raw, normal, ...]}, three counts per segment; "
            f"found the keys {', '.join(map(str, data))}"
        )
    before, raw, norm = np.array(changes, np.int64).reshape(-1, 3).T
    raw_ends, norm_ends = np.cumsum(before + raw), np.cumsum(before + norm)
    return AlignMap.from_segments(
        np.stack((raw_ends - raw, raw_ends, norm_ends - norm, norm_ends), axis=1), length
    )


def _read_indices(data: Mapping, num_norm: int | None) -> AlignMap:
    """A map of one entry per raw character: equal indices shrank, a jump of more than one grew."""
    try:
        pairs = np.array([(int(raw), int(norm)) for raw, norm in data.items()], np.int64).reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise AlignError(f"wanted length and changes, or numbers only: {error}") from error
    raw, norm = pairs[np.argsort(pairs[:, 0], kind="stable")].T
    if not np.array_equal(raw, np.arange(len(raw))) or (np.diff(norm, prepend=0) < 0).any():
        raise AlignError(
            "the old form must have each raw index from 0 on once, and normal indices that never fall; "
            "normalise the raw text again"
        )
    if len(norm) == 0:
        return AlignMap.from_segments([(0, 0, 0, num_norm or 0)], 0)
    num_norm = int(norm[-1]) + 1 if num_norm is None else num_norm
    starts = np.flatnonzero(np.append(True, np.diff(norm) > 0))
    norm_starts = norm[starts]
    norm_starts[0] = 0
    ends, norm_ends = np.append(starts[1:], len(norm)), np.append(norm_starts[1:], num_norm)
    is_changed = (ends - starts != 1) | (norm_ends - norm_starts != 1)
    segments = np.stack((starts, ends, norm_starts, norm_ends), axis=1)[is_changed]
    return AlignMap.from_segments(segments, len(norm))
