import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CanineTokenizer, DebertaV2Tokenizer

from data_pipes.tokenize import PieceEncoder, TokenizerError
from tests.data_pipes.test_characters import is_connector, is_mark, is_punctuation, is_space, is_unspaced
from tests.data_pipes.tiny_tokenizers import MAKERS, SPECIAL_PIECES, TEXT

TOKENIZERS = {kind: make() for kind, make in MAKERS.items()}
ENCODERS = {kind: PieceEncoder(tokenizer) for kind, tokenizer in TOKENIZERS.items()}
KINDS = pytest.mark.parametrize("kind", list(MAKERS))

# What breaks word starts: connectors, marks, scripts without spaces, symbols, odd white space, special names.
FRAGMENTS = [
    *(
        "the",
        "Wheeler",
        "Wheeler_Formation",
        "fossils",
        "3.5",
        "a",
        "_",
        "__",
        "'s",
        "(",
        "),",
        ".",
        "!?",
        "+",
    ),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u0301", "e\u0301", "\u20dd", "\u200d", "\ufeff", "\u2581"),
    *(
        "\u65e5\u672c\u8a9e",
        "\u306f",
        "\u0e44\u0e17\u0e22\u0e35",
        "\U00020000",
        "\uff3f",
        "\U0001f469\u200d\U0001f52c",
    ),
    *SPECIAL_PIECES,
    *("<s>", "\u03b1", "\u0130", "\ufb01", "\ufdd0", "\ufdd1", "##a", "\u0120"),
]
ODD_TEXT = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=12).map("".join)
ODD_TEXTS = st.lists(ODD_TEXT.filter(lambda text: text.isascii() or is_encodable(text)), max_size=5)


def is_encodable(text):
    return not any(unicodedata.category(character) == "Cs" for character in text)


def encode(kind, texts):
    return ENCODERS[kind].encode(pa.array(texts, pa.string()))


def split_words(kind, text):
    """The words of one text, each as its pieces."""
    pieces = encode(kind, [text])
    names = TOKENIZERS[kind].convert_ids_to_tokens(pieces.ids.tolist())
    words = []
    for name, is_start in zip(names, pieces.word_starts, strict=True):
        if is_start:
            words.append([])
        words[-1].append(name)
    return words


def spell(kind, word):
    """A word as it is read: its pieces without the marks of spaces and of continuation."""
    joined = TOKENIZERS[kind].convert_tokens_to_string(word).replace("\u2581", "")
    # WordPiece parts pieces that do not continue a word by blanks.
    return joined.replace(" ", "") if kind == "wordpiece" else joined.strip()


# The slow reference: the rules of find_word_starts, read one piece at a time from unicodedata alone.


def find_starts_slowly(kind, text, encoding):
    starts, previous = [], None
    names = TOKENIZERS[kind].convert_ids_to_tokens(encoding.ids)
    space_marks = "\u0120\u010a\u0109" if kind == "byte_level" else "\u2581"
    for piece, word, (start, end) in zip(names, encoding.word_ids, encoding.offsets, strict=True):
        solid = [c for c in text[start:end] if not is_space(c)]
        blank = not solid or not piece.strip(space_marks)
        marks = not blank and all(map(is_mark, solid))
        alone = not blank and not marks
        alone = alone and (
            all(map(is_punctuation, solid)) or all(is_unspaced(c) or is_mark(c) for c in solid)
        )
        if previous is None:
            starts.append(True)
        else:
            last_word, last_end, last_blank, last_alone = previous
            joins = start == last_end and not (alone or blank or last_alone or last_blank)
            joins = joins and (
                is_connector(text[start : start + 1] or "x") or is_connector(text[last_end - 1])
            )
            if last_blank or start < last_end or joins:
                starts.append(False)
            else:
                starts.append(word != last_word or alone or blank or (last_alone and not marks))
        previous = (word, end, blank, alone)
    return starts


@KINDS
@settings(max_examples=250, deadline=None)
@given(texts=ODD_TEXTS)
def test_word_starts_equal_a_slow_reading_of_the_rules(kind, texts):
    pieces = encode(kind, texts)
    encodings = ENCODERS[kind]._backend.encode_batch(texts, add_special_tokens=False)
    wanted = [
        find_starts_slowly(kind, text, encoding) for text, encoding in zip(texts, encodings, strict=True)
    ]
    got = [
        pieces.word_starts[a:b].tolist() for a, b in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True)
    ]
    assert got == wanted


@KINDS
@settings(max_examples=250, deadline=None)
@given(texts=ODD_TEXTS)
def test_no_special_piece_but_unknown_comes_out_of_any_text(kind, texts):
    tokenizer = TOKENIZERS[kind]
    forbidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert not forbidden & set(encode(kind, texts).ids.tolist())


@KINDS
@pytest.mark.parametrize("name", [*SPECIAL_PIECES, "<s>"])
@pytest.mark.parametrize("frame", ["{}", "the {} form", "a{}b", "\ufdd0{}\ufdd1", "\ufdd0 {} \ufdd1", " {} "])
def test_a_special_name_in_a_text_is_ordinary_text(kind, name, frame):
    tokenizer = TOKENIZERS[kind]
    ids = encode(kind, [frame.format(name)]).ids.tolist()
    # These vocabularies of some letters lack a few characters of the frames; the byte-level one lacks none.
    allowed = set() if kind == "byte_level" else {tokenizer.unk_token_id}
    assert not (set(tokenizer.all_special_ids) - allowed) & set(ids)
    assert len(ids) >= 3


@KINDS
@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.sampled_from([*TEXT.split(), "\u65e5\u672c\u8a9e", "\u03b1", "a_\u00e9"]), max_size=20)
)
def test_ordinary_text_gives_the_tokenizers_own_pieces(kind, words):
    texts = [" ".join(words), " ".join(reversed(words))]
    pieces = encode(kind, texts)
    own = TOKENIZERS[kind](texts, add_special_tokens=False)["input_ids"]
    assert pieces.ids.tolist() == own[0] + own[1]
    assert pieces.offsets.tolist() == [0, len(own[0]), len(own[0]) + len(own[1])]


@settings(max_examples=250, deadline=None)
@given(texts=ODD_TEXTS)
def test_byte_level_pieces_spell_any_text(texts):
    pieces = encode("byte_level", texts)
    for start, end, text in zip(pieces.offsets[:-1], pieces.offsets[1:], texts, strict=True):
        ids = pieces.ids[start:end].tolist()
        assert TOKENIZERS["byte_level"].decode(ids, clean_up_tokenization_spaces=False) == text


@settings(max_examples=150, deadline=None)
@given(words=st.lists(st.text(sorted(set(TEXT) - {" "}), min_size=1, max_size=6), min_size=1, max_size=10))
def test_unigram_pieces_spell_ordinary_text(words):
    text = " ".join(words)
    names = TOKENIZERS["unigram"].convert_ids_to_tokens(encode("unigram", [text]).ids.tolist())
    assert "".join(names).replace("\u2581", " ").lstrip() == text


@KINDS
def test_punctuation_is_never_in_one_word_with_letters(kind):
    words_of_pieces = split_words(kind, TEXT)
    words = [spell(kind, word) for word in words_of_pieces]
    for pieces, word in zip(words_of_pieces, words, strict=True):
        if len(pieces) == 1:  # such as the byte-level piece 's
            continue
        solid = [c for c in word if not is_connector(c)]
        assert all(map(is_punctuation, solid)) or not any(map(is_punctuation, solid)), word
    lowered = [word.lower() for word in words]
    assert lowered.count("wheeler_formation") == 2
    for word in ("trilobites", "cambrian", "fossils", "they", "1998", "limestone", "bearing"):
        assert word in lowered
    assert "," in lowered or ")," in lowered


@KINDS
def test_pieces_of_scripts_without_spaces_are_words_of_their_own(kind):
    text = "the \u65e5\u672c\u8a9e\u306f fossil"
    words = [spell(kind, word) for word in split_words(kind, text)]
    inner = [word for word in words if word not in ("the", "fossil", "")]
    assert len(inner) == 4
    assert "".join(inner) == "\u65e5\u672c\u8a9e\u306f"
    assert (words[0], words[-1]) == ("the", "fossil")


def test_a_lone_mark_of_a_space_belongs_to_the_word_behind_it():
    words = split_words("unigram", "the \u65e5 they xi")
    assert words[1] == ["\u2581", "\u65e5"]
    assert words[2] == ["\u2581they"]
    blanks = [word for word in split_words("byte_level", "a  \n b") if not spell("byte_level", word)]
    assert blanks == []


def test_letters_that_mark_spaces_in_byte_level_vocabularies_are_letters_elsewhere():
    tokenizer = DebertaV2Tokenizer(
        vocab=[*((piece, 0.0) for piece in SPECIAL_PIECES), *((c, -2.0) for c in "\u2581a\u0109eti")],
        unk_id=3,
    )
    pieces = PieceEncoder(tokenizer).encode(pa.array(["a\u0109eti a\u0109"]))
    assert np.flatnonzero(pieces.word_starts).tolist() == [0, 6]


@KINDS
def test_added_domain_terms_are_single_words(kind):
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens(["Anomalocaris", "Wapta_Shale"])
    encoder = PieceEncoder(tokenizer)
    pieces = encoder.encode(pa.array(["the Anomalocaris, they say", "Wapta_Shale"]))
    ids = tokenizer.convert_tokens_to_ids(["Anomalocaris", "Wapta_Shale"])
    for number in ids:
        (place,) = np.flatnonzero(pieces.ids == number)
        assert pieces.word_starts[place] or pieces.word_starts[place - 1]
        assert place + 1 == len(pieces.ids) or pieces.word_starts[place + 1]


def test_the_tokenizer_that_was_given_is_not_changed():
    tokenizer = MAKERS["unigram"]()
    before = tokenizer.backend_tokenizer.to_str()
    PieceEncoder(tokenizer).encode(pa.array(["the [MASK]"]))
    assert tokenizer.backend_tokenizer.to_str() == before


@KINDS
def test_empty_documents_have_no_pieces(kind):
    pieces = encode(kind, ["", "the", "", ""])
    assert np.diff(pieces.offsets).tolist()[0] == 0
    assert np.diff(pieces.offsets).tolist()[2:] == [0, 0]
    assert pieces.word_starts[0]
    assert len(encode(kind, []).ids) == 0


def test_a_tokenizer_without_what_masking_needs_is_refused():
    with pytest.raises(TokenizerError, match="CanineTokenizer is not a fast tokenizer"):
        PieceEncoder(CanineTokenizer())
    tokenizer = MAKERS["byte_level"]()
    tokenizer.mask_token = None
    with pytest.raises(TokenizerError, match="has no mask_token"):
        PieceEncoder(tokenizer)
