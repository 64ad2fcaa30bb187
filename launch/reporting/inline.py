"""SVG files of matplotlib as elements of a page, whose CSS variables and fonts they take."""

import re
from xml.etree import ElementTree

from launch.redaction import escape_controls

NUM_COLOURS = 6
# Matplotlib writes colours as numbers; each of these stands for a variable of the page.
INKS = {f"c{index}": f"#0000c{index}" for index in range(NUM_COLOURS)} | {
    "ink": "#0000d0",
    "soft": "#0000d1",
    "grid": "#0000d2",
    "mark": "#0000d3",
}


# What no XML file may hold, beside the control characters.
_NO_XML = re.compile("[\ufffe\uffff]")


def clean(text: str) -> str:
    """A text in one line that an SVG file may hold: what XML has no place for is written as an escape."""
    told = escape_controls(text.replace("\n", "\\n").replace("\t", "\\t"))
    return _NO_XML.sub(lambda found: f"\\u{ord(found[0]):x}", told)


def to_inline(
    written: bytes, size: tuple[int, int], title: str, description: str, titles: dict[str, str]
) -> str:
    """A written SVG file as an element: without namespaces, metadata and ids that nothing refers to.

    Args:
        written: the file.
        size: width and height of its view.
        title: of the picture.
        description: of it in words.
        titles: of groups, by their ids.
    """
    root = ElementTree.fromstring(written)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if name.startswith("{"):
                element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
        _mend(element, titles)
    for child in list(root):
        if child.tag == "metadata" or child.find("style") is not None or child.find("clipPath") is not None:
            root.remove(child)
    root.attrib = {
        "viewBox": f"0 0 {size[0]} {size[1]}",
        "role": "img",
        "aria-label": f"{title}. {description}",
    }
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag)
        element.text = text
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _mend(element: ElementTree.Element, titles: dict[str, str]) -> None:
    if element.tag == "g" and (name := element.attrib.pop("id", "")) in titles:
        element.set("class", "dot")
        about = ElementTree.Element("title")
        about.text = titles[name]
        element.insert(0, about)
    element.attrib.pop("clip-path", None)
    if "d" in element.attrib:
        # A tenth of a unit is less than is seen, and a third of the bytes.
        short = re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", element.attrib["d"])
        element.set("d", " ".join(short.split()))
    style = element.attrib.get("style", "")
    for name, colour in INKS.items():
        style = style.replace(colour, f"var(--{name})")
    if element.tag == "text":
        style = re.sub(r"font-family:[^;]*;? ?", "", style)
        element.attrib.pop("transform", None)
    if style:
        element.set("style", style)
