"""Division: how the ranks share a step's rows, and how a rank cuts its share into micro-batches.

Rows are sorted by the slots that they need and dealt out one by one, so ranks have nearly equal work. A rank
cuts its rows into a given number of groups of unequal size, where that pads less than equal ones: a few long
rows alone, many short ones together. Losses are sums over targets, so it does not matter to the result.

Shapes: G rows in a step, R rows of one rank.
"""

import numpy as np

from data_pipes.order import check_positive


def share(
    lengths: np.ndarray, *, slots: np.ndarray, micro_batch: int, rank: int, world_size: int
) -> list[np.ndarray]:
    """Cut a step's rows into this rank's micro-batches, each int64 indices into lengths.

    Longest first: a step that does not fit in memory fails at its first micro-batch.

    Args:
        lengths: pieces of each row [G].
        slots: slots that a row of n pieces needs, int64 [row_length + 1].
        micro_batch: rows of an equal cut, R / number of micro-batches. Unequal ones hold no more slots than
            so many of the longest rows would.
        rank: of these rows; all ranks have equally many micro-batches.
        world_size: ranks.

    Raises:
        ValueError: the rows do not divide into whole micro-batches, equally many on every rank.
    """
    check_rank(rank, world_size)
    check_division(len(lengths), micro_batch=micro_batch, world_size=world_size)
    # A row longer than the table is refused where it is laid out, by name of its length.
    needed = np.take(slots, lengths, mode="clip")
    # By slots first: CANINE needs fewer for 127 characters than for 126.
    own = np.lexsort((-np.asarray(lengths, np.int64), -needed))[rank::world_size]
    bounds = cut(needed[own], num_parts=len(own) // micro_batch, max_slots=micro_batch * int(slots.max()))
    return np.split(own, bounds[1:-1])


def cut(needed: np.ndarray, *, num_parts: int, max_slots: int) -> np.ndarray:
    """Cut rows into consecutive parts with the least padded slots; the bounds, int64 [num_parts + 1].

    A part takes rows times the slots of its first row. Equal parts if none pad less or none fit.

    Args:
        needed: slots that each row needs, descending, [R].
        num_parts: how many parts, none of them empty.
        max_slots: most slots of a part.

    Raises:
        ValueError: there are fewer rows than parts.
    """
    if not 1 <= num_parts <= len(needed):
        raise ValueError(
            f"{len(needed)} rows cannot be cut into {num_parts} parts: give 1 part to a part a row"
        )
    equal = np.arange(num_parts + 1) * len(needed) // num_parts
    if num_parts == 1:
        return equal
    bounds = _find_bounds(needed, num_parts, max_slots)
    if bounds is None:
        return equal
    equal_slots, found_slots = count_slots(needed, equal), count_slots(needed, bounds)
    if equal_slots.max() <= max_slots and equal_slots.sum() <= found_slots.sum():
        return equal
    return _split_largest(needed, bounds, num_parts)


def count_slots(needed: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Count the slots of each part, padding included, int64 [parts]."""
    return np.diff(bounds) * needed[bounds[:-1]]


def _find_bounds(needed: np.ndarray, num_parts: int, max_slots: int) -> np.ndarray | None:
    """Find the best bounds of at most num_parts parts by dynamic programming; None if no parts fit."""
    places = _list_places(needed, num_parts, max_slots)
    rows = places - places[:, None]
    cost = (rows * needed[np.minimum(places, len(needed) - 1)][:, None]).astype(np.float64)
    cost[(rows <= 0) | (cost > max_slots)] = np.inf
    least, steps = cost[0], []
    totals_by_number = [least[-1]]
    for _ in range(num_parts - 1):
        totals = least[:, None] + cost
        steps.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
        totals_by_number.append(least[-1])
    number = int(np.argmin(totals_by_number))
    if not np.isfinite(totals_by_number[number]):
        return None
    chosen = [len(places) - 1]
    for previous in reversed(steps[:number]):
        chosen.append(int(previous[chosen[-1]]))
    return places[[0, *reversed(chosen)]]


def _list_places(needed: np.ndarray, num_parts: int, max_slots: int) -> np.ndarray:
    """List the places where a best cut can be, ascending, from 0 to R.

    A cut among rows of equal slots may move to the first of them: the part before it gets smaller, the one
    behind takes rows that need what it has. Only a full part stops it. So a cut is at the first row of its
    slots, or a full part before another such place.
    """
    num_rows = len(needed)
    is_place = np.ones(num_rows + 1, bool)
    is_place[1:num_rows] = needed[1:] != needed[:-1]
    capacities = max_slots // np.unique(needed)
    values = np.unique(needed)
    for _ in range(num_parts - 1):
        ends = np.flatnonzero(is_place)
        begins = ends[:, None] - capacities
        is_full = (begins > 0) & (needed[np.clip(begins, 0, num_rows - 1)] == values)
        new = begins[is_full]
        if is_place[new].all():
            break
        is_place[new] = True
    return np.flatnonzero(is_place)


def _split_largest(needed: np.ndarray, bounds: np.ndarray, num_parts: int) -> np.ndarray:
    """Halve the part with the most slots until there are num_parts; it never pads more."""
    while len(bounds) <= num_parts:
        can_split = np.diff(bounds) > 1
        part = int(np.argmax(count_slots(needed, bounds) * can_split))
        bounds = np.insert(bounds, part + 1, (bounds[part] + bounds[part + 1]) // 2)
    return bounds


def check_division(global_batch: int, *, micro_batch: int, world_size: int) -> None:
    """Raise ValueError unless global_batch rows are whole micro-batches, equally many on every rank."""
    check_positive("micro_batch", micro_batch)
    check_positive("world_size", world_size)
    rows_at_once = micro_batch * world_size
    if global_batch < 1 or global_batch % rows_at_once:
        lower = max(global_batch, 0) // rows_at_once * rows_at_once
        wanted = f"{lower} or {lower + rows_at_once}" if lower else f"{rows_at_once}"
        raise ValueError(
            f"a global batch of {global_batch} rows does not divide into micro-batches of {micro_batch} rows "
            f"on {world_size} ranks ({rows_at_once} rows at once): use a global batch of {wanted}, or a "
            f"micro-batch and a number of ranks whose product divides {global_batch}"
        )


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless rank is one of world_size ranks."""
    check_positive("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}: with {world_size} ranks it is 0 to {world_size - 1}")


def deal(
    lengths: np.ndarray, *, micro_batch: int, rank: int, world_size: int
) -> list[tuple[int, np.ndarray]]:
    """Cut rows, longest first, into equal batches; give (number, indices) of this rank's, dealt in turn."""
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    num_batches = -(-len(longest_first) // micro_batch)
    return [
        (number, longest_first[number * micro_batch : (number + 1) * micro_batch])
        for number in range(rank, num_batches, world_size)
    ]
