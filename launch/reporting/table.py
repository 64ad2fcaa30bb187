"""Tables of a report: rows of texts, some with a remark or a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """A text of a table.

    Attributes:
        text: what stands there.
        note: a remark behind it, smaller.
        tone: `better`, `worse` or empty; what it says is in the note too.
    """

    text: str
    note: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        title: above it; empty where the section's heading says it.
        head: of each column; the first is that of the names.
        rows: as many texts each.
        note: what to know about it.
        is_compact: remarks stand beside the texts, not below them.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]] = field(default_factory=list)
    note: str = ""
    is_compact: bool = False
