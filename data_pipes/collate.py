"""Collate: rows and their masks as tensors.

Shapes: B rows in a micro-batch, L slots each, N pieces.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from data_pipes.masking import Hidden
from data_pipes.rows import Rows

LayoutKind: TypeAlias = Literal["words", "characters"]
Batch: TypeAlias = "dict[str, torch.Tensor]"

# CANINE's special pieces are private-use code points (transformers, CanineTokenizer).
CLS_CHARACTER = 0xE000
SEP_CHARACTER = 0xE001
MASK_CHARACTER = 0xE003

# CANINE's local attention (config.local_transformer_stride).
_WINDOW = 128

NOT_A_TARGET = -100


@dataclass(frozen=True)
class Layout:
    """How rows become tensors.

    Attributes:
        kind: "words": rows hold all their pieces, special ones included. "characters": rows hold characters
            only; CANINE's CLS and SEP are added here.
        row_length: the most pieces that a row holds; with words also the most slots.
        pad_piece: fills the slots behind a row.
        shapes: row lengths in slots, ascending, to round up to, so that a step meets few shapes; longer rows
            keep their own. With words multiples of 8 or row_length, with characters multiples of 4.
    """

    kind: LayoutKind
    row_length: int
    pad_piece: int = 0
    shapes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in get_args(LayoutKind):
            raise ValueError(f"layout kind is {self.kind!r}: use one of {', '.join(get_args(LayoutKind))}")
        if self.row_length < 1:
            raise ValueError(f"row_length is {self.row_length}: it must be at least 1")
        self._check_shapes()

    def _check_shapes(self) -> None:
        step = 4 if self.kind == "characters" else 8
        if list(self.shapes) != sorted(set(self.shapes)):
            raise ValueError(f"shapes are {self.shapes}: list each once, the shortest first")
        for shape in self.shapes:
            if self.kind == "words" and not 1 <= shape <= self.row_length:
                raise ValueError(f"shapes holds {shape} with row_length {self.row_length}: no row is so long")
            if shape == self.row_length and self.kind == "words":
                continue
            if shape < 8 or shape % step:
                raise ValueError(
                    f"shapes holds {shape}: rows of {self.kind} take at least 8 slots and a "
                    f"multiple of {step}"
                )

    def count_slots(self, longest: int) -> int:
        """Give L for a batch whose longest row has this many pieces: the next shape, or else its own length.

        Words: the next multiple of 8, which tensor cores want. Characters: the shortest row for which
        CANINE's output no longer depends on the padding: its convolution reaches 2 slots past the last
        character, and where these begin a window of 128 of the local attention, the window must be whole.
        More padding than that changes nothing.
        """
        if longest > self.row_length:
            raise ValueError(
                f"a row has {longest} pieces but row_length is {self.row_length}: pack rows with the same "
                "row_length as the layout"
            )
        slots = self._count_exact_slots(longest)
        place = bisect_left(self.shapes, slots)
        return self.shapes[place] if place < len(self.shapes) else slots

    def count_slots_of(self, lengths: np.ndarray) -> int:
        """Give L for a batch of rows with so many pieces, int64 [B]."""
        slots = self.count_slots(int(lengths.max(initial=0)))
        if self.kind == "words" or slots <= _WINDOW:
            return slots
        # Of rows longer than a window a shorter one may need more slots: 126 characters 256, 127 only 136.
        return max(slots, *map(self.count_slots, np.unique(lengths).tolist()))

    def _count_exact_slots(self, longest: int) -> int:
        if self.kind == "words":
            return min(max(8, -(-longest // 8) * 8), self.row_length)
        last_used, last_reached = longest + 1, longest + 3
        slots = 4 * (last_reached // 4 + 2)
        if last_reached // _WINDOW > last_used // _WINDOW:
            slots = max(slots, (last_reached // _WINDOW + 1) * _WINDOW)
        return slots


def collate(rows: Rows, hidden: Hidden, layout: Layout) -> Batch:
    """Lay rows out as int64 tensors [B, L].

    Gives `input_ids` (corrupted pieces, then padding), `attention_mask` (1 on pieces), `labels` (the
    original piece at targets, -100 elsewhere) and, when some row holds several documents, `document_ids`
    (0 on padding, 1, 2, ... along the row).
    """
    lengths = rows.lengths
    num_slots = layout.count_slots_of(lengths)
    lead = 1 if layout.kind == "characters" else 0
    starts_in_front = rows.document_starts[rows.offsets[:-1][lengths > 0]]
    holds_several = np.count_nonzero(rows.document_starts) > np.count_nonzero(starts_in_front)
    if lead and holds_several:
        # CANINE's convolution runs across documents, so packing would not be exact.
        raise ValueError("a character row holds several documents: prepare character rows without packing")
    is_piece_BL = _flag_slots(lengths, num_slots, lead)
    targets = np.where(hidden.is_target, rows.pieces, np.int64(NOT_A_TARGET))
    inputs_BL = _scatter(hidden.inputs, is_piece_BL, fill=layout.pad_piece)
    labels_BL = _scatter(targets, is_piece_BL, fill=NOT_A_TARGET)
    real_BL = is_piece_BL.astype(np.int64)
    if lead:
        row_ends = (np.arange(rows.num_rows), lengths + 1)
        inputs_BL[:, 0], inputs_BL[row_ends] = CLS_CHARACTER, SEP_CHARACTER
        real_BL[:, 0] = real_BL[row_ends] = 1
    batch = {"input_ids": inputs_BL, "attention_mask": real_BL, "labels": labels_BL}
    if holds_several:
        batch["document_ids"] = _scatter(_number_documents(rows), is_piece_BL, fill=0)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _flag_slots(lengths: np.ndarray, num_slots: int, lead: int) -> np.ndarray:
    """Where the pieces of rows go, bool [B, L]."""
    if lead == 0 and int(lengths.min(initial=num_slots)) == num_slots:
        return np.ones((len(lengths), num_slots), bool)
    is_piece_BL = np.arange(num_slots) < (lengths + lead)[:, None]
    is_piece_BL[:, :lead] = False
    return is_piece_BL


def _scatter(values: np.ndarray, is_piece_BL: np.ndarray, *, fill: int) -> np.ndarray:
    if len(values) == is_piece_BL.size:
        return values.astype(np.int64, copy=False).reshape(is_piece_BL.shape)
    # By a flag a slot: faster than by the number of each slot, as numpy copies runs of true ones.
    laid_BL = np.full(is_piece_BL.shape, fill, np.int64)
    laid_BL[is_piece_BL] = values
    return laid_BL


def _number_documents(rows: Rows) -> np.ndarray:
    """Number the documents of each row from 1, int64 [N]."""
    occupied = rows.lengths > 0
    running = np.cumsum(rows.document_starts)
    return running - np.repeat(running[rows.offsets[:-1][occupied]] - 1, rows.lengths[occupied])
