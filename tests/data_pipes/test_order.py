from itertools import permutations

import numpy as np
import pytest

from data_pipes.order import PlainOrder, permute, rows_of_step


def permutation(num_rows, *, seed=0, epoch=0):
    return permute(np.arange(num_rows), num_rows=num_rows, seed=seed, epochs=epoch)


def test_every_small_size_is_permuted_one_to_one():
    for num_rows in [*range(1, 300), 1023, 1024, 1025, 4096, 4097, 65_537]:
        assert sorted(permutation(num_rows, seed=num_rows).tolist()) == list(range(num_rows))


def test_a_huge_size_is_permuted_without_collisions_in_a_sample():
    num_rows = 255_000_001
    places = np.concatenate((np.arange(100_000), np.arange(num_rows - 100_000, num_rows)))
    rows = permute(places, num_rows=num_rows, seed=3, epochs=2)
    assert len(np.unique(rows)) == len(places)
    assert rows.min() >= 0
    assert rows.max() < num_rows
    assert abs(rows.mean() / num_rows - 0.5) < 5 * np.sqrt(1 / 12 / len(places))


def test_the_order_never_changes():
    assert permutation(10, seed=42).tolist() == [4, 7, 5, 3, 0, 6, 2, 1, 8, 9]
    assert permute(np.arange(3), num_rows=255_000_000, seed=1, epochs=7).tolist() == [
        241379659,
        60336497,
        129526326,
    ]


def test_epochs_and_seeds_have_orders_of_their_own():
    first = permutation(10_000)
    for other in (permutation(10_000, epoch=1), permutation(10_000, seed=1)):
        assert (first == other).sum() < 15
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05
    mixed = permute(np.array([4, 4]), num_rows=10_000, seed=0, epochs=np.array([0, 1]))
    assert mixed.tolist() == [first[4], permutation(10_000, epoch=1)[4]]


@pytest.mark.parametrize("num_rows", [2, 3, 4])
def test_all_permutations_of_few_rows_are_equally_likely(num_rows):
    num_epochs = 24_000
    epochs = np.repeat(np.arange(num_epochs), num_rows)
    places = np.tile(np.arange(num_rows), num_epochs)
    orders = permute(places, num_rows=num_rows, seed=11, epochs=epochs).reshape(num_epochs, num_rows)
    codes = orders @ (num_rows ** np.arange(num_rows))
    wanted = [int(np.dot(p, num_rows ** np.arange(num_rows))) for p in permutations(range(num_rows))]
    counts = np.array([(codes == code).sum() for code in wanted])
    assert counts.sum() == num_epochs
    freedom = len(wanted) - 1
    chi2 = ((counts - num_epochs / len(wanted)) ** 2 / (num_epochs / len(wanted))).sum()
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("num_rows", [7, 16, 40])
def test_each_row_is_equally_likely_at_each_place_and_beside_each_other_row(num_rows):
    num_epochs = 40_000
    epochs = np.repeat(np.arange(num_epochs), num_rows)
    orders = permute(
        np.tile(np.arange(num_rows), num_epochs), num_rows=num_rows, seed=5, epochs=epochs
    ).reshape(num_epochs, num_rows)
    for place in range(num_rows):
        counts = np.bincount(orders[:, place], minlength=num_rows)
        chi2 = ((counts - num_epochs / num_rows) ** 2 / (num_epochs / num_rows)).sum()
        assert chi2 < num_rows - 1 + 5 * np.sqrt(2 * (num_rows - 1))
    pairs = np.bincount(orders[:, 0] * num_rows + orders[:, 1], minlength=num_rows**2)
    expected = num_epochs / (num_rows * (num_rows - 1))
    off_diagonal = pairs.reshape(num_rows, num_rows)[~np.eye(num_rows, dtype=bool)]
    freedom = len(off_diagonal) - 1
    assert ((off_diagonal - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("num_rows", "global_batch"), [(10, 4), (7, 7), (3, 8), (1, 2)])
def test_steps_run_through_whole_epochs_and_across_their_ends(num_rows, global_batch):
    steps = [
        rows_of_step(step, global_batch=global_batch, num_rows=num_rows, seed=9) for step in range(num_rows)
    ]
    rows = np.concatenate([rows for rows, _ in steps])
    epochs = np.concatenate([epochs for _, epochs in steps])
    assert epochs.tolist() == sorted(epochs.tolist())
    for epoch in range(global_batch):
        assert rows[epochs == epoch].tolist() == permutation(num_rows, seed=9, epoch=epoch).tolist()


def test_the_plain_order_is_the_function_of_the_same_name_and_counts_epochs():
    order = PlainOrder(7, seed=3)
    for step in (0, 2, 50):
        ours, theirs = order.rows_of_step(step, 5), rows_of_step(step, global_batch=5, num_rows=7, seed=3)
        assert np.array_equal(ours, theirs)
    assert order.count_epochs(7 * 3) == 3.0
    assert order.count_epochs(1) == 1 / 7
    with pytest.raises(ValueError, match="num_rows is 0"):
        PlainOrder(0, seed=0)


def test_parts_have_orders_of_their_own_and_part_0_is_the_plain_one():
    first = permutation(10_000)
    parts = np.array([0, 1, -1])
    for part in parts[1:]:
        other = permute(np.arange(10_000), num_rows=10_000, seed=0, epochs=0, parts=int(part))
        assert sorted(other.tolist()) == list(range(10_000))
        assert (first == other).sum() < 15
    mixed = permute(np.full(3, 8), num_rows=10_000, seed=0, epochs=0, parts=parts)
    alone = [permute(np.array([8]), num_rows=10_000, seed=0, epochs=0, parts=int(part))[0] for part in parts]
    assert mixed.tolist() == alone
    assert mixed[0] == first[8]


def test_a_step_far_into_training_needs_no_earlier_one():
    rows, epochs = rows_of_step(10**9, global_batch=4096, num_rows=255_000_000, seed=0)
    position = 10**9 * 4096
    assert epochs[0] == position // 255_000_000
    first = permute(np.array([position % 255_000_000]), num_rows=255_000_000, seed=0, epochs=int(epochs[0]))
    assert rows[0] == first[0]


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="num_rows is 0"):
        rows_of_step(0, global_batch=2, num_rows=0, seed=0)
    with pytest.raises(ValueError, match="global_batch is 0"):
        rows_of_step(0, global_batch=0, num_rows=2, seed=0)
    with pytest.raises(ValueError, match="step is -1"):
        rows_of_step(-1, global_batch=2, num_rows=2, seed=0)
    with pytest.raises(ValueError, match="index 3 is outside"):
        permute(np.array([3]), num_rows=3, seed=0, epochs=0)
