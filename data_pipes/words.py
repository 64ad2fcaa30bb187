"""Words: documents as packed rows of pieces."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_pipes.documents import Batch, pc
from data_pipes.pack import Packer
from data_pipes.rows import Rows
from data_pipes.store import pack_bits
from data_pipes.tokenize import PieceEncoder, TokenizerError

# Encodings hold about 1 kB a piece in Python objects; this keeps them to some hundred megabytes.
CHUNK_CHARACTERS = 1 << 20


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder.

    Raises:
        TokenizerError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"no tokenizer can be loaded from {folder}: {error}") from error


class WordEncoder:
    """Tokenizes and packs the documents of one split, batch by batch."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, row_length: int, is_packed: bool):
        self._encoder = PieceEncoder(tokenizer)
        self._packer = Packer(row_length, self._encoder.cls_id, self._encoder.sep_id, is_packed)
        self.row_capacity = row_length
        self._num_words = self._num_parts = 0

    def encode(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Pieces as stored and row lengths, of the rows that are full."""
        parts = [
            self._store(self._packer.pack(self._encoder.encode(texts)))
            for texts in split_columns(batch.texts)
        ]
        return _join(parts)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The last row."""
        return self._store(self._packer.finish())

    def _store(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        num_parts = int(np.count_nonzero(rows.document_starts))
        self._num_parts += num_parts
        self._num_words += int(np.count_nonzero(rows.word_starts)) - 2 * num_parts
        return pack_bits(rows), rows.lengths

    def describe(self) -> dict[str, Any]:
        """What the split's manifest says besides its size; special pieces are no words."""
        return {"num_words": self._num_words, "num_parts": self._num_parts}

    def describe_vocabulary(self) -> dict[str, Any]:
        """Nothing: the tokenizer's folder tells."""
        return {}


def split_columns(texts: pa.StringArray) -> Iterator[pa.StringArray]:
    """The texts in chunks of about a million characters (a longer text is a chunk of its own)."""
    ends = np.cumsum(pc.utf8_length(texts).to_numpy(), dtype=np.int64)
    start = 0
    while start < len(texts):
        read = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, read + CHUNK_CHARACTERS, side="right")))
        yield texts[start:end]
        start = end


def _join(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    pieces = [part for part, _ in parts] or [np.zeros(0, np.uint32)]
    lengths = [part for _, part in parts] or [np.zeros(0, np.int64)]
    return np.concatenate(pieces), np.concatenate(lengths)
