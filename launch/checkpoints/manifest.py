"""Folders that are whole or absent: a manifest of sizes and hashes, flushed and renamed into place."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipes.files import hash_stream
from launch import fault
from launch.checkpoints.removal import MANIFEST, discard, may_remove, remove_draft

FORMAT = 2
"""Of the manifest. Those of format 1 say nothing but `files`."""
POINTER = "latest"
_STEP = re.compile("0|[1-9][0-9]*")
Files = dict[str, dict[str, Any]]
"""By name, relative to the folder: `bytes` and `sha256`."""


def name_draft(place: Path) -> Path:
    """Where a folder is written before it gets its name; another place at each attempt."""
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")


def describe_files(draft: Path, paths: Iterable[Path]) -> Files:
    """Flush files of a draft to disk; their sizes and hashes.

    Raises:
        OSError: one of them cannot be flushed or read.
    """
    found: Files = {}
    for path in sorted(paths):
        flush(path)
        found[str(path.relative_to(draft))] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
    return found


def seal_draft(draft: Path, facts: Mapping[str, Any] | None = None, files: Files | None = None) -> Files:
    """Write the manifest of a draft and flush all of it; the files in it.

    Args:
        draft: the folder.
        facts: what the manifest says beside its files (`step`, `world_size`, ...).
        files: those that others have described and flushed already.

    Raises:
        OSError: it cannot be written, or a described file is not there or of another size.
    """
    files = dict(files or {})
    for name, wanted in files.items():
        if (draft / name).stat().st_size != wanted["bytes"]:
            raise OSError(f"{name} has not the {wanted['bytes']:,} bytes that were written")
    inside = list(draft.rglob("*"))
    rest = [path for path in inside if path.is_file() and str(path.relative_to(draft)) not in files]
    files |= describe_files(draft, rest)
    fault.at("before_manifest")
    manifest = {"format": FORMAT, **(facts or {}), "files": dict(sorted(files.items()))}
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    flush(draft / MANIFEST)
    for folder in [*(path for path in inside if path.is_dir()), draft]:
        flush(folder)
    return files


def commit_checkpoint(draft: Path, place: Path) -> bool:
    """Give a sealed draft its name; False: the same was there already, whole, and was kept.

    What is there and is not whole or not ours is renamed first.

    Raises:
        OSError: it cannot be renamed.
    """
    if os.path.lexists(place):
        if may_remove(place) and find_damage(place) is None:
            remove_draft(draft)
            return False
        set_aside(place, "damaged")
    fault.at("before_rename")
    draft.rename(place)
    fault.at("after_rename")
    flush(place.parent)
    return True


def commit_model(draft: Path, place: Path) -> str | None:
    """Give a sealed draft its name in place of an older folder; what could not be removed, in words.

    A kill between the two renames leaves the older one as `.<name>.old`, which the next start takes back.

    Raises:
        OSError: it cannot be renamed; the older one is where it was.
    """
    old = place.with_name(f".{place.name}.old")
    if may_remove(old) and not place.exists():
        old.rename(place)
    elif os.path.lexists(old):
        remove_draft(old)
    if os.path.lexists(place):
        if not may_remove(place):
            set_aside(place, "left")
        else:
            place.rename(old)
    try:
        fault.at("before_rename")
        draft.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    fault.at("after_rename")
    flush(place.parent)
    return discard(old)


def write_pointer(folder: Path, name: str) -> None:
    """Say in RUN/latest which checkpoint is the newest. A hint for people: we look at the manifests.

    Raises:
        OSError: it cannot be written; the older one is as it was.
    """
    draft = folder / f".{POINTER}.partial"
    draft.write_text(name + "\n", encoding="utf-8")
    flush(draft)
    fault.at("before_pointer")
    draft.replace(folder / POINTER)
    flush(folder)


def set_aside(place: Path, word: str) -> Path:
    """Rename a folder that is in the way to `<word>-<its step or name>-<time>`; its new place."""
    number = place.name.removeprefix("checkpoint-")
    new = place.with_name(f"{word}-{number}-{int(time.time())}")
    while os.path.lexists(new):
        new = new.with_name(f"{new.name}-{secrets.token_hex(2)}")
    place.rename(new)
    return new


def find_step(place: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(place.name.removeprefix("checkpoint-"))


def find_checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints of a run, newest first; whether they are whole is not looked at."""
    numbered = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    # `checkpoint-007` is not a name that we give, and not ours to use or to remove.
    steps = [(int(n), path) for n, path in numbered if _STEP.fullmatch(n) and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a committed folder.

    Raises:
        ValueError: it cannot be read, or names no files.
    """
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        is_one = isinstance(manifest["files"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its manifest cannot be read ({error})") from error
    if not is_one or not manifest["files"]:
        raise ValueError("its manifest is empty")
    return manifest


def find_damage(place: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None: it is whole."""
    try:
        files: Files = read_manifest(place)["files"]
    except ValueError as error:
        return str(error)
    for name, wanted in files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            num_bytes, digest = wanted["bytes"], wanted["sha256"]
            if path.stat().st_size != num_bytes:
                return f"{name} has {path.stat().st_size:,} bytes, not {num_bytes:,}"
            if _hash_file(path) != digest:
                return f"{name} was changed after it was written"
        except (OSError, KeyError, TypeError, ValueError) as error:
            return f"{name} cannot be read ({error})"
    return None


def flush(path: Path) -> None:
    """Flush a file or folder to disk.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hash_stream(file)
