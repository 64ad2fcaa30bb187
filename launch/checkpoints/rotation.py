"""Rotation: which checkpoints and models a run keeps, and what earlier starts have left lying about."""

import re
from collections.abc import Collection
from pathlib import Path

from launch.checkpoints.manifest import find_checkpoints, find_step, flush, read_manifest
from launch.checkpoints.removal import TRASH, discard, may_remove, remove_draft

_LEFTOVERS = re.compile(
    rf"{TRASH}|\.(meeting-[0-9a-f]+|latest\.partial|(checkpoint-\d+|best|final)(\.[0-9a-f]+)?\.partial)"
)
_MODELS = ("best", "final")


def rotate_checkpoints(folder: Path, keep: int, protected_steps: Collection[int | None]) -> list[str]:
    """Remove checkpoints of ours beyond the newest ones; what could not be removed, in words.

    Call it when the newest of them has just been committed and only then.

    Args:
        folder: the run folder.
        keep: how many of the newest stay, at least two.
        protected_steps: those of others that stay; None is no step.
    """
    ours = [place for place in find_checkpoints(folder) if may_remove(place)]
    leaving = [place for place in ours[max(2, keep) :] if find_step(place) not in protected_steps]
    return [note for place in leaving if (note := discard(place)) is not None]


def find_model_step(place: Path) -> int | None:
    """The step of a committed model, `best` or `final`; None: there is none, or its manifest has no step."""
    try:
        step = read_manifest(place).get("step")
    except ValueError:
        return None
    return step if isinstance(step, int) else None


def sweep_leftovers(folder: Path) -> list[str]:
    """Remove drafts and trash of starts that were killed; what could not be removed, in words.

    A model whose older folder was out of the way when the new one had not its name yet gets that back.
    Call it while the folder is held and nothing is written.
    """
    notes = []
    for name in _MODELS:
        old, place = folder / f".{name}.old", folder / name
        if may_remove(old) and not place.exists():
            old.rename(place)
            flush(folder)
        elif may_remove(old) and (note := discard(old)) is not None:
            notes.append(note)
    for place in sorted(folder.glob(".*")):
        if not _LEFTOVERS.fullmatch(place.name):
            continue
        try:
            remove_draft(place)
        except OSError as error:
            notes.append(f"{place.name} could not be removed ({error})")
    return notes
