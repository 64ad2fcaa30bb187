"""The words of a text as numbers: equal words and equal gaps share an id, and are looked at once.

Shapes: N characters, W words, U different words and gaps.
"""

from functools import cached_property

import numpy as np
import pyarrow as pa

from data_pipes.documents import pc
from data_pipes.normalizing.changes import SEPARATOR
from data_pipes.normalizing.term_rules import WORD

# At most one line break: an empty line parts paragraphs, and no term goes on in the next one.
_BLANK = r"[\t \p{Zs}]*(?:(?:\r\n|\n|\r|\x{2028})[\t \p{Zs}]*)?"
SPACE, HYPHEN, DOT, APOSTROPHE = 1, 2, 3, 4
_JOINTS = {
    HYPHEN: r"^[-\x{2010}\x{2011}\x{2013}](?:\r?\n)?$",
    DOT: rf"^\.{_BLANK}$",
    APOSTROPHE: r"^['\x{2019}]$",
    SPACE: rf"^{_BLANK}$",
}
# The dot of an abbreviation at the end of a term is part of it only where no sentence can end.
_DOT_INSIDE = r"^\.[\s]*[,;:)\]]"


class Words:
    """The words of a text.

    Attributes:
        starts: int64 [W], characters.
        ends: int64 [W].
        ids: int32 [W], into `strings`.
        gaps: int32 [W], the id of what follows each word; -1 after the last if the text ends there.
        strings: Arrow strings [U].
        documents: int64 [W], separators before each word.
        first_codes: uint32 [W], the first character of each.
    """

    def __init__(self, text: str):
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        is_word = _find_word_characters(codes)
        bounds = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
        bounds = np.concatenate(([0], bounds, [len(codes)])) if len(codes) else np.zeros(1, np.int64)
        first = 0 if len(codes) and is_word[0] else 1
        self.starts, self.ends = bounds[:-1][first::2], bounds[1:][first::2]
        encoded = _encode_parts(codes, bounds)
        indices, self.strings = encoded.indices.to_numpy(), encoded.dictionary.cast(pa.string())
        self.ids = indices[first::2]
        self.gaps = np.full(len(self.ids), -1, np.int32)
        gaps = indices[first + 1 :: 2]
        self.gaps[: len(gaps)] = gaps
        separators = np.flatnonzero(codes == ord(SEPARATOR))
        self.documents = np.searchsorted(separators, self.starts)
        self.first_codes = codes[self.starts] if len(self.starts) else np.zeros(0, np.uint32)

    def matches(self, pattern: str) -> np.ndarray:
        """Which strings match a regular expression: bool [U]."""
        return pc.match_substring_regex(self.strings, pattern).to_numpy(zero_copy_only=False)

    def are_in(self, values: list[str]) -> np.ndarray:
        """Which strings are among the values: bool [U]."""
        return pc.is_in(self.strings, pa.array(values, pa.string())).to_numpy(zero_copy_only=False)

    @cached_property
    def joints(self) -> np.ndarray:
        """What kind of joint follows each word: uint8 [W], 0 where a term cannot go on."""
        kinds = np.zeros(len(self.strings) + 1, np.uint8)
        for kind, pattern in _JOINTS.items():
            kinds[:-1][self.matches(pattern)] = kind
        joints = kinds[self.gaps]
        joints[-1:] = 0  # white space at the end leads to no word
        return joints

    @cached_property
    def has_dot(self) -> np.ndarray:
        """Whether a dot follows each word: bool [W]."""
        return np.append(self.matches(r"^\."), False)[self.gaps]

    @cached_property
    def is_cut(self) -> np.ndarray:
        """Whether a hyphen and a small letter follow a small-lettered word (`bursa-pastoris`): bool [W]."""
        is_low = self.matches(r"^\p{Ll}")[self.ids]
        return is_low & (self.joints == HYPHEN) & np.append(is_low[1:], False)

    @cached_property
    def has_inner_dot(self) -> np.ndarray:
        """Whether a dot follows that cannot end a sentence: bool [W]."""
        by_gap = np.append(self.matches(_DOT_INSIDE), False)[self.gaps]
        is_low = self.matches(r"^[\p{Ll}\d]")[self.ids]
        is_low = np.append(is_low[1:], False) & (self.joints == DOT)
        # Right after the dot, without white space, the next word belongs to something else (`Fm.a`).
        return by_gap | (is_low & (np.append(self.starts[1:], 0) > self.ends + 1))


def _find_word_characters(codes: np.ndarray) -> np.ndarray:
    """Which characters are letters, digits or `_`: bool [N]."""
    if len(codes) == 0:
        return np.zeros(0, bool)
    is_word = _ASCII_WORD[np.minimum(codes, 128)]
    far = np.flatnonzero(codes >= 128)
    if len(far):
        others, places = np.unique(codes[far], return_inverse=True)
        is_letter = np.array([WORD.fullmatch(chr(code)) is not None for code in others.tolist()], bool)
        is_word[far] = is_letter[places]
    return is_word


_ASCII_WORD = np.array([WORD.fullmatch(chr(code)) is not None for code in range(128)] + [False])


def _encode_parts(codes: np.ndarray, bounds: np.ndarray) -> pa.DictionaryArray:
    """The parts of a text as ids and different strings; lone surrogates count as U+FFFD."""
    offsets = bounds
    if len(codes) and codes.max() >= 128:
        codes = np.where((codes >= 0xD800) & (codes < 0xE000), np.uint32(0xFFFD), codes)
        num_bytes = 1 + (codes >= 0x80).astype(np.int8) + (codes >= 0x800) + (codes >= 0x10000)
        offsets = np.concatenate(([0], np.cumsum(num_bytes, dtype=np.int64)))[bounds]
        data = codes.tobytes().decode("utf-32-le").encode()
    else:
        data = codes.astype(np.uint8).tobytes()
    buffers = pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)
    return pa.LargeStringArray.from_buffers(len(bounds) - 1, *buffers).dictionary_encode()
