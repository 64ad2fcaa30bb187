import pyarrow as pa
import pytest

from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary import mine
from data_pipes.vocabulary.mine import mine_terms
from tests.data_pipes.tiny_tokenizers import make_byte_level, make_unigram, make_wordpiece

TEXT = (
    "The trilobites of the Wheeler_Formation say the trilobites, trilobites; a Burgess Shale reef (reef) "
    "reef don't post-reef pre-reef metatarsus-x metatarsus-y Fm. Fm. Proc. 1830s 12 XIV viii ab Limestone "
    "limestone limestone The fossil Fossil THE_THE they"
)


class SlowTokenizer:
    """Python only, as CANINE's."""


def find(text=TEXT, tokenizer=None, **options):
    options = {"num_terms": 100, "min_count": 1} | options
    columns = [pa.array([text, ""]), pa.array([text])]
    return mine_terms(columns, tokenizer or make_unigram(), **options)


def names(mining):
    return [term.text for term in mining.terms]


def test_the_score_is_what_a_piece_of_its_own_would_save():
    tokenizer = make_unigram()
    mining = find(tokenizer=tokenizer)
    found = {term.text: term for term in mining.terms}
    for text, count in {"trilobites": 6, "Wheeler_Formation": 2, "reef": 10, "limestone": 4}.items():
        num_pieces = len(tokenizer.tokenize(f" {text}"))
        assert (found[text].count, found[text].num_pieces) == (count, num_pieces)
        assert found[text].score == count * (num_pieces - 1)
        assert found[text].origin == "corpus"
    scores = [term.score for term in mining.terms]
    assert scores == sorted(scores, reverse=True)
    assert mining.num_words == 2 * len(TEXT.replace("-", " ").replace("'", " ").split())


def test_pieces_saved_are_pieces_saved(tmp_path):
    from data_pipes.vocabulary.extend import extend_tokenizer
    from data_pipes.vocabulary.fragments import report_fragments

    tokenizer = make_unigram()
    text = "the trilobites say trilobites they limestone the reef reef reef"
    for term in find(text, tokenizer).terms:
        after = extend_tokenizer(tokenizer, [term.text], tmp_path / term.text).tokenizer
        report = report_fragments([pa.array([text, text])], tokenizer, after)
        assert report.before.num_pieces - report.after.num_pieces == term.score


REFUSED = {
    "XIV": "number",
    "12": "number",
    "1830s": "number",
    "viii": "number",
    "ab": "too short",
    "S": "too short",
    "Wheeler_": "too short",
    "e.g.": "abbreviation",
    "Fm": "too short",
    "Proc": "abbreviation",
    "metatarsus": "cut at a hyphen",
    "don": "cut at a hyphen",
    "Akbash-_insky_Fm": "cut at a hyphen",
    "Rock-": "cut at a hyphen",
    "-dong": "cut at a hyphen",
    "insky": "fragment of a cut term",
    "The_Tarim_Platform": "begins with an article",
    "Anti-Atlas": "holds punctuation",
    "x" * 61: "too long",
    "the": "base vocabulary",
    "The": "base vocabulary",
    "THE": "base vocabulary",
    "fossil": "base vocabulary",
    "Fossil": "base vocabulary",
    "Limestone": "duplicate",
    "WheelerFormation": "duplicate",
    "Burgess_Shale": "only with spaces in the corpus",
    "Burgess shale_reef": "not in the corpus",
    "Olenellus": "not in the corpus",
}


@pytest.mark.parametrize("term", REFUSED)
def test_a_listed_term_is_refused_for_a_reason(term):
    lists = [[term, "Akbash-_insky_Fm"], ["trilobites"]]
    mining = find(lists=lists)
    assert mining.refused_listed[term.replace(" ", "_")] == REFUSED[term]
    assert term not in names(mining)
    assert "trilobites" in names(mining)


def test_words_of_the_corpus_are_refused_for_the_same_reasons():
    mining = find()
    assert names(mining).count("reef") == 1
    assert not set(names(mining)) & {*REFUSED, "Burgess Shale", "THE_THE", "they"} - {"metatarsus"}
    reasons = ("number", "too short", "abbreviation", "cut at a hyphen", "base vocabulary", "duplicate")
    assert all(mining.refused_words[reason] for reason in reasons)
    good = len(mining.terms) + mining.num_left
    different = set(
        TEXT.replace("-", " ").replace("'", " ").translate(str.maketrans("", "", "(),;.")).split()
    )
    assert good + sum(mining.refused_words.values()) == len(different)


def test_a_word_that_is_mostly_free_stands_although_it_also_has_a_hyphen():
    # 3 of 5 reefs stand alone.
    assert "reef" in names(find())


def test_rare_words_are_left_out_and_rare_listed_terms_named():
    mining = find(min_count=5, lists=[["Wheeler_Formation", "reef"]])
    assert mining.refused_listed == {"Wheeler_Formation": "rare"}
    assert set(names(mining)) == {"trilobites", "reef"}


def test_without_a_least_count_listed_terms_need_no_corpus():
    mining = find(min_count=0, lists=[["Olenellus", "Burgess_Shale", "they"]])
    found = {term.text: term for term in mining.terms}
    assert (found["Olenellus"].count, found["Olenellus"].score) == (0, 0)
    assert "Burgess_Shale" in found
    assert mining.refused_listed == {"they": "base vocabulary"}


def test_listed_terms_go_first_and_the_best_words_fill_up():
    mining = find(num_terms=2, lists=[["Wheeler_Formation"]])
    assert {term.text: term.origin for term in mining.terms} == {
        "reef": "corpus",
        "Wheeler_Formation": "list",
    } or mining.terms[0].score >= mining.terms[1].score
    assert "Wheeler_Formation" in names(mining)
    assert mining.num_left == len(find(num_terms=100).terms) - 2
    only = find(lists=[["Wheeler_Formation", "Olenellus"]], lists_only=True)
    assert names(only) == ["Wheeler_Formation"]


def test_entries_that_stand_in_two_lists_count_once():
    mining = find(lists=[["reef", "trilobites"], ["reef", "reef", "Wheeler Formation", "Wheeler_Formation"]])
    assert mining.num_repeated == 3
    assert names(mining).count("reef") == names(mining).count("Wheeler_Formation") == 1


def test_the_most_frequent_spelling_counts():
    assert "limestone" in names(find())
    assert "Limestone" not in names(find())
    swapped = find(TEXT.replace("limestone", "LIMESTONE"))
    assert "LIMESTONE" in names(swapped)


def test_case_is_folded_where_the_tokenizer_folds_it():
    mining = find(tokenizer=make_wordpiece(), lists=[["Limestone"]])
    found = {term.text: term for term in mining.terms}
    assert found["limestone"].count == 6
    assert found["limestone"].origin == "list"
    assert all(term == term.lower() for term in found)


def test_any_fast_tokenizer_will_do_and_another_will_not():
    assert names(find(tokenizer=make_byte_level()))
    with pytest.raises(TokenizerError, match="SlowTokenizer is not a fast tokenizer"):
        find(tokenizer=SlowTokenizer())


def test_an_empty_corpus_has_no_terms():
    mining = mine_terms([pa.array([], pa.string())], make_unigram(), lists=[["reef"]], num_terms=5)
    assert mining.terms == []
    assert mining.refused_listed == {"reef": "not in the corpus"}


def test_a_refused_spelling_does_not_stand_in_the_way_of_a_good_one():
    mining = find("Shandong Shandong x", lists=[["Shan-_dong", "Shandong"]])
    assert names(mining) == ["Shandong"]
    assert mining.refused_listed == {"Shan-_dong": mine.HYPHEN}
    assert names(find("pre-limestone " * 5 + "Limestone Limestone")) == ["Limestone"]
