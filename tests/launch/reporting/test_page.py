"""The page in a real browser: nothing fetched, nothing said, nothing that runs over the edge, and print."""

import re
import shutil
from pathlib import Path

import pytest

from launch.report import write_report
from tests.launch.reporting.runs import HOSTILE, make_run

STYLE = Path(__file__).parents[3] / "launch" / "reporting" / "style.css.jinja"
TEXTS = ("ink", "soft", "warn", "better", "worse", *(f"c{n}" for n in range(6)))
GROUNDS = ("page", "card")
BANDS = ("r1", "r2", "r3", "r4", "bar")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if place is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report of one run and one of two, with texts that are long, hostile and without a space."""
    folder = tmp_path_factory.mktemp("runs")
    long = "x" * 400
    runs = [
        make_run(folder / "one", text=HOSTILE),
        make_run(folder / ("two-" + "w" * 60), text=long, perplexity=50.0, more=[
            {"kind": "spike", "step": 40, "message": f"warning: {long}"},
            {"kind": "save_failed", "step": 50, "message": "warning: no space is left"},
        ]),
    ]  # fmt: skip
    return [write_report(runs[:1], folder / "one.html"), write_report(runs, folder / "both.html")]


def open_page(browser, path, width, scheme, said):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: None if request.url.endswith(path.name) else said.append(request.url))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_quiet_fetches_nothing_and_stays_within_its_width(browser, pages, width, scheme, number):
    said = []
    page = open_page(browser, pages[number], width, scheme, said)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
    assert brightness > 700 if scheme == "light" else brightness < 150
    picture = page.screenshot(full_page=True)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    page.close()
    assert said == []


def test_charts_are_drawn_in_the_colours_of_the_theme(browser, pages):
    found = []
    for scheme in ("light", "dark"):
        page = open_page(browser, pages[0], 1280, scheme, [])
        line = "document.querySelector('svg path[style*=\"--c0\"]')"
        found.append(page.evaluate(f"getComputedStyle({line}).stroke"))
        assert page.evaluate(f"{line}.getBoundingClientRect().width") > 100
        page.close()
    assert len(set(found)) == 2
    assert all(colour.startswith("rgb(") for colour in found)


def test_no_text_of_a_chart_covers_another(browser, pages):
    for width in (1280, 390):
        page = open_page(browser, pages[0], width, "light", [])
        touching = page.evaluate(
            """() => [...document.querySelectorAll('svg')].flatMap(svg => {
              const texts = [...svg.querySelectorAll('text')];
              const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
              return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([other, b]) =>
                a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 5 && b.top < a.bottom - 5)
                .map(([other]) => one + ' | ' + other))})"""
        )
        page.close()
        assert touching == []


def test_the_page_prints_with_all_of_its_details_on_white(browser, pages, tmp_path):
    page = open_page(browser, pages[0], 794, "dark", [])
    page.emulate_media(media="print", color_scheme="dark")
    assert (
        page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
        == (read_colours()["light"]["ink"])
    )
    recipe = page.locator("details:has-text('Recipe, with every default') pre")
    assert recipe.bounding_box()["height"] > 20, "a closed part is open on paper"
    path = tmp_path / "report.pdf"
    page.pdf(path=path, format="A4")
    page.close()
    data = path.read_bytes()
    assert data[:5] == b"%PDF-"
    assert len(re.findall(rb"/Type\s*/Page\b", data)) > 1


def read_colours():
    """The variables of both themes from the style sheet."""
    text = STYLE.read_text()
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[:2]
    return {
        name: dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", own))
        for name, own in (("light", light), ("dark", dark))
    }


def measure_contrast(one, other):
    """The ratio of WCAG 2: relative luminance of sRGB colours."""

    def luminance(colour):
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_measured_as_the_standard_has_it():
    assert measure_contrast("#000000", "#ffffff") == pytest.approx(21)
    assert measure_contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_the_contrast_of_level_aa(theme):
    colours = read_colours()[theme]
    pairs = [(text, ground) for text in TEXTS for ground in GROUNDS] + [("ink", band) for band in BANDS]
    ratios = {pair: measure_contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}
    lines = [measure_contrast(colours["mark"], colours["card"])]
    assert min(lines) >= 3, "of what is drawn"


def test_both_themes_have_the_same_variables():
    colours = read_colours()
    assert set(colours["light"]) == set(colours["dark"])
    assert {*TEXTS, *GROUNDS, *BANDS} <= set(colours["light"])


def test_computed_texts_of_the_page_have_the_contrast_of_level_aa(browser, pages):
    """Also those whose colour comes from somewhere else than a variable."""
    for scheme in ("light", "dark"):
        page = open_page(browser, pages[1], 1280, scheme, [])
        found = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(e => [...e.childNodes].some(
                 n => n.nodeType === 3 && n.textContent.trim())).map(e => {
                 const own = getComputedStyle(e); let at = e, ground = 'rgba(0, 0, 0, 0)';
                 for (; at && ground === 'rgba(0, 0, 0, 0)'; at = at.parentElement)
                   ground = getComputedStyle(at).backgroundColor;
                 return [e.tagName, e instanceof SVGElement ? own.fill : own.color, ground] })"""
        )
        page.close()
        assert len(found) > 100
        for tag, colour, ground in {tuple(one) for one in found}:
            as_hex = [
                "#" + "".join(f"{int(n):02x}" for n in re.findall(r"\d+", c)[:3]) for c in (colour, ground)
            ]
            if tag not in ("title", "desc"):
                assert measure_contrast(*as_hex) >= 4.5, (tag, colour, ground)
