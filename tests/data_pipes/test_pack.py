import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.pack import MIN_ROOM, Packer
from data_pipes.tokenize import Pieces

CLS, SEP = 1, 2

# A document as the lengths of its words.
DOCUMENTS = st.lists(st.lists(st.integers(1, 12), max_size=30), max_size=12)


def make_pieces(documents, first_id=10):
    """Pieces numbered one by one, so that each can be found again."""
    lengths = [sum(words) for words in documents]
    word_starts = [piece == 0 for words in documents for word in words for piece in range(word)]
    ids = np.arange(first_id, first_id + sum(lengths), dtype=np.uint32)
    return Pieces(
        ids, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), np.array(word_starts, bool)
    )


def pack_batches(documents, cuts, row_length, is_packed=True):
    """Pack in the batches that `cuts` make; rows as lists of (piece, word start, document start)."""
    packer = Packer(row_length, CLS, SEP, is_packed)
    rows, first_id = [], 10
    edges = sorted({0, len(documents), *(min(cut, len(documents)) for cut in cuts)})
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        pieces = make_pieces(documents[start:end], first_id)
        first_id += len(pieces.ids)
        rows += list_rows(packer.pack(pieces))
    return rows + list_rows(packer.finish())


def list_rows(rows):
    columns = (rows.pieces, rows.word_starts, rows.document_starts)
    flat = list(zip(*(column.tolist() for column in columns), strict=True))
    return [flat[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]


def split_parts(row):
    """The parts of a row, each from its [CLS] to its [SEP]."""
    starts = [place for place, (piece, _, _) in enumerate(row) if piece == CLS]
    return [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.integers(3, 60), st.booleans())
def test_every_piece_is_in_one_row_in_order_between_special_pieces(documents, row_length, is_packed):
    rows = pack_batches(documents, [], row_length, is_packed)
    pieces = [piece for row in rows for piece, _, _ in row if piece not in (CLS, SEP)]
    assert pieces == list(range(10, 10 + sum(map(sum, documents))))
    word_starts = make_pieces(documents).word_starts
    ends = (10 + np.cumsum([sum(words) for words in documents])).tolist()
    for row in rows:
        assert 3 <= len(row) <= row_length
        parts = split_parts(row)
        assert is_packed or len(parts) == 1
        for part in parts:
            inside = [piece for piece, _, _ in part[1:-1]]
            assert part[0] == (CLS, True, True)
            assert part[-1] == (SEP, True, False)
            assert CLS not in inside
            assert SEP not in inside
            assert len(inside) > 0
            # Of one document only.
            assert len({sum(end <= piece for end in ends) for piece in inside}) == 1
            # A word starts where the tokenizer says, and at the front of a part.
            wanted = [True, *word_starts[np.array(inside[1:], int) - 10].tolist()]
            assert [flag for _, flag, _ in part[1:-1]] == wanted
            assert not any(flag for _, _, flag in part[1:])


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.integers(3, 40), st.booleans(), st.lists(st.integers(0, 12), max_size=5))
def test_rows_do_not_depend_on_how_documents_are_batched(documents, row_length, is_packed, cuts):
    assert pack_batches(documents, cuts, row_length, is_packed) == pack_batches(
        documents, [], row_length, is_packed
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), max_size=8), max_size=8), st.integers(3, 60))
def test_a_word_is_cut_only_if_it_is_longer_than_a_row(documents, row_length):
    word_of_piece = [
        number for number, word in enumerate(w for words in documents for w in words) for _ in range(word)
    ]
    lengths = np.bincount(word_of_piece, minlength=1)
    rows_of_word = [set() for _ in lengths]
    for number, row in enumerate(pack_batches(documents, [], row_length)):
        for place, part in enumerate(split_parts(row)):
            for piece, _, _ in part[1:-1]:
                rows_of_word[word_of_piece[piece - 10]].add((number, place))
    for length, places in zip(lengths, rows_of_word, strict=True):
        assert len(places) <= 1 or length > row_length - 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=30), max_size=12), st.integers(20, 60))
def test_a_row_is_left_open_only_where_little_more_would_fit(documents, row_length):
    rows = pack_batches(documents, [], row_length)
    # Words here have at most 3 pieces: a row is full up to a word, or lacks room for a part worth starting.
    for row in rows[:-1]:
        assert row_length - len(row) < max(3, MIN_ROOM + 2)


def test_documents_that_fill_a_row_exactly_take_one_row_each():
    rows = pack_batches([[3, 3], [6], [1] * 6], [], 8)
    assert [len(row) for row in rows] == [8, 8, 8]
    assert [[piece for piece, _, _ in row] for row in rows] == [
        [CLS, *range(10 + 6 * number, 16 + 6 * number), SEP] for number in range(3)
    ]


def test_two_documents_share_a_row_that_they_fill_exactly():
    (row,) = pack_batches([[4], [20]], [1], 28)
    assert [place for place, (_, _, is_document) in enumerate(row) if is_document] == [0, 6]
    assert len(row) == 28


def test_empty_documents_and_empty_batches_give_nothing():
    assert pack_batches([[], [], []], [1, 2], 8) == []
    assert pack_batches([], [], 8) == []
    assert pack_batches([[], [2], []], [], 8) == [
        [(CLS, True, True), (10, True, False), (11, False, False), (SEP, True, False)]
    ]


def test_a_word_that_does_not_fit_the_rest_of_a_row_is_moved_whole_to_the_next():
    # 40 - 6 - 2 = 32 pieces of room: worth starting a document, but not by a part of its first word.
    rows = pack_batches([[4], [35]], [], 40)
    assert [len(row) for row in rows] == [6, 37]


def test_a_word_longer_than_a_row_begins_anew_in_each():
    rows = pack_batches([[9]], [], 6)
    assert [[piece for piece, _, _ in row[1:-1]] for row in rows] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [18],
    ]
    assert all(row[1][1] for row in rows)


def test_a_row_too_short_for_a_piece_is_refused():
    with pytest.raises(ValueError, match="row_length is 2; .* at least 3"):
        Packer(2, CLS, SEP)
