"""Choice: some of the units of each row, by random keys.

Shapes: R rows, U units in all of them, row after row.
"""

import numpy as np

# As many of a key's upper bits decide, in any batch, so that choices do not depend on the batch.
_KEY_BITS = 32
_KEY_SHIFT = np.array(64 - _KEY_BITS, np.uint64)


def choose_smallest(
    keys: np.ndarray, places: np.ndarray, origins: np.ndarray, num_units: np.ndarray, num_chosen: np.ndarray
) -> np.ndarray:
    """Find the units of each row with the smallest (upper half of the key, place), ascending int64.

    Args:
        keys: uint64 [U].
        places: int64 [U], ascending.
        origins: int64 [R + 1]; the places of row r are origins[r] to origins[r + 1].
        num_units: int64 [R].
        num_chosen: int64 [R], at least 1 and at most num_units where there are units.

    Raises:
        ValueError: row, key and place together do not fit 64 bits.
    """
    if not len(keys):
        return np.zeros(0, np.int64)
    # (row, key, place in the row) in one integer makes all values different and lets a plain sort of values
    # do: it is several times faster than an argsort.
    num_rows, most_places = len(num_units), int((origins[1:] - origins[:-1]).max())
    place_bits, row_bits = (most_places - 1).bit_length(), (num_rows - 1).bit_length()
    if row_bits + place_bits > 64 - _KEY_BITS:
        raise ValueError(
            f"{num_rows} rows of up to {most_places} pieces are too many to hide at once: call hide with "
            "fewer rows"
        )
    ranked = keys >> _KEY_SHIFT
    ranked <<= np.array(place_bits, np.uint64)
    row_parts = np.arange(num_rows, dtype=np.uint64) << np.array(_KEY_BITS + place_bits, np.uint64)
    row_parts -= origins[:-1].astype(np.uint64)
    ranked += places.view(np.uint64)
    ranked += row_parts.repeat(num_units)
    # A row without units points at a neighbour's, and is repeated 0 times.
    last_chosen = np.sort(ranked)[num_units.cumsum() - num_units + num_chosen - 1]
    return (ranked <= last_chosen.repeat(num_units)).nonzero()[0]
