"""Preparation: sources become a store, keyed by everything that its content depends on.

The planning half of a launcher needs `find_store` only, which imports neither torch nor transformers.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipes.building.preparation import Preparation
from data_pipes.documents import SourceError
from data_pipes.files import find_cache_root, hold_lock
from data_pipes.store import Store, is_whole

Progress = Callable[[str, int], None]
TOKENIZER_HASHES = "hashes-of-tokenizer"
BUILD_FOLDERS = ("hashes", "near")


def prepare_store(
    *,
    cache_root: Path | str | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    num_workers: int | None = None,
    **settings: Any,
) -> Store:
    """Open the store of these settings (see Preparation), building it first if it is not there.

    Several processes may ask at once: one builds, the others wait. A build that was killed goes on from its
    last save.

    Args:
        cache_root: where stores and packages are kept; see files.find_cache_root.
        progress: called with a stage ("tokenizer" or "rows") and the documents read so far.
        verify: compare every file's hash when opening (those of unchanged files are remembered).
        num_workers: processes that encode a large corpus; None: one a core. The store does not depend on it.
        settings: fields of Preparation; sources may be plain dictionaries.

    Raises:
        SourceError, RuleError, NormalizerError, TokenizerError: the request or the text is wrong.
        OverlapError: the splits share texts.
        StoreError: the store is there but damaged.
    """
    preparation = Preparation.of(settings)
    preparation.settle_sources()
    root = find_cache_root(cache_root)
    key = preparation.compute_key(root)
    folder = root / "stores" / key
    if not is_whole(folder):
        with hold_lock(root / "stores" / f"{key}.lock"):
            if not is_whole(folder):
                build_store(preparation, key, root, num_workers, progress or _ignore_progress)
    return Store.open(folder, verify, root)


def find_store(*, cache_root: Path | str | None = None, **settings: Any) -> Store | None:
    """The store of these settings if it has been built, without reading more than it takes to find its key.

    Its files are compared by size, not by hash.

    Raises:
        SourceError: a source is not there.
    """
    preparation = Preparation.of(settings)
    root = find_cache_root(cache_root)
    folder = root / "stores" / preparation.compute_key(root)
    return Store.open(folder, verify=False) if is_whole(folder) else None


def build_store(
    preparation: Preparation, key: str, root: Path, num_workers: int | None, progress: Progress
) -> None:
    """Build a store in its place; the caller holds its lock. Wrong input leaves nothing behind."""
    # Imported here: finding a store needs no tokenizer.
    from data_pipes.building.builder import PROGRESS, STATE, Builder
    from data_pipes.building.writer import write_manifest

    folder = root / "stores" / key
    if not (folder / STATE).is_file() and folder.is_dir():
        shutil.rmtree(folder)  # left by a build that died before its first save
    folder.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        tokenizer = _prepare_tokenizer(preparation, folder, root, progress)
        builder = Builder(preparation, key, folder, root, tokenizer)
        manifest = builder.build(cores if num_workers is None else num_workers, progress)
        if preparation.compute_key(root) != key:
            raise SourceError("a source has changed while it was read; prepare the data again")
    except ValueError:
        shutil.rmtree(folder)
        raise
    for name in (*BUILD_FOLDERS, TOKENIZER_HASHES):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / STATE).unlink(missing_ok=True)
    (folder / PROGRESS).unlink(missing_ok=True)
    write_manifest(folder, manifest, root)


def _prepare_tokenizer(preparation: Preparation, folder: Path, root: Path, progress: Progress) -> Path | None:
    """The store's own copy of the tokenizer, trained first if it is to be."""
    if preparation.kind == "characters":
        return None
    place, draft = folder / "tokenizer", folder / "tokenizer.partial"
    if place.is_dir():
        return place
    shutil.rmtree(draft, ignore_errors=True)
    # Imported here: transformers takes seconds.
    from data_pipes.tokens.words import load_tokenizer
    from data_pipes.vocab import train_tokenizer

    if preparation.train_tokenizer is None:
        load_tokenizer(Path(preparation.tokenizer or "")).save_pretrained(str(draft))
    else:
        texts = _read_training_texts(preparation, folder, root, lambda count: progress("tokenizer", count))
        train_tokenizer(texts, folder=draft, **preparation.train_tokenizer)
    draft.rename(place)
    return place


def _read_training_texts(
    preparation: Preparation, folder: Path, root: Path, progress: Callable[[int], None]
) -> Iterator[pa.StringArray]:
    """Cleaned, new documents of the training split, batch by batch; an overlap raises after the last one."""
    from data_pipes.building.encode import BatchEncoder
    from data_pipes.split import Splitter

    encoder = BatchEncoder(preparation)
    splitter = Splitter(preparation.evaluation_share, folder=folder / TOKENIZER_HASHES)
    num_read = 0
    for _, batch in preparation.read(root, preparation.open_intake()):
        num_read += batch.num_documents
        train, _ = splitter.part(encoder.clean(batch, Counter()))
        yield train.texts
        progress(num_read)
    splitter.check_overlap()


def _ignore_progress(stage: str, num_documents: int) -> None:
    pass
