import re
import unicodedata

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.vocabulary.census import WordCounter, find_words, read_words
from tests.data_pipes.test_tokenize import ODD_TEXTS

TEXT = (
    "The Wheeler_Formation's _Paradoxides_ (trilobite-bearing) \u65e5\u672c\u8a9e "
    "cafe\u0301 __ Fm. well--known anti- x"
)


def count(*texts, max_words=2_000_000):
    counter = WordCounter(max_words)
    for words in read_words([pa.array([text], pa.string()) for text in texts]):
        counter.add(words, words.texts)
    return counter.finish()


def find_slowly(text):
    """Words one character at a time: runs of word characters, cut around characters of unspaced scripts."""
    words, current = [], ""
    for character in [*text, " "]:
        kind = classify(character)
        if kind == "unspaced":
            words.append(current)
            current = character
        elif kind == "mark" or (
            kind in ("word", "connector") and not any(classify(c) == "unspaced" for c in current)
        ):
            current += character
        else:
            words.append(current)
            current = character if kind in ("word", "connector") else ""
    trimmed = [trim(word) for word in [*words, current]]
    return [word for word in trimmed if word]


def trim(word):
    while word and classify(word[0]) in ("connector", "mark"):
        word = word[1:]
    while word and classify(word[-1]) == "connector":
        word = word[:-1]
    return word


def classify(character):
    category = unicodedata.category(character)
    if category[0] == "Z" or character.isspace():
        return "space"
    if category == "Pc":
        return "connector"
    if category[0] in "PS":
        return "punctuation"
    if category[0] == "M":
        return "mark"
    from data_pipes.tokens.characters import UNSPACED_BLOCKS

    is_unspaced = any(start <= ord(character) < end for start, end in UNSPACED_BLOCKS) and category[0] in "LN"
    return "unspaced" if is_unspaced else "word"


def test_underscores_join_words_and_punctuation_ends_them():
    assert find_words(pa.array([TEXT])).texts.to_pylist() == [
        *("The", "Wheeler_Formation", "s", "Paradoxides", "trilobite", "bearing"),
        *("\u65e5", "\u672c", "\u8a9e", "cafe\u0301", "Fm", "well", "known", "anti", "x"),
    ]


@settings(max_examples=200, deadline=None)
@given(texts=ODD_TEXTS)
def test_words_are_those_found_character_by_character(texts):
    column = pa.array(texts, pa.string())
    words = find_words(column)
    assert words.texts.to_pylist() == [word for text in texts for word in find_slowly(text)]
    joined = "".join(text + "|" for text in texts)
    spans = zip(words.starts.tolist(), words.ends.tolist(), strict=True)
    assert [joined[start:end] for start, end in spans] == words.texts.to_pylist()


def test_counts_are_those_of_a_plain_loop():
    texts = ["a bb a", "bb, CC bb", "", "a"]
    counts = count(*texts)
    found = dict(zip(counts.texts.to_pylist(), counts.counts.tolist(), strict=True))
    plain = re.findall(r"\w+", " ".join(texts))
    assert found == {word: plain.count(word) for word in plain}
    assert (counts.num_words, counts.num_forgotten) == (len(plain), 0)


def test_no_text_at_all_has_no_words():
    assert len(count().texts) == 0
    assert len(count("", " ").texts) == 0


def test_ties_and_full_stops_are_counted():
    counts = count("tarso-metatarsus don't re- well--known a - b Fm. Fm x\u2019s -y")
    tied = dict(zip(counts.texts.to_pylist(), counts.num_tied.tolist(), strict=True))
    assert {word for word, number in tied.items() if number} == {
        *("tarso", "metatarsus", "don", "t", "re", "x", "s")
    }
    dotted = dict(zip(counts.texts.to_pylist(), counts.num_dotted.tolist(), strict=True))
    assert {word: number for word, number in dotted.items() if number} == {"Fm": 1}


def test_frequent_words_survive_a_bound_and_what_is_lost_is_said():
    generator = np.random.default_rng(0)
    common = [f"c{number}" for number in range(20)]
    texts = [
        " ".join([*common, *(f"r{number}" for number in generator.integers(0, 10**9, 100))])
        for _ in range(50)
    ]
    counts = count(*texts, max_words=500)
    found = dict(zip(counts.texts.to_pylist(), counts.counts.tolist(), strict=True))
    assert len(found) <= 500
    assert 0 < counts.num_forgotten < 50
    assert all(50 - counts.num_forgotten <= found[word] <= 50 for word in common)


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.sampled_from(["a b", "b.", "a-b", "c"]), max_size=6))
def test_counts_do_not_depend_on_how_texts_are_cut_into_columns(texts):
    one, whole = count(*texts), WordCounter()
    for words in read_words([pa.array(texts, pa.string())]):
        whole.add(words, words.texts)
    other = whole.finish()
    assert one.texts.to_pylist() == other.texts.to_pylist()
    for name in ("counts", "num_tied", "num_dotted"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()
