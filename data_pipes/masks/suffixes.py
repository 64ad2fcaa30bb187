"""Public suffixes: the part of a domain name under which anybody may register (`co.uk`), in rows.

The rules come from the package `publicsuffixlist`, which ships Mozilla's list. Names are not looked at one by
one: the tail of a name at each label has a hash, a difference of running sums, and all tails of all names are
looked up at once.

Shapes: R names, N code points and T labels in all of them, K rules.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_pipes.masks.draws import mix

DOT = ord(".")

# A rule's kinds; one tail may have several. Only the greatest counts.
_EXACT, _WILDCARD, _EXCEPTION = 1, 2, 4

_CODE_POINT_BITS = np.array(21, np.uint64)


@dataclass(frozen=True, eq=False)
class SuffixRules:
    """The rules of a public suffix list, by the hashes of their labels.

    Attributes:
        hashes: uint64 [K], ascending.
        kinds: uint8 [K], sums of the kinds of a rule.
    """

    hashes: np.ndarray
    kinds: np.ndarray

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "SuffixRules":
        """Read a list in the format of publicsuffix.org; each rule counts as punycode too.

        Raises:
            ValueError: an exception has one label only, or a rule has no punycode.
        """
        kinds: dict[str, int] = {}
        for line in lines:
            rule, *_ = line.lower().split() or [""]
            if not rule or rule.startswith("//"):
                continue
            tail = rule.removeprefix("!").removeprefix("*.")
            kind = _EXCEPTION if rule[0] == "!" else _WILDCARD if rule[0] == "*" else _EXACT
            if kind == _EXCEPTION and "." not in tail:
                raise ValueError(f"suffix rule {rule!r} excepts a whole top-level domain: give it two labels")
            for name in {tail, tail.encode("idna").decode("ascii")}:
                kinds[name] = kinds.get(name, 0) | kind
        code_points = np.array([ord(character) for name in kinds for character in name], np.uint32)
        offsets = np.concatenate(([0], np.cumsum([len(name) for name in kinds], dtype=np.int64)))
        sums = _sum_tails(code_points, offsets[1:], np.diff(offsets))
        hashes = sums[offsets[1:]] - sums[offsets[:-1]]
        order = np.argsort(hashes)
        return cls(hashes[order], np.fromiter(kinds.values(), np.uint8, len(kinds))[order])


@cache
def load_suffix_rules() -> SuffixRules:
    """The rules of the installed package, its private section (`github.io`) included.

    Raises:
        ModuleNotFoundError: the package is missing.
    """
    try:
        from publicsuffixlist import PSLFILE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "public suffixes need the package publicsuffixlist: install it, or leave suffixes to chance"
        ) from error
    with Path(PSLFILE).open(encoding="utf-8") as lines:
        return SuffixRules.parse(lines)


def find_suffixes(
    code_points: np.ndarray, offsets: np.ndarray, rules: SuffixRules
) -> tuple[np.ndarray, np.ndarray]:
    """Find where the public suffix of each name starts and ends, two int64 [R].

    A name under no rule has its last label for a suffix. A dot at the very end is no part of it. Where the
    name is empty or has an empty label, there is no suffix: both are the end of the row. Upper case is read
    as lower case.

    Args:
        code_points: uint32 [N].
        offsets: int64 [R + 1].
        rules: see `load_suffix_rules`.
    """
    ends, lengths = offsets[1:].copy(), np.diff(offsets)
    if not len(code_points):
        return ends.copy(), ends
    is_dot = code_points == DOT
    occupied = lengths > 0
    ends[occupied] -= is_dot[offsets[1:][occupied] - 1]
    is_first = np.append(True, is_dot[:-1])
    is_first[offsets[:-1][occupied]] = True
    labels = is_first.nonzero()[0]
    label_offsets = np.searchsorted(labels, offsets)
    num_labels = np.diff(label_offsets)
    is_whole = occupied.copy()
    is_whole[np.searchsorted(offsets, (is_first & is_dot).nonzero()[0], side="right") - 1] = False

    sums = _sum_tails(code_points, ends, lengths)
    found = _look_up(sums[ends].repeat(num_labels) - sums[labels], rules)
    matched = found.nonzero()[0]
    rows = np.searchsorted(label_offsets, matched, side="right") - 1
    # The longest tail that has a rule decides: the first of its row.
    is_longest = np.append(True, rows[1:] != rows[:-1])[: len(rows)]
    matched, rows = matched[is_longest], rows[is_longest]
    kinds = found[matched]
    step = np.where(kinds >= _EXCEPTION, 1, np.where(kinds >= _WILDCARD, -1, 0))
    chosen = label_offsets[1:] - 1
    chosen[rows] = np.maximum(matched + step, label_offsets[rows])
    starts = np.where(is_whole, labels[np.minimum(chosen, len(labels) - 1)], offsets[1:])
    return starts, np.where(is_whole, ends, offsets[1:])


def _look_up(hashes: np.ndarray, rules: SuffixRules) -> np.ndarray:
    """The kinds of the rule that each hash has, 0 without one, uint8."""
    if not len(rules.hashes):
        return np.zeros(len(hashes), np.uint8)
    at = np.minimum(np.searchsorted(rules.hashes, hashes), len(rules.hashes) - 1)
    return np.where(rules.hashes[at] == hashes, rules.kinds[at], np.uint8(0))


def _sum_tails(code_points: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Running sums, uint64 [N + 1], of mix(distance to the end of the name * 2^21 + code point)."""
    mixed = (ends.repeat(lengths) - np.arange(len(code_points))).view(np.uint64)
    mixed <<= _CODE_POINT_BITS
    mixed |= _lower(code_points)
    sums = np.zeros(len(code_points) + 1, np.uint64)
    np.cumsum(mix(mixed), out=sums[1:])
    return sums


def _lower(code_points: np.ndarray) -> np.ndarray:
    table = _build_case_table()
    if int(code_points.max(initial=0)) < len(table):
        return table[code_points]
    return np.where(code_points < len(table), table[np.minimum(code_points, len(table) - 1)], code_points)


@cache
def _build_case_table() -> np.ndarray:
    """The lower case of the code points up to the last script that has two cases."""
    lowered = [chr(code_point).lower() for code_point in range(0x1EA00)]
    return np.array([ord(text) if len(text) == 1 else at for at, text in enumerate(lowered)], np.uint32)
