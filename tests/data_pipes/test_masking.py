import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.masking import FROZEN_EPOCH, Masking, describe_rate, hide
from data_pipes.masks.draws import Stream, draw
from data_pipes.rows import Rows

MASK, SPECIALS, ORDINARY = 4, (0, 1, 2, 3, 4), np.arange(10, 60)


def masking(kind: Any = "whole_word", rate=0.15, **changes):
    settings = {
        "mask_piece": MASK,
        "random_pieces": ORDINARY,
        "special_pieces": np.array(SPECIALS),
        **changes,
    }
    return Masking(kind=kind, rate=rate, **settings)


def make_rows(rows_of_words, *, document_starts=()):
    """Build rows from lists of words, each a list of pieces; document_starts are (row, piece) places."""
    pieces, word_starts, offsets = [], [], [0]
    for words in rows_of_words:
        for word in words:
            pieces += word
            word_starts += [True] + [False] * (len(word) - 1)
        offsets.append(len(pieces))
    starts = np.zeros(len(pieces), bool)
    starts[[first for first, end in pairwise(offsets) if first < end]] = True
    starts[[offsets[row] + place for row, place in document_starts]] = True
    return Rows(np.array(pieces, np.uint32), np.array(offsets, np.int64), np.array(word_starts, bool), starts)


def random_rows(num_rows, num_words, *, seed=0, most_pieces=6):
    chance = np.random.default_rng(seed)
    return make_rows(
        [
            [[1]]
            + [
                chance.integers(10, 60, chance.integers(1, most_pieces + 1)).tolist()
                for _ in range(num_words)
            ]
            + [[2]]
            for _ in range(num_rows)
        ]
    )


def hide_all(rows, how, *, epoch=0, seed=0):
    return hide(rows, how, row_ids=np.arange(rows.num_rows), epochs=epoch, seed=seed)


def split_words(rows, kind, row):
    """Lists of piece places (in all pieces) of the words of a row that may be hidden, by plain loops."""
    words = []
    for place in range(rows.offsets[row], rows.offsets[row + 1]):
        begins = not words or kind != "whole_word" or rows.word_starts[place] or rows.document_starts[place]
        if begins:
            words.append([])
        words[-1].append(place)
    return [word for word in words if not any(rows.pieces[place] in SPECIALS for place in word)]


def hide_slowly(rows, how, *, row_ids, epochs, seed):
    """The definition, a word and a piece at a time."""

    def unit(number):
        return (int(number) >> 11) / 2**53

    inputs, is_target = rows.pieces.tolist(), [False] * len(rows.pieces)
    for row in range(rows.num_rows):
        key = (seed, int(epochs[row]), int(row_ids[row]))
        first = int(rows.offsets[row])
        words = split_words(rows, how.kind, row)
        wanted = math.floor(how.rate * len(words) + unit(draw(*key, 0, Stream.HIDDEN_COUNT)))
        wanted = min(max(wanted, 1), len(words))
        ranked = sorted(
            words,
            key=lambda word: (int(draw(*key, word[0] - first, Stream.HIDDEN_WORD)) >> 32, word[0]),
        )
        for word in ranked[:wanted]:
            chance = unit(draw(*key, word[0] - first, Stream.REPLACEMENT))
            for place in word:
                is_target[place] = True
                if chance < how.replace[0]:
                    inputs[place] = how.mask_piece
                elif chance < how.replace[0] + how.replace[1]:
                    number = int(draw(*key, place - first, Stream.RANDOM_PIECE)) >> 32
                    inputs[place] = int(how.random_pieces[number * len(how.random_pieces) >> 32])
    return inputs, is_target


WORDS = st.lists(st.sampled_from([0, 1, 2, 3, 4, *range(10, 20)]), min_size=1, max_size=4)


@settings(max_examples=120, deadline=None)
@given(
    words=st.lists(st.lists(WORDS, max_size=8), max_size=7),
    kind=st.sampled_from(["whole_word", "token", "character"]),
    rate=st.sampled_from([0.01, 0.15, 0.5, 0.8, 1.0]),
    replace=st.sampled_from([(0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.4, 0.3)]),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_hiding_equals_the_plain_loops_bit_for_bit(words, kind, rate, replace, seed, data):
    rows = make_rows(words)
    if len(rows.pieces):
        # Word and document starts anywhere: rows that begin inside a word, documents that begin inside one.
        flags = st.lists(st.booleans(), min_size=len(rows.pieces), max_size=len(rows.pieces))
        rows = dataclasses.replace(rows, word_starts=np.array(data.draw(flags)))
        rows = dataclasses.replace(rows, document_starts=np.array(data.draw(flags)))
    row_ids = np.array(data.draw(st.permutations(range(100, 100 + len(words)))), np.int64)
    epochs = np.array(
        data.draw(st.lists(st.integers(-1, 3), min_size=len(words), max_size=len(words))), np.int64
    )
    before = rows.pieces.copy()
    how = masking(kind, rate, replace=replace)
    got = hide(rows, how, row_ids=row_ids, epochs=epochs, seed=seed)
    inputs, is_target = hide_slowly(rows, how, row_ids=row_ids, epochs=epochs, seed=seed)
    assert got.inputs.tolist() == inputs
    assert got.is_target.tolist() == is_target
    assert got.inputs.dtype == np.uint32
    assert rows.pieces.tolist() == before.tolist()


def test_masks_never_change():
    rows = make_rows([[[1], [10, 11], [12], [13, 14, 15], [16], [17], [2]], [[18], [19, 20]]])
    got = hide(rows, masking(rate=0.4), row_ids=np.array([7, 8]), epochs=np.array([0, 1]), seed=46)
    assert got.inputs.tolist() == [1, 10, 11, 4, 13, 14, 15, 13, 17, 2, 18, 4, 4]
    assert np.flatnonzero(got.is_target).tolist() == [3, 7, 11, 12]


@pytest.mark.parametrize("kind", ["whole_word", "token", "character", "span", "character_span"])
def test_a_row_has_the_same_masks_alone_and_in_any_batch(kind):
    rows = random_rows(50, 30)
    chance = np.random.default_rng(1)
    row_ids, epochs = chance.permutation(10_000)[:50], chance.integers(0, 3, 50)
    how = masking(kind)
    together = hide(rows, how, row_ids=row_ids, epochs=epochs, seed=5)
    order = chance.permutation(50)
    for batch in (order, order[:7], order[7:8], np.array([3, 3, 3])):
        part = hide(rows.take(batch), how, row_ids=row_ids[batch], epochs=epochs[batch], seed=5)
        assert part.inputs.tolist() == take(together.inputs, rows, batch)
        assert part.is_target.tolist() == take(together.is_target, rows, batch)


def take(values, rows, batch):
    return np.concatenate([values[rows.offsets[row] : rows.offsets[row + 1]] for row in batch]).tolist()


def test_epochs_given_one_by_one_and_as_one_number_are_the_same():
    rows = random_rows(9, 20)
    for epoch in (FROZEN_EPOCH, 0, 2**40):
        one = hide_all(rows, masking(), epoch=epoch)
        for each in (np.full(9, epoch), np.full(9, epoch)[:, None][:, 0]):
            assert hide_all(rows, masking(), epoch=each).inputs.tolist() == one.inputs.tolist()


def test_masks_differ_between_epochs_seeds_and_row_numbers():
    rows = random_rows(20, 50)
    how = masking()
    base = hide_all(rows, how).is_target
    others = [
        hide_all(rows, how, epoch=1),
        hide_all(rows, how, seed=1),
        hide_all(rows, how, epoch=FROZEN_EPOCH),
        hide(rows, how, row_ids=np.arange(20) + 20, epochs=0, seed=0),
    ]
    for other in others:
        overlap = (base & other.is_target).sum() / base.sum()
        assert 0.03 < overlap < 0.30


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.25, 0.8])
def test_the_rate_is_met_in_words_for_every_word_length(rate):
    num_rows, num_words = 4000, 24
    rows = random_rows(num_rows, num_words)
    hidden = hide_all(rows, masking(rate=rate))
    word_firsts = np.flatnonzero(rows.word_starts & ~np.isin(rows.pieces, SPECIALS))
    following = np.append(np.flatnonzero(rows.word_starts), len(rows.pieces))
    lengths = following[np.searchsorted(following, word_firsts, side="right")] - word_firsts
    is_hidden = hidden.is_target[word_firsts]
    for length in range(1, 7):
        ours = is_hidden[lengths == length]
        assert len(ours) > 10_000
        assert abs(ours.mean() - rate) < 4.5 * math.sqrt(rate * (1 - rate) / len(ours))
    num_hidden = is_hidden.reshape(num_rows, num_words).sum(axis=1)
    assert set(num_hidden.tolist()) <= {max(1, math.floor(rate * num_words)), math.ceil(rate * num_words)}


def test_each_place_of_a_row_is_hidden_equally_often():
    num_rows, num_words = 30_000, 10
    rows = make_rows([[[10]] * num_words] * num_rows)
    counts = hide_all(rows, masking("character", 0.25)).is_target.reshape(num_rows, num_words).sum(axis=0)
    expected = 0.25 * num_rows
    # Sampling without replacement: the counts vary a little less than independent ones.
    assert ((counts - expected) ** 2 / expected).sum() < 9 + 5 * math.sqrt(18)


def test_words_are_hidden_whole():
    rows = random_rows(300, 40)
    is_target = hide_all(rows, masking(rate=0.3)).is_target
    for row in range(rows.num_rows):
        for word in split_words(rows, "whole_word", row):
            assert len(set(is_target[word].tolist())) == 1


def test_a_row_with_one_word_has_it_hidden():
    rows = make_rows([[[1], [10, 11, 12], [2]]] * 50)
    assert (
        hide_all(rows, masking(rate=0.01)).is_target.reshape(50, 5).tolist()
        == [[False, True, True, True, False]] * 50
    )


def test_rate_one_hides_every_ordinary_piece():
    rows = random_rows(20, 30)
    for kind in ("whole_word", "token", "span", "character_span"):
        is_target = hide_all(rows, masking(kind, 1.0)).is_target
        assert (is_target == ~np.isin(rows.pieces, SPECIALS)).all()


def test_rows_without_words_stay_as_they_are():
    rows = make_rows([[], [[1], [2]], [], [[10]], [[0], [3], [4]], []])
    hidden = hide_all(rows, masking(rate=0.8))
    assert hidden.is_target.tolist() == [False, False, True, False, False, False]
    nothing = make_rows([])
    assert hide_all(nothing, masking()).inputs.tolist() == []


def test_replacements_have_their_shares_a_word_at_a_time():
    rows = random_rows(3000, 30)
    how = masking(rate=0.5, replace=(0.6, 0.25, 0.15), random_pieces=np.array([100, 101, 105]))
    hidden = hide_all(rows, how)
    became = {"mask": 0, "random": 0, "stay": 0}
    drawn = np.zeros(106, int)
    for row in range(0, rows.num_rows):
        for word in split_words(rows, "whole_word", row):
            if not hidden.is_target[word[0]]:
                continue
            inputs = hidden.inputs[word]
            if (inputs == MASK).all():
                became["mask"] += 1
            elif np.isin(inputs, [100, 101, 105]).all():
                became["random"] += 1
                drawn += np.bincount(inputs, minlength=106)
            else:
                assert (inputs == rows.pieces[word]).all()
                became["stay"] += 1
    total = sum(became.values())
    for kind, share in zip(became, how.replace, strict=True):
        assert abs(became[kind] / total - share) < 4.5 * math.sqrt(share * (1 - share) / total)
    expected = drawn.sum() / 3
    assert ((drawn[[100, 101, 105]] - expected) ** 2 / expected).sum() < 2 + 5 * 2
    assert (hidden.inputs[~hidden.is_target] == rows.pieces[~hidden.is_target]).all()


def test_a_share_of_nothing_is_never_drawn():
    rows = random_rows(500, 30)
    no_random = hide_all(rows, masking(rate=0.5, replace=(0.7, 0.0, 0.3), random_pieces=np.array([], int)))
    assert np.isin(no_random.inputs, np.append(ORDINARY, SPECIALS)).all()
    no_stay = hide_all(rows, masking(rate=0.5, replace=(0.7, 0.3, 0.0), random_pieces=np.array([200])))
    assert np.isin(no_stay.inputs[no_stay.is_target], [MASK, 200]).all()


def test_a_word_with_an_unknown_piece_is_left_whole_and_a_word_ends_at_a_document():
    rows = make_rows(
        [[[10, 11, 1, 12], [13, 14, 15]]] * 400, document_starts=[(row, 6) for row in range(400)]
    )
    is_target = hide_all(rows, masking(rate=0.3)).is_target.reshape(400, 7)
    assert sorted({tuple(row) for row in is_target.astype(int).tolist()}) == [
        (0, 0, 0, 0, 0, 0, 1),
        (0, 0, 0, 0, 1, 1, 0),
    ]


def test_long_rows_and_many_rows_fit_and_absurd_ones_are_refused():
    long = make_rows([[[10]] * 20_000])
    assert hide_all(long, masking()).is_target.sum() == pytest.approx(3000, abs=1)
    many = Rows(
        np.full(2**17 + 2**17, 10, np.uint32),
        np.concatenate((np.arange(2**17), [2**18])).astype(np.int64),
        np.ones(2**18, bool),
        np.zeros(2**18, bool),
    )
    with pytest.raises(ValueError, match="call hide with fewer rows"):
        hide_all(many, masking())


def test_the_excess_of_short_rows_is_reported():
    # Words: 1, 5, 40, and none; with 0.15 the first two are short.
    rows = make_rows([[[1], [10, 11], [2]], [[12]] * 5, [[13]] * 40, [[1], [2]]] * 500)
    got = describe_rate(rows, masking(), row_ids=np.arange(2000), epochs=0, seed=3)
    excess = 500 * (1 - 0.15) + 500 * (1 - 0.75)
    assert got["excess_targets"] == pytest.approx(excess, rel=1e-12)
    assert got["expected_rate"] == pytest.approx((0.15 * 46 * 500 + excess) / (46 * 500), rel=1e-12)
    assert (got["num_rows"], got["num_units"], got["num_short_rows"]) == (2000, 46 * 500, 1000)
    assert (got["num_empty_rows"], got["asked_rate"]) == (500, 0.15)
    is_target = hide_all(rows, masking(), seed=3).is_target
    assert got["num_hidden"] == is_target[rows.word_starts].sum()
    assert got["realised_rate"] == got["num_hidden"] / (46 * 500)
    # Only the 500 rows of 40 words vary, by less than one word each.
    assert abs(got["realised_rate"] - got["expected_rate"]) < 4.5 * math.sqrt(500 / 12) / (46 * 500)
    nothing = describe_rate(make_rows([]), masking(), row_ids=np.arange(0), epochs=0, seed=3)
    assert nothing["realised_rate"] == nothing["num_units"] == 0


def test_a_piece_that_no_vocabulary_has_is_refused_as_special():
    with pytest.raises(ValueError, match="piece 4294967295 is no id"):
        masking(special_pieces=np.array([2**32 - 1]))
    rows = make_rows([[[2**32 - 1], [10]]])
    assert hide_all(rows, masking("token", 1.0)).is_target.all()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="sum to 1"):
        masking(replace=(0.8, 0.1, 0.2))
    with pytest.raises(ValueError, match="sum to 1"):
        masking(replace=(1.2, -0.1, -0.1))
    for rate in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="masking rate is"):
            masking(rate=rate)
    with pytest.raises(ValueError, match="masking kind is 'word': use one of whole_word, token, span, cha"):
        masking("word")
    with pytest.raises(ValueError, match="wants random pieces"):
        masking(random_pieces=np.array([], int))
    with pytest.raises(ValueError, match=r"holds special pieces \[2, 4\]"):
        masking(random_pieces=np.array([2, 4, 10]))
    with pytest.raises(ValueError, match="wanted 1 <= mean_span <= max_span"):
        masking("span", mean_span=4, max_span=3)
    with pytest.raises(ValueError, match="suffix is 'maybe': use one of any, never, always"):
        masking("character", suffix="maybe")
    with pytest.raises(ValueError, match="suffix is 'never' with kind token: it needs names"):
        masking("token", suffix="never")
    with pytest.raises(ValueError, match="give one number a row"):
        hide(make_rows([[[10]]]), masking(), row_ids=np.array([1, 2]), epochs=0, seed=0)


def test_the_mask_piece_is_special_without_being_listed():
    rows = make_rows([[[MASK], [10]]] * 30)
    how = masking("token", 0.9, special_pieces=np.array([1]))
    assert not hide_all(rows, how).is_target.reshape(30, 2)[:, 0].any()
