import numpy as np
import pytest

from data_pipes.tokens.boundaries import find_sentences


def find(*texts):
    """Sentences as (text, its last code point, the first of the next), and the two flags of each text."""
    code_points = np.array([ord(c) for text in texts for c in text], np.uint32)
    offsets = np.concatenate(([0], np.cumsum(list(map(len, texts))))).astype(np.int64)
    places, can_end, can_begin = find_sentences(code_points, offsets)
    numbers = np.searchsorted(offsets, places[:, 1], side="right") - 1
    found = [
        (int(number), int(last - offsets[number]), int(first - offsets[number]))
        for number, (last, first) in zip(numbers, places, strict=True)
    ]
    return found, can_end.tolist(), can_begin.tolist()


def test_sentences_are_found_inside_texts_and_not_between_them():
    found, _, _ = find("", "One.", " Two.\n\n", "Three! Four", "", "\n\nFive?  Six")
    assert found == [(3, 5, 7), (5, 6, 9)]


@pytest.mark.parametrize(
    ("text", "can_end"),
    [
        *(
            ("One.", True),
            ("One", False),
            ("One?)\u201d", True),
            ("One,", False),
            ("", False),
            ("One. ", False),
        ),
        *(("A.", False), (" A.", False), ("U.S.", False), ("3.", True), ("ab.", True), ("...", True)),
        *(("\u65e5\u3002\u300d", True), ("one)", False), ('.""""', False)),
    ],
)
def test_a_text_says_whether_it_ends_as_a_sentence_whatever_stands_beside_it(text, can_end):
    for before, behind in (("", ""), ("x", "."), (".", "x")):
        assert find(before, text, behind)[1][1] == can_end


@pytest.mark.parametrize(
    ("text", "can_begin"),
    [
        *((" One", True), ("One", True), (" one", False), (" 1", False), (' ("One', True), (" (one", False)),
        *((" \u65e5", True), ("", True), (" ", True), (' "', True)),
    ],
)
def test_a_text_says_whether_it_begins_as_a_sentence_whatever_stands_beside_it(text, can_begin):
    for before, behind in (("", ""), ("x", "x"), ("(", "1")):
        assert find(before, text, behind)[2][1] == can_begin
