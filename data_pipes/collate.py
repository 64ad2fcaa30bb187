"""Collate: rows and their masks as tensors.

Shapes: B rows in a micro-batch, L slots each, N pieces.
"""

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
    """

    kind: LayoutKind
    row_length: int
    pad_piece: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in get_args(LayoutKind):
            raise ValueError(f"layout kind is {self.kind!r}: use one of {', '.join(get_args(LayoutKind))}")
        if self.row_length < 1:
            raise ValueError(f"row_length is {self.row_length}: it must be at least 1")

    def count_slots(self, longest: int) -> int:
        """Give L for a batch whose longest row has this many pieces.

        Words: the next multiple of 8, which tensor cores want. Characters: the shortest row for which
        CANINE's output no longer depends on the padding: its convolution reaches 2 slots past the last
        character, and where these begin a window of 128 of the local attention, the window must be whole.
        """
        if longest > self.row_length:
            raise ValueError(
                f"a row has {longest} pieces but row_length is {self.row_length}: pack rows with the same "
                "row_length as the layout"
            )
        if self.kind == "characters":
            last_used, last_reached = longest + 1, longest + 3
            slots = 4 * (last_reached // 4 + 2)
            if last_reached // _WINDOW > last_used // _WINDOW:
                slots = max(slots, (last_reached // _WINDOW + 1) * _WINDOW)
            return slots
        return min(max(8, -(-longest // 8) * 8), self.row_length)


def collate(rows: Rows, hidden: Hidden, layout: Layout) -> Batch:
    """Lay rows out as int64 tensors [B, L].

    Gives `input_ids` (corrupted pieces, then padding), `attention_mask` (1 on pieces), `labels` (the
    original piece at targets, -100 elsewhere) and, when some row holds several documents, `document_ids`
    (0 on padding, 1, 2, ... along the row).
    """
    lengths = rows.lengths
    num_slots = layout.count_slots(int(lengths.max(initial=0)))
    lead = 1 if layout.kind == "characters" else 0
    document_ids = _number_documents(rows)
    if lead and document_ids.max(initial=0) > 1:
        # CANINE's convolution runs across documents, so packing would not be exact.
        raise ValueError("a character row holds several documents: prepare character rows without packing")
    shape = (rows.num_rows, num_slots)
    slots = np.repeat(np.arange(rows.num_rows) * num_slots + lead - rows.offsets[:-1], lengths)
    slots += np.arange(len(rows.pieces))

    inputs_BL = _scatter(hidden.inputs, slots, shape, fill=layout.pad_piece)
    targets = np.where(hidden.is_target, rows.pieces.astype(np.int64), NOT_A_TARGET)
    labels_BL = _scatter(targets, slots, shape, fill=NOT_A_TARGET)
    real_BL = (np.arange(num_slots) < (lengths + 2 * lead)[:, None]).astype(np.int64)
    if lead:
        inputs_BL[:, 0] = CLS_CHARACTER
        inputs_BL[np.arange(rows.num_rows), lengths + 1] = SEP_CHARACTER
    batch = {"input_ids": inputs_BL, "attention_mask": real_BL, "labels": labels_BL}
    if document_ids.max(initial=0) > 1:
        batch["document_ids"] = _scatter(document_ids, slots, shape, fill=0)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _scatter(values: np.ndarray, slots: np.ndarray, shape: tuple[int, int], *, fill: int) -> np.ndarray:
    laid = np.full(shape[0] * shape[1], fill, np.int64)
    laid[slots] = values
    return laid.reshape(shape)


def _number_documents(rows: Rows) -> np.ndarray:
    """Number the documents of each row from 1, int64 [N]."""
    occupied = rows.lengths > 0
    running = np.cumsum(rows.document_starts)
    return running - np.repeat(running[rows.offsets[:-1][occupied]] - 1, rows.lengths[occupied])
