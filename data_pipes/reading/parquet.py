"""Parquet: rows of files, and of Arrow tables from elsewhere, as documents. A null text is blank.

Shapes: R rows of a table.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data_pipes.documents import Batch, SourceError, Split, pc
from data_pipes.reading import lines
from data_pipes.reading.archives import MAX_EXPANSION, MIN_BOMB_BYTES, open_file
from data_pipes.reading.columns import (
    BATCH_BYTES,
    BATCH_ROWS,
    Columns,
    cut_batches,
    fill_nulls,
    make_column,
    repeat_empty,
    view_mask,
    view_numbers,
)
from data_pipes.reading.intake import Intake, escape, name_choices
from data_pipes.reading.lines import EXCERPT_BYTES, MESSAGES, decode_excerpt
from data_pipes.reading.records import Fields

# Few rows at once: a dictionary page lets a small file hold 100,000 copies of a value of 1 MiB.
STEP_ROWS = 1024
STEP_BYTES = 1 << 28
BUFFER_BYTES = 1 << 20


def read_parquet(path: Path, fields: Fields, split: Split, intake: Intake) -> Iterator[Batch]:
    """Documents of one row each.

    Raises:
        SourceError: the file is no Parquet file, is damaged or lacks a column; a row is bad (policy `raise`).
    """
    first_row = 1
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        check_columns(names, fields, escape(path))
        wanted = [name for name in fields.names if name in names]
        _check_expansion(file, wanted, path)
        for table in _read_tables(file, wanted, path):
            columns = take_table(table, first_row, fields, escape(path), intake)
            first_row += table.num_rows
            yield from cut_batches(columns, split)


@contextmanager
def open_parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A Parquet file, its metadata read.

    Raises:
        SourceError: it is none, or damaged, or changes until it is left.
    """
    with open_file(path) as raw:
        try:
            file = pyarrow.parquet.ParquetFile(
                pa.PythonFile(raw, mode="r"),
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
                page_checksum_verification=True,
            )
        except (pa.ArrowException, ValueError, OSError) as error:
            raise _translate(error, path) from error
        yield file


def _translate(error: Exception, path: Path) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return SourceError(f"{escape(path)} cannot be read as Parquet: {error}; fetch it again, or name its kind")


def _read_tables(file: pyarrow.parquet.ParquetFile, wanted: list[str], path: Path) -> Iterator[pa.Table]:
    """Steps of rows, joined to tables of about BATCH_BYTES."""
    held: list[pa.RecordBatch] = []
    for step in _read_steps(file, wanted, path):
        held.append(step)
        if sum(part.nbytes for part in held) >= BATCH_BYTES or sum(map(len, held)) + STEP_ROWS > BATCH_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _read_steps(file: pyarrow.parquet.ParquetFile, wanted: list[str], path: Path) -> Iterator[pa.RecordBatch]:
    """Few rows at a time, of each group as few as keep a step below STEP_BYTES."""
    for group in range(file.num_row_groups):
        num_rows = _choose_step(file, group, wanted, path)
        steps = file.iter_batches(batch_size=num_rows, row_groups=[group], columns=wanted, use_threads=False)
        while (step := _read_step(steps, path)) is not None:
            yield step


def _choose_step(file: pyarrow.parquet.ParquetFile, group: int, wanted: list[str], path: Path) -> int:
    """Rows of a step: all of them could hold the longest value of a dictionary page."""
    suspects = [
        column.path_in_schema
        for column in _list_chunks(file, group, wanted)
        if column.has_dictionary_page and column.total_uncompressed_size * STEP_ROWS > STEP_BYTES
    ]
    if not suspects:
        return STEP_ROWS
    try:
        with pyarrow.parquet.ParquetFile(path, read_dictionary=suspects, metadata=file.metadata) as probe:
            first = next(probe.iter_batches(batch_size=1, row_groups=[group], columns=suspects))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _translate(error, path) from error
    longest = 1
    for column in first.columns:
        if pa.types.is_dictionary(column.type) and len(column.dictionary):
            longest = max(longest, pc.max(pc.binary_length(column.dictionary)).as_py() or 1)
    return max(1, min(STEP_ROWS, STEP_BYTES // longest))


def _check_expansion(file: pyarrow.parquet.ParquetFile, wanted: list[str], path: Path) -> None:
    """Refuse columns that unpack to far too much, as `archives` does."""
    for group in range(file.num_row_groups):
        for column in _list_chunks(file, group, wanted):
            packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
            if unpacked > max(MIN_BOMB_BYTES, MAX_EXPANSION * packed):
                raise SourceError(
                    f"{escape(path)} cannot be read: {packed} packed bytes of the column "
                    f"{escape(column.path_in_schema)} hold {unpacked}, over {MAX_EXPANSION} times as "
                    "many; if that is right, write it without compression"
                )


def _list_chunks(file: pyarrow.parquet.ParquetFile, group: int, wanted: list[str]) -> list[Any]:
    chunks = file.metadata.row_group(group)
    columns = [chunks.column(index) for index in range(chunks.num_columns)]
    return [column for column in columns if column.path_in_schema in wanted]


def _read_step(steps: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    try:
        return next(steps, None)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise _translate(error, path) from error


def check_columns(names: list[str], fields: Fields, place: str) -> None:
    """Refuse a table without the column of the text or of the group."""
    for key, name in (("text_key", fields.text_key), ("group_key", fields.group_key)):
        if name is not None and names.count(name) != 1:
            found = "no column" if name not in names else f"{names.count(name)} columns"
            raise SourceError(
                f"{place}: {found} {name!r}, wanted by {key}; its columns are {name_choices(names)}"
            )


def take_table(table: pa.Table, first_row: int, fields: Fields, place: str, intake: Intake) -> Columns:
    """The documents of a table's rows; the intake counts all rows.

    Raises:
        SourceError: a column holds no strings, or a row is bad (policy `raise`).
    """
    texts, is_text = _build_strings(table, fields.text_key, place)
    groups = None if fields.group_key is None else _build_strings(table, fields.group_key, place)[0]
    is_blank = _find_nulls(table, fields.text_key)
    is_long = view_numbers(pc.binary_length(texts)) > lines.MAX_LINE_BYTES
    has_group = np.ones(len(texts), bool)
    if groups is not None:
        has_group = ~_find_nulls(table, fields.group_key)
    is_good = np.ones(len(texts), bool)
    is_good[is_blank] = False
    for reason, is_fit, message in (
        ("not_utf8", is_text, MESSAGES["not_utf8"]),
        ("too_long", ~is_long, MESSAGES["too_long"].format(lines.MAX_LINE_BYTES)),
        (
            "no_group",
            has_group,
            f"nothing under {fields.group_key!r}, wanted by group_key; correct group_key",
        ),
    ):
        bad = np.flatnonzero(is_good & ~is_fit)

        def describe(index: int, bad: np.ndarray = bad, message: str = message) -> tuple[str, str, str]:
            row = int(bad[index])
            return f"{place}, row {first_row + row}", message, _excerpt(table, fields.text_key, row)

        intake.reject_each(reason, len(bad), describe)
        is_good &= is_fit
    num_good = int(np.count_nonzero(is_good))
    intake.count(num_lines=len(texts), num_good=num_good, num_blank=int(np.count_nonzero(is_blank)))
    carried = {name: _carry_column(table, name, place) for name in fields.carry}
    return Columns(texts, groups, carried).filter(is_good)


def _find_nulls(table: pa.Table, key: str | None) -> np.ndarray:
    return view_mask(join_chunks(table.column(key).is_null()))


def _excerpt(table: pa.Table, key: str, row: int) -> str:
    value = table.column(key)[row]
    if not _holds_bytes(value.type):
        return str(value.as_py())
    return decode_excerpt(value.cast(pa.large_binary()).as_py()[:EXCERPT_BYTES])


def _build_strings(table: pa.Table, key: str, place: str) -> tuple[pa.StringArray, np.ndarray]:
    """A column as strings, null as "", and bool [R] that is false where the bytes are not UTF-8."""
    column = table.column(key)
    try:
        # Parquet does not promise that its strings are UTF-8, and only a cast from bytes looks.
        raw = join_chunks(column.cast(pa.binary() if _holds_bytes(column.type) else pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{place}: column {key!r} holds {column.type}, wanted strings; correct the key"
        ) from error
    try:
        return fill_nulls(raw.cast(pa.string())), np.ones(len(raw), bool)
    except pa.ArrowInvalid:
        values = raw.to_pylist()
        is_text = np.array([value is None or _is_utf8(value) for value in values], bool)
        kept = [
            value.decode() if value is not None and is_fit else ""
            for value, is_fit in zip(values, is_text, strict=True)
        ]
        return make_column(kept)[0], is_text


def _holds_bytes(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _carry_column(table: pa.Table, name: str, place: str) -> pa.StringArray:
    """A column as strings, null as "", lists and structures as JSON; "" everywhere if it is not there."""
    if name not in table.column_names:
        return repeat_empty(table.num_rows)
    kind = table.column(name).type
    if pa.types.is_nested(kind):
        values = table.column(name).to_pylist()
        return make_column(["" if value is None else _write_json(value) for value in values])[0]
    return _build_strings(table, name, place)[0]


def _write_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def join_chunks(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
