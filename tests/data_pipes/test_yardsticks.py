import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from data_pipes import yardsticks
from data_pipes.masking import FROZEN_EPOCH, Masking, hide
from data_pipes.rows import Rows
from data_pipes.yardsticks import Counts, predict_neighbours, predict_unigram, score

MASK, SPECIALS = 4, range(5)
EDGE, NOTHING = "edge", None


def masking(**changes):
    settings = {
        "kind": "token",
        "rate": 0.25,
        "mask_piece": MASK,
        "random_pieces": np.arange(10, 20),
        "special_pieces": np.array(SPECIALS),
        **changes,
    }
    return Masking(**settings)


def make_rows(num_rows, *, seed=0, num_kinds=10, most=14):
    """Rows in which a piece mostly follows from the one before, with specials and inner documents."""
    chance = np.random.default_rng(seed)
    lengths = chance.integers(0, most, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    num_pieces = int(offsets[-1])
    pieces = np.zeros(num_pieces, np.uint32)
    noise = chance.integers(0, 4, num_pieces)
    for place in range(1, num_pieces):
        pieces[place] = (3 * pieces[place - 1] + noise[place]) % num_kinds
    pieces += 10
    # A mask piece in the text itself is a context like any other: it must not answer for hidden neighbours.
    is_special = chance.random(num_pieces) < 0.05
    pieces[is_special] = chance.choice([2, MASK], num_pieces)[is_special]
    document_starts = chance.random(num_pieces) < 0.1
    return Rows(pieces, offsets, np.ones(num_pieces, bool), document_starts)


def neighbours_slowly(rows, visible, row, place):
    """Left and right of a piece by plain rules: the row's or document's edge, or the visible piece."""
    first, end = rows.offsets[row], rows.offsets[row + 1]
    left = EDGE if place == first or rows.document_starts[place] else int(visible[place - 1])
    right = EDGE if place + 1 == end or rows.document_starts[place + 1] else int(visible[place + 1])
    return left, right


def count_slowly(rows):
    counts = Counter()
    for row in range(rows.num_rows):
        for place in range(rows.offsets[row], rows.offsets[row + 1]):
            piece = int(rows.pieces[place])
            if piece in SPECIALS:
                continue
            left, right = neighbours_slowly(rows, rows.pieces, row, place)
            for context in ((), ("left", left), ("right", right), (left, right)):
                counts[context, piece] += 1
                counts[context] += 1
    return counts


def probability_slowly(counts, num_classes, left, piece, right, pair_weight, both_weight):
    def blend(context, weight, simpler):
        return (counts[context, piece] + weight * simpler) / (counts[context] + weight)

    unigram = (counts[(), piece] + 1) / (counts[()] + num_classes)
    sides = [
        blend(context, pair_weight, unigram)
        for context in (("left", left), ("right", right))
        if counts[context] and context[1] is not NOTHING
    ]
    either = sum(sides) / len(sides) if sides else unigram
    if NOTHING in (left, right):
        return unigram, either
    return unigram, blend((left, right), both_weight, either)


def pack(left, piece, right):
    codes = {**{number: number for number in range(1000)}, EDGE: 2**21 - 1, NOTHING: 2**21 - 2}
    return codes[left] << 42 | codes[right] << 21 | piece


@pytest.mark.parametrize(("pair_weight", "both_weight"), [(5.0, 5.0), (0.5, 20.0)])
def test_scores_equal_counting_with_dictionaries(monkeypatch, pair_weight, both_weight):
    monkeypatch.setattr(yardsticks, "_tune", lambda *_: (pair_weight, both_weight))
    monkeypatch.setattr(yardsticks, "_CHUNK_PIECES", 100)
    train, evaluation, how, num_classes = make_rows(200), make_rows(60, seed=1), masking(), 12
    counts = count_slowly(train)
    hidden = hide(evaluation, how, row_ids=np.arange(60), epochs=FROZEN_EPOCH, seed=7)
    logs = []
    for row in range(60):
        for place in range(evaluation.offsets[row], evaluation.offsets[row + 1]):
            if hidden.is_target[place]:
                sides = neighbours_slowly(evaluation, hidden.inputs, row, place)
                left, right = (NOTHING if side == MASK else side for side in sides)
                piece = int(evaluation.pieces[place])
                both = probability_slowly(counts, num_classes, left, piece, right, pair_weight, both_weight)
                logs.append([math.log(value) for value in both])
    got = score(train, evaluation, masking=how, seed=7, num_classes=num_classes)
    for name, losses in zip(("unigram", "neighbours"), zip(*logs, strict=True), strict=True):
        loss = -math.fsum(losses) / len(losses)
        assert got[name]["loss"] == pytest.approx(loss, rel=1e-12)
        assert got[name]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)
        assert got[name]["num_targets"] == len(losses)


@pytest.mark.parametrize("left", [10, 13, 2, EDGE, NOTHING, 999])
@pytest.mark.parametrize("right", [10, 17, EDGE, NOTHING])
def test_probabilities_sum_to_one_over_the_table(left, right):
    # Piece 19 + n is never seen; the table has room for three such.
    counts = Counts.build(
        np.concatenate(list(yardsticks._pack_pieces(make_rows(200), np.arange(200), masking())))
    )
    assert counts.num_classes == 10
    table = [*range(10, 20), 30, 31, 32]
    evidence = counts.look_up(np.array([pack(left, piece, right) for piece in table], np.uint64))
    assert predict_unigram(evidence, len(table)).sum() == pytest.approx(1, rel=1e-12)
    assert predict_neighbours(evidence, len(table), 5.0, 2.0).sum() == pytest.approx(1, rel=1e-12)
    assert (predict_neighbours(evidence, len(table), 5.0, 2.0) > 0).all()


def test_evidence_without_some_rows_equals_counting_the_others():
    rows, how = make_rows(100), masking()
    everything = Counts.build(np.concatenate(list(yardsticks._pack_pieces(rows, np.arange(100), how))))
    some = Counts.build(np.concatenate(list(yardsticks._pack_pieces(rows, np.arange(30), how))))
    rest = Counts.build(np.concatenate(list(yardsticks._pack_pieces(rows, np.arange(30, 100), how))))
    queries = np.concatenate(list(yardsticks._pack_targets(rows, np.arange(100), how, 0)))
    difference = everything.look_up(queries).subtract(some.look_up(queries))
    for ours, theirs in zip(difference, rest.look_up(queries), strict=True):
        assert ours.tolist() == theirs.tolist()


def find_best_weights(evidence):
    losses = {
        weights: -np.log(predict_neighbours(evidence, 40, *weights)).mean()
        for weights in product(yardsticks._WEIGHTS, repeat=2)
    }
    return min(losses, key=losses.__getitem__), losses


def test_weights_are_chosen_on_training_rows_alone_and_help():
    train, how = make_rows(3000, num_kinds=40, most=30), masking()
    seen = []

    class Watched:
        num_rows, lengths = train.num_rows, train.lengths

        def take(self, indices):
            seen.append(len(indices))
            return train.take(indices)

    counts = Counts.build(np.concatenate(list(yardsticks._pack_pieces(train, np.arange(3000), how))))
    chosen = yardsticks._tune(Watched(), np.arange(3000), counts, how, 0, 40)
    assert sum(seen) == 2 * 150
    fresh = make_rows(3000, seed=9, num_kinds=40, most=30)
    evidence = counts.look_up(np.concatenate(list(yardsticks._pack_targets(fresh, np.arange(3000), how, 0))))
    losses = find_best_weights(evidence)[1]
    assert losses[chosen] < min(losses.values()) + 0.02
    assert losses[chosen] < max(losses.values()) - 0.1


def test_the_rows_that_choose_the_weights_are_not_counted_for_it():
    # Few and noisy rows: their own counts would ask for the smallest weights.
    train, how = make_rows(400, num_kinds=40, most=30), masking()
    counts = Counts.build(np.concatenate(list(yardsticks._pack_pieces(train, np.arange(400), how))))
    others = Counts.build(np.concatenate(list(yardsticks._pack_pieces(train, np.arange(20, 400), how))))
    targets = np.concatenate(list(yardsticks._pack_targets(train, np.arange(20), how, 0)))
    chosen = yardsticks._tune(train, np.arange(400), counts, how, 0, 40)
    assert chosen == find_best_weights(others.look_up(targets))[0]
    assert chosen != find_best_weights(counts.look_up(targets))[0]


def test_knowing_the_neighbours_beats_knowing_the_counts():
    got = score(make_rows(2000), make_rows(200, seed=1), masking=masking(), seed=0, num_classes=10)
    assert got["neighbours"]["loss"] < got["unigram"]["loss"] - 0.3
    assert got["unigram"]["perplexity"] < 10.01


def test_the_limit_is_met_with_a_random_part_of_the_rows():
    rows = make_rows(500)
    chosen = yardsticks._sample_rows(rows, 0, 1000)
    num_pieces = int(rows.lengths[chosen].sum())
    assert 1000 - 14 < num_pieces <= 1000
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.max() > 400
    assert sorted(yardsticks._sample_rows(rows, 0, 10**9).tolist()) == list(range(500))


def test_what_cannot_be_scored_is_refused():
    rows, nothing = make_rows(50), make_rows(50).take(np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="hold 10 different ordinary pieces"):
        score(rows, rows, masking=masking(), seed=0, num_classes=9)
    with pytest.raises(ValueError, match="no ordinary piece"):
        score(nothing, rows, masking=masking(), seed=0, num_classes=10)
    with pytest.raises(ValueError, match="hold no target"):
        score(rows, nothing, masking=masking(), seed=0, num_classes=10)
    high = Rows(np.array([2**21 - 2], np.uint32), np.array([0, 1]), np.ones(1, bool), np.ones(1, bool))
    with pytest.raises(ValueError, match="out of range"):
        score(high, rows, masking=masking(), seed=0, num_classes=10)
