import re

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.vocabulary.census import read_words
from data_pipes.vocabulary.phrases import PhraseCounter

TERMS = ["Burgess_Shale", "Burgess_Shale_Formation", "New_New", "Shale", "a__b", "_x"]


def count(texts):
    counter = PhraseCounter(TERMS)
    for words in read_words([pa.array(texts, pa.string())]):
        counter.add(words, words.texts)
    return counter.finish()


def test_words_with_white_space_between_them_count_and_others_do_not():
    found = count(["Burgess Shale, Burgess\n Shale Formation. Burgess-Shale Burgess_Shale Burgess", "Shale"])
    assert found == {"Burgess_Shale": 2, "Burgess_Shale_Formation": 1}


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.sampled_from(["Burgess", "Shale", "Formation", "New", ","]), max_size=12))
def test_phrases_are_those_that_a_regular_expression_finds(words):
    text = " ".join(words)
    found = count([text])
    for term in TERMS[:3]:
        wanted = len(re.findall(rf"(?=\b{term.replace('_', ' ')}\b)", text))
        assert found.get(term, 0) == wanted


def test_no_list_costs_nothing():
    counter = PhraseCounter([])
    for words in read_words([pa.array(["a b"])]):
        counter.add(words, words.texts)
    assert counter.finish() == {}
