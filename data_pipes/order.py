"""Order: which rows a step trains on and how its ranks share them, by arithmetic alone.

An epoch's order is a keyed permutation of the row numbers, computed where it is needed: a Feistel network
(Luby and Rackoff 1988) on the next even power of two, walked until it lands inside (Black and Rogaway
2002). Nothing is stored, so 255 M rows cost no memory and the whole data position is the step number.

Shapes: G rows in a step (the global batch), over all ranks and micro-batches.
"""

import numpy as np

from data_pipes.draws import Stream, draw, mix

# On 4 values, chi2 over all permutations is 17 times its mean after 6 rounds, 2.6 times after 8, and within
# chance after 10. What stays, and does no harm: a permutation of 16 or more values by a network is even.
_NUM_ROUNDS = 12


def permute(indices: np.ndarray, *, num_rows: int, seed: int, epochs: np.ndarray | int) -> np.ndarray:
    """Map places in an epoch's order to row numbers, int64; one to one on [0, num_rows) in each epoch.

    Args:
        indices: integers in [0, num_rows), any shape [G].
        num_rows: size of the permutation, at most 2**62.
        seed: key, with the epoch, of the permutation.
        epochs: the epoch of each index, [G] or one for all.
    """
    _check_positive("num_rows", num_rows)
    values = np.array(indices, dtype=np.uint64)
    if values.size and int(values.max()) >= num_rows:
        raise ValueError(f"index {int(values.max())} is outside [0, {num_rows}): give places of one epoch")
    half_bits = max(1, ((num_rows - 1).bit_length() + 1) // 2)
    flat = values.reshape(-1)
    flat_epochs = np.broadcast_to(np.asarray(epochs, np.int64), values.shape).reshape(-1)
    keys = np.stack([draw(seed, flat_epochs, 0, turn, Stream.ORDER) for turn in range(_NUM_ROUNDS)])
    outside = np.arange(flat.size)
    while outside.size:
        flat[outside] = _encrypt(flat[outside], keys[:, outside], half_bits)
        outside = outside[flat[outside] >= num_rows]
    return flat.reshape(values.shape).astype(np.int64)


def rows_of_step(step: int, *, global_batch: int, num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Name the rows of a step and the epoch each is seen in, int64 [G] and int64 [G].

    Samples are numbered through all epochs and a step takes the next G of them, so a batch may run across
    an epoch's end and no row is dropped or seen twice in an epoch.
    """
    _check_positive("global_batch", global_batch)
    _check_positive("num_rows", num_rows)
    if step < 0:
        raise ValueError(f"step is {step}: steps count from 0")
    samples = step * global_batch + np.arange(global_batch, dtype=np.int64)
    epochs, places = np.divmod(samples, num_rows)
    return permute(places, num_rows=num_rows, seed=seed, epochs=epochs), epochs


def share(lengths: np.ndarray, *, micro_batch: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Cut a step's rows into this rank's micro-batches, each int64 [micro_batch] of indices into lengths.

    Rows are sorted by length, so a micro-batch has little padding, and neighbouring micro-batches go to
    different ranks, so ranks wait little for each other. Longest first: a step that does not fit in memory
    fails at its first micro-batch.

    Raises:
        ValueError: the rows do not divide into whole micro-batches, equally many on every rank.
    """
    check_rank(rank, world_size)
    check_division(len(lengths), micro_batch=micro_batch, world_size=world_size)
    return [batch for _, batch in deal(lengths, micro_batch=micro_batch, rank=rank, world_size=world_size)]


def check_division(global_batch: int, *, micro_batch: int, world_size: int) -> None:
    """Raise ValueError unless global_batch rows are whole micro-batches, equally many on every rank."""
    _check_positive("micro_batch", micro_batch)
    _check_positive("world_size", world_size)
    rows_at_once = micro_batch * world_size
    if global_batch < 1 or global_batch % rows_at_once:
        lower = max(global_batch, 0) // rows_at_once * rows_at_once
        wanted = f"{lower} or {lower + rows_at_once}" if lower else f"{rows_at_once}"
        raise ValueError(
            f"a global batch of {global_batch} rows does not divide into micro-batches of {micro_batch} rows "
            f"on {world_size} ranks ({rows_at_once} rows at once): use a global batch of {wanted}, or a "
            f"micro-batch and a number of ranks whose product divides {global_batch}"
        )


def deal(
    lengths: np.ndarray, *, micro_batch: int, rank: int, world_size: int
) -> list[tuple[int, np.ndarray]]:
    """Cut rows, longest first, into batches; give (number, indices) of every world_size-th, from rank on."""
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    num_batches = -(-len(longest_first) // micro_batch)
    return [
        (number, longest_first[number * micro_batch : (number + 1) * micro_batch])
        for number in range(rank, num_batches, world_size)
    ]


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless rank is one of world_size ranks."""
    _check_positive("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}: with {world_size} ranks it is 0 to {world_size - 1}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")


def _encrypt(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    half = np.uint64(half_bits)
    low_bits = np.uint64((1 << half_bits) - 1)
    left, right = values >> half, values & low_bits
    for key in keys:
        left, right = right, left ^ (mix(right + key) & low_bits)
    return (left << half) | right
