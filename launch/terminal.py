"""The terminal: a console whose text can do nothing but be read.

Texts of a corpus, a recipe or a file name may hold escape sequences, which recolour, overwrite or answer for
a terminal. rich passes them on; this console writes them as escapes, its own colours apart.
"""

import json
from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment

from launch.redaction import CONTROLS, escape_controls


class Console(console.Console):
    """The console of rich, which every module of ours prints with."""

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render a text or table; its texts hold no control characters."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON in readable letters; control characters are escapes, as JSON itself wants of the lowest only."""
    return escape_json(json.dumps(value, ensure_ascii=False, indent=indent))


def escape_json(text: str) -> str:
    """JSON that prints safely and says the same."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
