"""Removing folders of a run: what this product made and nothing else, and never through a link."""

import shutil
from pathlib import Path

MANIFEST = "manifest.json"
"""Stands in every folder that was committed as a whole; nothing without it is removed."""


def remove_draft(place: Path) -> None:
    """Clear the place of a draft; a link there is removed itself, what it leads to stays.

    Raises:
        OSError: something is left.
    """
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)


def may_remove(place: Path) -> bool:
    """Whether a folder is one that we committed: no link, and with a manifest."""
    return not place.is_symlink() and place.is_dir() and (place / MANIFEST).is_file()
