import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.tokens import characters
from data_pipes.tokens.characters import build_class_table, encode_characters

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

# Names, not code points, so that the blocks of the table have an oracle of their own.
UNSPACED_NAMES = (
    *("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"),
    *("HALFWIDTH KATAKANA", "HENTAIGANA", "THAI ", "LAO ", "MYANMAR", "KHMER"),
)


def is_space(c):
    return c.isspace() or unicodedata.category(c)[0] == "Z"


def is_connector(c):
    return unicodedata.category(c) == "Pc"


def is_punctuation(c):
    return unicodedata.category(c)[0] in "PS" and not is_connector(c)


def is_mark(c):
    return unicodedata.category(c)[0] == "M"


def is_unspaced(c):
    name = unicodedata.name(c, "")
    if name.startswith(("IDEOGRAPHIC ANNOTATION", "IDEOGRAPHIC TALLY", "KATAKANA LETTER MINNAN")):
        return False  # signs beside or above a text, not letters of it
    return unicodedata.category(c)[0] in "LN" and name.startswith(UNSPACED_NAMES)


def test_every_code_point_has_the_class_that_its_name_and_category_give():
    table = build_class_table()
    assert len(table) == sys.maxunicode + 1
    rules = {
        characters.SPACE: is_space,
        characters.PUNCTUATION: is_punctuation,
        characters.CONNECTOR: is_connector,
        characters.MARK: is_mark,
        characters.UNSPACED: is_unspaced,
    }
    wrong = []
    for code_point in range(sys.maxunicode + 1):
        wanted = {number for number, rule in rules.items() if rule(chr(code_point))} or {characters.OTHER}
        if wanted != {int(table[code_point])}:
            wrong.append(
                (hex(code_point), unicodedata.name(chr(code_point), "?"), int(table[code_point]), wanted)
            )
    assert wrong == []


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=8), st.integers(1, 9))
def test_rows_are_the_first_code_points_of_each_text_and_longer_texts_are_counted(texts, most):
    code_points, lengths, num_cut = encode_characters(pa.array(texts, pa.string()), most)
    cut = [text[:most] for text in texts]
    assert code_points.tolist() == [ord(c) for text in cut for c in text]
    assert lengths.tolist() == list(map(len, cut))
    assert num_cut == sum(len(text) > most for text in texts)


@pytest.mark.parametrize(
    "text",
    ["caf\u00e9", "\u65e5\u672c\u8a9e.jp", "\U0001f600\U00020000x", "e\u0301\u0323a", "\u0639\u0631\u0628"],
)
@pytest.mark.parametrize("most", [1, 2, 3, 4, 6, 10])
def test_characters_of_several_bytes_are_cut_between_code_points(text, most):
    code_points, lengths, num_cut = encode_characters(pa.array(["ab", text, ""]), most)
    assert "".join(map(chr, code_points)) == "ab"[:most] + text[:most]
    assert lengths.tolist() == [min(2, most), min(len(text), most), 0]
    assert num_cut == (len(text) > most) + (most < 2)


def test_a_slice_of_a_column_is_read_from_its_own_start():
    column = pa.array(["zzz", "\u00e9\u00e9\u00e9", "ab", "q"])[1:3]
    code_points, lengths, num_cut = encode_characters(column, 2)
    assert ("".join(map(chr, code_points)), lengths.tolist(), num_cut) == ("\u00e9\u00e9ab", [2, 2], 1)
