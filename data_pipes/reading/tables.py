"""Tables: CSV and TSV with a header line, split by Arrow where no quote occurs, else by the csv module.

Both ways give the same documents. Line ends inside quotes become LF. A line of white space between records,
and a record whose text is white space, are blank. A bad record takes all the lines that its quotes hold
together with it, so that a quote which is never closed shows in the count. After a record longer than
MAX_LINE_BYTES reading goes on at the next line.

Shapes: L lines of a block, R records.
"""

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipes.documents import Batch, SourceError, Split, pc
from data_pipes.reading import lines
from data_pipes.reading.archives import PACKINGS, Readable
from data_pipes.reading.columns import (
    Columns,
    cut_batches,
    find_filled,
    make_mask,
    pick_elements,
    repeat_empty,
    view_numbers,
)
from data_pipes.reading.intake import BadInputError, Intake, escape, name_choices
from data_pipes.reading.lines import EXCERPT_BYTES, MESSAGES, Block, Lines, decode_excerpt, read_blocks
from data_pipes.reading.records import Fields, Row, build_rows

TAB_SUFFIXES = (".tsv", ".tab")
# Stand for NUL in text that was decoded with surrogateescape, which gives U+DC80 to U+DCFF only.
NUL_MARK = "\udc00"


@dataclass(frozen=True)
class Header:
    """The columns of a table, and where the wanted ones stand; None for a carried one that is not there."""

    names: tuple[str, ...]
    text: int
    group: int | None
    carried: tuple[int | None, ...]


def choose_delimiter(path: Path, delimiter: str | None) -> str:
    """The delimiter given, else a tab for .tsv and .tab and a comma for all others."""
    if delimiter is not None:
        return delimiter
    inner = path.with_suffix("") if path.suffix in PACKINGS else path
    return "\t" if inner.suffix in TAB_SUFFIXES else ","


def read_csv(
    path: Path,
    fields: Fields,
    split: Split,
    intake: Intake,
    delimiter: str | None = None,
    stream: Readable | None = None,
) -> Iterator[Batch]:
    """Documents of one record each; an empty text is blank, an empty group is bad.

    Raises:
        SourceError: the file cannot be read, its header lacks a column, or a record is bad (policy `raise`).
    """
    reader = TableReader(path, fields, intake, choose_delimiter(path, delimiter))
    for block in read_blocks(path, stream):
        if (columns := reader.take(block)) is not None:
            yield from cut_batches(columns, split)
    reader.finish()


class TableReader:
    """Turns blocks into columns; holds the lines of a quoted record that the last block left open."""

    def __init__(self, path: Path, fields: Fields, intake: Intake, delimiter: str):
        self._path, self._fields, self._intake, self._delimiter = path, fields, intake, delimiter
        self._header: Header | None = None
        self._open: list[str] = []
        self._first_open = 0

    def take(self, block: Block) -> Columns | None:
        """The documents of the records that end in this block; None for none."""
        if block.is_too_long:
            self._drop_open("too_long")
            self._intake.count(num_lines=1)
            lines.reject_long_line(self._path, block, self._intake)
            return None
        data, number = lines.unify_line_ends(block.data), block.first_line
        if not self._open and b'"' not in data and b"\r" not in data:
            if self._header is None:
                data, number = self._take_plain_header(data, number)
            if not data:
                return None
            cut = lines.split_block(data)
            if self._header is not None and not cut.reasons:
                return self._split_plain(cut, number, self._header)
        text = data.decode("utf-8", "surrogateescape").replace("\0", NUL_MARK)
        return self._parse_quoted(list(io.StringIO(text, newline="\n")), number)

    def _take_plain_header(self, data: bytes, number: int) -> tuple[bytes, int]:
        """Read the header from the beginning of a block; what follows, and the number of its first line."""
        at = 0
        while at < len(data) and self._header is None:
            end = data.find(b"\n", at) + 1 or len(data)
            self._parse_quoted(
                [data[at:end].decode("utf-8", "surrogateescape").replace("\0", NUL_MARK)], number
            )
            at, number = end, number + 1
        return data[at:], number

    def finish(self) -> None:
        """Reject what is left: a record whose quote is never closed."""
        self._drop_open("bad_quotes")

    def _split_plain(self, cut: Lines, first_line: int, header: Header) -> Columns | None:
        column = cut.texts
        cells = pc.split_pattern(column, pattern=self._delimiter)
        is_fit = view_numbers(pc.list_value_length(cells)) == len(header.names)
        columns = self._pick(cells.filter(make_mask(is_fit)), header)
        is_blank = ~find_filled(column)
        has_text = find_filled(columns.texts)
        is_good = has_text
        if columns.groups is not None:
            is_good = has_text & (view_numbers(pc.binary_length(columns.groups)) > 0)
        is_blank[np.flatnonzero(is_fit)[~has_text]] = True
        is_bad = ~is_blank
        is_bad[np.flatnonzero(is_fit)[is_good]] = False
        for row in np.flatnonzero(is_bad).tolist():
            self._parse_quoted([column[row].as_py() + "\n"], first_line + row)
        num_good, num_blank = int(np.count_nonzero(is_good)), int(np.count_nonzero(is_blank))
        self._intake.count(num_lines=num_good + num_blank, num_good=num_good, num_blank=num_blank)
        return columns.filter(is_good) if num_good else None

    def _pick(self, cells: pa.ListArray, header: Header) -> Columns:
        texts = pick_elements(cells, header.text)
        absent = repeat_empty(len(cells))
        carried = {
            name: absent if place is None else pick_elements(cells, place)
            for name, place in zip(self._fields.carry, header.carried, strict=True)
        }
        groups = None if header.group is None else pick_elements(cells, header.group)
        return Columns(texts, groups, carried)

    def _parse_quoted(self, new_lines: list[str], first_line: int) -> Columns | None:
        held = [*self._open, *new_lines]
        first_line = self._first_open if self._open else first_line
        self._open, done, rows = [], 0, []
        limit = csv.field_size_limit(sum(map(len, held)))
        is_text = find_damage(held) is None
        try:
            while done < len(held):
                done = self._read_run(held, done, first_line, is_text, rows)
        finally:
            csv.field_size_limit(limit)
        return build_rows(rows, self._fields) if rows else None

    def _read_run(self, held: list[str], done: int, first_line: int, is_text: bool, rows: list[Row]) -> int:
        """Read records up to one that is too long or the end; how many lines are done."""
        is_spent: list[bool] = []
        feed = itertools.chain(held[done:], _note_end(is_spent))
        reader = csv.reader(feed, delimiter=self._delimiter, strict=True)
        start, num_taken = done, 0
        while done < len(held):
            try:
                cells = next(reader)
            except csv.Error as error:
                cells = error
            end = start + reader.line_num
            # Most records are a good line each; all others are judged one by one.
            if is_text and end == done + 1 and (row := take_row(cells, self._header)) is not None:
                rows.append(row)
                num_taken += 1
                done = end
                continue
            record = held[done:end]
            num_long = _count_too_long(record)
            if num_long or is_spent:
                self._open, self._first_open = record[: num_long or None], first_line + done
                done += len(self._open)
                if num_long:
                    self._drop_open("too_long")
                break
            rows += self._judge(cells, record, first_line + done)
            done = end
        self._intake.count(num_lines=num_taken, num_good=num_taken)
        return done

    def _judge(self, cells: list[str] | csv.Error, record: list[str], first_line: int) -> list[Row]:
        """The row of a record, given with its lines; none if it is blank, bad or the header."""
        problem = find_damage(record)
        is_blank = len(record) == 1 and not record[0].strip()
        if self._header is None and problem is None and not is_blank:
            self._header = self._read_header(cells, first_line)
            return []
        try:
            if problem is not None:
                raise BadInputError(problem, MESSAGES[problem])
            is_blank = is_blank or self._is_blank(cells)
        except BadInputError as bad:
            self._reject(bad, record, first_line)
            return []
        num_good = 0 if is_blank else len(record)
        self._intake.count(num_lines=len(record), num_good=num_good, num_blank=len(record) - num_good)
        row = None if is_blank else take_row(cells, self._header)
        return [] if row is None else [row]

    def _is_blank(self, cells: list[str] | csv.Error) -> bool:
        """Whether a record's text is white space; BadInputError if the record is bad."""
        if isinstance(cells, csv.Error):
            raise BadInputError("bad_quotes", f"not CSV ({cells}); double the quotes inside a quoted value")
        header = self._header
        if header is None or len(cells) != len(header.names):
            num_wanted = 0 if header is None else len(header.names)
            raise BadInputError(
                "wrong_width", f"{len(cells)} columns, and the header has {num_wanted}; correct the line"
            )
        if not cells[header.text].strip():
            return True
        if header.group is not None and not cells[header.group]:
            raise BadInputError("no_group", f"nothing under {self._fields.group_key!r}, wanted by group_key")
        return False

    def _read_header(self, cells: list[str] | csv.Error, first_line: int) -> Header:
        place = f"{escape(self._path)}, line {first_line}"
        if isinstance(cells, csv.Error):
            raise SourceError(f"{place}: the header is not CSV ({cells}); wanted the names of the columns")
        for key, name in (("text_key", self._fields.text_key), ("group_key", self._fields.group_key)):
            if name is not None and cells.count(name) != 1:
                found = "no column" if name not in cells else f"{cells.count(name)} columns"
                raise SourceError(
                    f"{place}: {found} {name!r}, wanted one by {key}; the columns are {name_choices(cells)}; "
                    f"correct {key} or the delimiter ({self._delimiter!r}), or add a header line"
                )
        text_key, group_key = self._fields.text_key, self._fields.group_key
        group = None if group_key is None else cells.index(group_key)
        carried = tuple(cells.index(name) if name in cells else None for name in self._fields.carry)
        return Header(tuple(cells), cells.index(text_key), group, carried)

    def _drop_open(self, reason: str) -> None:
        record, self._open = self._open, []
        if not record:
            return
        message = (
            "a quote opened here is never closed; close it, or double it if it is part of the value"
            if reason == "bad_quotes"
            else f"the record {MESSAGES['too_long'].format(lines.MAX_LINE_BYTES)}, or close its quote"
        )
        if self._header is None:
            raise SourceError(f"{escape(self._path)}, line {self._first_open}: in the header, {message}")
        self._reject(BadInputError(reason, message), record, self._first_open)

    def _reject(self, bad: BadInputError, record: list[str], first_line: int) -> None:
        excerpt = decode_excerpt(
            record[0][:EXCERPT_BYTES].replace(NUL_MARK, "\0").encode("utf-8", "surrogateescape")
        )
        place = f"{self._path}, line {first_line}"
        self._intake.reject(bad.reason, place, str(bad), excerpt, num_lines=len(record))
        self._intake.count(num_lines=len(record))


def _note_end(is_spent: list[bool]) -> Iterator[str]:
    """No line, but a note that one was asked for."""
    is_spent.append(True)
    yield from ()


def take_row(cells: list[str] | csv.Error, header: Header | None) -> Row | None:
    """The row of a good record that is not blank; None for any other."""
    if isinstance(cells, csv.Error) or header is None or len(cells) != len(header.names):
        return None
    text = cells[header.text]
    group = None if header.group is None else cells[header.group]
    if not text or text.isspace() or group == "":
        return None
    if not header.carried:
        return text, group
    return text, group, *("" if place is None else cells[place] for place in header.carried)


def _count_too_long(record: list[str]) -> int:
    """How many lines of a record it takes to exceed MAX_LINE_BYTES; 0 for a record that does not."""
    sizes = np.cumsum([len(line) for line in record])
    if len(record) == 1 or sizes[-1] <= lines.MAX_LINE_BYTES:
        return 0
    return int(np.searchsorted(sizes, lines.MAX_LINE_BYTES, "right")) + 1


def find_damage(record: list[str]) -> str | None:
    """Why the lines of a record are no text; None if they are."""
    if all(line.isascii() for line in record):
        return None
    text = "".join(record)
    if NUL_MARK in text:
        return "nul"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "not_utf8"
    return None
