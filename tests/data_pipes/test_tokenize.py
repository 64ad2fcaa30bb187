import json
import pickle
import subprocess
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CanineTokenizer, DebertaV2Tokenizer

from data_pipes.tokenize import PieceEncoder, TokenizerError
from data_pipes.tokens import lexicon
from data_pipes.tokens.lexicon import is_local
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


# Lookups of stretches against whole texts, on what could reach across a space.

ADDED_TERMS = ["Anomalocaris", "Wapta_Shale", "x."]
CUTS = [
    *(
        "\u201cSo\u201d",
        "\u00e9t\u00e9",
        "\u0410\u0431",
        "a.",
        "A.",
        "e.g.",
        "x.) ",
        "? ",
        "\n\n",
        "\u3002",
        '"',
        "The",
        "3",
    ),
    *("\u00a8", "\u00ad", "\x00", "\u0600", "\r\n", "\ud7ff", "\u2014", "\u2013 ", *ADDED_TERMS),
]
CUT_TEXT = st.lists(
    st.one_of(
        st.just(" "), st.sampled_from(FRAGMENTS), st.just(" "), st.sampled_from(CUTS), st.text(max_size=3)
    ),
    max_size=25,
).map("".join)
CUT_TEXTS = st.lists(CUT_TEXT.filter(is_encodable), max_size=5)


def make_added(kind):
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens(ADDED_TERMS)
    return PieceEncoder(tokenizer)


ADDED_ENCODERS = {kind: make_added(kind) for kind in MAKERS}


def list_columns(pieces):
    columns = (pieces.ids, pieces.offsets, pieces.word_starts, pieces.sentence_starts)
    return [(column.dtype, column.tolist()) for column in columns]


@KINDS
@pytest.mark.parametrize("is_added", [False, True])
@settings(max_examples=300, deadline=None)
@example(texts=["x.) the\u3002\u0301"])
@example(texts=["the_ they", "the _they", "the_ _they"])
@example(texts=["the ", " the", "the A", ". The", "a. \u0301b", ""])
@given(texts=CUT_TEXTS)
def test_looking_stretches_up_gives_what_whole_texts_give(kind, is_added, texts):
    encoder = (ADDED_ENCODERS if is_added else ENCODERS)[kind]
    assert encoder._lexicon is not None
    column = pa.array(["a slice", *texts], pa.string())[1:]
    assert list_columns(encoder.encode(column)) == list_columns(encoder.encode_whole(column))


@KINDS
def test_a_lexicon_that_forgets_gives_the_same(kind, monkeypatch):
    texts = pa.array(
        [f"the {TEXT} number {n} of them, {'long' * n} and so on. They say" for n in range(9)] * 2
    )
    wanted = list_columns(PieceEncoder(MAKERS[kind]()).encode_whole(texts))
    monkeypatch.setattr(lexicon, "MAX_ENTRIES", 30)
    encoder = PieceEncoder(MAKERS[kind]())
    assert [list_columns(encoder.encode(texts)) for _ in range(3)] == [wanted] * 3
    assert len(encoder._lexicon._numbers) <= 30


@KINDS
def test_each_stretch_goes_through_the_tokenizer_once(kind):
    encoder = PieceEncoder(MAKERS[kind]())
    asked = []
    encode_new = encoder._lexicon._encode
    encoder._lexicon._encode = lambda texts: asked.extend(texts.to_pylist()) or encode_new(texts)
    encoder.encode(pa.array(["the fossils the fossils", "the fossils the shale"]))
    assert sorted(asked) == ["the", "x fossils the shale"]
    encoder.encode(pa.array(["the shale the fossils"]))
    assert len(asked) == 2


def change_backend(kind, change):
    state = json.loads(ENCODERS[kind]._backend.to_str())
    change(state)
    return state


def add_term(content, **flags):
    plain = {"id": 9999, "content": content, "single_word": False, "normalized": True, "special": False}
    return lambda state: state["added_tokens"].append(plain | {"lstrip": False, "rstrip": False} | flags)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("unigram", add_term("Wapta Shale")),
        ("unigram", add_term("Wapta", lstrip=True)),
        ("unigram", add_term("Wapta", rstrip=True)),
        ("unigram", lambda state: state["pre_tokenizer"]["pretokenizers"][0].update(split=False)),
        ("unigram", lambda state: state.update(pre_tokenizer=None)),
        (
            "unigram",
            lambda state: state["normalizer"]["normalizers"].append({"type": "Prepend", "prepend": "a"}),
        ),
        (
            "unigram",
            lambda state: state.update(
                normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
            ),
        ),
        (
            "unigram",
            lambda state: state.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "a b"}, "content": "c"}
            ),
        ),
        ("byte_level", lambda state: state["pre_tokenizer"].update(use_regex=False)),
        ("byte_level", lambda state: state["model"].update(dropout=0.1)),
        ("byte_level", lambda state: state["model"]["vocab"].pop("\u00e9")),
        (
            "byte_level",
            lambda state: state.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
                        state["pre_tokenizer"],
                    ],
                }
            ),
        ),
    ],
)
def test_a_tokenizer_that_may_look_beyond_a_space_is_not_looked_up(kind, change):
    assert is_local(change_backend(kind, lambda state: None))
    assert not is_local(change_backend(kind, change))


def test_text_is_encoded_whole_where_lookups_are_not_exact():
    tokenizer = MAKERS["unigram"]()
    tokenizer.add_tokens(["Wapta Shale"])
    encoder = PieceEncoder(tokenizer)
    texts = pa.array(["the Wapta Shale fossils"])
    assert list_columns(encoder.encode(texts)) == list_columns(encoder.encode_whole(texts))
    assert tokenizer.convert_tokens_to_ids("Wapta Shale") in encoder.encode(texts).ids


# Sentences.


def split_sentences(kind, text):
    pieces = encode(kind, [text])
    names = TOKENIZERS[kind].convert_ids_to_tokens(pieces.ids.tolist())
    places = [*np.flatnonzero(pieces.sentence_starts).tolist(), len(names)]
    return [spell(kind, names[a:b]) for a, b in zip(places[:-1], places[1:], strict=True)]


@KINDS
@pytest.mark.parametrize(
    "text",
    [
        "They say. |The shale, |which yields. |'They' were found! |Were they? |Yes",
        "They say... |The shale",
        'They say ("the shale.") |The fossils.\' |(They yields',
        "they say the\n\n|shale which\n \n|The",
        "They say.\n|The shale\nwhich",
        "\u65e5\u672c\u3002|\u8a9e\u306f\uff01\u300d|\u65e5\u672c\u8a9e",
        "\u65e5\u672c\uff1f |\u8a9e",
        # No ends: initials, small letters and digits behind, no space, marks that end nothing.
        "O. Wheeler, e.g. Burgess, U.S. Shale",
        'trilobites sp. nov. were found in Fig. 3 and No. "1998"',
        "3.5 the.The they; The shale: The fossil, The",
        "Were they? he say ! the 1998",
    ],
)
def test_sentences_are_cut_where_a_reader_would(kind, text):
    wanted = [part for part in text.replace(", |", ", ").split("|") if part]
    got = split_sentences(kind, text.replace("|", ""))

    assert len(got) == len(wanted)
    if kind == "byte_level":  # the others lack some of the characters
        assert ["".join(part.split()) for part in got] == ["".join(part.split()) for part in wanted]


@KINDS
@settings(max_examples=200, deadline=None)
@given(texts=CUT_TEXTS)
def test_each_sentence_start_is_a_word_start_and_each_document_begins_with_one(kind, texts):
    pieces = encode(kind, texts)
    assert not (pieces.sentence_starts & ~pieces.word_starts).any()
    assert pieces.sentence_starts[pieces.offsets[:-1][np.diff(pieces.offsets) > 0]].all()


# Without the class that it came from.


@KINDS
def test_a_saved_tokenizer_gives_the_encoder_of_its_class(kind, tmp_path):
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens(["Anomalocaris"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(tmp_path)
    saved, loaded = PieceEncoder.from_folder(tmp_path), PieceEncoder(AutoTokenizer.from_pretrained(tmp_path))
    for encoder in (saved, pickle.loads(pickle.dumps(saved))):
        assert (encoder.cls_id, encoder.sep_id) == (loaded.cls_id, loaded.sep_id)
        assert json.loads(encoder._backend.to_str()) == json.loads(loaded._backend.to_str())
        texts = pa.array([TEXT, "the [MASK] <extra> Anomalocaris [SEP]"])
        assert list_columns(encoder.encode(texts)) == list_columns(loaded.encode(texts))
        assert list_columns(encoder.encode_whole(texts)) == list_columns(loaded.encode_whole(texts))


def test_older_settings_with_special_pieces_as_mappings_are_read(tmp_path):
    MAKERS["wordpiece"]().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = {name: {"content": settings.pop(name), "lstrip": False} for name in ("cls_token", "mask_token")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match="has no cls_token"):
        PieceEncoder.from_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    encoder = PieceEncoder.from_folder(tmp_path)
    assert encoder.cls_id == ENCODERS["wordpiece"].cls_id
    assert encoder._backend.to_str() == ENCODERS["wordpiece"]._backend.to_str()


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=f"{tmp_path} holds no tokenizer.json"):
        PieceEncoder.from_folder(tmp_path)


def test_a_process_that_only_encodes_imports_neither_torch_nor_transformers(tmp_path):
    MAKERS["unigram"]().save_pretrained(tmp_path)
    code = (
        "import sys; import data_pipes.tokens.words, data_pipes.pack\n"
        "from data_pipes.tokenize import PieceEncoder\n"
        "PieceEncoder.from_folder(sys.argv[1]); print({'torch', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
