"""The hub: datasets of the Hugging Face hub, or of a folder laid out like one, read column by column."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipes.documents import Batch, SourceError, Split, pc
from data_pipes.files import hash_file

BATCH_DOCUMENTS = 10_000


@dataclass(frozen=True)
class HubSource:
    """A dataset of the hub, or a folder of Parquet, JSON, CSV or text files that `datasets` can load.

    Attributes:
        path: hub id or folder.
        name: the dataset's configuration.
        dataset_split: which of the dataset's own splits is read; slices such as `train[:10%]` work.
        revision: commit or tag on the hub; without one, a prepared store does not notice changes there.
        split: which of our splits the documents go to.
    """

    path: str
    name: str | None = None
    dataset_split: str = "train"
    text_key: str = "text"
    group_key: str | None = None
    revision: str | None = None
    split: Split = "auto"
    kind: str = "hub"


def find_folder(source: HubSource) -> Path | None:
    """The local folder that the source names; None for a hub id."""
    folder = Path(source.path).expanduser()
    return folder if folder.is_dir() else None


def read_dataset(source: HubSource) -> Iterator[Batch]:
    """Read the dataset batch by batch; a null text is an empty document.

    Raises:
        SourceError: the dataset cannot be loaded, or lacks a column, or a document has no group.
    """
    dataset = _load_dataset(source)
    for key, value in (("text_key", source.text_key), ("group_key", source.group_key)):
        if value is not None and value not in dataset.column_names:
            raise SourceError(
                f"dataset {source.path!r} has no column {value!r}, wanted by {key}; "
                f"its columns are {', '.join(dataset.column_names)}"
            )
    for table in dataset.with_format("arrow").iter(batch_size=BATCH_DOCUMENTS):
        texts = pc.fill_null(_cast_column(table, source.text_key, source), "")
        groups = None
        if source.group_key is not None:
            groups = _cast_column(table, source.group_key, source)
            if groups.null_count:
                raise SourceError(
                    f"dataset {source.path!r}: {groups.null_count} documents have nothing under "
                    f"{source.group_key!r}, wanted by group_key; correct group_key or the dataset"
                )
        yield Batch(texts, groups, source.split)


def hash_dataset(source: HubSource, cache_root: Path) -> dict:
    """What the dataset's content depends on: the files of a folder, or the hub id and its revision.

    The names of files count here, inside the folder, since they decide which split a file belongs to.
    """
    settings = asdict(source)
    folder = find_folder(source)
    if folder is None:
        return settings
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    # `datasets` reads no hidden file either.
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    del settings["path"]
    return settings | {"files": {name.as_posix(): hash_file(folder / name, cache_root) for name in names}}


def count_dataset(source: HubSource) -> tuple[int, int, bool] | None:
    """Documents, characters (after the first batch), and whether all were read; None for a hub id."""
    if find_folder(source) is None:
        return None
    num_documents = len(_load_dataset(source))
    first = next(read_dataset(source), None)
    if first is None:
        return 0, 0, True
    num_characters = pc.sum(pc.utf8_length(first.texts)).as_py() or 0
    is_exact = first.num_documents == num_documents
    return num_documents, round(num_characters * num_documents / first.num_documents), is_exact


def _load_dataset(source: HubSource) -> Any:
    # Imported here: it takes half a second, and most recipes have no hub source.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    folder = find_folder(source)
    path = source.path if folder is None else str(folder)
    try:
        return load_dataset(path, source.name, split=source.dataset_split, revision=source.revision)
    # It says RuntimeError to a dataset that is a script, ValueError to an unknown split or configuration.
    except (
        ConnectionError,
        FileNotFoundError,
        HfHubHTTPError,
        DatasetsError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = f"{error}" if error.__cause__ is None else f"{error}: {error.__cause__}"
        remedy = (
            "connect to the hub (and unset HF_HUB_OFFLINE), or give a local folder with its files as path"
            if folder is None
            else "correct path, name and dataset_split, or the files"
        )
        raise SourceError(f"dataset {source.path!r} cannot be loaded: {reason}; {remedy}") from error


def _cast_column(table: pa.Table, key: str, source: HubSource) -> pa.StringArray:
    column = table.column(key)
    try:
        whole = column.cast(pa.string()).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"dataset {source.path!r}: column {key!r} holds {column.type}, wanted strings; correct the key"
        ) from error
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
