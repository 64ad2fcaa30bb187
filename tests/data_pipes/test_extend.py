import json
import random
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DebertaV2Tokenizer

from data_pipes.tokenize import PieceEncoder, TokenizerError
from data_pipes.vocabulary import extend
from data_pipes.vocabulary.extend import extend_tokenizer, map_new_pieces
from data_pipes.vocabulary.identity import identify_tokenizer
from data_pipes.vocabulary.scores import MARGIN
from tests.data_pipes.test_tokenize import ODD_TEXT, is_encodable
from tests.data_pipes.tiny_tokenizers import (
    SPECIAL_PIECES,
    TEXT,
    make_byte_level,
    make_unigram,
    make_wordpiece,
)

TERMS = ["trilobite", "Wheeler_Formation", "trilobites", "Cove", "Zone", "reef", "Br\u00f8gger", "shal"]
# Words that hold a term, or end in one, or are one; with what may stand around them.
NEAR = [
    *(
        "trilobites",
        "trilobitesque",
        "microtrilobite",
        "Coverage",
        "Covey",
        "Zones",
        "reefs",
        "shale",
        "shaly",
    ),
    *TERMS,
    *(
        "the",
        "Wheeler",
        "Formation",
        "Wheeler_Formations",
        "_",
        "'s",
        ",",
        ")",
        " (",
        "-",
        ".",
        " ",
        " ",
        " ",
    ),
    "Wheeler_Formation_x",
]
NEAR_TEXT = st.lists(st.sampled_from(NEAR), max_size=12).map("".join)
TEXTS = st.one_of(ODD_TEXT.filter(is_encodable), NEAR_TEXT)


def make_scored_unigram(has_mask=True, has_borders=False, score_of_specials=0.0):
    """Random scores, so that no two cuts are equally good; [MASK] added behind, as in DeBERTa-v3, or not."""
    generator = random.Random(1)
    words = [
        *(
            "\u2581the",
            "\u2581The",
            "\u2581Wheeler",
            "Formation",
            "\u2581tri",
            "lobit",
            "es",
            "ite",
            "\u2581trilob",
        ),
        *(
            "\u2581Cover",
            "age",
            "\u2581Co",
            "ve",
            "\u2581Z",
            "ones",
            "one",
            "\u2581re",
            "ef",
            "efs",
            "sh",
            "ale",
            "al",
        ),
    ]
    borders = ["e,", "es)", "ef.", "\u2581reef'", "\u2581(", "f,\u2581", "n's"] if has_borders else []
    characters = sorted(set(TEXT + "\u2581_\u03b1\u00e9\u00f8!?[]MASKPDLSEPUNKZqxygoCv") - {" "})
    vocab = [(piece, score_of_specials) for piece in SPECIAL_PIECES if has_mask or piece != "[MASK]"]
    vocab += [(piece, -4.0 - 3 * generator.random()) for piece in [*words, *borders]]
    vocab += [(piece, -7.0 - 3 * generator.random()) for piece in characters]
    return DebertaV2Tokenizer(vocab=vocab, unk_id=3)


MAKERS = {
    "unigram": make_scored_unigram,
    "unigram_with_added_mask": lambda: make_scored_unigram(has_mask=False),
    "unigram_with_low_specials": lambda: make_scored_unigram(score_of_specials=-120.0),
    "wordpiece": make_wordpiece,
}
UNIGRAMS = ("unigram", "unigram_with_added_mask", "unigram_with_low_specials")


class Pair:
    """A tokenizer and its extension, made once."""

    def __init__(self, before, terms, folder, **options):
        self.before = before
        self.extension = extend_tokenizer(before, terms, folder, **options)
        self.after = AutoTokenizer.from_pretrained(str(folder))

    def encode(self, text, **options):
        return [
            tokenizer(text, add_special_tokens=False, **options)["input_ids"]
            for tokenizer in (self.before, self.after)
        ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("extend")
    made = {kind: Pair(make(), TERMS, root / kind) for kind, make in MAKERS.items()}
    made["wordpiece_model"] = Pair(make_wordpiece(), TERMS, root / "wordpiece_model", whole_words=False)
    made["unigram_with_borders"] = Pair(make_scored_unigram(has_borders=True), TERMS, root / "borders")
    made["unigram_with_ties"] = Pair(make_unigram(), TERMS, root / "ties")
    return made


ALL = [*MAKERS, "wordpiece_model", "unigram_with_borders", "unigram_with_ties"]


def holds_a_term(text, tokenizer):
    normalize = tokenizer.backend_tokenizer.normalizer.normalize_str
    return any(normalize(term).strip() in normalize(text) for term in TERMS)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("is_split", [False, True])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_a_text_without_the_terms_keeps_its_pieces(pairs, kind, is_split, text):
    pair = pairs[kind]
    if holds_a_term(text, pair.before):
        return
    before, after = pair.encode(text, split_special_tokens=is_split)
    assert before == after


@pytest.mark.parametrize("kind", [*UNIGRAMS, "wordpiece"])
@settings(max_examples=300, deadline=None)
@given(text=NEAR_TEXT)
def test_new_pieces_only_stand_for_the_pieces_that_were_there(pairs, kind, text):
    pair = pairs[kind]
    before, after = pair.encode(text)
    old_pieces = pair.extension.old_pieces
    assert [old for new in after for old in old_pieces.get(new, [new])] == before


@settings(max_examples=300, deadline=None)
@given(text=NEAR_TEXT)
def test_wordpiece_changes_whole_words_only(pairs, text):
    pair = pairs["wordpiece"]
    before, after = pair.encode(text)
    words = [word.lower() for word in re.findall(r"\w+", text)]
    is_met = any(term.lower() in words for term in pair.extension.new_pieces)
    assert (before != after) == is_met


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_decoding_gives_what_it_gave_before(pairs, kind, text):
    pair = pairs[kind]
    before, after = pair.encode(text)
    if pair.before.unk_token_id in before and holds_a_term(text, pair.before):
        return  # a term may have given an unknown character a piece
    texts = [pair.before.decode(before), pair.after.decode(after)]
    if kind == "wordpiece":  # joins its pieces with blanks, so a piece with an underscore reads better now
        texts = [text.replace(" _ ", "_") for text in texts]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "around", ["the {} the", "{}", "{},", "the {}. The", "the {}'s", "{}) {}", "{}-the", "\t{}\n{}"]
)
def test_a_term_after_a_space_is_one_piece(pairs, kind, around):
    pair = pairs[kind]
    for term, number in pair.extension.new_pieces.items():
        _, after = pair.encode(around.replace("{}", term))
        assert after.count(number) == around.count("{}"), (term, pair.after.convert_ids_to_tokens(after))


@pytest.mark.parametrize("kind", ALL)
def test_new_numbers_follow_the_highest_old_one_and_all_old_ones_stay(pairs, kind):
    pair = pairs[kind]
    old, new = pair.before.get_vocab(), pair.after.get_vocab()
    assert old.items() <= new.items()
    numbers = list(pair.extension.new_pieces.values())
    assert numbers == list(range(max(old.values()) + 1, max(old.values()) + 1 + len(numbers)))
    assert sorted(new.values()) == list(range(len(pair.after)))
    assert pair.after.all_special_ids == pair.before.all_special_ids
    old_ids = [pair.encode(f" {term}")[0] for term in pair.extension.new_pieces]
    assert pair.extension.old_pieces == dict(zip(numbers, old_ids, strict=True))


def test_a_mask_that_was_added_behind_the_vocabulary_keeps_its_number_and_stays_findable(pairs):
    pair = pairs["unigram_with_added_mask"]
    num_old = len(pair.before) - 1
    assert pair.before.mask_token_id == pair.after.mask_token_id == num_old
    assert min(pair.extension.new_pieces.values()) == num_old + 1
    before, after = pair.encode("the [MASK] reef, [MASK]s")
    assert after.count(num_old) == before.count(num_old) == 2
    before, after = pair.encode("the [MASK] [MASK]", split_special_tokens=True)
    assert num_old not in after
    assert before == after


@pytest.mark.parametrize("kind", ALL)
def test_the_piece_encoder_takes_an_extended_tokenizer(pairs, kind):
    pair = pairs[kind]
    texts = ["The trilobite and the reef, (reef)."]
    _, after = pair.encode(texts[0], split_special_tokens=True)
    pieces = PieceEncoder(pair.after).encode(pa.array(texts))
    assert pieces.ids.tolist() == after
    place = after.index(pair.extension.new_pieces["trilobite"])
    assert pieces.word_starts[place]
    assert pieces.word_starts[place + 1]


def test_the_score_of_a_piece_is_just_above_the_best_cut_that_the_library_finds(pairs):
    pair = pairs["unigram"]
    state = json.loads(pair.before.backend_tokenizer.to_str())
    score = dict(map(tuple, state["model"]["vocab"]))
    new = dict(map(tuple, json.loads(pair.after.backend_tokenizer.to_str())["model"]["vocab"]))
    for term in ("trilobite", "Wheeler_Formation", "Cove", "shal"):
        cut = sum(score[piece] for piece in pair.before.tokenize(f" {term}"))
        assert 0 < new[f"\u2581{term}"] - cut < 3 * MARGIN


def test_a_longer_term_beats_the_cut_with_a_shorter_one(tmp_path):
    # Scores are rounded up to a margin, reef by nearly two and reefs by one: scored from the old letters
    # alone, reefs would be the new reef and the old s.
    scores = dict.fromkeys("\u2581ef", -3.0) | {"r": -3.0 + 1e-7, "s": -3.0 - 1e-7}
    for order in (["reef", "reefs"], ["reefs", "reef"]):
        vocab = [*((piece, 0.0) for piece in SPECIAL_PIECES), *scores.items()]
        pair = Pair(DebertaV2Tokenizer(vocab=vocab, unk_id=3), order, tmp_path / order[0])
        assert pair.after.tokenize("reef reefs reefss") == ["\u2581reef", "\u2581reefs", "\u2581reefs", "s"]


def test_unknown_characters_cost_what_they_did(tmp_path):
    # "aX" is the only piece with an X, and X alone costs 10 more than the lowest score. Should the lowest
    # score fall with the term's, "qa" + unknown would lose to "q" + "aX".
    vocab = [*((piece, 0.0) for piece in SPECIAL_PIECES)]
    vocab += [("\u2581", -1.0), ("q", -30.0), ("a", -1.0), ("qa", -1.0), ("aX", -30.0)]
    pair = Pair(DebertaV2Tokenizer(vocab=vocab, unk_id=3), ["qqqq"], tmp_path / "new")
    before, after = pair.encode("qaX")
    assert before == after
    assert before[-1] == 3
    assert pair.after.tokenize("qqqq") == ["\u2581qqqq"]


def test_wordpiece_terms_in_the_model_are_shared_by_longer_words(pairs):
    pair = pairs["wordpiece_model"]
    assert pair.after.tokenize("trilobiter") == ["trilobite", "##r"]
    assert pair.extension.skipped["Wheeler_Formation"] == (
        "the tokenizer cuts it into wheeler + _ + formation before its model sees it"
    )


@pytest.mark.parametrize(
    ("term", "reason"),
    [
        ("", "nothing is left"),
        (" ", "nothing is left"),
        ("a reef", "write _ for a space"),
        ("the", "is a piece already"),
        ("x[MASK]", "special or added piece"),
    ],
)
@pytest.mark.parametrize("kind", MAKERS)
def test_what_cannot_be_a_piece_is_skipped_with_a_reason(kind, term, reason, tmp_path):
    made = extend_tokenizer(MAKERS[kind](), [term, "reef", "reef"], tmp_path / "new")
    assert list(made.new_pieces) == ["reef"]
    assert reason in made.skipped[term]


def test_terms_that_the_normaliser_makes_equal_become_one_piece(tmp_path):
    made = extend_tokenizer(make_wordpiece(), ["Reef", "reef", "R\u00e9ef"], tmp_path / "new")
    assert list(made.new_pieces) == ["Reef"]
    assert set(made.skipped.values()) == {"is the same piece as another term"}


def test_a_word_longer_than_the_model_takes_is_skipped(tmp_path):
    made = extend_tokenizer(make_wordpiece(), ["a" * 101, "reef"], tmp_path / "new", whole_words=False)
    assert "longer than the 100 characters" in made.skipped["a" * 101]


def test_merges_are_refused(tmp_path):
    with pytest.raises(
        TokenizerError, match="BPE tokenizer cannot be extended: .*use a Unigram or a WordPiece"
    ):
        extend_tokenizer(make_byte_level(), ["reef"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_nothing_to_add_is_an_error(tmp_path):
    with pytest.raises(TokenizerError, match=r"none of the terms can be added: is a piece already \(1\)"):
        extend_tokenizer(make_wordpiece(), ["the"], tmp_path / "new")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(TokenizerError, match="not an empty folder"):
        extend_tokenizer(make_unigram(), ["reef"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_second_extension_counts_the_version_up_and_keeps_the_first(kind, tmp_path):
    first = extend_tokenizer(MAKERS[kind](), ["reef"], tmp_path / "first")
    second = extend_tokenizer(first.tokenizer, ["reefs", "Cove"], tmp_path / "second")
    named = extend_tokenizer(second.tokenizer, ["Zones"], tmp_path / "third", version="paleo-7")
    made = (first, second, named)
    assert [identify_tokenizer(one.tokenizer)["version"] for one in made] == ["1", "2", "paleo-7"]
    assert len({identify_tokenizer(one.tokenizer)["sha256"] for one in made}) == 3
    assert min(second.new_pieces.values()) == max(first.new_pieces.values()) + 1
    added = set(named.new_pieces.values()) | set(second.new_pieces.values())
    assert set(map_new_pieces(first.tokenizer, named.tokenizer)) == added
    ids = named.tokenizer("reef reefs Cove Zones", add_special_tokens=False)["input_ids"]
    assert ids == [number for one in made for number in one.new_pieces.values()]


def test_whole_words_do_not_move_into_the_model_by_a_second_extension(tmp_path):
    first = extend_tokenizer(make_wordpiece(), ["reef"], tmp_path / "first")
    with pytest.raises(TokenizerError, match=r"extended by whole words before \(reef\)"):
        extend_tokenizer(first.tokenizer, ["Cove"], tmp_path / "second", whole_words=False)


def test_a_class_that_loses_the_extension_when_it_is_loaded_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(extend._SPLICERS, "Unigram", lambda state, pieces: None)
    with pytest.raises(TokenizerError, match="does not keep the extension .*terms without a piece: .'reef'"):
        extend_tokenizer(make_unigram(), ["reef"], tmp_path / "new")
    assert not list(tmp_path.iterdir())
