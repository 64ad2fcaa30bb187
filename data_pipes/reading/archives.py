"""Streams: regular files opened with care, unpacked on the way, and compared with their state at the end."""

import errno
import lzma
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import pyarrow as pa

from data_pipes.documents import SourceError
from data_pipes.files import hash_file
from data_pipes.reading.intake import escape

# zstd reaches 30,000 : 1 and xz 7,000 : 1, on bytes that repeat; text stays below 100 : 1.
MAX_EXPANSION = 1000
MIN_BOMB_BYTES = 1 << 30
# `xz -9` needs 65 MiB to unpack; a header may ask for 4 GiB.
MAX_XZ_MEMORY_BYTES = 512 << 20
CHUNK_BYTES = 1 << 14
HEAD_BYTES = 8

PACKINGS = {
    ".gz": (b"\x1f\x8b", "gzip"),
    ".xz": (b"\xfd7zXZ\x00", "xz"),
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd"),
}
# A zstd file may begin with a frame to be skipped.
SKIPPABLE_FRAMES = tuple(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))
# No text begins like this.
OTHER_CONTENTS = (
    (b"\x1f\x8b", "a gzip archive; name it .gz"),
    (b"\xfd7zXZ\x00", "an xz archive; name it .xz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; name it .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh91AY&", "a bzip2 archive; unpack it first"),
    (b"PAR1\x15", "a Parquet file; read it with kind: parquet"),
    (b"\xff\xfe\x00\x00", "UTF-32; convert it to UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32; convert it to UTF-8"),
    (b"\xff\xfe", "UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16; convert it to UTF-8"),
)
UNPACK_ERRORS = (EOFError, lzma.LZMAError, zlib.error)
# Faults of the file or its path. Others, such as EIO, are faults of the machine and stay OSError.
FILE_ERRNOS = {
    None: "its content is damaged; fetch it again",
    errno.ENOENT: "it is not there, or a link that leads nowhere; put the file there or correct the path",
    errno.ESTALE: "it was removed while it was read; put it back",
    errno.EACCES: "it may not be read; change its permissions",
    errno.EPERM: "it may not be read; change its permissions",
    errno.ELOOP: "its links lead in a circle; correct the links",
    errno.ENOTDIR: "a part of its path is no folder; correct the path",
    errno.EISDIR: "it is a folder; name a file, a glob or the folder itself",
    errno.ENAMETOOLONG: "its name is too long; correct the path",
    errno.ENXIO: "it is a socket or device without data; name a file",
}
KINDS_OF_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Readable(Protocol):
    """What can be read by bytes."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn errors that are the file's own fault into SourceError."""
    try:
        yield
    except UNPACK_ERRORS as error:
        raise SourceError(f"{escape(path)} cannot be read: {error}; fetch it again") from error
    except OSError as error:
        is_of_another = error.filename is not None and str(error.filename) != str(path)
        if error.errno not in FILE_ERRNOS or is_of_another:
            raise
        reason = f"{error}; " if error.errno is None else ""
        raise SourceError(f"{escape(path)} cannot be read: {reason}{FILE_ERRNOS[error.errno]}") from error


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; leaving it normally checks that it has not changed since.

    Raises:
        SourceError: it is not there, no regular file, may not be read, or has changed.
    """
    with translate_errors(path):
        check_regular(path, path.stat())
        # Should a pipe take its place just now, this does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as raw:  # noqa: PTH123 - a descriptor
            state = os.fstat(raw.fileno())
            check_regular(path, state)
            yield raw
            for now in (os.fstat(raw.fileno()), path.stat()):
                if identify(now) != identify(state):
                    raise SourceError(
                        f"{escape(path)} changed while it was read (from {state.st_size} to "
                        f"{now.st_size} bytes); wait until it is written, or give a copy that stays"
                    )


def hash_steadily(path: Path, cache_root: Path | None) -> str:
    """SHA-256 of a regular file that does not change meanwhile; see files.hash_file."""
    with open_file(path):
        return hash_file(path, cache_root)


def identify(state: os.stat_result) -> tuple[int, ...]:
    """What differs once a file was written to or replaced."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def check_regular(path: Path, state: os.stat_result) -> None:
    """Refuse folders, pipes, sockets and devices."""
    for is_kind, name in KINDS_OF_FILES:
        if is_kind(state.st_mode):
            raise SourceError(f"{escape(path)} is {name}, wanted a file; correct the path")


@contextmanager
def open_stream(path: Path) -> Iterator[tuple[Readable, BinaryIO]]:
    """Open a file as what it holds, unpacked if its name ends in .gz, .xz or .zst; also as it lies there."""
    with open_file(path) as raw:
        if path.suffix not in PACKINGS:
            yield raw, raw
            return
        magic, codec = PACKINGS[path.suffix]
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        if not head.startswith((magic, *SKIPPABLE_FRAMES) if codec == "zstd" else magic):
            found = "is empty" if not head else "holds something else"
            raise SourceError(
                f"{escape(path)} cannot be read: it is named like a {codec} archive and {found}; "
                "fetch it again, or rename it"
            )
        unpacked = (
            XzReader(raw) if codec == "xz" else pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)
        )
        yield CappedReader(unpacked, raw, path), raw


def check_head(head: bytes, path: Path) -> None:
    """Refuse content that is no UTF-8 text, judged by its first HEAD_BYTES."""
    for magic, what in OTHER_CONTENTS:
        if head.startswith(magic):
            raise SourceError(f"{escape(path)} cannot be read as text: it is {what}")


class CappedReader:
    """An unpacked stream that gives full reads and stops at an archive that unpacks to far too much."""

    def __init__(self, unpacked: Readable, raw: BinaryIO, path: Path):
        self._unpacked, self._raw, self._path = unpacked, raw, path
        self._num_bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (part := self._unpacked.read(min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
            self._num_bytes += len(part)
            if self._num_bytes > max(MIN_BOMB_BYTES, MAX_EXPANSION * self._raw.tell()):
                raise SourceError(
                    f"{escape(self._path)} cannot be read: {self._raw.tell()} packed bytes gave more than "
                    f"{self._num_bytes}, over {MAX_EXPANSION} times as many; if that is right, unpack it"
                )
        return b"".join(parts)


class XzReader:
    """Unpacks .xz streams one after the other; lzma.LZMAFile ignores what it cannot read behind the first."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw
        self._decoder = self._make_decoder()

    @staticmethod
    def _make_decoder() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, none only at the end."""
        while True:
            if self._decoder.eof:
                rest = self._skip_padding(self._decoder.unused_data)
                if not rest:
                    return b""
                self._decoder = self._make_decoder()
            elif self._decoder.needs_input:
                rest = self._raw.read(CHUNK_BYTES)
                if not rest:
                    raise EOFError("the archive ends early")
            else:
                rest = b""
            if data := self._decoder.decompress(rest, size):
                return data

    def _skip_padding(self, rest: bytes) -> bytes:
        """What follows the zero bytes allowed between streams."""
        while not (rest := rest.lstrip(b"\0")):
            rest = self._raw.read(CHUNK_BYTES)
            if not rest:
                return b""
        return rest
