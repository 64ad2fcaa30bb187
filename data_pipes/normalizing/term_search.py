"""Where terms may be: patterns of word classes, and a tree of terms given in full.

Classes are decided once per different word, and a pattern is then a few array comparisons per word.

Shapes: W words, U different words and gaps, K candidates.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.documents import pc
from data_pipes.normalizing.changes import NormalizerError
from data_pipes.normalizing.term_rules import WORD, Pattern, TermRules, WordClass
from data_pipes.normalizing.term_words import APOSTROPHE, DOT, HYPHEN, SPACE, Words


@dataclass(frozen=True)
class Members:
    """Which words belong to a class: bool [U], by themselves and as abbreviations with a dot."""

    plain: np.ndarray
    dotted: np.ndarray

    def __or__(self, other: "Members") -> "Members":
        return Members(self.plain | other.plain, self.dotted | other.dotted)


class Search:
    """The classes of one batch's words, each worked out when it is asked for."""

    def __init__(self, words: Words, rules: TermRules):
        self.words, self.classes = words, rules.classes
        self._members: dict[str, Members] = {}
        self._learned: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._firsts: dict[tuple[str, ...], np.ndarray] = {}

    def members(self, name: str) -> Members:
        """Which words belong to a class."""
        if name not in self._members:
            self._members[name] = self._find_members(self.classes[name])
        return self._members[name]

    def _find_members(self, item: WordClass) -> Members:
        found = self._find_listed(list(item.forms))
        if item.shape is not None and item.shape.endswith(r"\."):
            found |= Members(found.plain, self.words.matches(f"^(?:{item.shape[:-2]})$"))
        elif item.shape is not None:
            found |= Members(self.words.matches(f"^(?:{item.shape})$"), found.dotted)
        for other in item.also:
            found |= self.members(other)
        for other in item.but_not:
            excluded = self.members(other)
            found = Members(found.plain & ~excluded.plain, found.dotted & ~excluded.dotted)
        return found

    def _find_listed(self, spellings: list[str]) -> Members:
        dotted = [spelling[:-1] for spelling in spellings if spelling.endswith(".")]
        plain = [spelling for spelling in spellings if not spelling.endswith(".")]
        return Members(self.words.are_in(plain), self.words.are_in(dotted))

    def is_learned(self, name: str, places: np.ndarray) -> np.ndarray:
        """Whether the words at these places belong to a class by what stood before them: bool [K]."""
        keys, firsts = self._find_learned(name)
        wanted = self.words.documents[places] * len(self.words.strings) + self.words.ids[places]
        return _stands_before(keys, firsts, wanted, places)

    def _find_learned(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Document and word (as one number) of what a class learned, sorted, and the place of the first."""
        if name not in self._learned:
            item, words = self.classes[name], self.words
            places = np.zeros(0, np.int64)
            if item.learn_from is not None:
                cues = self._find_listed(list(item.learn_after))
                follows = cues.plain[words.ids] & (words.joints == SPACE)
                follows |= cues.dotted[words.ids] & (words.joints == DOT)
                places = np.flatnonzero(follows) + 1
                places = places[self.members(item.learn_from).plain[words.ids[places]]]
            keys = words.documents[places] * len(words.strings) + words.ids[places]
            keys, firsts = np.unique(keys, return_index=True)
            self._learned[name] = keys, places[firsts]
        return self._learned[name]

    def has_initial(self, name: str, places: np.ndarray) -> np.ndarray:
        """Whether a word of a class, listed or before in the document, begins as these do: bool [K]."""
        words = self.words
        listed = np.array(sorted({ord(word[0]) for word in self.classes[name].forms}), np.uint32)
        known = np.isin(words.first_codes[places], listed)
        _, firsts = self._find_learned(name)
        initials = words.documents[firsts] * 0x110000 + words.first_codes[firsts]
        initials, order = np.unique(initials[np.argsort(firsts)], return_index=True)
        wanted = words.documents[places] * 0x110000 + words.first_codes[places]
        return known | _stands_before(initials, np.sort(firsts)[order], wanted, places)

    def are_members(self, names: tuple[str, ...], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the words at these places belong to any of the classes, plain and with a dot: bool [K]."""
        ids = self.words.ids[places]
        plain, dotted = np.zeros(len(places), bool), np.zeros(len(places), bool)
        for name in names:
            members = self.members(name)
            plain |= members.plain[ids]
            dotted |= members.dotted[ids]
            if self.classes[name].learn_from is not None:
                plain |= self.is_learned(name, places)
        return plain, dotted

    def _find_first(self, names: tuple[str, ...]) -> np.ndarray:
        if names not in self._firsts:
            plain, dotted = self.are_members(names, np.arange(len(self.words.ids)))
            self._firsts[names] = np.flatnonzero(plain | dotted)
        return self._firsts[names]

    def match(self, pattern: Pattern) -> np.ndarray:
        """The places of the first words of all terms of a pattern: int64 [K]."""
        words, last = self.words, len(pattern.items) - 1
        places = self._find_first(pattern.items[0])
        places = places[places < len(words.ids) - last]
        for step, names in enumerate(pattern.items):
            at = places + step
            plain, dotted = self.are_members(names, at)
            if step < last:
                joints = words.joints[at]
                dotted &= joints == DOT
                plain &= (joints == SPACE) | ((joints == HYPHEN) & ("hyphen" in pattern.joints))
            else:
                plain &= ~words.is_cut[at]
                dotted &= words.has_dot[at]
            places = places[plain | dotted]
            if len(places) == 0:
                return places
        if pattern.initial_of is not None:
            places = places[self.has_initial(pattern.initial_of, places)]
        return places


def _stands_before(
    keys: np.ndarray, firsts: np.ndarray, wanted: np.ndarray, places: np.ndarray
) -> np.ndarray:
    if len(keys) == 0:
        return np.zeros(len(wanted), bool)
    found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return (keys[found] == wanted) & (firsts[found] <= places)


class Tree:
    """All spellings of the terms as one tree of words and joints."""

    def __init__(self, terms: dict[str, dict[str, str]]):
        self.spellings = [(rule, old, new) for rule, forms in terms.items() for old, new in forms.items()]
        self.words = sorted({word for _, old, _ in self.spellings for word in WORD.findall(old)})
        numbers = {word: number for number, word in enumerate(self.words)}
        steps: dict[tuple[int, int, int], int] = {}
        self.accepted = {}
        for number, (_, old, new) in enumerate(self.spellings):
            state, joint = 0, 0
            for part in re.findall(r"\w+|\W+", old):
                if WORD.fullmatch(part):
                    state = steps.setdefault((state, joint, numbers[part]), len(steps) + 1)
                else:
                    joint = _find_joint(part)
            if len(WORD.findall(old)) > 1 or old != new:
                self.accepted.setdefault(state, number)
        keys = np.array([self._key(*map(np.int64, key)) for key in steps], np.int64)
        order = np.argsort(keys)
        self.keys, self.states = keys[order], np.array(list(steps.values()), np.int64)[order]
        self.ends = np.full(len(steps) + 1, -1, np.int64)
        for state, number in self.accepted.items():
            self.ends[state] = number

    def _key(self, state: np.ndarray, joint: np.ndarray, word: np.ndarray) -> np.ndarray:
        return (state * 8 + joint) * len(self.words) + word

    def find(self, words: Words) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Places of first words, numbers of words and of spellings, a length at a time."""
        if not self.words:
            return
        numbers = pc.index_in(words.strings, pa.array(self.words, pa.string())).fill_null(-1).to_numpy()
        numbers = numbers.astype(np.int64)[words.ids]
        starts = np.flatnonzero(numbers >= 0)
        states, joints, length = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64), 0
        while len(starts):
            keys = self._key(states, joints, numbers[starts + length])
            found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            is_known = (self.keys[found] == keys) & (numbers[starts + length] >= 0)
            starts, states, length = starts[is_known], self.states[found[is_known]], length + 1
            is_end = self.ends[states] >= 0
            yield starts[is_end], np.full(int(is_end.sum()), length), self.ends[states[is_end]]
            joints = words.joints[starts + length - 1].astype(np.int64)
            goes_on = (joints > 0) & (starts + length < len(numbers))
            starts, states, joints = starts[goes_on], states[goes_on], joints[goes_on]


def _find_joint(gap: str) -> int:
    for kind, pattern in ((SPACE, r"\s+"), (HYPHEN, "-"), (DOT, r"\.\s*"), (APOSTROPHE, "['\u2019]")):
        if re.fullmatch(pattern, gap):
            return kind
    raise NormalizerError(f"a term cannot have {gap!r} between its words")
