"""Lines: text files read in blocks, in constant memory, plain or packed; bad lines go to the intake.

A line ends with LF; a CR right before it, or before the end of the file, belongs to the end. Nothing else
ends a line (not U+2028, U+0085 or VT). A byte order mark is dropped at the start of a file, and is a
character elsewhere.

Shapes: L lines of a block, B bytes of them without their ends, G lines of those that are good and not blank.
"""

import codecs
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipes.reading.archives import HEAD_BYTES, Readable, check_head, open_stream
from data_pipes.reading.columns import find_filled, make_binary, make_mask
from data_pipes.reading.intake import Intake

BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 64 << 20
EXCERPT_BYTES = 160

MESSAGES = {
    "not_utf8": "not UTF-8; convert the file to UTF-8",
    "nul": "holds a NUL byte, so this is no text; convert the file to UTF-8, or leave it out",
    "too_long": "is longer than {} bytes; part it",
}


@dataclass(frozen=True)
class Block:
    """Whole lines of a file.

    Attributes:
        data: the lines with their ends; of a line that is too long, its beginning.
        first_line: the number of the first, from 1.
        is_too_long: whether this stands for one line longer than MAX_LINE_BYTES.
    """

    data: bytes
    first_line: int
    is_too_long: bool = False


def read_blocks(path: Path, stream: Readable | None = None) -> Iterator[Block]:
    """Blocks of about BLOCK_BYTES, cut at the same places each time, without a byte order mark.

    Args:
        path: the file; its suffix says how it is packed.
        stream: its beginning, unpacked, to read instead of the file.

    Raises:
        SourceError: the file cannot be read, is no UTF-8 text as a whole, or changes meanwhile.
    """
    with open_stream(path) if stream is None else nullcontext((stream, None)) as (opened, _):
        yield from _cut_blocks(opened, path)


def _cut_blocks(stream: Readable, path: Path) -> Iterator[Block]:
    pieces: list[bytes] = []
    number, num_held, is_discarding = 1, 0, False
    head = stream.read(HEAD_BYTES)
    check_head(head, path)
    head = head.removeprefix(codecs.BOM_UTF8)
    is_last = False
    while not is_last:
        block = stream.read(BLOCK_BYTES)
        is_last = len(block) < BLOCK_BYTES
        block, head = head + block, b""
        if is_discarding and (end := block.find(b"\n") + 1):
            yield Block(pieces[0], number, is_too_long=True)
            block, pieces, is_discarding = block[end:], [], False
            number += 1
        if not is_discarding:
            end = len(block) if is_last else block.rfind(b"\n") + 1
            if end:
                data = b"".join([*pieces, block[:end]])
                yield from _set_long_lines_apart(data, number)
                number += data.count(b"\n")
                pieces, num_held = [], 0
            pieces.append(block[end:])
            num_held += len(block) - end
            if num_held > MAX_LINE_BYTES:
                pieces, num_held, is_discarding = [b"".join(pieces)[:EXCERPT_BYTES]], 0, True
    if last := b"".join(pieces):
        yield Block(last, number, is_discarding)


def _set_long_lines_apart(data: bytes, number: int) -> Iterator[Block]:
    """The lines as one block, or parted at those that are too long."""
    if len(data) <= MAX_LINE_BYTES:
        yield Block(data, number)
        return
    is_end = np.frombuffer(data, np.uint8) == ord("\n")
    ends = np.append(np.flatnonzero(is_end) + 1, [] if is_end[-1] else [len(data)]).astype(np.int64)
    starts = np.concatenate(([0], ends[:-1]))
    done = 0
    for line in np.flatnonzero(ends - starts - is_end[ends - 1] > MAX_LINE_BYTES).tolist():
        if line > done:
            yield Block(data[starts[done] : starts[line]], number + done)
        yield Block(data[starts[line] : starts[line] + EXCERPT_BYTES], number + line, is_too_long=True)
        done = line + 1
    if done < len(ends):
        yield Block(data[starts[done] :], number + done)


@dataclass(frozen=True)
class Lines:
    """The L lines of a block.

    Attributes:
        raw: Arrow bytes [L], without line ends.
        texts: those that are not bad, as strings.
        reasons: why some lines are bad, by their place in the block.
    """

    raw: pa.BinaryArray
    texts: pa.StringArray
    reasons: dict[int, str]

    def excerpt(self, line: int) -> str:
        """The beginning of a line."""
        return decode_excerpt(self.raw[line].as_py()[:EXCERPT_BYTES])

    @property
    def is_good(self) -> np.ndarray:
        """Bool [L], false where a line is bad."""
        is_good = np.ones(len(self.raw), bool)
        is_good[list(self.reasons)] = False
        return is_good


def split_block(block: bytes) -> Lines:
    """Cut a block at its line ends and find the bad lines."""
    block = unify_line_ends(block)
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    line_ends = ends if block.endswith(b"\n") else np.append(ends, len(block))
    data = np.frombuffer(block.replace(b"\n", b""), np.uint8)
    raw = make_binary(data, np.diff(line_ends, prepend=-1) - 1)
    texts = _cast_to_strings(raw)
    if texts is not None and b"\0" not in block:
        return Lines(raw, texts, {})
    reasons = _find_bad_lines(block, line_ends)
    is_good = np.ones(len(raw), bool)
    is_good[list(reasons)] = False
    return Lines(raw, raw.filter(make_mask(is_good)).cast(pa.string()), reasons)


def _cast_to_strings(raw: pa.BinaryArray) -> pa.StringArray | None:
    """The same as strings; None if one of them is not UTF-8."""
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def unify_line_ends(block: bytes) -> bytes:
    """A block whose lines end with LF alone; a CR at the end of the file counts as one, too."""
    if b"\r" not in block:
        return block
    unified = block.replace(b"\r\n", b"\n")
    return unified[:-1] + b"\n" if unified.endswith(b"\r") else unified


def _find_bad_lines(block: bytes, line_ends: np.ndarray) -> dict[int, str]:
    reasons: dict[int, str] = {}
    if b"\0" in block:
        places = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)
        reasons = dict.fromkeys(np.unique(np.searchsorted(line_ends, places)).tolist(), "nul")
    view, at = memoryview(block), 0
    # One turn for each line that is not UTF-8: decoding stops there and goes on behind its end.
    while at < len(view):
        try:
            codecs.utf_8_decode(view[at:], "strict", True)
            break
        except UnicodeDecodeError as error:
            line = int(np.searchsorted(line_ends, at + error.start))
            reasons.setdefault(line, "not_utf8")
            at = int(line_ends[line])
    return dict(sorted(reasons.items()))


def read_lines(
    path: Path, intake: Intake, stream: Readable | None = None
) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Lines that are UTF-8 and hold more than white space [G], and their numbers from 1, int64 [G].

    All lines are counted here except as good ones.
    """
    for block in read_blocks(path, stream):
        if block.is_too_long:
            intake.count(num_lines=1)
            reject_long_line(path, block, intake)
            continue
        lines = split_block(block.data)
        reject_bad_lines(path, block, lines, intake)
        column = lines.texts
        numbers = block.first_line + np.flatnonzero(lines.is_good)
        is_filled = find_filled(column)
        intake.count(num_lines=len(lines.raw), num_blank=int(np.count_nonzero(~is_filled)))
        if is_filled.all() and len(column):
            yield column, numbers
        elif is_filled.any():
            yield column.filter(make_mask(is_filled)), numbers[is_filled]


def reject_bad_lines(path: Path, block: Block, lines: Lines, intake: Intake) -> None:
    """Hand the lines that are not UTF-8 or hold NUL to the intake."""
    for reason in ("nul", "not_utf8"):
        places = [line for line, found in lines.reasons.items() if found == reason]

        def describe(index: int, places: list[int] = places, reason: str = reason) -> tuple[str, str, str]:
            line = places[index]
            return f"{path}, line {block.first_line + line}", MESSAGES[reason], lines.excerpt(line)

        intake.reject_each(reason, len(places), describe)


def reject_long_line(path: Path, block: Block, intake: Intake) -> None:
    """Hand a line that is too long to the intake."""
    message = MESSAGES["too_long"].format(MAX_LINE_BYTES)
    intake.reject("too_long", f"{path}, line {block.first_line}", message, decode_excerpt(block.data))


def decode_excerpt(data: bytes) -> str:
    """Bytes as text to show."""
    return data.decode("utf-8", "backslashreplace")
