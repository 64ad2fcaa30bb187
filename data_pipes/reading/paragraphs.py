"""Paragraphs and whole files: documents of several lines, their line ends as LF."""

from collections.abc import Iterator
from pathlib import Path

from data_pipes.reading import lines
from data_pipes.reading.archives import Readable
from data_pipes.reading.intake import Intake
from data_pipes.reading.lines import EXCERPT_BYTES, MESSAGES, Block, decode_excerpt, read_blocks


def read_paragraphs(path: Path, intake: Intake, stream: Readable | None = None) -> Iterator[list[str]]:
    """Runs of lines that are not blank, some at a time; a bad line makes its paragraph bad."""
    cutter = ParagraphCutter(path, intake)
    for block in read_blocks(path, stream):
        if paragraphs := cutter.take(block):
            yield paragraphs
    if paragraphs := cutter.finish():
        yield paragraphs


class ParagraphCutter:
    """Cuts blocks into paragraphs; holds the one that the last block left open."""

    def __init__(self, path: Path, intake: Intake):
        self._path, self._intake = path, intake
        self._held: list[str] = []
        self._first_line = self._num_characters = 0
        self._is_too_long = False

    def take(self, block: Block) -> list[str]:
        """The good paragraphs that end in this block."""
        if block.is_too_long:
            self._hold(decode_excerpt(block.data), block.first_line)
            self._is_too_long = True
            return []
        # Bytes that are no UTF-8 become lone surrogates, which no UTF-8 gives.
        text = block.data.decode("utf-8", "surrogateescape").replace("\r\n", "\n").removesuffix("\r")
        found = []
        for number, line in enumerate(text.removesuffix("\n").split("\n"), block.first_line):
            if line.strip():
                self._hold(line, number)
            elif self._held:
                found += self.finish()
        return found

    def _hold(self, line: str, number: int) -> None:
        if not self._held:
            self._first_line = number
        self._num_characters += len(line) + 1
        if self._num_characters > lines.MAX_LINE_BYTES:
            self._is_too_long = True
            del self._held[1:]
        if not self._is_too_long or not self._held:
            self._held.append(line)

    def finish(self) -> list[str]:
        """End the open paragraph; give it if there is a good one."""
        if not self._held:
            return []
        paragraph = "\n".join(self._held)
        reason = "too_long" if self._is_too_long else find_bad_text(paragraph)
        place = f"{self._path}, paragraph at line {self._first_line}"
        self._held, self._num_characters, self._is_too_long = [], 0, False
        return _judge(paragraph, reason, place, self._intake)


def read_whole(path: Path, intake: Intake) -> list[str]:
    """The whole file as one document; none if it is blank or bad."""
    parts: list[bytes] = []
    num_bytes = 0
    for block in read_blocks(path):
        num_bytes += len(block.data)
        parts.append(block.data)
        if block.is_too_long or num_bytes > lines.MAX_LINE_BYTES:
            return _judge(parts[0][:EXCERPT_BYTES].decode("utf-8", "replace"), "too_long", f"{path}", intake)
    text = b"".join(parts).decode("utf-8", "surrogateescape").replace("\r\n", "\n").removesuffix("\r")
    return _judge(text, find_bad_text(text), f"{path}", intake)


def find_bad_text(text: str) -> str | None:
    """Why a text decoded with surrogateescape is none; None if it is one."""
    if "\0" in text:
        return "nul"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "not_utf8"
    return None


def _judge(text: str, reason: str | None, place: str, intake: Intake) -> list[str]:
    if reason is not None:
        message = MESSAGES[reason].format(lines.MAX_LINE_BYTES)
        excerpt = decode_excerpt(text[:EXCERPT_BYTES].encode("utf-8", "surrogateescape"))
        intake.reject(reason, place, message, excerpt)
        intake.count(num_lines=1)
        return []
    is_blank = not text.strip()
    intake.count(num_lines=1, num_blank=int(is_blank), num_good=int(not is_blank))
    return [] if is_blank else [text]
