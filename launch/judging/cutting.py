"""Cutting: texts as rows of their own, one document a row."""

import numpy as np
import pyarrow as pa

from data_pipes.documents import flatten_code_points
from data_pipes.rows import Rows


def cut_rows(rows: Rows, row_length: int, ends: tuple[int, int] | None) -> Rows:
    """One document a row, cut at row_length, between the pieces `ends` where they are given."""
    num_ends = 2
    sizes = np.minimum(rows.lengths, row_length - num_ends)
    kept = np.arange(len(rows.pieces)) - rows.offsets[:-1].repeat(rows.lengths) < sizes.repeat(rows.lengths)
    pieces = rows.pieces[kept]
    offsets = np.append(0, sizes.cumsum())
    if ends is not None:
        places = np.arange(len(pieces)) + 1 + 2 * np.arange(len(sizes)).repeat(sizes)
        sizes = sizes + num_ends
        offsets = np.append(0, sizes.cumsum())
        framed = np.empty(offsets[-1], np.uint32)
        framed[offsets[:-1]], framed[offsets[1:] - 1] = ends
        framed[places] = pieces
        pieces = framed
    starts = np.zeros(len(pieces), bool)
    starts[offsets[:-1][sizes > 0]] = True
    return Rows(pieces, offsets, np.ones(len(pieces), bool), starts)


def encode_characters(texts: pa.StringArray, row_length: int) -> Rows:
    """Texts as code points; the layout adds [CLS] and [SEP]."""
    code_points, offsets = flatten_code_points(texts)
    plain = np.zeros(len(code_points), bool)
    return cut_rows(Rows(code_points, offsets, plain, plain), row_length, None)
