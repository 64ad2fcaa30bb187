import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary.census import find_words
from data_pipes.vocabulary.extend import extend_tokenizer
from data_pipes.vocabulary.fragments import report_fragments
from tests.data_pipes.test_extend import NEAR_TEXT, make_scored_unigram
from tests.data_pipes.test_tokenize import ODD_TEXT, is_encodable
from tests.data_pipes.tiny_tokenizers import make_byte_level, make_unigram, make_wordpiece

TERMS = ["trilobite", "Wheeler_Formation", "reef"]
TEXTS = st.lists(st.one_of(ODD_TEXT.filter(is_encodable), NEAR_TEXT), max_size=4)
MAKERS = {
    "unigram": make_scored_unigram,
    "wordpiece": make_wordpiece,
    "borders": lambda: make_scored_unigram(has_borders=True),
}


class SlowTokenizer:
    """Python only, as CANINE's."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("fragments")
    made = {kind: (make(), extend_tokenizer(make(), TERMS, root / kind)) for kind, make in MAKERS.items()}
    made["wordpiece_model"] = (
        make_wordpiece(),
        extend_tokenizer(make_wordpiece(), TERMS, root / "model", whole_words=False),
    )
    return made


def report(pair, texts, terms=None):
    before, extension = pair
    columns = [pa.array(texts, pa.string())]
    return report_fragments(columns, before, extension.tokenizer, terms)


def cut_slowly(tokenizer, text):
    """[(word, its pieces)] by looking at each piece's characters one by one."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    encoding = backend.encode(text, add_special_tokens=False)
    words = find_words(pa.array([text], pa.string()))
    found = []
    for word, start, end in zip(
        words.texts.to_pylist(), words.starts.tolist(), words.ends.tolist(), strict=True
    ):
        places = [
            place
            for place, (first, last) in enumerate(encoding.offsets)
            if encoding.tokens[place].strip("\u2581") and first < end and last > start
        ]
        is_marked = places and places[0] and not encoding.tokens[places[0] - 1].strip("\u2581")
        if is_marked and encoding.offsets[places[0]][0] == start:
            places = [places[0] - 1, *places]
        found.append((word, [(encoding.ids[place], encoding.offsets[place][0]) for place in places]))
    return found, encoding.ids


@pytest.mark.parametrize("kind", [*MAKERS, "wordpiece_model"])
@settings(max_examples=80, deadline=None)
@example(texts=["\u2581", "the"])
@given(texts=TEXTS)
def test_the_report_is_that_of_a_loop_over_words(pairs, kind, texts):
    before, extension = pairs[kind]
    found = report(pairs[kind], texts, TERMS)
    is_folded = kind.startswith("wordpiece")
    terms = {term.lower() for term in TERMS} if is_folded else set(TERMS)
    sides = [[cut_slowly(tokenizer, text) for text in texts] for tokenizer in (before, extension.tokenizer)]
    for side, cuts in zip((found.before, found.after), sides, strict=True):
        words = [pair for found_words, _ in cuts for pair in found_words]
        assert side.num_pieces == sum(len(ids) for _, ids in cuts)
        assert side.pieces_per_word == pytest.approx(
            sum(len(pieces) for _, pieces in words) / max(1, len(words)), abs=1e-12
        )
        numbers = [len(pieces) for word, pieces in words if fold(word, is_folded) in terms]
        counted = Counter(min(number, 8) for number in numbers)
        assert side.terms_by_pieces == {number: counted[number] for number in range(1, 9)}
        assert side.share_cut == pytest.approx(sum(n > 1 for n in numbers) / max(1, len(numbers)))
    uses = Counter(number for _, ids in sides[1] for number in ids)
    assert sum(found.uses.values()) == sum(uses[number] for number in extension.new_pieces.values())
    changed, recut = Counter(), Counter()
    for (old_words, _), (new_words, _) in zip(*sides, strict=True):
        for (word, old), (_, new) in zip(old_words, new_words, strict=True):
            if fold(word, is_folded) not in terms and [n for n, _ in old] != [n for n, _ in new]:
                changed[word] += 1
                recut[word] += bool({at for _, at in new[1:]} - {at for _, at in old})
    assert found.num_changed_words == sum(changed.values())
    assert found.num_recut_words == sum(recut.values())
    assert len(texts) == found.num_documents


def fold(word, is_folded):
    import unicodedata

    if not is_folded:
        return word
    plain = unicodedata.normalize("NFD", word.lower())
    return "".join(character for character in plain if unicodedata.category(character) != "Mn")


def test_terms_are_counted_in_context(pairs):
    found = report(
        pairs["unigram"], ["The trilobite, (trilobite) and reefs of the reef-reef Wheeler_Formation"], TERMS
    )
    assert found.num_term_words == 5
    assert found.before.share_cut == 1.0
    # The one in brackets has no space before it, and the second reef neither.
    assert found.after.share_cut == pytest.approx(2 / 5)
    assert found.after.terms_by_pieces[1] == 3
    assert found.uses["\u2581trilobite"] == 1
    assert (found.num_terms, found.num_terms_met, found.num_unused) == (3, 3, 0)


def test_case_and_accents_do_not_tell_terms_apart_where_the_tokenizer_drops_them(pairs):
    text = "Trilobite TRILOBITE tr\u00eflobite trilobites"
    assert report(pairs["wordpiece"], [text], TERMS).num_term_words == 3
    assert report(pairs["unigram"], [text], TERMS).num_term_words == 0


def test_new_pieces_that_nobody_needs_are_counted(pairs):
    found = report(pairs["unigram"], ["the reef"], TERMS)
    assert (found.num_unused, found.num_terms_met) == (2, 1)
    assert next(iter(found.uses.items())) == ("\u2581reef", 1)


def test_without_a_list_the_new_pieces_are_the_terms(pairs):
    texts = ["The trilobite and the reef of the Wheeler_Formation"]
    assert report(pairs["unigram"], texts) == report(pairs["unigram"], texts, TERMS)


def test_words_that_are_cut_anew_are_told_from_those_whose_pieces_are_merged(pairs):
    found = report(pairs["wordpiece_model"], ["trilobites trilobites reefs trilobite"], TERMS)
    assert found.recut_words == {"trilobites": 2}
    assert found.changed_words == {"trilobites": 2, "reefs": 1}
    assert report(pairs["wordpiece"], ["trilobites reefs trilobite"], TERMS).num_changed_words == 0


def test_the_same_tokenizer_twice_changes_nothing():
    for make in (make_unigram, make_wordpiece, make_byte_level):
        found = report_fragments([pa.array(["The trilobite \u65e5\u672c reef"])], make(), make(), ["reef"])
        assert found.before == found.after
        assert (found.num_changed_words, found.uses) == (0, {})


def test_the_same_pieces_in_another_order_are_a_change():
    before, after = make_unigram(), make_unigram()
    state = json.loads(after.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    places = {piece: number for number, (piece, _) in enumerate(vocab)}
    a, b = places["a"], places["b"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    from transformers import DebertaV2Tokenizer

    after = DebertaV2Tokenizer(vocab=[tuple(pair) for pair in vocab], unk_id=3)
    found = report_fragments([pa.array(["ab ccc"])], before, after, [])
    assert found.changed_words == {"ab": 1}


def test_the_report_is_json(pairs):
    found = report(pairs["unigram"], ["the reef"], TERMS)
    read = json.loads(found.to_json())
    assert read["before"]["num_pieces"] == found.before.num_pieces
    assert read["uses"] == found.uses


def test_an_empty_corpus_has_a_report(pairs):
    found = report(pairs["unigram"], [], TERMS)
    assert (found.num_words, found.before.share_cut, found.before.pieces_per_word) == (0, 0.0, 0.0)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(TokenizerError, match="SlowTokenizer is not a fast tokenizer"):
        report_fragments([], SlowTokenizer(), SlowTokenizer(), [])
