"""What the parts of a card read a recipe with, and how they write."""

import re
from typing import Any

from launch.record import Record

UNITS = {
    "whole_word": "words",
    "span": "words",
    "token": "pieces",
    "character": "characters",
    "character_span": "characters",
}


def find_family(record: Record) -> str:
    """The model's family as the recipe names it."""
    return get_text(get_part(record.recipe, "model"), "family")


def get_part(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping inside a recipe; empty where there is none."""
    for key in keys:
        below = tree.get(key)
        tree = below if isinstance(below, dict) else {}
    return tree


def get_text(part: dict[str, Any], key: str) -> str:
    """A text of a recipe in one line; empty where there is none."""
    value = part.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def show_percent(rate: float) -> str:
    """A rate of 0-1 in percent."""
    return f"{100 * rate:.4g} %"


def show_code(text: str) -> str:
    """A name in a fixed font, which nothing in it can leave."""
    return f"`{text.replace('`', ' ')}`" if text else ""


def show_plain(text: str) -> str:
    """A text in one line in which no markup begins."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def write_section(title: str, lines: list[str], between: str = "\n") -> str:
    """A section with its heading; empty without a line."""
    kept = [line for line in lines if line]
    return f"## {title}\n\n{between.join(kept)}" if kept else ""


def fence(text: str, language: str) -> str:
    """A block of code that nothing in the text ends."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.strip()}\n{marks}"
