"""Paths: the files that a source names by a file, a glob or a folder, sorted; each can be read."""

import glob
import os
from pathlib import Path

from data_pipes.documents import SourceError
from data_pipes.reading.archives import PACKINGS, check_regular, translate_errors
from data_pipes.reading.intake import escape

# What is read of a folder; a glob or a file may have any suffix.
SUFFIXES = {
    "text": (".txt", ".text", ".md"),
    "jsonl": (".jsonl", ".ndjson"),
    "aligned": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
}


def find_files(path: str, kind: str) -> list[Path]:
    """The files of a source.

    A folder gives every file below it with a suffix of the kind (packed or not); hidden files and folders are
    left out, links are followed.

    Raises:
        SourceError: there is none, or one of them is no regular file or cannot be looked at.
    """
    given = Path(check_name(path)).expanduser()
    with translate_errors(given):
        if given.is_dir():
            files = _walk_folder(given, kind)
        elif os.path.lexists(given):
            files = [given]
        else:
            found = {Path(name) for name in glob.glob(str(given), recursive=True)}  # noqa: PTH207 - absolute patterns
            files = [name for name in found if not name.is_dir()]
    if not files:
        raise SourceError(
            f"no file matches {escape(path)!r} (looked in {escape(Path.cwd())}); "
            f"correct data.sources.path, or put the text there{_describe_suffixes(given, kind)}"
        )
    for name in files:
        with translate_errors(name):
            check_regular(name, name.stat())
    return sorted(files)


def check_name(path: str) -> str:
    """Refuse names that no file can have."""
    try:
        is_possible = b"\0" not in os.fsencode(path) and path != ""
    except (UnicodeEncodeError, TypeError):
        is_possible = False
    if not is_possible:
        raise SourceError(f"no file can have the name {escape(str(path))!r}; correct data.sources.path")
    return path


def _describe_suffixes(given: Path, kind: str) -> str:
    if not given.is_dir():
        return ""
    return f"; of a folder, {kind} reads {', '.join(SUFFIXES[kind])}, also packed as {', '.join(PACKINGS)}"


def _walk_folder(folder: Path, kind: str) -> list[Path]:
    packings = () if kind == "parquet" else tuple(PACKINGS)
    wanted = tuple(suffix + packing for suffix in SUFFIXES[kind] for packing in ("", *packings))
    files: list[Path] = []
    # Folders on the way from the top to each one, so that a link back to one of them shows.
    above: dict[str, frozenset[tuple[int, int]]] = {}
    for place, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        state = os.stat(place)  # noqa: PTH116 - of the walk's own string
        identity = (state.st_dev, state.st_ino)
        parents = above.get(str(Path(place).parent), frozenset())
        if identity in parents:
            raise SourceError(
                f"{escape(place)} is a link back to a folder above it; take the link away, or name the "
                "folders one by one"
            )
        above[place] = parents | {identity}
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place) / name for name in names if name.endswith(wanted) and not name.startswith(".")]
    return files


def _fail(error: OSError) -> None:
    """A folder that cannot be listed may hold text: it is not passed over."""
    raise SourceError(
        f"{escape(str(error.filename))} cannot be listed ({error.strerror}); change its permissions, or name "
        "the files by a glob"
    ) from error
