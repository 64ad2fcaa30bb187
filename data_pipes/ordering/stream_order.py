"""Stream order: training on rows while they still arrive, with the order that any other run would have.

A stream is cut into shards of P rows. In epoch 0 sample s is in shard s // P, permuted within it, so training
waits for one shard at a time and memory does not grow with the stream. Once the stream has ended with N rows,
later epochs use the permutation of all of them. The order is a pure function of (seed, sample) and of the
corpus: how fast rows arrive, restarts and ranks do not show in it.
"""

from typing import Protocol

import numpy as np

from data_pipes.order import permute, samples_of_step


class GrowingRows(Protocol):
    """Rows of which more may come; several threads ask at once."""

    @property
    def rows_per_shard(self) -> int:
        """P."""
        ...

    def wait_for(self, num_rows: int) -> tuple[int, bool]:
        """Wait until num_rows rows can be read or no more will come; give (rows to be read, whether ended).

        It must raise when no more rows will come for another reason, closing included: a feed that ends
        waits for its threads.
        """
        ...


class StreamOrder:
    """The order of rows that are still arriving; asking for a step waits for its shards."""

    def __init__(self, rows: GrowingRows, seed: int) -> None:
        """Take the rows; nothing is waited for yet."""
        self._rows = rows
        self._seed = seed

    def rows_of_step(self, step: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Name the rows of a step and the epoch that each is seen in, int64 [G] and int64 [G].

        Raises:
            ValueError: the stream ended without a row.
        """
        samples = samples_of_step(step, global_batch)
        per_shard = self._rows.rows_per_shard
        num_wanted = (int(samples[-1]) // per_shard + 1) * per_shard
        num_rows, is_ended = self._rows.wait_for(num_wanted)
        if not is_ended and num_rows < num_wanted:
            raise RuntimeError(
                f"wait_for({num_wanted}) came back with {num_rows} rows of a stream that has not ended"
            )
        if is_ended and num_rows == 0:
            raise ValueError("the stream ended without a row to train on: check the sources and `clean`")
        # Until the end is known, all samples come before num_rows and their shards are whole.
        row_ids, epochs = samples.copy(), samples // num_rows
        self._permute_shards(row_ids, np.flatnonzero(epochs == 0), num_rows)
        later = epochs > 0
        row_ids[later] = permute(
            samples[later] % num_rows, num_rows=num_rows, seed=self._seed, epochs=epochs[later]
        )
        return row_ids, epochs

    def count_epochs(self, num_samples: int) -> float:
        """Give the whole passes through the stream before the last of the first num_samples samples.

        A share of a pass is not known before the stream ends, and what is logged must not depend on when.
        """
        if num_samples < 1:
            return 0.0
        _, epochs = self.rows_of_step(num_samples - 1, 1)
        return float(epochs[0])

    def _permute_shards(self, row_ids: np.ndarray, first_pass: np.ndarray, num_rows: int) -> None:
        """Permute samples of epoch 0 within their shards, in place; the last shard may be short."""
        per_shard = self._rows.rows_per_shard
        shards, places = np.divmod(row_ids[first_pass], per_shard)
        num_whole = num_rows // per_shard
        for is_kind, size in (
            (shards < num_whole, per_shard),
            (shards == num_whole, num_rows - num_whole * per_shard),
        ):
            if is_kind.any():
                chosen = shards[is_kind]
                # Negative parts: no source of a mixture and no whole order shares a key with a shard.
                inside = permute(places[is_kind], num_rows=size, seed=self._seed, epochs=0, parts=-1 - chosen)
                row_ids[first_pass[is_kind]] = chosen * per_shard + inside
