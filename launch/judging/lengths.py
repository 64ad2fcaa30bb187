"""Hidden runs of characters by their length: how long a gap in a name a model still fills without a fault.

Shapes: R rows, N characters of them, S spans, L lengths.
"""

import math
from collections.abc import Sequence

import numpy as np

from data_pipes.masking import FROZEN_EPOCH
from data_pipes.masks.draws import as_below, draw
from data_pipes.rows import Rows
from launch.judging.metrics import SpanMetric, State, Z, exponentiate
from launch.judging.passes import Spans

_CHOOSING, _PLACING = 103, 104


def choose_runs(
    rows: Rows, may_hide: np.ndarray, lengths: Sequence[int], *, num_spans: int, seed: int
) -> tuple[Spans, np.ndarray]:
    """Of each length so many runs, each in a row of its own and at a random place.

    A row is as likely as any other that has room and a character beside the run; within it every place is.

    Args:
        rows: R rows.
        may_hide: bool [N], characters that a run may hold.
        lengths: of the runs.
        num_spans: most runs of one length.
        seed: of the draws.

    Returns:
        The runs, and the number of the length of each, int64 [S].
    """
    num_before = np.append(0, may_hide.cumsum())
    row_of = np.arange(rows.num_rows).repeat(rows.lengths)
    found: list[Spans] = []
    for length in lengths:
        firsts = np.arange(max(0, len(may_hide) - length + 1))
        is_run = (num_before[firsts + length] - num_before[firsts] == length) & (
            row_of[firsts] == row_of[firsts + length - 1]
        )
        firsts = firsts[is_run & (rows.lengths[row_of[firsts]] > length)]
        counts = np.bincount(row_of[firsts], minlength=rows.num_rows)
        fitting = counts.nonzero()[0]
        keys = draw(seed, FROZEN_EPOCH, fitting, length, _CHOOSING)
        chosen = np.sort(fitting[np.argsort(keys, kind="stable")[:num_spans]])
        turn = as_below(draw(seed, FROZEN_EPOCH, chosen, length, _PLACING), counts[chosen])
        first = firsts[np.append(0, counts.cumsum())[chosen] + turn] - rows.offsets[chosen]
        found.append(Spans(chosen, first, np.full(len(chosen), length), np.zeros_like(chosen)))
    columns = zip(*((one.rows, one.firsts, one.lengths, one.documents) for one in found), strict=True)
    sizes = [one.num_spans for one in found]
    return Spans(*map(np.concatenate, columns)), np.arange(len(sizes)).repeat(sizes)


class LengthMetric(SpanMetric):
    """By length: the share of runs that are filled without a fault, with its interval, and the perplexity.

    The interval is Wilson's (1927), which stays within 0 and 1; runs are independent, each in its own name.
    """

    _description = "Exact recovery and perplexity a character of hidden runs, by length."

    def __init__(self, lengths: Sequence[int]):
        """Say which lengths there are."""
        super().__init__(np.eye(len(lengths), dtype=bool), [str(length) for length in lengths])

    def _describe(self, sums: State) -> dict[str, float]:
        num_spans, right = float(sums["num_spans"].sum()), float(sums["right"].sum())
        if not num_spans:
            return {}
        low, high = bound_share(right, num_spans)
        return {
            "exact": right / num_spans,
            "exact_low": low,
            "exact_high": high,
            "perplexity": exponentiate(float(sums["loss"].sum() / sums["num_pieces"].sum())),
            "num_spans": int(num_spans),
        }


def bound_share(num_right: float, num_all: float) -> tuple[float, float]:
    """The 95 % interval of a share after Wilson."""
    share, part = num_right / num_all, Z * Z / num_all
    middle = (share + part / 2) / (1 + part)
    half = math.sqrt(part * (share * (1 - share) + part / 4)) / (1 + part)
    return max(0.0, middle - half), min(1.0, middle + half)
