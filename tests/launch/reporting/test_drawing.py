import math
import re
import time
from xml.etree import ElementTree

import pytest

from launch.reporting.drawing import HEIGHT, WIDTH, Curve, draw_chart, shorten_names, smooth, spread


def read(svg):
    return ElementTree.fromstring(svg)


def list_texts(svg):
    return [element.text for element in read(svg).iter("text")]


def list_ticks(svg):
    """The texts of the vertical axis, from the top."""
    found = [e for e in read(svg).iter("text") if "text-anchor: end" in str(e.get("style"))]
    return [e.text for e in sorted(found, key=lambda e: float(e.get("y")))]


def find_line(svg):
    """The points of the first curve in the picture, as (x, y)."""
    path = next(e for e in read(svg).iter("path") if "stroke: var(--c0)" in str(e.get("style")))
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", str(path.get("d")))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_curve_lies_where_its_values_are():
    svg = draw_chart("line", [Curve("a", [(0, 0.0), (50, 10.0), (100, 5.0)])])
    (x0, y0), (x1, y1), (x2, y2) = find_line(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) * 2 == pytest.approx(y0 - y1, abs=0.3), "half the value is half the height"
    assert 0 < min(y0, y1, y2) < max(y0, y1, y2) < HEIGHT
    assert 0 < x0 < x2 < WIDTH


def test_a_logarithmic_curve_has_equal_steps_for_equal_ratios():
    svg = draw_chart("line", [Curve("a", [(0, 1000.0), (1, 100.0), (2, 10.0)])], is_log=True)
    heights = [y for _, y in find_line(svg)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "is_log", "ticks"),
    [
        (0.0, 0.05, False, ["0.04", "0.02", "0"]),
        (1.4, 3.6, False, ["3.5", "3", "2.5", "2", "1.5"]),
        (1.0, 2000.0, True, ["1,000", "100", "10", "1"]),
        (0.0, 2e-3, False, ["0.002", "0.0015", "0.001", "0.0005", "0"]),
    ],
)
def test_ticks_are_round_numbers(low, high, is_log, ticks):
    svg = draw_chart("t", [Curve("a", [(0, low), (100, high)])], is_log=is_log)
    assert list_ticks(svg) == ticks


def test_a_chart_needs_nothing_of_the_page_but_its_colours():
    svg = draw_chart("t", [Curve("a", [(1, 1.0), (2, 2.0)], raw=[(1, 1.5)], band=[(1, 0.5, 2.0)])])
    assert not re.search(r"https?:|xmlns|url\(|<style|font-family|#[0-9a-f]{6}", svg)
    used = set(re.findall(r"var\(--(\w+)\)", svg))
    assert used == {"c0", "soft", "grid"}


def test_two_charts_of_a_page_share_no_id_and_the_same_chart_is_the_same_text():
    curves = [Curve("a", [(1, 1.0), (2, 2.0)])]
    one, other, again = draw_chart("one", curves), draw_chart("other", curves), draw_chart("one", curves)
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert one == again
    assert set(re.findall(r'href="#([^"]+)"', one)) <= ids[0]


def test_a_chart_is_told_in_words():
    svg = draw_chart("Loss", [Curve("run", [(1, 8.0), (100, 2.5)])], marks=[("unigram", 4.0)])
    root = read(svg)
    told = "run: 8.00 at step 1, 2.50 at step 100, between 2.50 and 8.00. Mark at 4.00: unigram."
    assert root.find("title").text == "Loss"
    assert root.find("desc").text == told
    assert root.get("role") == "img"
    assert told in str(root.get("aria-label"))
    dots = [element.text for element in root.iter("title")][1:]
    assert dots == ["run: 8.00 at step 1", "run: 2.50 at step 100"]


NAMES = ['a<b>&"c"', "$\\frac{a}{b}$ $x$", "caf\u00e9 \u6f22\u5b57", "half \ud800", "\\textbf{a}"]
NAMES += ["x\x01y", "x\x1by", "x\ufffey"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_run_is_text(name):
    svg = draw_chart("t", [Curve(name, [(1, 1.0), (2, 2.0)])])
    shown = re.sub("[\x00-\x1f\ud800\ufffe]", lambda found: found[0].encode("unicode_escape").decode(), name)
    assert any(text and text[:5] == shown[:5] for text in list_texts(svg))


@pytest.mark.parametrize("mark", ["\x01", "\x1b", "\ufffe"])
def test_titles_and_marks_may_hold_what_xml_may_not(mark):
    svg = draw_chart(f"a{mark}b", [Curve("c", [(1, 1.0), (2, 2.0)])], marks=[(f"m{mark}n", 1.5)])
    escape = mark.encode("unicode_escape").decode()
    assert read(svg).find("title").text == f"a{escape}b"
    assert f"Mark at 1.50: m{escape}n." in str(read(svg).find("desc").text)
    assert any(text and text.startswith(f"m{escape}n") for text in list_texts(svg))


def test_a_chart_leaves_out_what_is_no_number_and_survives_having_nothing():
    assert draw_chart("empty", []) == ""
    assert draw_chart("nan", [Curve("a", [(1, math.nan)])]) == ""
    assert draw_chart("log", [Curve("a", [(1, 0.0), (2, -1.0)])], is_log=True) == ""
    drawn = draw_chart("some", [Curve("a", [(1, 1.0), (2, math.inf), (3, 2.0)])], is_log=True)
    assert len(find_line(drawn)) == 2
    assert "nan" not in drawn
    assert draw_chart("one", [Curve("a", [(0, 5.0)])])
    assert draw_chart("huge", [Curve("a", [(0, 1e99), (10**12, 1e-99)])], is_log=True)
    assert draw_chart("beyond", [Curve("a", [(0, 1e300)])], is_log=True) == ""


def test_dense_curves_are_thinned():
    points = [(step, float(step % 2)) for step in range(1, 100_001)]
    assert len(draw_chart("dense", [Curve("a", points, points)])) < 30_000


def test_the_names_of_many_curves_stay_inside_the_chart_and_apart():
    svg = draw_chart("crowd", [Curve(f"run {n}", [(1, 5.0), (2, 0.001 * n)]) for n in range(12)])
    named = [e for e in read(svg).iter("text") if e.text and "run " in e.text]
    heights = sorted(float(e.get("y")) for e in named)
    assert len(heights) == 12
    assert min(heights) > 5
    assert max(heights) < HEIGHT
    assert all(after - before > 10 for before, after in zip(heights, heights[1:], strict=False))


def test_curves_differ_by_more_than_colour():
    svg = draw_chart("two", [Curve(str(n), [(1, 1.0 + n), (2, 2.0)]) for n in range(3)])
    styles = [str(e.get("style")) for e in read(svg).iter("path") if "stroke-width: 2" in str(e.get("style"))]
    dashes = [re.findall(r"stroke-dasharray: [^;]+", style) for style in styles]
    assert len({tuple(dash) for dash in dashes}) == 3


def test_spread_keeps_places_that_are_free_and_parts_the_others():
    assert spread([10.0, 50.0], 5, 100) == [(10.0, 0), (50.0, 1)]
    assert spread([10.0, 11.0], 5, 100) == [(10.0, 0), (15.0, 1)]
    assert spread([100.0, 100.0], 5, 100) == [(95.0, 0), (100.0, 1)]
    assert spread([0.0], 5, 100, lowest=14) == [(14.0, 0)]


def test_smoothing_keeps_a_constant_and_halves_a_jump():
    assert smooth([(step, 3.0) for step in range(10)]) == [(step, 3.0) for step in range(10)]
    smoothed = smooth([(step, float(step >= 50)) for step in range(100)])
    assert smoothed[0][1] == 0
    assert smoothed[-1][1] == 1
    assert 0.2 < smoothed[50][1] < 0.8


def test_smoothing_a_long_run_takes_no_time_and_keeps_its_level():
    start = time.perf_counter()
    smoothed = smooth([(step, float(step % 2)) for step in range(200_000)])
    assert time.perf_counter() - start < 3  # the plain moving mean takes over a minute
    assert all(value == pytest.approx(0.5, abs=0.01) for _, value in smoothed)


def test_long_names_part_where_they_differ():
    rates = ["learning_rate=0.002,seed=1", "learning_rate=0.004,seed=1", "learning_rate=0.004,seed=22"]
    assert shorten_names(rates) == ["0.002,seed=1", "0.004,seed=1", "0.004,seed=22"]
    assert shorten_names(["a", "b"]) == ["a", "b"]
    paths = [f"a-place-{'x' * 9}{one}{'y' * 30}/run" for one in "12"]
    assert len(set(shorten_names(paths))) == 2, "not even where they differ in their middle alone"
    assert all(len(name) <= 17 for name in shorten_names(paths))
    (alone,) = shorten_names(["one-very-long-name-of-a-run-2"])
    assert alone == "one-very\u2026-a-run-2"
