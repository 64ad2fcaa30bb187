"""A finding: one thing that a machine has or lacks for a profile."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was looked at and what came of it.

    Attributes:
        name: what was looked at, in a word or two.
        state: `ok`; `note`, worth knowing; `lacks`, the profile does not run as it should.
        found: what is there.
        wanted: what the profile wants; empty: nothing in particular.
        remedy: what to install or to change; empty where nothing is to be done.
    """

    name: str
    state: Literal["ok", "note", "lacks"]
    found: str
    wanted: str = ""
    remedy: str = ""
