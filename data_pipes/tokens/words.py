"""Words: documents as pieces, a bounded number of characters at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from data_pipes.documents import pc
from data_pipes.tokenize import PieceEncoder, Pieces, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Encodings hold about 1 kB a piece in Python objects; this keeps them to some hundred megabytes.
CHUNK_CHARACTERS = 1 << 20


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder.

    Raises:
        TokenizerError: it cannot be loaded.
    """
    # Imported here: a process that only encodes does without it, and starts seconds sooner.
    from transformers import AutoTokenizer

    try:
        # Left out, transformers would ask on the terminal whether to run the folder's own code.
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"no tokenizer can be loaded from {folder}: {error}") from error


def tokenize_texts(encoder: PieceEncoder, texts: pa.StringArray) -> Pieces:
    """The pieces of any number of documents, which depend on nothing but the documents."""
    parts = [encoder.encode(chunk) for chunk in split_columns(texts)]
    if len(parts) == 1:
        return parts[0]
    lengths = [np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)]
    no_flags = np.zeros(0, bool)
    return Pieces(
        np.concatenate([np.zeros(0, np.uint32), *(part.ids for part in parts)]),
        np.concatenate(([0], np.cumsum(np.concatenate(lengths)))),
        np.concatenate([no_flags, *(part.word_starts for part in parts)]),
        np.concatenate([no_flags, *(part.sentence_starts for part in parts)]),
    )


def split_columns(texts: pa.StringArray) -> Iterator[pa.StringArray]:
    """The texts in chunks of about a million characters (a longer text is a chunk of its own)."""
    ends = np.cumsum(pc.utf8_length(texts).to_numpy(), dtype=np.int64)
    start = 0
    while start < len(texts):
        read = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, read + CHUNK_CHARACTERS, side="right")))
        yield texts[start:end]
        start = end
