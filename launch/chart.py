"""Charts as inline SVG: curves over steps, drawn with what CSS variables of the page say about colour."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from launch.figure import show_number

WIDTH, HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 92, 12, 34
_MAX_POINTS = 400
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """A named line; `raw` is drawn faintly behind it."""

    name: str
    points: Points
    raw: Points = ()


@dataclass(frozen=True)
class Axis:
    """One axis: its range, and where its ticks are (at whole numbers only, if it counts)."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def place(self, value: float) -> float:
        """Where a value lies on the axis, 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers within the range, about five."""
        if self.is_log:
            return _log_ticks(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        step = max(step, 1.0) if self.is_whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw_chart(
    title: str, curves: Sequence[Curve], *, is_log: bool = False, marks: Sequence[tuple[str, float]] = ()
) -> str:
    """An SVG element with axes, curves with their names at their ends, and labelled horizontal marks.

    Args:
        title: also the text for readers that see no pictures.
        curves: values that are not finite are left out, and curves without points.
        is_log: logarithmic values; those of 0 and below are left out.
        marks: names and values of horizontal lines.
    """
    shown = [Curve(c.name, _clean(c.points, is_log), _clean(c.raw, is_log)) for c in curves]
    shown = [curve for curve in shown if curve.points]
    if not shown:
        return ""
    every = [value for curve in shown for _, value in (*curve.points, *curve.raw)]
    values = _fit(every + [value for _, value in marks], is_log)
    last = max(step for curve in shown for step, _ in curve.points)
    steps = Axis(0, max(last, 1), is_whole=True)
    parts = [_draw_grid(steps, values)]
    for label, value in marks:
        parts.append(_draw_mark(label, value, values))
    for index, curve in enumerate(shown):
        if curve.raw:
            parts.append(f'<path class="raw c{index % 6}" d="{_path(curve.raw, steps, values)}"/>')
        parts.append(f'<path class="line c{index % 6}" d="{_path(curve.points, steps, values)}"/>')
        parts += [_draw_dot(point, index, curve.name, steps, values) for point in _few(curve.points)]
    parts.append(_draw_names(shown, values))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def smooth(points: Points) -> list[tuple[int, float]]:
    """The mean of each point and its neighbours, over about a fiftieth of the curve to each side.

    A dense curve is thinned first: the means of 100,000 points over 2,000 neighbours took half a minute.
    """
    points = _thin(points)
    reach = max(1, len(points) // 50)
    values = [value for _, value in points]
    means = []
    for index, (step, _) in enumerate(points):
        near = values[max(0, index - reach) : index + reach + 1]
        means.append((step, sum(near) / len(near)))
    return means


def _clean(points: Points, is_log: bool) -> list[tuple[int, float]]:
    kept = [(step, value) for step, value in points if math.isfinite(value) and (value > 0 or not is_log)]
    return _thin(kept)


def _thin(points: Points) -> list[tuple[int, float]]:
    """At most so many points as can be seen, each the mean of a stretch."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = len(points) / _MAX_POINTS
    groups = [points[int(index * size) : int((index + 1) * size)] for index in range(_MAX_POINTS)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _fit(values: Sequence[float], is_log: bool) -> Axis:
    low, high = min(values), max(values)
    if is_log:
        return Axis(low / 1.15, high * 1.15, is_log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(max(0.0, low - room) if low >= 0 else low - room, high + room)


def _round_step(rough: float) -> float:
    scale = 10 ** math.floor(math.log10(rough))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough * 0.999)


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 5, 7)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks


def _x(place: float) -> float:
    return round(_LEFT + place * (WIDTH - _LEFT - _RIGHT), 1)


def _y(place: float) -> float:
    return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)


def _path(points: Points, steps: Axis, values: Axis) -> str:
    places = [f"{_x(steps.place(step))},{_y(values.place(value))}" for step, value in points]
    return "M" + "L".join(places)


def _draw_grid(steps: Axis, values: Axis) -> str:
    parts = []
    for tick in values.ticks():
        y = _y(values.place(tick))
        parts.append(f'<path class="grid" d="M{_LEFT},{y}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_tick(tick)}</text>')
    for tick in steps.ticks():
        x = _x(steps.place(tick))
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:,.0f}</text>'
        )
    parts.append(
        f'<text class="tick" x="{WIDTH - 30}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="end">step</text>'
    )
    return "".join(parts)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}"


def _draw_mark(label: str, value: float, values: Axis) -> str:
    y = _y(values.place(value))
    text = f"{escape(label)} {show_number(value)}"
    return (
        f'<path class="mark" d="M{_LEFT},{y}H{WIDTH - _RIGHT}"/>'
        f'<text class="label" x="{WIDTH - _RIGHT - 4}" y="{y - 5}" text-anchor="end">{text}</text>'
    )


def _few(points: Points) -> Points:
    """Points that get a dot of their own; a dense curve gets its ends."""
    return points if len(points) <= 40 else [points[0], points[-1]]


def _draw_dot(point: tuple[int, float], index: int, name: str, steps: Axis, values: Axis) -> str:
    step, value = point
    text = f"{name}: {show_number(value)} at step {step:,}"
    place = f'cx="{_x(steps.place(step))}" cy="{_y(values.place(value))}"'
    return f'<circle class="dot c{index % 6}" {place} r="3"><title>{escape(text)}</title></circle>'


def _draw_names(curves: Sequence[Curve], values: Axis) -> str:
    """Each curve's name and last value beside its end, moved apart where they would touch."""
    ends = sorted((_y(values.place(curve.points[-1][1])), index) for index, curve in enumerate(curves))
    lowest = HEIGHT - _BOTTOM - 12
    gap = min(26.0, (lowest - _TOP - 6) / max(1, len(ends) - 1))
    places, bound = [], -math.inf
    for wanted, _ in ends:
        bound = max(wanted, bound + gap)
        places.append(bound)
    bound = lowest + gap
    for number in reversed(range(len(places))):
        places[number] = bound = round(min(places[number], bound - gap), 1)
    parts = []
    for y, (_, index) in zip(places, ends, strict=True):
        curve = curves[index]
        x = WIDTH - _RIGHT + 8
        value = show_number(curve.points[-1][1])
        parts.append(
            f'<text class="name c{index % 6}" x="{x}" y="{y - 2}">{value}</text>'
            f'<text class="tick who" x="{x}" y="{y + 10}">{escape(_shorten(curve.name))}</text>'
        )
    return "".join(parts)


def _shorten(name: str) -> str:
    return name if len(name) <= 15 else name[:14] + "\u2026"
