"""Packing: documents cut into rows of pieces, several parts a row, each between its own [CLS] and [SEP].

Shapes: R rows, N pieces in all of them, special pieces included.
"""

from dataclasses import dataclass

import numpy as np

from data_pipes.rows import Rows
from data_pipes.tokenize import Pieces

# Under this many free pieces a row is closed rather than given the start of a document.
MIN_ROOM = 16
NUM_SPECIALS = 2  # [CLS] and [SEP] of a part


@dataclass
class Packer:
    """Fills rows in order, document after document; an open row waits for the next batch.

    Documents are cut at word starts only; a word longer than a whole row is cut inside. Every piece of every
    document comes out exactly once.

    Attributes:
        row_length: most pieces in a row, special ones included.
        is_packed: False gives each part a row of its own.
    """

    row_length: int
    cls_id: int
    sep_id: int
    is_packed: bool = True

    def __post_init__(self):
        if self.row_length <= NUM_SPECIALS:
            raise ValueError(
                f"row_length is {self.row_length}; rows hold [CLS] and [SEP], so give it at least 3"
            )
        self._open = _empty_rows()

    def pack(self, pieces: Pieces) -> Rows:
        """Pack documents and give the rows that are full."""
        starts, ends, rows = self._cut(pieces)
        placed = self._place(pieces, starts, ends, rows)
        if placed.num_rows == 0:
            return placed
        joined = _join_rows(
            self._open, placed, is_continued=bool(len(rows)) and rows[0] == 0 and self._used > 0
        )
        num_closed = joined.num_rows - 1 if self.is_packed else joined.num_rows
        self._open = joined.take(np.arange(num_closed, joined.num_rows))
        return joined.take(np.arange(num_closed))

    def finish(self) -> Rows:
        """The last, part-filled row, if there is one."""
        rows, self._open = self._open, _empty_rows()
        return rows

    @property
    def _used(self) -> int:
        return len(self._open.pieces)

    def _cut(self, pieces: Pieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parts as spans of pieces and the row of each; row 0 is the open one if there is one."""
        word_starts = np.flatnonzero(pieces.word_starts)
        parts: list[tuple[int, int, int]] = []
        row, used = 0, self._used
        for at, end in zip(pieces.offsets[:-1].tolist(), pieces.offsets[1:].tolist(), strict=True):
            while at < end:
                cut = self._choose_cut(word_starts, at, end, used)
                if cut > at:
                    parts.append((at, cut, row))
                    used += cut - at + NUM_SPECIALS
                    at = cut
                if at < end or not self.is_packed:
                    row, used = row + 1, 0
        starts, ends, rows = np.array(parts, np.int64).reshape(-1, 3).T
        return starts, ends, rows

    def _choose_cut(self, word_starts: np.ndarray, at: int, end: int, used: int) -> int:
        """Where the part that begins at `at` ends; `at` itself if this row should be closed first."""
        room = self.row_length - used - NUM_SPECIALS
        if end - at <= room:
            return end
        if used and room < MIN_ROOM:
            return at
        cut = int(word_starts[np.searchsorted(word_starts, at + room, side="right") - 1])
        if cut > at:
            return cut
        return at if used else at + room

    def _place(self, pieces: Pieces, starts: np.ndarray, ends: np.ndarray, rows: np.ndarray) -> Rows:
        """Lay the parts out with their special pieces; a word cut inside begins anew."""
        if len(starts) == 0:
            return _empty_rows()
        lengths = ends - starts + NUM_SPECIALS
        part_ends = np.cumsum(lengths)
        part_starts = part_ends - lengths
        num_pieces = int(part_ends[-1])
        is_special = np.zeros(num_pieces, bool)
        is_special[part_starts] = is_special[part_ends - 1] = True
        source = np.repeat(starts - part_starts - 1, lengths) + np.arange(num_pieces)
        source[is_special] = 0
        ids = np.where(is_special, np.uint32(self.sep_id), pieces.ids[source])
        ids[part_starts] = self.cls_id
        word_starts = is_special | pieces.word_starts[source]
        word_starts[part_starts + 1] = True
        document_starts = np.zeros(num_pieces, bool)
        document_starts[part_starts] = True
        row_lengths = np.bincount(rows - rows[0], weights=lengths).astype(np.int64)
        return Rows(ids, np.concatenate(([0], np.cumsum(row_lengths))), word_starts, document_starts)


def _empty_rows() -> Rows:
    return Rows(np.zeros(0, np.uint32), np.zeros(1, np.int64), np.zeros(0, bool), np.zeros(0, bool))


def _join_rows(first: Rows, second: Rows, is_continued: bool) -> Rows:
    """Rows of both; if continued, the last row of the first and the first row of the second are one row."""
    lengths = np.concatenate((first.lengths, second.lengths))
    if is_continued:
        place = first.num_rows - 1
        lengths = np.concatenate(
            (lengths[:place], [lengths[place] + lengths[place + 1]], lengths[place + 2 :])
        )
    return Rows(
        np.concatenate((first.pieces, second.pieces)),
        np.concatenate(([0], np.cumsum(lengths))),
        np.concatenate((first.word_starts, second.word_starts)),
        np.concatenate((first.document_starts, second.document_starts)),
    )
