"""Changes: places of a text and what is put there.

Texts of a batch are worked on end to end, parted by SEPARATOR: one search instead of one per document. No
normaliser changes a NUL or looks across one, so a NUL inside of a document does no harm.

Shapes: C changes, B bound places.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipes.align import AlignMap

SEPARATOR = "\x00"


class NormalizerError(ValueError):
    """A normaliser is described wrongly: says where, what was wanted, and what to change."""


@dataclass(frozen=True)
class Bound:
    """Terms that were bound.

    Attributes:
        starts: int64 [B], characters of the raw text.
        ends: int64 [B].
        rules: the rule that bound each.
    """

    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    rules: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Changes:
    """Places in order, none overlapping another, and the strings that go there.

    Attributes:
        starts: characters, C of them.
        ends: half-open.
        texts: the new strings.
        bound: the terms that these changes bind.
    """

    starts: list[int]
    ends: list[int]
    texts: list[str]
    bound: Bound = field(default_factory=Bound)

    def apply(self, text: str) -> str:
        """The text with the changes made."""
        parts, done = [], 0
        # One turn per change; slicing copies what lies between at memory speed.
        for start, end, new in zip(self.starts, self.ends, self.texts, strict=True):
            parts.append(text[done:start])
            parts.append(new)
            done = end
        return "".join([*parts, text[done:]])

    def align(self, num_raw: int) -> AlignMap:
        """The map from the text to what `apply` makes of it."""
        lengths = [len(new) for new in self.texts]
        table = np.array([self.starts, self.ends, lengths], np.int64).reshape(3, -1)
        return AlignMap.from_changes(table.T, num_raw)
