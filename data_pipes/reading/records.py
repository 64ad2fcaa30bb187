"""Records: JSON lines, read block by block with Arrow, and line by line where Arrow refuses.

Both ways give the same documents. Arrow (26.0) is only shown lines that begin with `{` and end with `}`,
since it takes two objects on a line for two rows, an object on two lines for one, and crashes on `null`.

Shapes: L lines, D documents.
"""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from data_pipes.documents import Batch, Split, pc
from data_pipes.reading.archives import Readable
from data_pipes.reading.columns import Columns, cut_batches, fill_nulls, join_columns, make_column, view_mask
from data_pipes.reading.intake import BadInputError, Intake, name_choices
from data_pipes.reading.lines import EXCERPT_BYTES, read_lines

# Fewer lines than this are not parted further in search of the one that Arrow refuses.
MIN_FAST_LINES = 64
# Lines longer than this on average are left to Python, whose parser copies long strings at once. Arrow is 7.6
# times as fast on lines of 200 bytes, 1.4 on 2,000, 0.3 (plain text) to 1.6 (many escapes) on 5,000.
LONG_LINE_BYTES = 4096
JSON_SPACE = " \t\r"
LINE_END = make_column(["\n"])[0][0]
# Arrow takes these for numbers, and neither JSON nor Python does (it knows NaN, Infinity and -Infinity). A
# text that holds one is read more slowly. Patterns that begin with a letter are found 20 times faster.
ODD_NUMBERS = (re.compile(rb"Inf[\s,}\]]"), re.compile(rb"-NaN"))
# Types of so many fields are tried on a line nested too deeply for Python.
MAX_UNKNOWN_FIELDS = 6
# Python refuses to convert longer integers (4,300 digits).
MAX_INTEGER_DIGITS = 4000


@dataclass(frozen=True)
class Fields:
    """Which fields of a record are wanted: its text, the group that decides its split, others to carry."""

    text_key: str
    group_key: str | None = None
    carry: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, each once."""
        group = () if self.group_key is None else (self.group_key,)
        return tuple(dict.fromkeys((self.text_key, *group, *self.carry)))


class Digits(str):
    """An integer of so many digits that it stays as it is written."""


# A text, its group (None where none is wanted), and the carried fields.
Row = tuple[str | None, ...]


def read_jsonl(
    path: Path, fields: Fields, split: Split, intake: Intake, stream: Readable | None = None
) -> Iterator[Batch]:
    """Documents of one object a line.

    Raises:
        SourceError: the file, or under the policy `raise` a line, cannot be read.
    """
    for lines, numbers in read_lines(path, intake, stream):
        columns = parse_lines(lines, numbers, fields, intake, path)
        intake.count(num_good=len(columns.texts))
        yield from cut_batches(columns, split)


def parse_lines(
    lines: pa.StringArray, numbers: np.ndarray, fields: Fields, intake: Intake, path: Path
) -> Columns:
    """Parse lines [L]; the bad ones go to the intake under their numbers (int64 [L])."""
    is_long = pc.sum(pc.binary_length(lines)).as_py() > LONG_LINE_BYTES * len(lines)
    columns = None if is_long else _parse_fast(lines, fields)
    if columns is not None:
        is_whole = _find_whole(columns)
        if is_whole.all():
            return _finish(columns)
        for line in np.flatnonzero(~is_whole).tolist():
            _parse_each(lines[line : line + 1], numbers[line : line + 1], fields, intake, path)
        return _finish(columns.filter(is_whole))
    if is_long or len(lines) <= MIN_FAST_LINES:
        return _parse_each(lines, numbers, fields, intake, path)
    # Some line was refused: only its own part of the block is read line by line.
    middle = len(lines) // 2
    halves = (slice(None, middle), slice(middle, None))
    return join_columns([parse_lines(lines[half], numbers[half], fields, intake, path) for half in halves])


def _parse_fast(lines: pa.StringArray, fields: Fields) -> Columns | None:
    """The columns of the lines, nulls included, row by row; None if Arrow refuses or must not be asked."""
    trimmed = pc.utf8_trim(lines, characters=JSON_SPACE)
    is_object = pc.and_(pc.starts_with(trimmed, "{"), pc.ends_with(trimmed, "}"))
    if not len(lines) or not pc.all(is_object).as_py():
        return None
    whole = pa.ListArray.from_buffers(
        pa.list_(pa.string()),
        1,
        [None, pa.py_buffer(np.array([0, len(trimmed)], np.int32))],
        children=[trimmed],
    )
    data = pc.binary_join(whole, LINE_END)[0].as_buffer().to_pybytes()
    if any(number.search(data) for number in ODD_NUMBERS):
        return None
    for schema in _guess_schemas(trimmed[0].as_py(), fields):
        columns = _read_table(data, schema, fields)
        if columns is not None and len(columns.texts) == len(lines):
            return columns
    return None


def _guess_schemas(line: str, fields: Fields) -> Iterator[pa.Schema]:
    """Types of the wanted fields, by the first line; Arrow refuses a block where another line differs."""
    try:
        record = json.loads(line, parse_int=_parse_integer)
    except RecursionError:
        others = tuple(name for name in fields.names if name != fields.text_key)[:MAX_UNKNOWN_FIELDS]
        for types in itertools.product((pa.string(), pa.int64()), repeat=len(others)):
            guessed = dict(zip(others, types, strict=True))
            yield pa.schema([(name, guessed.get(name, pa.string())) for name in fields.names])
        return
    except ValueError:
        return
    integers = {name for name in fields.names if type(record.get(name)) is int}
    yield pa.schema([(name, pa.int64() if name in integers else pa.string()) for name in fields.names])


def _read_table(data: bytes, schema: pa.Schema, fields: Fields) -> Columns | None:
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        return _build_columns(table, fields)
    except pa.ArrowException:
        return None


def _build_columns(table: pa.Table, fields: Fields) -> Columns | None:
    found: dict[str, pa.StringArray] = {}
    for name in fields.names:
        column = table.column(name)
        if name == fields.text_key and not pa.types.is_string(column.type):
            return None
        column = column.cast(pa.string()).combine_chunks()
        column.validate(full=True)
        found[name] = column
    groups = None if fields.group_key is None else found[fields.group_key]
    carried = {name: found[name] for name in fields.carry}
    return Columns(found[fields.text_key], groups, carried)


def _find_whole(columns: Columns) -> np.ndarray:
    """Bool [L], true where neither the text nor the group is missing."""
    is_whole = view_mask(columns.texts.is_valid())
    return is_whole if columns.groups is None else is_whole & view_mask(columns.groups.is_valid())


def _finish(columns: Columns) -> Columns:
    carried = {name: fill_nulls(column) for name, column in columns.carried.items()}
    return Columns(columns.texts, columns.groups, carried)


def _parse_each(
    lines: pa.StringArray, numbers: np.ndarray, fields: Fields, intake: Intake, path: Path
) -> Columns:
    rows: list[Row] = []
    for line, number in zip(lines.to_pylist(), numbers.tolist(), strict=True):
        try:
            rows.append(_parse_line(line, fields))
        except BadInputError as bad:
            intake.reject(bad.reason, f"{path}, line {number}", str(bad), line[:EXCERPT_BYTES])
    return build_rows(rows, fields)


def _parse_line(line: str, fields: Fields) -> Row:
    try:
        record = json.loads(line, parse_int=_parse_integer)
    except RecursionError:
        return _parse_deep(line, fields)
    except ValueError as error:
        raise BadInputError("not_json", f"not JSON ({error}); wanted one object a line") from error
    return take_fields(record, fields)


def _parse_deep(line: str, fields: Fields) -> Row:
    """A line nested too deeply for Python, whose limit depends on the stack; Arrow knows no recursion."""
    columns = _parse_fast(make_column([line])[0], fields)
    if columns is None:
        raise BadInputError("not_json", "not JSON, or nested too deeply; wanted one object a line")
    found = {name: column[0].as_py() for name, column in columns.carried.items()}
    if columns.groups is not None and fields.group_key is not None:
        found[fields.group_key] = columns.groups[0].as_py()
    found[fields.text_key] = columns.texts[0].as_py()
    return take_fields(found, fields)


def take_fields(record: Any, fields: Fields) -> Row:
    """A record's text, group and carried fields.

    Raises:
        BadInputError: the record is no object, or lacks a text or the wanted group.
    """
    if not isinstance(record, dict):
        wanted = f"wanted an object with the key {fields.text_key!r}"
        raise BadInputError("not_an_object", f"found {type(record).__name__}, {wanted}")
    text = record.get(fields.text_key)
    if type(text) is not str:
        is_missing = text is None
        found = "no key" if fields.text_key not in record else f"{type(text).__name__} under"
        raise BadInputError(
            "no_text" if is_missing else "not_a_string",
            f"{found} {fields.text_key!r}, wanted a string; "
            f"its keys are {name_choices(record)}; correct text_key or the file",
        )
    group = None
    if fields.group_key is not None:
        group = write_value(record.get(fields.group_key))
        if group is None:
            raise BadInputError(
                "no_group", f"no key {fields.group_key!r}, wanted by group_key; correct group_key or the file"
            )
    return text, group, *(write_value(record.get(name)) or "" for name in fields.carry)


def write_value(value: Any) -> str | None:
    """A field's value as a string: strings as they are, null as None, anything else as JSON."""
    if value is None:
        return None
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def build_rows(rows: list[Row], fields: Fields) -> Columns:
    """Rows of `take_fields` as columns."""
    texts, is_damaged = make_column([row[0] or "" for row in rows])
    groups = None if fields.group_key is None else make_column([row[1] or "" for row in rows])[0]
    carried = {
        name: make_column([row[place] or "" for row in rows])[0] for place, name in enumerate(fields.carry, 2)
    }
    return Columns(texts, groups, carried, is_damaged)


def _parse_integer(digits: str) -> int | Digits:
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else Digits(digits)
