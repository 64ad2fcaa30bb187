import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.masks.weights import TermWeights, hash_words
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from tests.data_pipes.tiny_tokenizers import MAKERS

TERMS = ["trilobites", "Wheeler_Formation", "Burgess_Shale", "", "   "]
TEXTS = [
    "trilobites in the Burgess Shale (trilobites), Wheeler_Formation; trilobites.",
    "The trilobite of the Burgess, the Shale and Wheeler Formation",
    "(Wheeler_Formation) trilobites,trilobites a Burgess Shale",
]


def encode(tokenizer, texts=TEXTS):
    """Rows of one text each, and the words of all texts with their places in it as plain strings."""
    encoder = PieceEncoder(tokenizer)
    pieces = encoder.encode(pa.array(texts))
    documents = np.zeros(len(pieces.ids), bool)
    documents[pieces.offsets[:-1]] = True
    return encoder, Rows(pieces.ids, pieces.offsets, pieces.word_starts, documents)


def spell(rows, tokenizer):
    """The text of each word, without blanks."""
    bounds = np.append(np.flatnonzero(rows.word_starts), len(rows.pieces))
    return bounds, [tokenizer.decode(rows.pieces[a:b].tolist()).replace(" ", "") for a, b in pairwise(bounds)]


@pytest.mark.parametrize("kind", list(MAKERS))
def test_the_words_of_listed_terms_are_found_wherever_they_stand_in_full(kind):
    tokenizer = MAKERS[kind]()
    encoder, rows = encode(tokenizer)
    weights = TermWeights.build(TERMS, 2.0, encoder)
    assert weights.num_terms == 3
    bounds, words = spell(rows, tokenizer)
    is_listed = weights.find(rows, bounds)
    found = [word.lower() for word, flag in zip(words, is_listed, strict=True) if flag]
    one, pair = "trilobites", ["burgess", "shale"]
    bound, free = ["wheeler_formation"], ["wheeler", "formation"]
    assert found == [one, *pair, one, *bound, one, *free, *bound, one, one, *pair]
    missed = {word.lower() for word, flag in zip(words, is_listed, strict=True) if not flag}
    assert {"burgess", "shale", "the", ","} <= missed
    assert one not in missed


@pytest.mark.parametrize("are_documents", [False, True])
def test_a_term_does_not_reach_from_one_row_or_document_into_the_next(are_documents):
    tokenizer = MAKERS["wordpiece"]()
    encoder, rows = encode(tokenizer, ["see the burgess", "shale of the burgess shale"])
    if are_documents:
        rows = Rows(rows.pieces, rows.offsets[[0, 2]], rows.word_starts, rows.document_starts)
    bounds, words = spell(rows, tokenizer)
    is_listed = TermWeights.build(TERMS, 2.0, encoder).find(rows, bounds)
    assert words[2:4] == ["burgess", "shale"]
    assert is_listed.tolist() == [False] * 6 + [True] * 2


def make_rows(num_rows, num_words, num_listed):
    """Words of one or two pieces; the first ones of each row are 50 + 51, the listed one."""
    chance = np.random.default_rng(0)
    pieces, starts, lengths = [], [], []
    for _ in range(num_rows):
        row = [[50, 51]] * num_listed
        row += [
            chance.integers(10, 50, chance.integers(1, 3)).tolist() for _ in range(num_words - num_listed)
        ]
        pieces += [piece for word in row for piece in word]
        starts += [place == 0 for word in row for place in range(len(word))]
        lengths.append(sum(map(len, row)))
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    documents = np.zeros(len(pieces), bool)
    return Rows(np.array(pieces, np.uint32), offsets, np.array(starts), documents)


def list_word(factor, pieces=(50, 51)):
    hashes = hash_words(np.array(pieces, np.uint32), np.array([0, len(pieces)]))
    return TermWeights(factor, {1: hashes}, 1)


def hide_rows(rows, weights, *, rate=0.15, epoch=0, seed=0):
    how = Masking("whole_word", rate, 4, np.arange(10, 60), np.arange(5), weights=weights)
    return hide(rows, how, row_ids=np.arange(rows.num_rows), epochs=epoch, seed=seed)


@pytest.mark.parametrize("factor", [0.25, 2.0, 10.0])
def test_words_are_drawn_as_one_by_one_without_replacement_with_their_weights(factor):
    num_rows, num_words, num_listed = 6000, 12, 3
    rows = make_rows(num_rows, num_words, num_listed)
    is_target = hide_rows(rows, list_word(factor), rate=0.25).is_target
    is_hidden = is_target[rows.word_starts].reshape(num_rows, num_words)
    assert (is_hidden.sum(axis=1) == 3).all()
    # By hand: three draws in turn, each with a chance in proportion to the weights that are left.
    chance = np.random.default_rng(1)
    drawn = np.zeros(num_words)
    for _ in range(num_rows):
        weights = np.where(np.arange(num_words) < num_listed, factor, 1.0)
        for _ in range(3):
            word = chance.choice(num_words, p=weights / weights.sum())
            drawn[word] += 1
            weights[word] = 0
    expected = drawn[:num_listed].sum() / num_rows
    # Both are counts of at most 3 of 3 in 6,000 rows.
    assert abs(is_hidden[:, :num_listed].sum() / num_rows - expected) < 4.5 * math.sqrt(2 * 0.75 / num_rows)


def test_listed_words_are_hidden_about_factor_times_as_often():
    rows = make_rows(4000, 60, 3)
    is_hidden = hide_rows(rows, list_word(3.0), rate=0.1).is_target[rows.word_starts].reshape(4000, 60)
    ratio = is_hidden[:, :3].mean() / is_hidden[:, 3:].mean()
    assert 2.5 < ratio < 3.0
    assert is_hidden.mean() == pytest.approx(0.1, abs=1e-9)


def test_a_factor_of_one_and_rows_without_listed_words_change_no_bit():
    keys = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    assert list_word(1.0).weigh(keys, np.ones(1000, bool)).tolist() == keys.tolist()
    rows = make_rows(300, 20, 2)
    plain = hide_rows(rows, None).inputs.tolist()
    assert hide_rows(rows, list_word(1.0)).inputs.tolist() == plain
    assert hide_rows(rows, list_word(5.0, (50, 50))).inputs.tolist() == plain
    assert hide_rows(rows, TermWeights(5.0, {}, 0)).inputs.tolist() == plain
    assert hide_rows(rows, list_word(5.0)).inputs.tolist() != plain
    mixed = make_rows(2, 30, 0)
    both = Rows(
        np.concatenate((mixed.pieces, rows.take(np.array([0])).pieces)),
        np.append(mixed.offsets, mixed.offsets[-1] + rows.lengths[0]),
        np.concatenate((mixed.word_starts, rows.take(np.array([0])).word_starts)),
        np.zeros(len(mixed.pieces) + rows.lengths[0], bool),
    )
    end = mixed.offsets[-1]
    assert hide_rows(both, list_word(5.0)).inputs[:end].tolist() == hide_rows(mixed, None).inputs.tolist()


def test_the_evaluation_is_never_weighted():
    rows = make_rows(200, 20, 5)
    weighted = hide_rows(rows, list_word(9.0), epoch=FROZEN_EPOCH)
    assert weighted.inputs.tolist() == hide_rows(rows, None, epoch=FROZEN_EPOCH).inputs.tolist()
    # Row by row: an epoch of its own for each.
    epochs = np.where(np.arange(200) % 2, FROZEN_EPOCH, 3)
    mixed, plain = hide_rows(rows, list_word(9.0), epoch=epochs), hide_rows(rows, None, epoch=epochs)
    is_equal = [
        mixed.inputs[first:end].tolist() == plain.inputs[first:end].tolist()
        for first, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]
    assert all(is_equal[1::2])
    assert sum(is_equal[::2]) < 20


def test_a_weighted_row_has_the_same_masks_alone_and_in_any_batch():
    rows = make_rows(40, 20, 2)
    how = Masking("whole_word", 0.2, 4, np.arange(10, 60), np.arange(5), weights=list_word(4.0))
    together = hide(rows, how, row_ids=np.arange(40), epochs=2, seed=7)
    for row in np.random.default_rng(0).permutation(40)[:10]:
        alone = hide(rows.take(np.array([row])), how, row_ids=np.array([row]), epochs=2, seed=7)
        assert alone.inputs.tolist() == together.inputs[rows.offsets[row] : rows.offsets[row + 1]].tolist()


def test_extreme_weights_and_wrong_ones():
    rows = make_rows(300, 20, 3)
    first = hide_rows(rows, list_word(1e9), rate=0.15).is_target[rows.word_starts].reshape(300, 20)
    assert first[:, :3].all()
    never = hide_rows(rows, list_word(1e-9), rate=0.8).is_target[rows.word_starts].reshape(300, 20)
    assert not never[:, :3].any()
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="the factor of listed terms is"):
            list_word(factor)
    with pytest.raises(ValueError, match="weights are given with kind token: only whole_word"):
        Masking("token", 0.15, 4, np.arange(10, 60), np.arange(5), weights=list_word(2.0))
