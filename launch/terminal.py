"""The terminal: a console whose text can do nothing but be read.

Texts of a corpus, a recipe or a file name may hold escape sequences, which recolour, overwrite or answer for
a terminal. rich passes them on; this console writes them as escapes, its own colours apart.
"""

import json
import os
from collections.abc import Iterable
from typing import Any, TextIO

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


class Stream:
    """An output that can go away: a terminal that is closed, a pipe whose reader has ended.

    What is written to it then is lost without an error, in whatever thread; rich would end the process at a
    broken pipe. An output that was a terminal and has become a file counts as gone: no one wants a moving
    panel in a log.

    Attributes:
        is_gone: whether it has gone away.
    """

    def __init__(self, stream: TextIO):
        self.is_gone = False
        self._stream = stream
        self._is_terminal = stream.isatty()

    def write(self, text: str) -> int:
        """Write, if there is still somebody to read it."""
        if not self.is_gone:
            try:
                if self._is_terminal and not os.isatty(self._stream.fileno()):
                    self.is_gone = True
                else:
                    self._stream.write(text)
            except OSError:
                self.is_gone = True
        return len(text)

    def flush(self) -> None:
        """Flush, likewise."""
        if not self.is_gone:
            try:
                self._stream.flush()
            except OSError:
                self.is_gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
