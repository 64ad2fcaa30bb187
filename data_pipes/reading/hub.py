"""The hub: datasets of the Hugging Face hub, or of a folder laid out like one, read column by column."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipes.documents import Batch, SourceError, Split, pc
from data_pipes.reading.archives import hash_steadily
from data_pipes.reading.columns import cut_batches
from data_pipes.reading.intake import Intake
from data_pipes.reading.parquet import check_columns, take_table
from data_pipes.reading.records import Fields

BATCH_DOCUMENTS = 10_000


@dataclass(frozen=True)
class HubSource:
    """A dataset of the hub, or a folder of Parquet, JSON, CSV or text files that `datasets` can load.

    Attributes:
        path: hub id or folder.
        name: the dataset's configuration.
        dataset_split: which of the dataset's own splits is read; slices such as `train[:10%]` work without
            streaming.
        revision: commit or tag on the hub; without one, a prepared store does not notice changes there.
        streaming: read while downloading, without a copy on this machine.
        split: which of our splits the documents go to.
        weight: how often the source is drawn, against the others; not read here.
    """

    path: str
    name: str | None = None
    dataset_split: str = "train"
    text_key: str = "text"
    group_key: str | None = None
    revision: str | None = None
    streaming: bool = False
    split: Split = "auto"
    weight: float | None = None
    kind: str = "hub"


def find_folder(source: HubSource) -> Path | None:
    """The local folder that the source names; None for a hub id."""
    folder = Path(source.path).expanduser()
    return folder if folder.is_dir() else None


def read_dataset(
    source: HubSource, intake: Intake | None = None, carry: tuple[str, ...] = ()
) -> Iterator[Batch]:
    """Read the dataset batch by batch; a null text is blank.

    Raises:
        SourceError: the dataset cannot be loaded, or lacks a column, or a document has no group.
    """
    intake = intake or Intake()
    fields = Fields(source.text_key, source.group_key, tuple(dict.fromkeys(carry)))
    place = f"dataset {source.path!r}"
    dataset = _load_dataset(source)
    first_row = 1
    for table in _read_tables(dataset, fields, source):
        check_columns(table.column_names, fields, place)
        columns = take_table(table, first_row, fields, place, intake)
        first_row += table.num_rows
        yield from cut_batches(columns, source.split)


def _read_tables(dataset: Any, fields: Fields, source: HubSource) -> Iterator[pa.Table]:
    names = dataset.column_names
    if names is not None:
        check_columns(names, fields, f"dataset {source.path!r}")
        dataset = dataset.select_columns([name for name in fields.names if name in names])
    tables = iter(dataset.with_format("arrow").iter(batch_size=BATCH_DOCUMENTS))
    while True:
        with _translate_errors(source):
            table = next(tables, None)
        if table is None:
            return
        yield table


def hash_dataset(source: HubSource, cache_root: Path | None) -> dict:
    """What the dataset's content depends on: the files of a folder, or the hub id and its revision.

    The names of files count here, inside the folder, since they decide which split a file belongs to.
    """
    settings = asdict(source)
    del settings["weight"]
    folder = find_folder(source)
    if folder is None:
        return settings | {"commit": find_commit(source)}
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    # `datasets` reads no hidden file either.
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    del settings["path"]
    return settings | {"files": {name.as_posix(): hash_steadily(folder / name, cache_root) for name in names}}


def find_commit(source: HubSource) -> str | None:
    """The commit that a branch or tag meant when the hub's cache last saw it; None if it has not."""
    from huggingface_hub import constants

    if source.revision is None:
        return None
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{source.path.replace('/', '--')}" / "refs"
    reference = folder / source.revision
    return reference.read_text().strip() if reference.is_file() else None


def fetch_commit(source: HubSource) -> None:
    """Ask the hub what a branch or tag means: a store's key must be the same before and after reading.

    Where the hub cannot be asked nothing happens: reading will say so, or get by with what is here.
    """
    if find_folder(source) is not None or source.revision is None or find_commit(source) is not None:
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # No file matches: only the reference is noted in the hub's cache.
        snapshot_download(source.path, repo_type="dataset", revision=source.revision, allow_patterns=[])
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return


def count_dataset(source: HubSource) -> tuple[int, int, bool] | None:
    """Documents, characters (after the first batch), and whether all were read.

    None for a hub id, and for what is to be streamed: `datasets` counts only what it has copied.
    """
    if find_folder(source) is None or source.streaming:
        return None
    dataset = _load_dataset(source)
    fields = Fields(source.text_key, source.group_key)
    table = next(_read_tables(dataset, fields, source), None)
    if table is None:
        return 0, 0, True
    columns = take_table(table, 1, fields, f"dataset {source.path!r}", Intake("skip", 1.0))
    scale = len(dataset) / table.num_rows
    num_characters = pc.sum(pc.utf8_length(columns.texts)).as_py() or 0
    return round(len(columns.texts) * scale), round(num_characters * scale), scale == 1


def _load_dataset(source: HubSource) -> Any:
    # Imported here: it takes half a second, and most recipes have no hub source.
    from datasets import load_dataset

    folder = find_folder(source)
    path = source.path if folder is None else str(folder)
    with _translate_errors(source):
        return load_dataset(
            path,
            source.name,
            split=source.dataset_split,
            revision=source.revision,
            streaming=source.streaming,
        )


@contextmanager
def _translate_errors(source: HubSource) -> Iterator[None]:
    """Turn what `datasets` says about a dataset into SourceError."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # It says RuntimeError to a dataset that is a script, ValueError to an unknown split or configuration,
    # TypeError (when streaming) to a file whose columns differ.
    except (
        ConnectionError,
        FileNotFoundError,
        HfHubHTTPError,
        DatasetsError,
        pa.ArrowException,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = f"{error}" if error.__cause__ is None else f"{error}: {error.__cause__}"
        remedy = (
            "connect to the hub (and unset HF_HUB_OFFLINE), or give a local folder with its files as path"
            if find_folder(source) is None
            else "correct path, name and dataset_split, or the files"
        )
        raise SourceError(f"dataset {source.path!r} cannot be loaded: {reason}; {remedy}") from error
