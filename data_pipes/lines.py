"""Lines: text files read in blocks, in constant memory, plain or packed."""

import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from data_pipes.documents import SourceError, build_column_from_bytes, pc

BLOCK_BYTES = 4 << 20
UNPACK_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


def unpack(raw: BinaryIO, path: Path) -> BinaryIO:
    """An open file as what it holds, unpacked if its name ends in .gz or .xz."""
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportReturnType]
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)  # pyright: ignore[reportReturnType]
    return raw


def read_blocks(path: Path, stream: BinaryIO | None) -> Iterator[bytes]:
    """Blocks that end at a line's end (the last one excepted), without a byte order mark."""
    with path.open("rb") as raw:
        stream = stream or unpack(raw, path)
        try:
            mark = stream.read(3)
            pieces = [b"" if mark == b"\xef\xbb\xbf" else mark]
            while block := stream.read(BLOCK_BYTES):
                end = block.rfind(b"\n") + 1
                if end:
                    yield b"".join([*pieces, block[:end]])
                    pieces = [block[end:]]
                else:
                    pieces.append(block)
        except UNPACK_ERRORS as error:
            raise SourceError(f"{path} cannot be read: {error}; fetch it again") from error
        if last := b"".join(pieces):
            yield last


def read_lines(path: Path, stream: BinaryIO | None = None) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Lines that hold more than white space, and their numbers from 1."""
    num_lines = 0
    for block in read_blocks(path, stream):
        data = np.frombuffer(block, np.uint8)
        is_end = data == ord("\n")
        # A CR counts as part of the line's end only right before LF (or before the end of the file).
        is_dropped = is_end | ((data == ord("\r")) & np.append(is_end[1:], True))
        line_ends = np.append(np.flatnonzero(is_end) + 1, [] if is_end[-1] else [len(data)]).astype(np.int64)
        kept = np.concatenate(([0], np.cumsum(~is_dropped)))[line_ends]
        try:
            column = build_column_from_bytes(data[~is_dropped], np.diff(kept, prepend=0))
        except pa.ArrowInvalid as error:
            raise _locate_bad_bytes(path, block, num_lines) from error
        is_filled = pc.not_equal(pc.utf8_trim_whitespace(column), "").to_numpy(zero_copy_only=False)
        numbers = np.arange(1, len(column) + 1) + num_lines
        num_lines += len(column)
        if is_filled.any():
            yield column.filter(pa.array(is_filled)), numbers[is_filled]


def _locate_bad_bytes(path: Path, block: bytes, num_lines: int) -> SourceError:
    for number, line in enumerate(block.split(b"\n"), num_lines + 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            return SourceError(f"{path}, line {number}: not UTF-8 ({error}); convert the file to UTF-8")
    return SourceError(f"{path}, after line {num_lines}: not UTF-8; convert the file to UTF-8")


def read_text(path: Path) -> str:
    """The whole file, its line ends as LF."""
    block = b"".join(read_blocks(path, None))
    try:
        return block.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise _locate_bad_bytes(path, block, 0) from error


def read_paragraphs(path: Path, stream: BinaryIO | None = None) -> Iterator[list[str]]:
    """Paragraphs, which blank lines part, some at a time."""
    rest, num_lines = "", 0
    for block in read_blocks(path, stream):
        try:
            text = rest + block.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise _locate_bad_bytes(path, block, num_lines) from error
        num_lines += block.count(b"\n")
        *paragraphs, rest = re.split(r"\n(?:[^\S\n]*\n)+", text)
        if paragraphs := [paragraph.strip("\n") for paragraph in paragraphs if paragraph.strip()]:
            yield paragraphs
    if rest.strip():
        yield [rest.strip("\n")]
