"""Kinds of sources: what a recipe may name as text, as plain values."""

from dataclasses import dataclass, fields
from typing import Literal

from data_pipes.documents import SourceError, Split
from data_pipes.reading.hub import HubSource
from data_pipes.reading.intake import escape

UNITS = ("line", "paragraph", "file")
SPLITS = ("auto", "train", "evaluation")


@dataclass(frozen=True)
class TextSource:
    """Plain UTF-8 files.

    Attributes:
        path: a file, a glob (`**` included) or a folder; .gz, .xz and .zst are unpacked on the way.
        unit: what one document is; a paragraph is a run of lines that are not blank.
        split: which split the documents go to.
        weight: how often the source is drawn, against the others; not read here.
    """

    path: str
    unit: Literal["line", "paragraph", "file"] = "line"
    split: Split = "auto"
    weight: float | None = None
    kind: str = "text"


@dataclass(frozen=True)
class JsonlSource:
    """One JSON object a line; `group_key` names the field that keeps documents together in one split."""

    path: str
    text_key: str = "text"
    group_key: str | None = None
    split: Split = "auto"
    weight: float | None = None
    kind: str = "jsonl"


@dataclass(frozen=True)
class AlignedSource:
    """JSON lines of PaleoBERT records: doc_id, pub_id, cap_id, raw_text, norm_text, align_map."""

    path: str
    text_key: str = "norm_text"
    group_key: str | None = "pub_id"
    split: Split = "auto"
    weight: float | None = None
    kind: str = "aligned"


@dataclass(frozen=True)
class CsvSource:
    """CSV or TSV with a header line; the delimiter is a tab for .tsv and .tab, else a comma."""

    path: str
    text_key: str = "text"
    group_key: str | None = None
    delimiter: str | None = None
    split: Split = "auto"
    weight: float | None = None
    kind: str = "csv"


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files; a null text is blank."""

    path: str
    text_key: str = "text"
    group_key: str | None = None
    split: Split = "auto"
    weight: float | None = None
    kind: str = "parquet"


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
    weight: float | None = None
    kind: str = "package"


FileSource = TextSource | JsonlSource | AlignedSource | CsvSource | ParquetSource
Source = FileSource | PackageSource | HubSource
KINDS = {
    "text": TextSource,
    "jsonl": JsonlSource,
    "aligned": AlignedSource,
    "csv": CsvSource,
    "parquet": ParquetSource,
    "package": PackageSource,
    "hub": HubSource,
}


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
    _check_values(given, kind)
    try:
        return KINDS[kind](**given)
    except TypeError as error:
        raise SourceError(f"a {kind} source lacks a key: {error}") from error


def _check_values(given: dict, kind: str) -> None:
    for key, known in (("unit", UNITS), ("split", SPLITS)):
        if key in given and given[key] not in known:
            raise SourceError(
                f"{key} {given[key]!r} of a {kind} source is not known; write one of {', '.join(known)}"
            )
    delimiter = given.get("delimiter", ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\0 ':
        raise SourceError(
            f"delimiter {escape(str(delimiter))!r} of a {kind} source cannot be used; "
            'write one character, such as "," or "\\t"'
        )
