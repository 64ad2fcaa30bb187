"""Folders that are whole or absent: a manifest of sizes and hashes, flushed and renamed into place."""

import json
import os
from pathlib import Path
from typing import Any

from data_pipes.files import hash_stream
from launch import fault
from launch.removal import MANIFEST, remove_draft
from launch.verdict import MACHINE, RunError


def commit_folder(draft: Path, place: Path) -> None:
    """Hash and flush every file of a draft, then give it its name."""
    names = sorted(str(path.relative_to(draft)) for path in draft.rglob("*") if path.is_file())
    files = {
        name: {"bytes": (draft / name).stat().st_size, "sha256": _hash_file(draft / name)} for name in names
    }
    fault.at("before_manifest")
    (draft / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    for path in [*draft.rglob("*"), draft]:
        _flush(path)
    old = place.with_name(f".{place.name}.old")
    remove_draft(old)
    if place.exists():
        place.rename(old)
    fault.at("before_rename")
    draft.rename(place)
    fault.at("after_rename")
    _flush(place.parent)
    remove_draft(old)


def find_checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints of a run, newest first; whether they are whole is not looked at."""
    numbered = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    steps = [(int(number), path) for number, path in numbered if number.isdigit() and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def find_damage(place: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None: it is whole."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    if not files:
        return "its manifest is empty"
    for name, wanted in files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, not {wanted['bytes']:,}"
        if _hash_file(path) != wanted["sha256"]:
            return f"{name} was changed after it was written"
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise RunError(MACHINE, f"{path} could not be flushed to disk: {error}") from error
    finally:
        os.close(descriptor)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hash_stream(file)
