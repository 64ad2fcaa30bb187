"""Spans: hidden units in runs of random length, exactly as many units a row as asked.

A row's k hidden units are cut into spans; the spans and its W - k visible units, in random order, are laid
on a circle that is turned at random. By symmetry every unit is hidden with the chance k / W, at the edges
too, and nothing is ever rejected, so that any share ends at once.

Shapes: R rows, H hidden units in all of them, S slots (a span or a visible unit).
"""

import numpy as np

from data_pipes.masks.choice import choose_smallest
from data_pipes.masks.draws import as_below, as_unit, draw_at

_NUM_HALVINGS = 60


def find_start_chance(mean_span: float, max_span: int) -> float:
    """The chance that a hidden unit begins a new span with which spans of at most max_span have this mean.

    The mean of a geometric length with chance p, cut at c, is (1 - (1 - p)^c) / p.
    """
    if not 1 <= mean_span <= max_span:
        raise ValueError(
            f"mean_span is {mean_span} and max_span {max_span}: wanted 1 <= mean_span <= max_span"
        )
    low, high = 0.0, 1.0
    for _ in range(_NUM_HALVINGS):
        chance = (low + high) / 2
        if 1 - (1 - chance) ** max_span > mean_span * chance:
            low = chance
        else:
            high = chance
    # At the ends the halvings never arrive.
    return {1.0: 1.0, float(max_span): 0.0}.get(float(mean_span), (low + high) / 2)


def choose_spans(
    num_units: np.ndarray,
    num_hidden: np.ndarray,
    row_draws: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    start_chance: float,
    max_span: int,
) -> np.ndarray:
    """Choose num_hidden of the units of each row in spans, ascending int64 [H].

    A span that reaches the end of its row goes on at its beginning; spans may touch. The last span of a row
    is cut to what is left, so that few hidden units make shorter spans.

    Args:
        num_units: int64 [R].
        num_hidden: int64 [R], at least 1 and at most num_units where there are units.
        row_draws: what `draw_rows` gives for the starts, the slots and the turn of each row.
        start_chance: see `find_start_chance`.
        max_span: the longest span.
    """
    start_draws, slot_draws, turn_draws = row_draws
    ends = num_hidden.cumsum()
    flat = np.arange(ends[-1] if len(ends) else 0)
    places = flat - (ends - num_hidden).repeat(num_hidden)
    # A geometric length forgets how long it already is: each unit ends the span before it with the same
    # chance, and what follows a cut at max_span is a length like any other.
    is_start = as_unit(draw_at(start_draws.repeat(num_hidden), places)) < start_chance
    is_start |= places == 0
    is_start |= (flat - np.maximum.accumulate(np.where(is_start, flat, 0))) % max_span == 0
    num_before = np.append(0, is_start.cumsum())
    num_spans = np.diff(num_before[np.append(0, ends)])
    num_slots = num_units - num_hidden + num_spans
    slots, slot_origins = _count_up(num_slots), np.append(0, num_slots.cumsum())
    keys = draw_at(slot_draws.repeat(num_slots), slots)
    chosen = choose_smallest(keys, np.arange(len(slots)), slot_origins, num_slots, num_spans)
    # Before the i-th hidden unit lie i hidden ones and the slots before its span that are no spans.
    spans = num_before[1:] - 1
    num_visible = slots[chosen] - _count_up(num_spans)
    turns = as_below(draw_at(turn_draws, 0), num_units)
    turned = num_visible[spans] + places + turns.repeat(num_hidden)
    sizes = num_units.repeat(num_hidden)
    turned -= sizes * (turned >= sizes)
    is_hidden = np.zeros(int(num_units.sum()), bool)
    is_hidden[turned + (num_units.cumsum() - num_units).repeat(num_hidden)] = True
    return is_hidden.nonzero()[0]


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for each length, end to end."""
    ends = lengths.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) - (ends - lengths).repeat(lengths)
