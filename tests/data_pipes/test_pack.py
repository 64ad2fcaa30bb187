import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.pack import MIN_SENTENCE_FILL, Packer, cut_documents
from data_pipes.tokenize import Pieces

CLS, SEP = 1, 2
FIRST_ID = 10

# A document as its sentences, a sentence as the lengths of its words.
DOCUMENTS = st.lists(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), max_size=6), max_size=12)
ROW_LENGTHS = st.integers(3, 60)
OPEN_ROWS = st.integers(1, 6)


def make_pieces(documents, first_id=FIRST_ID):
    """Pieces numbered one by one, so that each can be found again."""
    lengths = [sum(map(sum, sentences)) for sentences in documents]
    words = [
        (piece == 0, piece == 0 and place == 0)
        for sentences in documents
        for sentence in sentences
        for place, word in enumerate(sentence)
        for piece in range(word)
    ]
    flags = np.array(words, bool).reshape(-1, 2)
    ids = np.arange(first_id, first_id + sum(lengths), dtype=np.uint32)
    return Pieces(ids, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), flags[:, 0], flags[:, 1])


def pack_batches(documents, cuts, packer, is_restarted=False):
    """Pack in the batches that `cuts` make; rows as lists of (piece, word start, document start)."""
    rows, first_id = [], FIRST_ID
    edges = sorted({0, len(documents), *(min(cut, len(documents)) for cut in cuts)})
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        pieces = make_pieces(documents[start:end], first_id)
        first_id += len(pieces.ids)
        rows += list_rows(packer.pack(pieces))
        if is_restarted:
            state = pickle.loads(pickle.dumps(packer.state()))
            packer = Packer(packer.row_length, CLS, SEP, packer.is_packed, packer.num_open_rows)
            packer.restore(state)
    return rows + list_rows(packer.finish())


def list_rows(rows):
    columns = (rows.pieces, rows.word_starts, rows.document_starts)
    assert [column.dtype for column in columns] == [np.uint32, bool, bool]
    flat = list(zip(*(column.tolist() for column in columns), strict=True))
    assert rows.offsets.dtype == np.int64
    assert rows.offsets[-1] == len(flat)
    return [flat[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]


def split_parts(row):
    """The parts of a row, each from its [CLS] to its [SEP]."""
    starts = [place for place, (piece, _, _) in enumerate(row) if piece == CLS]
    return [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, ROW_LENGTHS, st.booleans(), OPEN_ROWS)
def test_every_piece_is_in_one_part_of_one_document_between_special_pieces(
    documents, row_length, is_packed, num_open
):
    rows = pack_batches(documents, [], Packer(row_length, CLS, SEP, is_packed, num_open))
    whole = make_pieces(documents)
    word_starts, ends = whole.word_starts, whole.offsets[1:] + FIRST_ID
    met = []
    for row in rows:
        assert 3 <= len(row) <= row_length
        parts = split_parts(row)
        assert is_packed or len(parts) == 1
        for part in parts:
            inside = [piece for piece, _, _ in part[1:-1]]
            met.append(inside)
            assert part[0] == (CLS, True, True)
            assert part[-1] == (SEP, True, False)
            assert inside == list(range(inside[0], inside[-1] + 1))
            # Of one document only.
            assert np.searchsorted(ends, inside[0], "right") == np.searchsorted(ends, inside[-1], "right")
            # A word starts where the tokenizer says, and at the front of a part.
            wanted = [True, *word_starts[np.array(inside[1:], int) - FIRST_ID].tolist()]
            assert [flag for _, flag, _ in part[1:-1]] == wanted
            assert not any(flag for _, _, flag in part[1:])
    assert sorted(piece for inside in met for piece in inside) == whole.ids.tolist()
    if not is_packed:
        assert met == sorted(met)


@settings(max_examples=300, deadline=None)
@given(
    DOCUMENTS, ROW_LENGTHS, st.booleans(), OPEN_ROWS, st.lists(st.integers(0, 12), max_size=5), st.booleans()
)
def test_rows_depend_neither_on_batches_nor_on_restarts(
    documents, row_length, is_packed, num_open, cuts, is_restarted
):
    settings_of = (row_length, CLS, SEP, is_packed, num_open)
    again = pack_batches(documents, cuts, Packer(*settings_of), is_restarted)
    assert again == pack_batches(documents, [], Packer(*settings_of))


# The slow reference of best fit: a list of open rows, searched from the front.


def place_slowly(needs, row_length, num_open):
    """Rows as lists of part numbers, in the order of their closing."""
    opened, closed = [], []  # [room, parts], oldest arrival at its room first
    for part, need in enumerate(needs):
        fitting = [row for row in opened if row[0] >= need]
        row = min(fitting, key=lambda row: row[0]) if fitting else [row_length, []]
        if fitting:
            opened.remove(row)
        row[0] -= need
        row[1].append(part)
        if row[0] < 3:
            closed.append(row)
            continue
        opened.append(row)
        if len(opened) > num_open:
            fullest = min(opened, key=lambda row: row[0])
            opened.remove(fullest)
            closed.append(fullest)
    return [parts for _, parts in closed + sorted(opened, key=lambda row: row[0])]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, ROW_LENGTHS, OPEN_ROWS)
def test_parts_lie_where_a_slow_best_fit_puts_them(documents, row_length, num_open):
    pieces = make_pieces(documents)
    starts, ends = cut_documents(pieces, row_length - 2)
    wanted = place_slowly((ends - starts + 2).tolist(), row_length, num_open)
    rows = pack_batches(documents, [], Packer(row_length, CLS, SEP, True, num_open))
    firsts = [[part[1][0] - FIRST_ID for part in split_parts(row)] for row in rows]
    assert firsts == [[int(starts[part]) for part in parts] for parts in wanted]


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.integers(1, 60))
def test_documents_are_cut_at_the_last_sentence_that_fills_a_row_else_at_the_last_word(documents, most):
    pieces = make_pieces(documents)
    starts, ends = cut_documents(pieces, most)
    wanted = []
    for at, end in zip(pieces.offsets[:-1].tolist(), pieces.offsets[1:].tolist(), strict=True):
        while end - at > most:
            places = range(at + 1, at + most + 1)
            sentences = [
                p
                for p in places
                if pieces.sentence_starts[p] and p - at >= max(1, int(MIN_SENTENCE_FILL * most))
            ]
            words = [p for p in places if pieces.word_starts[p]]
            cut = max(sentences or words or [at + most])
            wanted.append((at, cut))
            at = cut
        wanted += [(at, end)] * (end > at)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == wanted


def test_without_sentences_documents_are_cut_at_words():
    known = make_pieces([[[4, 5], [3, 9]]])
    unknown = Pieces(known.ids, known.offsets, known.word_starts)
    assert cut_documents(known, 10)[1].tolist() == [9, 12, 21]
    assert cut_documents(unknown, 13)[1].tolist() == [12, 21]


@pytest.mark.parametrize("row_length", [64, 128, 512])
@pytest.mark.parametrize("mean_sentences", [1.5, 80])
def test_at_least_95_percent_of_the_slots_of_ordinary_text_are_pieces(row_length, mean_sentences):
    generator = np.random.default_rng(0)
    documents = [
        [
            generator.integers(1, 4, 2 + int(generator.gamma(2.0, 8.0))).tolist()
            for _ in range(generator.geometric(1 / mean_sentences))
        ]
        for _ in range(int(9000 / mean_sentences) + 1)
    ]
    # As many open rows for each row as a larger corpus has.
    packer = Packer(row_length, CLS, SEP, True, num_open_rows=64)
    lengths = np.concatenate((packer.pack(make_pieces(documents)).lengths, packer.finish().lengths))
    assert lengths.sum() / (len(lengths) * row_length) > 0.95


def test_a_part_goes_to_the_open_row_that_it_leaves_the_least_room_in():
    # Rows of 20: 8 and 4 pieces leave 10 and 14 places; 10 more are taken by the first, not by the second.
    rows = pack_batches([[[8]], [[12]], [[4]]], [], Packer(20, CLS, SEP))
    assert [[len(part) for part in split_parts(row)] for row in rows] == [[14, 6], [10]]
    rows = pack_batches([[[12]], [[8]], [[8]]], [], Packer(24, CLS, SEP))
    assert [[len(part) for part in split_parts(row)] for row in rows] == [[14, 10], [10]]


def test_the_fullest_row_is_closed_when_too_many_are_open():
    packer = Packer(20, CLS, SEP, num_open_rows=2)
    closed = packer.pack(make_pieces([[[10]], [[12]], [[11]]]))
    assert closed.lengths.tolist() == [14]
    assert packer.finish().lengths.tolist() == [13, 12]
    assert packer.finish().num_rows == 0


def test_empty_documents_and_empty_batches_give_nothing():
    assert pack_batches([[], [], []], [1, 2], Packer(8, CLS, SEP)) == []
    assert pack_batches([], [], Packer(8, CLS, SEP)) == []
    assert pack_batches([[], [[2]], []], [], Packer(8, CLS, SEP)) == [
        [(CLS, True, True), (10, True, False), (11, False, False), (SEP, True, False)]
    ]


def test_a_word_longer_than_a_row_begins_anew_in_each():
    rows = pack_batches([[[9]]], [], Packer(6, CLS, SEP))
    assert [[piece for piece, _, _ in row[1:-1]] for row in rows] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [18],
    ]
    assert all(row[1][1] for row in rows)


def test_what_a_packer_gave_as_its_state_stays_as_it_was():
    packer = Packer(20, CLS, SEP)
    packer.pack(make_pieces([[[8]]]))
    state = packer.state()
    before = {name: array.tolist() for name, array in state.items()}
    packer.restore(state)
    packer.pack(make_pieces([[[3]]], 50))
    assert {name: array.tolist() for name, array in state.items()} == before


def test_a_row_too_short_for_a_piece_is_refused():
    with pytest.raises(ValueError, match="row_length is 2; .* at least 3"):
        Packer(2, CLS, SEP)
