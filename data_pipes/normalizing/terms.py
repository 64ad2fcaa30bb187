"""Terms: binds what a rule file describes, for all documents of a batch at once.

Of terms that overlap the first wins, of those that begin together the longest, then the one whose rule stands
first in the file (terms before rules).
"""

import re
from collections.abc import Iterator

import numpy as np

from data_pipes.normalizing.changes import Bound, Changes
from data_pipes.normalizing.term_rules import TermRules
from data_pipes.normalizing.term_search import Search, Tree
from data_pipes.normalizing.term_words import Words


class TermFinder:
    """Finds the terms of one rule file and says how each is written as one word."""

    def __init__(self, rules: TermRules):
        self.rules = rules
        self._tree = Tree(rules.terms)
        self._forms = [[self._collect_forms(names) for names in pattern.items] for pattern in rules.patterns]

    def find(self, text: str) -> Changes:
        """The changes that bind every term of documents laid end to end."""
        words = Words(text)
        found: list[tuple[int, int, str]] = []
        bound: list[tuple[int, int, str]] = []
        # One turn per term that was found, not per word.
        for number, spans, has_inner_dot in self._choose(words):
            if number < len(self._tree.spellings):
                rule, changes = self._write_term(text, spans, number)
            else:
                number -= len(self._tree.spellings)
                rule = self.rules.patterns[number].rule
                changes = _write_words(text, spans, self._forms[number], has_inner_dot)
            # A term like `Anti-Atlas` is one word already; it only keeps its parts from other terms.
            if changes:
                found += changes
                bound.append((spans[0][0], max(spans[-1][1], changes[-1][1]), rule))
        starts, ends, texts = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
        first, last = (np.array([term[side] for term in bound], np.int64) for side in (0, 1))
        return Changes(starts, ends, texts, Bound(first, last, [rule for _, _, rule in bound]))

    def _choose(self, words: Words) -> Iterator[tuple[int, list[tuple[int, int]], bool]]:
        """Terms that do not overlap: the number of the spelling or pattern, and the spans of the words."""
        candidates = [np.stack(part, axis=1) for part in self._tree.find(words)]
        search = Search(words, self.rules)
        for number, pattern in enumerate(self.rules.patterns, len(self._tree.spellings)):
            places = search.match(pattern)
            size = np.full_like(places, len(pattern.items))
            candidates.append(np.stack((places, size, np.full_like(places, number)), axis=1))
        table = np.concatenate([*candidates, np.zeros((0, 3), np.int64)])
        table = table[np.lexsort((table[:, 2], -table[:, 1], table[:, 0]))]
        free = 0
        for first, size, number in table.tolist():
            if first < free:
                continue
            free = first + size
            spans = zip(words.starts[first:free].tolist(), words.ends[first:free].tolist(), strict=True)
            yield number, list(spans), bool(words.has_inner_dot[free - 1])

    def _write_term(
        self, text: str, spans: list[tuple[int, int]], number: int
    ) -> tuple[str, list[tuple[int, int, str]]]:
        rule, _, normal = self._tree.spellings[number]
        start, end = spans[0][0], spans[-1][1]
        normal = normal.replace(" ", "_")
        parts = re.findall(r"[^\W_]+|[\W_]+", normal)
        if len(parts) != 2 * len(spans) - 1:
            return rule, [(start, end, normal)]
        bounds = [bound for span in spans for bound in span]
        changes = zip(bounds[:-1], bounds[1:], parts, strict=True)
        return rule, [change for change in changes if text[change[0] : change[1]] != change[2]]

    def _collect_forms(self, names: tuple[str, ...]) -> dict[str, str]:
        """Spellings of the words of some classes, with their normal forms."""
        forms: dict[str, str] = {}
        for name in names:
            item = self.rules.classes[name]
            forms = self._collect_forms(item.also) | item.forms | forms
        return forms


def _write_words(
    text: str, spans: list[tuple[int, int]], forms: list[dict[str, str]], has_inner_dot: bool
) -> list[tuple[int, int, str]]:
    """The changes that write these words as one, each in its normal form.

    The dot of an abbreviation that has a longer form goes; at the end of a sentence it stays.
    """
    changes = []
    for place, (start, end) in enumerate(spans):
        word, is_last = text[start:end], place == len(spans) - 1
        next_start = end if is_last else spans[place + 1][0]
        has_dot = has_inner_dot if is_last else text[end] == "."
        dotted = forms[place].get(f"{word}.")
        normal = (
            dotted if dotted is not None and (has_dot or word not in forms[place]) else forms[place].get(word)
        )
        is_dot_kept = has_dot and (dotted is None or dotted == f"{word}.")
        if normal is not None and normal not in (word, f"{word}."):
            changes.append((start, end + (is_last and has_dot and not is_dot_kept), normal))
        if not is_last:
            changes.append((end + is_dot_kept, next_start, "_"))
    return changes
