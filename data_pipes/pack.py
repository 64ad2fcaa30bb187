"""Packing: documents cut into parts, and parts put into rows, each between its own [CLS] and [SEP].

Shapes: R rows, P parts, N pieces; special pieces count in rows only.
"""

from dataclasses import dataclass, field

import numpy as np

from data_pipes.rows import Rows
from data_pipes.tokenize import Pieces

NUM_SPECIALS = 2  # [CLS] and [SEP] of a part
# Open rows. With more of them each part finds a better place; they are what a stopped build must save.
NUM_OPEN_ROWS = 1024
# A part of a longer document ends with a sentence if that leaves this share of a row used, else with a word.
MIN_SENTENCE_FILL = 0.9


@dataclass
class Packer:
    """Fills rows by best fit: each part goes to the open row that it leaves the least room in.

    A document longer than a row is cut at sentence starts where the row is then nearly full, else at word
    starts; a word longer than a row is cut inside. Every piece of every document comes out exactly once. Rows
    do not depend on how documents are dealt out to calls. Documents that all take a little more than half a
    row are not cut and leave the rest empty.

    Attributes:
        row_length: most pieces in a row, special ones included.
        is_packed: False gives each part a row of its own, in order.
        num_open_rows: most rows that wait for more parts; beyond, the fullest is closed.
    """

    row_length: int
    cls_id: int
    sep_id: int
    is_packed: bool = True
    num_open_rows: int = NUM_OPEN_ROWS
    _open: "_Parts" = field(init=False, repr=False)

    def __post_init__(self):
        if self.row_length <= NUM_SPECIALS:
            raise ValueError(
                f"row_length is {self.row_length}; rows hold [CLS] and [SEP], so give it at least 3"
            )
        self._open = _Parts.make_empty()

    def pack(self, pieces: Pieces) -> Rows:
        """Pack documents and give the rows that are closed."""
        starts, ends = cut_documents(pieces, self.row_length - NUM_SPECIALS)
        if not self.is_packed:
            return self._lay_out(_Parts(pieces.ids, pieces.word_starts, starts, ends, np.arange(len(starts))))
        parts = self._open.extend(pieces, starts, ends)
        row_P, num_closed = self._place(parts)
        is_closed_P = row_P < num_closed
        self._open = parts.take(~is_closed_P, row_P - num_closed)
        return self._lay_out(parts.take(is_closed_P, row_P))

    def finish(self) -> Rows:
        """Close all rows, the fullest first."""
        parts, self._open = self._open, _Parts.make_empty()
        return self._lay_out(parts)

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs: the parts of the open rows."""
        return self._open.list_arrays()

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from the state of a packer with the same attributes."""
        self._open = _Parts(**state)

    def _place(self, parts: "_Parts") -> tuple[np.ndarray, int]:
        """The row of each part, int64 [P], closed rows first, in that order, and how many are closed."""
        needs = (parts.ends - parts.starts + NUM_SPECIALS).tolist()
        num_old = len(parts.rows)
        old_rows = parts.rows.tolist()
        shelf = _Shelf(self.row_length, self.num_open_rows)
        used = np.bincount(parts.rows, weights=np.array(needs[:num_old], float))
        for need in used.astype(np.int64).tolist():
            shelf.add(self.row_length - need)
        places = [shelf.put(need) for need in needs[num_old:]]
        order = shelf.closed + shelf.list_open()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return rank[np.array(old_rows + places, np.int64)], len(shelf.closed)

    def _lay_out(self, parts: "_Parts") -> Rows:
        """Rows with their special pieces; a word that was cut inside begins anew."""
        if len(parts.starts) == 0:
            return Rows(np.zeros(0, np.uint32), np.zeros(1, np.int64), np.zeros(0, bool), np.zeros(0, bool))
        lengths = parts.ends - parts.starts + NUM_SPECIALS
        part_ends = np.cumsum(lengths)
        part_starts = part_ends - lengths
        num_pieces = int(part_ends[-1])
        source = np.repeat(parts.starts - part_starts - 1, lengths) + np.arange(num_pieces)
        source[part_starts] = source[part_ends - 1] = 0
        ids, word_starts = parts.ids[source], parts.word_starts[source]
        ids[part_starts], ids[part_ends - 1] = self.cls_id, self.sep_id
        word_starts[part_starts] = word_starts[part_starts + 1] = word_starts[part_ends - 1] = True
        document_starts = np.zeros(num_pieces, bool)
        document_starts[part_starts] = True
        row_lengths = np.bincount(parts.rows, weights=lengths).astype(np.int64)
        return Rows(ids, np.concatenate(([0], np.cumsum(row_lengths))), word_starts, document_starts)


def cut_documents(pieces: Pieces, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts of at most so many pieces, their starts and ends, int64 [P] each; an empty document has none."""
    document_lengths = np.diff(pieces.offsets)
    is_whole = (document_lengths > 0) & (document_lengths <= most)
    (long,) = np.nonzero(document_lengths > most)
    if len(long) == 0:
        return pieces.offsets[:-1][is_whole], pieces.offsets[1:][is_whole]
    last_words = _find_last(pieces.word_starts)
    last_sentences = _find_last(pieces.sentence_starts) if len(pieces.sentence_starts) else last_words * 0
    least = max(1, int(MIN_SENTENCE_FILL * most))
    starts, ends = [], []
    for at, end in zip(pieces.offsets[long].tolist(), pieces.offsets[long + 1].tolist(), strict=True):
        while end - at > most:
            cut = int(last_sentences[at + most])
            if cut < at + least:
                cut = int(last_words[at + most])
            cut = cut if cut > at else at + most
            starts.append(at)
            ends.append(cut)
            at = cut
        starts.append(at)
        ends.append(end)
    all_starts = np.concatenate((pieces.offsets[:-1][is_whole], np.array(starts, np.int64)))
    all_ends = np.concatenate((pieces.offsets[1:][is_whole], np.array(ends, np.int64)))
    order = np.argsort(all_starts)
    return all_starts[order], all_ends[order]


def _find_last(flags_N: np.ndarray) -> np.ndarray:
    """For each place the last flagged one up to it, int64 [N]; 0 before the first."""
    return np.maximum.accumulate(np.where(flags_N, np.arange(len(flags_N)), 0))


class _Shelf:
    """Open rows sorted by their room, those with the same room in the order of their coming."""

    def __init__(self, row_length: int, most: int):
        self._row_length, self._most = row_length, most
        self._rows: list[list[int]] = [[] for _ in range(row_length + 1)]
        self._rooms = 0  # bit r: there are rows with room r
        self._num_rows = self._num_open = 0
        self.closed: list[int] = []

    def add(self, room: int) -> int:
        """Open a row."""
        number = self._num_rows
        self._num_rows += 1
        self._num_open += 1
        self._rows[room].append(number)
        self._rooms |= 1 << room
        return number

    def put(self, need: int) -> int:
        """Choose the row of a part, an open one or a new one, and close what is full or too many."""
        fitting = self._rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = self._take(room)
        else:
            room, row = self._row_length, self._num_rows
            self._num_rows += 1
        room -= need
        # A part takes at least one piece and its special pieces.
        if room <= NUM_SPECIALS:
            self.closed.append(row)
            return row
        self._num_open += 1
        self._rows[room].append(row)
        self._rooms |= 1 << room
        if self._num_open > self._most:
            self.closed.append(self._take((self._rooms & -self._rooms).bit_length() - 1))
        return row

    def _take(self, room: int) -> int:
        """Remove the oldest row with this room."""
        rows = self._rows[room]
        row = rows.pop(0)
        if not rows:
            self._rooms ^= 1 << room
        self._num_open -= 1
        return row

    def list_open(self) -> list[int]:
        """Rows by room, then by their coming: rows added again in this order are the same shelf."""
        return [row for rows in self._rows for row in rows]


@dataclass(frozen=True)
class _Parts:
    """Parts of documents and their rows, by row.

    Attributes:
        ids: uint32 [N].
        word_starts: bool [N].
        starts: int64 [P], first piece of each part.
        ends: int64 [P].
        rows: int64 [P or less], ascending; parts behind have none yet.
    """

    ids: np.ndarray
    word_starts: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    rows: np.ndarray

    @classmethod
    def make_empty(cls) -> "_Parts":
        numbers = np.zeros(0, np.int64)
        return cls(np.zeros(0, np.uint32), np.zeros(0, bool), numbers, numbers, numbers)

    def list_arrays(self) -> dict[str, np.ndarray]:
        """All attributes by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def extend(self, pieces: Pieces, starts: np.ndarray, ends: np.ndarray) -> "_Parts":
        """With more parts, which have no row yet."""
        num_old = len(self.ids)
        return _Parts(
            np.concatenate((self.ids, pieces.ids)),
            np.concatenate((self.word_starts, pieces.word_starts)),
            np.concatenate((self.starts, starts + num_old)),
            np.concatenate((self.ends, ends + num_old)),
            self.rows,
        )

    def take(self, is_taken: np.ndarray, rows: np.ndarray) -> "_Parts":
        """Some of the parts end to end by row, in the same order within a row; rows are given for all."""
        taken = np.flatnonzero(is_taken)
        taken = taken[np.argsort(rows[taken], kind="stable")]
        lengths = (self.ends - self.starts)[taken]
        ends = np.cumsum(lengths)
        source = np.repeat(self.starts[taken] - (ends - lengths), lengths) + np.arange(
            ends[-1] if len(ends) else 0
        )
        return _Parts(self.ids[source], self.word_starts[source], ends - lengths, ends, rows[taken])
