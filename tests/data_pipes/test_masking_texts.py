"""Every masking kind on odd texts, through tokenizers of every kind."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import flatten_code_points
from data_pipes.masking import Masking, hide
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from tests.data_pipes.tiny_tokenizers import MAKERS

MASK_CHARACTER = 0xE003
TERM = "Wheeler_Formation"
TOKENIZERS = {kind: make() for kind, make in MAKERS.items()}
for tokenizer in list(TOKENIZERS.values()):
    tokenizer.add_tokens([TERM])
ENCODERS = {kind: PieceEncoder(tokenizer) for kind, tokenizer in TOKENIZERS.items()}

ODD = st.sampled_from(
    [
        TERM,
        "trilobites",
        "fossils),",
        "[MASK]",
        "[UNK]",
        "\u65e5\u672c\u8a9e",
        "\u306f\u306a",
        "\u0e44\u0e17\u0e22",
        "\u03b1\u0301",
        "e\u0301\u0301",
        "\U0001f9b4\u200d\u2642",
        "\u202eabc",
        "\xa0",
        "\ufffd",
        "\x00",
        "__",
        "!?",
    ]
)
TEXTS = st.lists(ODD | st.text(max_size=12), max_size=12).flatmap(
    lambda parts: st.sampled_from(["", " ", "  ", "\n"]).map(lambda blank: blank.join(parts))
)
DOCUMENTS = st.lists(TEXTS, min_size=1, max_size=5)


def encode_words(kind, texts):
    pieces = ENCODERS[kind].encode(pa.array(texts, pa.string()))
    return Rows(pieces.ids, pieces.offsets, pieces.word_starts, np.zeros(len(pieces.ids), bool))


def encode_characters(texts):
    pieces, offsets = flatten_code_points(pa.array(texts, pa.string()))
    flags = np.ones(len(pieces), bool)
    return Rows(pieces.astype(np.uint32), offsets.astype(np.int64), flags, ~flags)


def make_masking(kind, tokenizer, rate):
    if tokenizer is None:
        return Masking(kind, rate, MASK_CHARACTER, np.arange(97, 123), [])
    specials = np.array(tokenizer.all_special_ids)
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), specials)
    return Masking(kind, rate, tokenizer.mask_token_id, ordinary, specials)


def list_units(rows, row, how):
    """The pieces of each unit of a row, by plain loops."""
    units = []
    for at in range(rows.offsets[row], rows.offsets[row + 1]):
        if not units or how.kind not in ("whole_word", "span") or rows.word_starts[at]:
            units.append([])
        units[-1].append(at)
    return [unit for unit in units if not set(rows.pieces[unit].tolist()) & set(how.special_pieces.tolist())]


def check(rows, how, data):
    row_ids = np.arange(rows.num_rows) * 7
    hidden = hide(rows, how, row_ids=row_ids, epochs=1, seed=5)
    assert (hidden.inputs[~hidden.is_target] == rows.pieces[~hidden.is_target]).all()
    for row in range(rows.num_rows):
        units = list_units(rows, row, how)
        flags = [set(hidden.is_target[unit].tolist()) for unit in units]
        assert all(len(found) == 1 for found in flags)
        number = sum(found == {True} for found in flags)
        wanted = how.rate * len(units)
        assert number in {max(1, int(wanted)), max(1, int(np.ceil(wanted)))} if units else number == 0
        in_row = hidden.is_target[rows.offsets[row] : rows.offsets[row + 1]]
        assert in_row.sum() == sum(
            len(unit) for unit, found in zip(units, flags, strict=True) if True in found
        )
        for unit in units:
            given = set(hidden.inputs[unit].tolist())
            kept = hidden.inputs[unit].tolist() == rows.pieces[unit].tolist()
            ordinary = not given & set(how.special_pieces.tolist())
            assert given == {how.mask_piece} or kept or ordinary
    order = np.array(data.draw(st.permutations(range(rows.num_rows))))
    for batch in (order, order[: len(order) // 2], order[:1]):
        part = hide(rows.take(batch), how, row_ids=row_ids[batch], epochs=1, seed=5)
        spans = [slice(rows.offsets[row], rows.offsets[row + 1]) for row in batch]
        assert part.inputs.tolist() == [piece for span in spans for piece in hidden.inputs[span].tolist()]
        assert part.is_target.tolist() == [flag for span in spans for flag in hidden.is_target[span].tolist()]


@pytest.mark.parametrize("tokenizer", list(MAKERS))
@pytest.mark.parametrize("kind", ["whole_word", "token", "span"])
@settings(max_examples=40, deadline=None)
@given(texts=DOCUMENTS, rate=st.sampled_from([0.01, 0.15, 0.5, 0.8, 0.99]), data=st.data())
def test_odd_texts_are_hidden_in_whole_units_at_the_rate(tokenizer, kind, texts, rate, data):
    check(encode_words(tokenizer, texts), make_masking(kind, TOKENIZERS[tokenizer], rate), data)


@pytest.mark.parametrize("kind", ["character", "character_span"])
@settings(max_examples=60, deadline=None)
@given(texts=DOCUMENTS, rate=st.sampled_from([0.01, 0.15, 0.5, 0.8, 0.99]), data=st.data())
def test_odd_names_are_hidden_by_character_at_the_rate(kind, texts, rate, data):
    check(encode_characters(texts), make_masking(kind, None, rate), data)


@pytest.mark.parametrize("tokenizer", list(MAKERS))
@pytest.mark.parametrize("kind", ["whole_word", "span"])
def test_an_added_term_is_one_word_and_punctuation_a_word_of_its_own(tokenizer, kind):
    rows = encode_words(tokenizer, [f"the {TERM}, they say"] * 300)
    how = make_masking(kind, TOKENIZERS[tokenizer], 0.3)
    hidden = hide(rows, how, row_ids=np.arange(300), epochs=0, seed=0)
    units = list_units(rows, 0, how)
    decoded = [TOKENIZERS[tokenizer].decode(rows.pieces[unit].tolist()).strip() for unit in units]
    assert [word.lower() for word in decoded] == ["the", TERM.lower(), ",", "they", "say"]
    flags = hidden.is_target.reshape(300, -1)
    together = {tuple(row[unit].tolist()) for row in flags for unit in [units[1]]}
    assert all(len(set(found)) == 1 for found in together)
    patterns = {tuple(bool(row[unit[0]]) for unit in units) for row in flags}
    # The comma is hidden without the term, and the term without the comma.
    assert any(pattern[2] and not pattern[1] for pattern in patterns)
    assert any(pattern[1] and not pattern[2] for pattern in patterns)


@pytest.mark.parametrize("tokenizer", list(MAKERS))
def test_scripts_without_spaces_are_hidden_a_character_at_a_time(tokenizer):
    text = "\u65e5\u672c\u8a9e\u306f\u306a"
    rows = encode_words(tokenizer, [text])
    how = make_masking("whole_word", TOKENIZERS[tokenizer], 0.5)
    units = list_units(rows, 0, how)
    decoded = [
        TOKENIZERS[tokenizer].decode(rows.pieces[unit].tolist()).strip().removeprefix("##") for unit in units
    ]
    assert "".join(decoded) == text
    assert all(len(unicodedata.normalize("NFC", word)) == 1 for word in decoded)


@pytest.mark.parametrize("kind", ["whole_word", "span", "token", "character", "character_span"])
def test_epochs_and_seeds_change_the_masks(kind):
    rows = encode_words("wordpiece", ["the trilobites of the Burgess Shale, they say"] * 50)
    how = make_masking(kind, TOKENIZERS["wordpiece"], 0.3)
    base = hide(rows, how, row_ids=np.arange(50), epochs=0, seed=0).is_target.tolist()
    assert hide(rows, how, row_ids=np.arange(50), epochs=0, seed=0).is_target.tolist() == base
    assert hide(rows, how, row_ids=np.arange(50), epochs=1, seed=0).is_target.tolist() != base
    assert hide(rows, how, row_ids=np.arange(50), epochs=0, seed=1).is_target.tolist() != base
    assert hide(rows, how, row_ids=np.arange(50) + 50, epochs=0, seed=0).is_target.tolist() != base
