"""Removing folders of a run: what this product made and nothing else, and never through a link."""

import json
import secrets
import shutil
from pathlib import Path

from launch import fault

MANIFEST = "manifest.json"
"""Stands in every folder that was committed as a whole; without it only drafts and trash are removed."""
_DRAFT = r"[0-9a-f]{8}\.partial"
TRASH = rf"\.trash-(checkpoint-\d+(\.{_DRAFT})?|(best|final)\.(old|{_DRAFT}))-[0-9a-f]{{8}}"
"""A pattern of the names that `discard` gives to checkpoints, older models and drafts."""


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
    """Whether a folder is one that we committed: no link, and with a manifest of ours."""
    if place.is_symlink() or not place.is_dir():
        return False
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)


def discard(place: Path) -> str | None:
    """Remove a folder, which is out of sight before the first file of it goes; what went wrong, in words.

    An error is no reason to stop: what is left is swept at the next start.
    """
    trash = place.with_name(f".trash-{place.name.lstrip('.')}-{secrets.token_hex(4)}")
    try:
        place.rename(trash)
        fault.at("during_rotate")
        remove_draft(trash)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{place.name} could not be removed ({error}); it is tried again at the next start"
    return None
