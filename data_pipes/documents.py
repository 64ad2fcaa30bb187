"""Documents: raw texts on their way from a source to a store, held column by column.

Shapes: D documents in a batch, N code points in all of them.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

Split = Literal["auto", "train", "evaluation"]

# pyarrow makes its compute functions at import, where type checkers cannot see them.
pc: Any = pyarrow.compute


class SourceError(ValueError):
    """A source cannot be read: says which one, what was wanted, and what to change."""


@dataclass(frozen=True)
class Batch:
    """D documents of one source.

    Attributes:
        texts: Arrow strings [D], valid UTF-8, no nulls.
        groups: Arrow strings [D] that decide the split, or None where the text itself decides.
        split: "auto" lets the hash decide, the others are an explicit choice.
        is_damaged: bool [D], true where a lone surrogate was replaced by U+FFFD.
        carried: further columns [D] that a reader was asked to bring along, by name.
    """

    texts: pa.StringArray
    groups: pa.StringArray | None = None
    split: Split = "auto"
    is_damaged: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    carried: dict[str, pa.StringArray] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.is_damaged) != len(self.texts):
            object.__setattr__(self, "is_damaged", np.zeros(len(self.texts), bool))

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.texts)

    def head(self, num_documents: int) -> "Batch":
        """The first documents."""
        groups = None if self.groups is None else self.groups[:num_documents]
        carried = {name: column[:num_documents] for name, column in self.carried.items()}
        return Batch(self.texts[:num_documents], groups, self.split, self.is_damaged[:num_documents], carried)

    def filter(self, is_kept: np.ndarray) -> "Batch":
        """The documents where is_kept (bool [D]) is true."""
        mask = pa.array(is_kept)
        groups = None if self.groups is None else self.groups.filter(mask)
        carried = {name: column.filter(mask) for name, column in self.carried.items()}
        return Batch(self.texts.filter(mask), groups, self.split, self.is_damaged[is_kept], carried)

    def with_texts(self, texts: pa.StringArray) -> "Batch":
        """The same documents after a change of their texts."""
        return replace(self, texts=texts)

    @classmethod
    def from_strings(
        cls, texts: list[str], groups: list[str] | None = None, split: Split = "auto"
    ) -> "Batch":
        """Make a batch of Python strings; lone surrogates become U+FFFD and mark the document."""
        column, is_damaged = build_column(texts)
        keys = None if groups is None else build_column(groups)[0]
        return cls(column, keys, split, is_damaged)


def build_column(texts: list[str]) -> tuple[pa.StringArray, np.ndarray]:
    """Strings as an Arrow column, and bool [D] that is true where a lone surrogate was replaced."""
    try:
        return pa.array(texts, pa.string()), np.zeros(len(texts), bool)
    except UnicodeEncodeError:
        # UTF-16 joins a high and a low half that were given one by one into the character they mean.
        halves = [text.encode("utf-16-le", "surrogatepass") for text in texts]
        repaired = [half.decode("utf-16-le", "replace") for half in halves]
        joined = [half.decode("utf-16-le", "surrogatepass") for half in halves]
        is_damaged = np.array([new != old for new, old in zip(repaired, joined, strict=True)], bool)
        return pa.array(repaired, pa.string()), is_damaged


def flatten_code_points(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Lay the texts end to end as code points, without a loop over texts.

    Returns:
        Code points uint32 [N] and offsets int64 [D + 1] into them.
    """
    offsets = np.concatenate(([0], np.cumsum(pc.utf8_length(texts).to_numpy(), dtype=np.int64)))
    data = column_bytes(texts)
    if offsets[-1] == len(data):  # every byte is a character: ASCII
        return np.frombuffer(data, np.uint8).astype(np.uint32), offsets
    return np.frombuffer(data.decode("utf-8").encode("utf-32-le"), np.uint32), offsets


def column_bytes(texts: pa.StringArray) -> bytes:
    """The UTF-8 of all texts, end to end."""
    if len(texts) == 0:
        return b""
    _, offset_buffer, data_buffer = texts.buffers()
    bounds = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return b"" if data_buffer is None else data_buffer[int(bounds[0]) : int(bounds[-1])].to_pybytes()


def build_column_from_bytes(data: np.ndarray, lengths: np.ndarray) -> pa.StringArray:
    """An Arrow column over UTF-8 bytes laid end to end.

    Args:
        data: uint8 [B].
        lengths: bytes in each text [D], summing to B; B must stay below 2 GiB.

    Raises:
        pa.ArrowInvalid: the bytes of some text are not UTF-8.
    """
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    column = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(data))
    column.validate(full=True)
    return column
