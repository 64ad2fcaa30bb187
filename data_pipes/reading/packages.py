"""Packages: data files inside wheels of PyPI, pinned by version and hash, read without installing them."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from data_pipes.documents import Batch, SourceError, Split, build_column_from_bytes
from data_pipes.files import find_cache_root, hash_stream, hold_lock
from data_pipes.reading.archives import MAX_EXPANSION, MIN_BOMB_BYTES
from data_pipes.reading.columns import Columns, cut_batches, make_column
from data_pipes.reading.intake import BadInputError, Intake, escape
from data_pipes.reading.records import Fields, Row, build_rows, take_fields

BATCH_DOCUMENTS = 1 << 17
# PEP 508 and PEP 440, in ASCII.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.!+_-]{0,98}[A-Za-z0-9])?")


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


def check_pin(package: Package) -> None:
    """Refuse what is no plain name and version.

    pip takes options and addresses in the place of a name (`-r URL`, `x @ file:///folder`), and builds what
    it finds there, which runs its code; a folder of the cache is named by both.

    Raises:
        SourceError: it is something else.
    """
    for what, text, pattern in (("name", package.name, NAME), ("version", package.version, VERSION)):
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise SourceError(f"{escape(str(text))!r} is no {what} of a package; write it as on PyPI")


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
    check_pin(package)
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


def read_member(
    package: Package, cache_root: Path | str | None = None, intake: Intake | None = None
) -> Iterator[Batch]:
    """Read the documents of one member of the wheel, fetching the wheel first if need be."""
    wheel = fetch_wheel(package, cache_root)
    place = f"{wheel.name}, {package.member}"
    with zipfile.ZipFile(wheel) as archive:
        if package.member not in archive.namelist():
            raise SourceError(
                f"{wheel.name} has no member {package.member!r}; list them with `unzip -l {wheel}`"
            )
        size = archive.getinfo(package.member)
        if size.file_size > max(MIN_BOMB_BYTES, MAX_EXPANSION * size.compress_size):
            raise SourceError(
                f"{place}: {size.compress_size} packed bytes hold {size.file_size}, over {MAX_EXPANSION} "
                "times as many; take another package"
            )
        data = archive.read(package.member)
    if package.format not in FORMATS:
        raise SourceError(
            f"{place}: format {package.format!r} is not known; write one of {', '.join(FORMATS)}"
        )
    yield from FORMATS[package.format](data, package, place, intake or Intake())


def _read_hsts_table(data: bytes, package: Package, place: str, intake: Intake) -> Iterator[Batch]:
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
    try:
        names = build_column_from_bytes(np.frombuffer(data, np.uint8)[flat], lengths)
    except pa.ArrowInvalid as error:
        raise SourceError(f"{place}: a host name is not UTF-8 ({error}); this is no hsts_table") from error
    intake.count(num_lines=len(names), num_good=len(names))
    yield from cut_batches(Columns(names), package.split)


def _read_json_list(data: bytes, package: Package, place: str, intake: Intake) -> Iterator[Batch]:
    names = _load_json(data, package, place)
    if not isinstance(names, list):
        raise SourceError(
            f"{place}: wanted a list of strings under {package.key!r}, found {type(names).__name__}; "
            "correct the key or the format"
        )
    good = [name for name in names if type(name) is str]
    bad = [number for number, name in enumerate(names, 1) if type(name) is not str]

    def describe(index: int) -> tuple[str, str, str]:
        found = names[bad[index] - 1]
        message = f"found {type(found).__name__}, wanted a list of strings; correct the key or the format"
        return f"{place}, entry {bad[index]}", message, str(found)

    intake.reject_each("not_a_string", len(bad), describe)
    intake.count(num_lines=len(names), num_good=len(good))
    for start in range(0, len(good), BATCH_DOCUMENTS):
        texts, is_damaged = make_column(good[start : start + BATCH_DOCUMENTS])
        yield from cut_batches(Columns(texts, is_damaged=is_damaged), package.split)


def _read_json_records(data: bytes, package: Package, place: str, intake: Intake) -> Iterator[Batch]:
    records = _load_json(data, package, place)
    records = list(records.values()) if isinstance(records, dict) else records
    if not isinstance(records, list):
        raise SourceError(f"{place}: wanted an object or a list of records, found {type(records).__name__}")
    fields = Fields(package.text_key, package.group_key)
    for start in range(0, len(records), BATCH_DOCUMENTS):
        rows: list[Row] = []
        part = records[start : start + BATCH_DOCUMENTS]
        for number, record in enumerate(part, start + 1):
            try:
                rows.append(take_fields(record, fields))
            except BadInputError as bad:
                intake.reject(bad.reason, f"{place}, record {number}", str(bad))
        intake.count(num_lines=len(part), num_good=len(rows))
        yield from cut_batches(build_rows(rows, fields), package.split)


def _load_json(data: bytes, package: Package, place: str) -> Any:
    try:
        top = json.loads(data)
    # ValueError: no JSON, no UTF-8, or an integer of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: not JSON ({error}); correct the member or the format") from error
    if package.key is None:
        return top
    if not isinstance(top, dict) or package.key not in top:
        raise SourceError(f"{place}: has no key {package.key!r}; correct the key of this source")
    return top[package.key]


FORMATS: dict[str, Callable[[bytes, Package, str, Intake], Iterator[Batch]]] = {
    "hsts_table": _read_hsts_table,
    "json_list": _read_json_list,
    "json_records": _read_json_records,
}
