"""Charts drawn by matplotlib, as SVG elements of a page."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from launch.figure import show_number
from launch.reporting.inline import INKS, NUM_COLOURS, clean, to_inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 104, 12, 24
_MAX_POINTS = 400
_MAX_DOTS = 40
_MAX_NAME = 17
# Beyond it the sums of an axis overflow; it is a perplexity of a diverged model.
_LARGEST = 1e100
# Curves are told apart by more than their colour.
_DASHES = ("-", (0, (6, 2)), (0, (2, 2)), (0, (8, 2, 2, 2)), (0, (4, 4)), (0, (1, 1)))
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """A named line.

    Attributes:
        name: beside its end.
        points: (step, value).
        raw: drawn faintly behind it.
        band: (step, low, high), drawn as an area behind it.
    """

    name: str
    points: Points
    raw: Points = ()
    band: Sequence[tuple[int, float, float]] = ()


def draw_chart(
    title: str, curves: Sequence[Curve], *, is_log: bool = False, marks: Sequence[tuple[str, float]] = ()
) -> str:
    """An SVG element with axes, curves with their names at their ends, and labelled horizontal marks.

    It has a title and a description in words for readers that see no pictures. Empty without a point.

    Args:
        title: of the chart, one of its kind on a page.
        curves: values that are not finite (or beyond 1e100) are left out, and curves without points.
        is_log: logarithmic values; those of 0 and below are left out.
        marks: names and values of horizontal lines.
    """
    shown = [_clean(curve, is_log) for curve in curves]
    shown = [curve for curve in shown if curve.points]
    title = clean(title)
    marks = [(clean(name), value) for name, value in marks if _is_shown(value, is_log)]
    if not shown:
        return ""
    # Here, as it takes half a second: a run's first step must not wait for it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # texts stay texts
        "svg.hashsalt": title,  # ids differ between the charts of a page, and do not between two writings
        "text.parse_math": False,
        "text.usetex": False,
        "axes.unicode_minus": False,
        "path.simplify": True,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page has other fonts than those that the texts are measured with.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure((WIDTH / 72, HEIGHT / 72), dpi=72, frameon=False)
        FigureCanvasSVG(figure)
        axes = figure.add_axes(
            (
                _LEFT / WIDTH,
                _BOTTOM / HEIGHT,
                (WIDTH - _LEFT - _RIGHT) / WIDTH,
                (HEIGHT - _TOP - _BOTTOM) / HEIGHT,
            )
        )
        _set_axes(axes, shown, [value for _, value in marks], is_log)
        titles = _draw_curves(axes, shown)
        _draw_marks(axes, shown, marks)
        _draw_names(axes, shown)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    size = (WIDTH, HEIGHT)
    return to_inline(written.getvalue(), size, title, describe_curves(shown, marks), titles)


def describe_curves(curves: Sequence[Curve], marks: Sequence[tuple[str, float]] = ()) -> str:
    """A chart in words: where each curve begins and ends, and its lowest and highest value."""
    texts = []
    for curve in curves:
        (first, start), (last, end) = curve.points[0], curve.points[-1]
        low, high = (pick(value for _, value in curve.points) for pick in (min, max))
        texts.append(
            f"{curve.name}: {show_number(start)} at step {first:,}, {show_number(end)} at step {last:,}, "
            f"between {show_number(low)} and {show_number(high)}."
        )
    texts += [f"Mark at {show_number(value)}: {name}." for name, value in marks]
    return " ".join(texts)


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


def _is_shown(value: float, is_log: bool) -> bool:
    return abs(value) < _LARGEST and (value > 1 / _LARGEST or not is_log)


def _clean(curve: Curve, is_log: bool) -> Curve:
    points, raw = (
        _thin([(step, value) for step, value in side if _is_shown(value, is_log)])
        for side in (curve.points, curve.raw)
    )
    band = [
        (step, low, high)
        for step, low, high in curve.band
        if _is_shown(low, is_log) and _is_shown(high, is_log)
    ]
    return Curve(clean(curve.name), points, raw, band)


def _thin(points: Points) -> list[tuple[int, float]]:
    """At most so many points as can be seen, each the mean of a stretch."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = len(points) / _MAX_POINTS
    groups = [points[int(index * size) : int((index + 1) * size)] for index in range(_MAX_POINTS)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _set_axes(axes: "Axes", curves: Sequence[Curve], marks: Sequence[float], is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    every = [value for curve in curves for _, value in (*curve.points, *curve.raw)] + list(marks)
    every += [value for curve in curves for _, *bounds in curve.band for value in bounds]
    low, high = min(every), max(every)
    if is_log:
        axes.set_yscale("log")
        # The name of a mark may stand below it.
        bottom = low / max(1.15, (high / low) ** 0.12)
        axes.set_ylim(bottom, high * 1.15)
        _set_log_ticks(axes, bottom, high * 1.15)
    else:
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        axes.set_ylim(max(0.0, low - room) if low >= 0 else low - room, high + room)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    last = max(step for curve in curves for step, _ in curve.points)
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=INKS["grid"], linewidth=1)
    axes.tick_params(length=0, labelsize=11, labelcolor=INKS["soft"], pad=5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_visible(False)
    axes.annotate(
        "step",
        (1, 0),
        xycoords="axes fraction",
        xytext=(26, -13.4),
        textcoords="offset points",
        fontsize=11,
        color=INKS["soft"],
    )


def _set_log_ticks(axes: "Axes", low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    decades = math.log10(high / low)
    if decades < 0.7:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
        return
    factors = (1.0,) if decades > 2.2 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=factors, numticks=20))


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}"


def _draw_curves(axes: "Axes", curves: Sequence[Curve]) -> dict[str, str]:
    """Draw the lines and their dots; the titles of the dots by the id of their group."""
    titles: dict[str, str] = {}
    for index, curve in enumerate(curves):
        colour = INKS[f"c{index % NUM_COLOURS}"]
        dashes = _DASHES[index // NUM_COLOURS % len(_DASHES) if len(curves) == 1 else index % len(_DASHES)]
        steps, values = zip(*curve.points, strict=True)
        if curve.band:
            places, lows, highs = zip(*curve.band, strict=True)
            axes.fill_between(places, lows, highs, color=colour, alpha=0.14, linewidth=0, clip_on=False)
        if curve.raw:
            axes.plot(*zip(*curve.raw, strict=True), color=colour, linewidth=1, alpha=0.28, clip_on=False)
        axes.plot(steps, values, color=colour, linewidth=2, linestyle=dashes, clip_on=False)
        dots = curve.points if len(curve.points) <= _MAX_DOTS else [curve.points[0], curve.points[-1]]
        for number, (step, value) in enumerate(dots):
            name = f"dot-{index}-{number}"
            titles[name] = f"{curve.name}: {show_number(value)} at step {step:,}"
            style: dict[str, Any] = {"color": colour, "markersize": 5, "markeredgewidth": 0}
            axes.plot([step], [value], "o", gid=name, clip_on=False, **style)
    return titles


def _draw_marks(axes: "Axes", curves: Sequence[Curve], marks: Sequence[tuple[str, float]]) -> None:
    for name, value in marks:
        # Where the curve ends just above the line, a text on it would be struck through.
        is_below = curves[0].points[-1][1] > value
        axes.axhline(value, color=INKS["mark"], linewidth=1, linestyle=(0, (4, 4)), clip_on=False)
        axes.annotate(
            f"{name} {show_number(value)}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -3 if is_below else 3),
            textcoords="offset points",
            ha="right",
            va="top" if is_below else "bottom",
            fontsize=11,
            color=INKS["soft"],
        )


def _draw_names(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Each curve's last value and name beside its end, moved apart where they would touch."""
    height = HEIGHT - _TOP - _BOTTOM
    to_place = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_place.transform(curve.points[-1])[1]) * height for curve in curves]
    gap = min(30.0, height / max(1, len(curves)))
    names = shorten_names([curve.name for curve in curves])
    # Two lines want room above the word `step`.
    for y, index in spread(wanted, gap, height - 6, lowest=min(18.0, gap * 0.6)):
        curve, ink = curves[index], f"c{index % NUM_COLOURS}"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        at = (1.0, y / height)
        value, name = show_number(curve.points[-1][1]), names[index]
        if gap < 28:
            text = f"{value} {name}"
            axes.annotate(text, at, xytext=(9, -3), fontsize=min(11.0, gap * 0.85), color=INKS[ink], **place)
            continue
        axes.annotate(value, at, xytext=(9, 0), fontsize=13, weight="bold", color=INKS[ink], **place)
        axes.annotate(name, at, xytext=(9, -13), fontsize=11, color=INKS["soft"], **place)


def spread(
    wanted: Sequence[float], gap: float, highest: float, lowest: float = 0.0
) -> list[tuple[float, int]]:
    """(place, index) from the lowest to the highest, a gap apart, about where they are wanted."""
    ordered = sorted((value, index) for index, value in enumerate(wanted))
    places, bound = [], lowest - gap
    for value, _ in ordered:
        bound = max(value, bound + gap)
        places.append(bound)
    bound = highest + gap
    for number in reversed(range(len(places))):
        places[number] = bound = min(places[number], bound - gap)
    return [(place, index) for place, (_, index) in zip(places, ordered, strict=True)]


def shorten_names(names: Sequence[str]) -> list[str]:
    """Names for a narrow column: long ones without what all of them begin with, then cut in their middle."""
    if all(len(name) <= _MAX_NAME for name in names):
        return list(names)
    num_equal = sum(1 for _ in takewhile(lambda ones: len(set(ones)) == 1, zip(*names, strict=False)))
    prefix = names[0][:num_equal] if len(names) > 1 else ""
    # The word or number in which they part stays whole.
    start = max(prefix.rfind(mark) + 1 for mark in ",=_- /")
    short = _cut_middles([name[start:] for name in names])
    if len(set(short)) == len(set(names)):
        return short
    # What the cut took away was what they differ in.
    return [f"\u2026{name[num_equal:][: _MAX_NAME - 1]}" for name in names]


def _cut_middles(names: Sequence[str]) -> list[str]:
    head, tail = (_MAX_NAME - 1) // 2, _MAX_NAME // 2
    return [name if len(name) <= _MAX_NAME else f"{name[:head]}\u2026{name[-tail:]}" for name in names]
