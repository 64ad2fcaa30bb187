"""Characters: classes of code points for finding words, and documents as rows of code points.

Shapes: D documents, N code points in all of them.
"""

import sys
import unicodedata
from functools import cache

import numpy as np
import pyarrow as pa

from data_pipes.documents import flatten_code_points

OTHER, SPACE, PUNCTUATION, CONNECTOR, UNSPACED, MARK = range(6)

# Scripts written without spaces between words (Unicode blocks): kana, ideographs, Thai, Lao, Myanmar, Khmer.
UNSPACED_BLOCKS = (
    (0x0E00, 0x0F00),
    (0x1000, 0x10A0),
    (0x1780, 0x1800),
    (0x19E0, 0x1A00),
    (0x3005, 0x3008),
    (0x3040, 0x3100),
    (0x31F0, 0x3200),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xA9E0, 0xAA00),
    (0xAA60, 0xAA80),
    (0xF900, 0xFB00),
    (0xFF66, 0xFFA0),
    (0x1B000, 0x1B170),
    (0x20000, 0x32000),
)


@cache
def build_class_table() -> np.ndarray:
    """The class of each code point, uint8 [0x110000].

    Punctuation is BERT's: ASCII 33-47, 58-64, 91-96, 123-126 and Unicode P*; S* counts too, and connectors
    (the underscore) have a class of their own, since they hold a term together.
    """
    classes = np.zeros(sys.maxunicode + 1, np.uint8)
    for code_point in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code_point))
        if category == "Pc":
            classes[code_point] = CONNECTOR
        elif category[0] in "PS":
            classes[code_point] = PUNCTUATION
        elif category[0] == "M":
            classes[code_point] = MARK
        elif category[0] == "Z" or chr(code_point).isspace():
            classes[code_point] = SPACE
    for start, end in UNSPACED_BLOCKS:
        block = classes[start:end]
        is_letter = np.array([unicodedata.category(chr(c))[0] in "LN" for c in range(start, end)])
        block[is_letter] = UNSPACED
    classes.flags.writeable = False
    return classes


def encode_characters(texts: pa.StringArray, max_characters: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Documents as rows of code points.

    Returns:
        Code points uint32 [N], characters in each row int64 [D], and how many documents were longer than
        `max_characters` and lost their ends.
    """
    code_points, offsets = flatten_code_points(texts)
    lengths = np.diff(offsets)
    is_long = lengths > max_characters
    num_cut = int(np.count_nonzero(is_long))
    if num_cut:
        positions = np.arange(len(code_points)) - np.repeat(offsets[:-1], lengths)
        code_points = code_points[positions < max_characters]
        lengths = np.minimum(lengths, max_characters)
    return code_points, lengths, num_cut
