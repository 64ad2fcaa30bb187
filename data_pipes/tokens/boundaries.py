"""Boundaries: where words and sentences begin, from the code points under the pieces.

Shapes: T texts, C code points in all of them, N pieces, S places.
"""

import sys
import unicodedata
from functools import cache

import numpy as np

from data_pipes.tokens.characters import CONNECTOR, MARK, PUNCTUATION, SPACE, UNSPACED, build_class_table

# What ends a sentence: Latin, Armenian, Arabic, Urdu, Devanagari, Myanmar, Ethiopic, Khmer; then ellipses.
TERMINATORS = (
    *(0x21, 0x2E, 0x3F, 0x0589, 0x061F, 0x06D4, 0x0964, 0x0965, 0x104B, 0x1362, 0x1367, 0x17D4, 0x17D5),
    *(0x2026, 0x203C, 0x203D, 0x2047, 0x2048, 0x2049, 0xFF0E),
)
# The ideographic and full-width ones are followed by no space.
FULL_TERMINATORS = (0x3002, 0xFF01, 0xFF1F, 0xFF61)
LINE_BREAKS = (0x0A, 0x0B, 0x0C, 0x85, 0x2028)  # a carriage return comes with a line feed or is none
PARAGRAPH_BREAK = 0x2029
MAX_CLOSERS = 3  # quotes and brackets between the end of a sentence and the space, or before its first letter

TERMINATOR, FULL, CLOSER, OPENER, LETTER, LOWER, DIGIT, BREAK = (1 << bit for bit in range(8))
PAD = 0x20  # what stands before and after a text


def find_word_starts(
    code_points_C: np.ndarray, spans_N2: np.ndarray, is_word_change_N: np.ndarray, is_blank_N: np.ndarray
) -> np.ndarray:
    """Where words begin, bool [N].

    A word begins where the tokenizer's own word changes; around a piece that is all punctuation; and at each
    piece in a script without spaces. Connectors join what they touch, a mark of a space belongs to
    the word that follows it, and the pieces of one character stay together.

    Args:
        code_points_C: the texts, end to end.
        spans_N2: first and last-but-one code point of each piece, in all texts together.
        is_word_change_N: the tokenizer's word differs from that of the piece before, or a document begins.
        is_blank_N: the piece is only a mark of a space, whatever its span says.
    """
    classes_C = build_class_table()[code_points_C]
    starts_N, ends_N = spans_N2.T

    def count(wanted: int) -> np.ndarray:
        sums = np.concatenate(([0], np.cumsum(classes_C == wanted)))
        return sums[ends_N] - sums[starts_N]

    num_solid_N = ends_N - starts_N - count(SPACE)
    is_blank_N = is_blank_N | (num_solid_N == 0)
    num_marks_N = count(MARK)
    is_mark_N = ~is_blank_N & (num_marks_N == num_solid_N)
    is_alone_N = ~is_blank_N & ~is_mark_N & (count(PUNCTUATION) == num_solid_N)
    is_alone_N |= ~is_blank_N & ~is_mark_N & (count(UNSPACED) + num_marks_N == num_solid_N)

    def follow(flags_N: np.ndarray) -> np.ndarray:
        return np.append(False, flags_N[:-1])[: len(flags_N)]

    ends_before_N = np.append(0, ends_N[:-1])[: len(ends_N)]
    is_touching_N = starts_N == ends_before_N
    padded_C = np.append(classes_C, 0)
    is_connected_N = is_touching_N & ~is_alone_N & ~is_blank_N & ~follow(is_alone_N | is_blank_N)
    is_connected_N &= (padded_C[starts_N] == CONNECTOR) | (padded_C[ends_before_N - 1] == CONNECTOR)
    is_same_character_N = starts_N < ends_before_N

    is_start_N = is_word_change_N | is_alone_N | is_blank_N | (follow(is_alone_N) & ~is_mark_N)
    return is_start_N & ~is_connected_N & ~is_same_character_N & ~follow(is_blank_N)


@cache
def build_sentence_table() -> np.ndarray:
    """What each code point means to sentences, as bits, uint8 [0x110000]."""
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    bits = {"Pe": CLOSER, "Pf": CLOSER | OPENER, "Pi": CLOSER | OPENER, "Ps": OPENER, "Nd": DIGIT}
    bits |= {"Ll": LETTER | LOWER, "Lu": LETTER, "Lt": LETTER, "Lo": LETTER, "Lm": LETTER}
    classes = build_class_table()
    for code_point in np.flatnonzero(classes != MARK).tolist():
        table[code_point] = bits.get(unicodedata.category(chr(code_point)), 0)
    table[[0x22, 0x27]] = CLOSER | OPENER
    table[list(TERMINATORS)] |= TERMINATOR
    table[list(FULL_TERMINATORS)] |= TERMINATOR | FULL
    table[list(LINE_BREAKS)] |= BREAK
    table.flags.writeable = False
    return table


def find_sentences(
    code_points_C: np.ndarray, text_offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where sentences begin inside texts, and which texts could be joined at the end of one.

    A sentence begins after white space that follows a terminator or holds an empty line, and after a
    full-width terminator. Closing quotes and brackets belong to the sentence before. Nothing begins with a
    small letter or a digit ("sp. nov.", "Fig. 3"), or after one letter and a full stop ("O. White", "U.S.").
    Abbreviations with a capital behind them ("Mt. Stephen") are not told from ends.

    Args:
        code_points_C: the texts, end to end.
        text_offsets: int64 [T + 1].

    Returns:
        The last code point of a sentence and the first of the next, int64 [S, 2], both of one text; whether a
        text ends as a sentence does, bool [T]; whether it begins as one does, a space apart, bool [T].
    """
    num_texts = len(text_offsets) - 1
    shifts_T = np.arange(1, num_texts + 1)
    padded = np.append(np.insert(code_points_C, text_offsets[:-1], PAD), [PAD, PAD]).astype(np.uint32)
    bits = build_sentence_table()[padded]
    solid = np.flatnonzero(build_class_table()[padded] != SPACE)
    before, after = solid[:-1], solid[1:]
    is_apart = after - before > 1
    is_candidate = is_apart | (
        (bits[before] & (FULL | CLOSER) > 0) & (bits[after] & (TERMINATOR | CLOSER) == 0)
    )
    before, after, is_apart = before[is_candidate], after[is_candidate], is_apart[is_candidate]

    weights = (bits & BREAK > 0) + 2 * (padded == PARAGRAPH_BREAK)
    num_breaks = np.cumsum(weights)
    is_paragraph = num_breaks[after] - num_breaks[before] >= 2
    can_end, is_full = _check_ends(padded, bits, before)
    is_start = is_paragraph | (can_end & (is_apart | is_full) & _check_beginnings(bits, after))
    starts, before = after[is_start], before[is_start]
    padded_offsets = text_offsets[:-1] + shifts_T - 1
    text_S = np.searchsorted(padded_offsets, starts, side="right")
    is_inside = before >= padded_offsets[text_S - 1]
    firsts, lasts = text_offsets[:-1] + shifts_T, text_offsets[1:] + shifts_T - 1
    firsts = firsts + ((padded[firsts] == PAD) & (firsts <= lasts))
    return (
        (np.stack((before, starts), 1) - text_S[:, None])[is_inside],
        _check_ends(padded, bits, lasts)[0],
        _check_beginnings(bits, firsts),
    )


def _check_ends(padded: np.ndarray, bits: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether a sentence may end with each place, and whether it does so with no space behind."""
    for _ in range(MAX_CLOSERS):
        places = places - (bits[places] & CLOSER > 0)
    # Index -1 and -2 are the spaces at the end.
    is_initial = (padded[places] == 0x2E) & (bits[places - 1] & LETTER > 0)
    is_initial &= bits[places - 2] & (LETTER | DIGIT) == 0
    is_initial &= build_class_table()[padded[places - 2]] != MARK
    return (bits[places] & TERMINATOR > 0) & ~is_initial, bits[places] & FULL > 0


def _check_beginnings(bits: np.ndarray, places: np.ndarray) -> np.ndarray:
    for _ in range(MAX_CLOSERS):
        places = places + (bits[places] & OPENER > 0)
    return bits[places] & (LOWER | DIGIT) == 0


def find_sentence_starts(
    sentences_S2: np.ndarray, spans_N2: np.ndarray, word_starts_N: np.ndarray, firsts: np.ndarray
) -> np.ndarray:
    """The word starts at which sentences begin, bool [N].

    Args:
        sentences_S2: the last code point of a sentence and the first of the next.
        spans_N2: as of find_word_starts.
        word_starts_N: where words begin.
        firsts: the first pieces of documents; a sentence begins with each.
    """
    is_start_N = np.zeros(len(spans_N2), bool)
    is_start_N[firsts] = True
    if len(sentences_S2) and len(spans_N2):
        # The word of the first piece that reaches beyond the place (odd spans may go back), unless it holds
        # some of the sentence before: an unknown piece can.
        reached = np.searchsorted(np.maximum.accumulate(spans_N2[:, 1]), sentences_S2[:, 1], side="right")
        words = np.flatnonzero(word_starts_N)
        begun = words[np.searchsorted(words, reached, side="right") - 1]
        is_start_N[begun[spans_N2[begun, 0] > sentences_S2[:, 0]]] = True
    return is_start_N
