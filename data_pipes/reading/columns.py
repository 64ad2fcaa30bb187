"""Columns: Arrow arrays made of bytes, strings and masks, and cut into batches of bounded size.

`pa.array`, `pa.scalar` and `Array.to_numpy` import pandas (half a second) at their first call, so readers use
what stands here instead.

Shapes: D documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from data_pipes.documents import Batch, Split, build_column, build_column_from_bytes, pc

BATCH_BYTES = 6 << 20
BATCH_ROWS = 100_000


@dataclass(frozen=True)
class Columns:
    """D documents before they are cut into batches.

    Attributes:
        texts: Arrow strings [D], no nulls.
        groups: Arrow strings [D], or None where no group was asked for.
        carried: further Arrow strings [D], by name.
        is_damaged: bool [D], or None for none.
    """

    texts: pa.StringArray
    groups: pa.StringArray | None = None
    carried: dict[str, pa.StringArray] = field(default_factory=dict)
    is_damaged: np.ndarray | None = None

    def filter(self, is_kept: np.ndarray) -> "Columns":
        """The documents where is_kept (bool [D]) is true."""
        if is_kept.all():
            return self
        mask = make_mask(is_kept)
        return Columns(
            self.texts.filter(mask),
            None if self.groups is None else self.groups.filter(mask),
            {name: column.filter(mask) for name, column in self.carried.items()},
            None if self.is_damaged is None else self.is_damaged[is_kept],
        )


def join_columns(parts: list[Columns]) -> Columns:
    """Columns of the same fields, one after the other; at least one."""
    if len(parts) == 1:
        return parts[0]
    groups = [part.groups for part in parts if part.groups is not None]
    flags = [
        np.zeros(len(part.texts), bool) if part.is_damaged is None else part.is_damaged for part in parts
    ]
    return Columns(
        pa.concat_arrays([part.texts for part in parts]),
        pa.concat_arrays(groups) if groups else None,
        {name: pa.concat_arrays([part.carried[name] for part in parts]) for name in parts[0].carried},
        np.concatenate(flags),
    )


def cut_batches(columns: Columns, split: Split) -> Iterator[Batch]:
    """Batches of at most BATCH_ROWS documents and BATCH_BYTES of text; a longer document stands alone."""
    num_documents = len(columns.texts)
    sizes = view_numbers(pc.binary_length(columns.texts))
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < num_documents:
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + BATCH_BYTES, side="right"))
        stop = min(max(fitting, start + 1), start + BATCH_ROWS, num_documents)
        part = slice(start, stop)
        is_damaged = np.zeros(stop - start, bool) if columns.is_damaged is None else columns.is_damaged[part]
        yield Batch(
            columns.texts[part],
            None if columns.groups is None else columns.groups[part],
            split,
            is_damaged,
            {name: column[part] for name, column in columns.carried.items()},
        )
        start = stop


def make_mask(is_kept: np.ndarray) -> pa.BooleanArray:
    """Bool [D] as an Arrow mask."""
    bits = pa.py_buffer(np.packbits(is_kept, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(is_kept), [None, bits])


def make_column(texts: list[str]) -> tuple[pa.StringArray, np.ndarray]:
    """Strings as an Arrow column, and bool [D] that is true where a lone surrogate was replaced."""
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError:
        return build_column(texts)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    data = np.frombuffer(b"".join(encoded), np.uint8)
    return build_column_from_bytes(data, lengths), np.zeros(len(texts), bool)


def make_binary(data: np.ndarray, lengths: np.ndarray) -> pa.BinaryArray:
    """An Arrow column over bytes (uint8 [B]) laid end to end, not checked; lengths sum to B."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def find_filled(texts: pa.StringArray) -> np.ndarray:
    """Bool [D], true where a text holds more than white space."""
    return view_numbers(pc.binary_length(pc.utf8_trim_whitespace(texts))) > 0


def view_numbers(numbers: pa.Array) -> np.ndarray:
    """An Arrow array of numbers without nulls as numpy, not copied."""
    return np.from_dlpack(numbers)


def view_mask(mask: pa.BooleanArray) -> np.ndarray:
    """An Arrow mask [D] without nulls as bool [D]."""
    bits = np.frombuffer(mask.buffers()[1] or b"", np.uint8)
    return np.unpackbits(bits, count=mask.offset + len(mask), bitorder="little")[mask.offset :].astype(bool)


def fill_nulls(texts: pa.StringArray) -> pa.StringArray:
    """Nulls become empty strings."""
    return pc.coalesce(texts, EMPTY) if texts.null_count else texts


def pick_elements(lists: pa.ListArray, place: int) -> pa.Array:
    """The elements at one place (from 0) of lists that all reach so far."""
    number = pa.py_buffer(np.array([place], np.int64))
    return pc.list_element(lists, pa.Array.from_buffers(pa.int64(), 1, [None, number])[0])


def repeat_empty(number: int) -> pa.StringArray:
    """So many empty strings."""
    return build_column_from_bytes(np.zeros(0, np.uint8), np.zeros(number, np.int64))


EMPTY = repeat_empty(1)[0]
