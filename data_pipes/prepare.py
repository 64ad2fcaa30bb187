"""Preparation: sources become a store, keyed by everything that its content depends on.

The planning half of a launcher needs `find_store` only, which imports neither torch nor transformers.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipes.characters import encode_characters
from data_pipes.clean import apply_rules, drop_unfit_characters, parse_rules
from data_pipes.documents import Batch, SourceError
from data_pipes.files import find_cache_root, hash_file, hold_lock
from data_pipes.sources import Source, hash_source, parse_source, read_batches
from data_pipes.split import Splitter
from data_pipes.store import (
    FORMAT_VERSION,
    SPLITS,
    SplitWriter,
    Store,
    choose_rows_per_shard,
    write_manifest,
)

# Raise it when the same settings would give other bytes.
CONTENT_VERSION = 1
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Preparation:
    """All settings of a store.

    Attributes:
        sources: where the text comes from, in order.
        kind: rows of pieces, or rows of characters.
        row_length: most pieces in a row, [CLS] and [SEP] included (character rows leave room for both).
        clean: rules in order, see clean.RULES.
        tokenizer: folder of a trained one (words only).
        train_tokenizer: {kind, vocab_size} to train one on the training split instead.
        packing: several documents a row (words only).
        evaluation_share: share of the documents (or groups) held out, 0-1.
        limit: most documents to read, over all sources, in order.
    """

    sources: tuple[Source, ...]
    kind: Literal["words", "characters"]
    row_length: int
    clean: tuple[dict | str, ...] = ()
    tokenizer: str | None = None
    train_tokenizer: dict[str, Any] | None = None
    packing: bool = True
    evaluation_share: float = 0.01
    limit: int | None = None

    def __post_init__(self):
        if not self.sources:
            raise SourceError("data.sources is empty; name at least one text")
        if not 0 <= self.evaluation_share < 1:
            raise ValueError(f"evaluation_share is {self.evaluation_share}; wanted at least 0 and below 1")
        if self.row_length < 3:
            raise ValueError(f"row_length is {self.row_length}; wanted at least 3")
        num_tokenizers = (self.tokenizer is not None) + (self.train_tokenizer is not None)
        if num_tokenizers != (self.kind == "words"):
            wanted = "one of tokenizer and train_tokenizer" if self.kind == "words" else "no tokenizer"
            raise ValueError(f"rows of {self.kind} want {wanted}, and {num_tokenizers} were given")
        parse_rules(list(self.clean))


def prepare_store(
    *,
    cache_root: Path | str | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    **settings: Any,
) -> Store:
    """Open the store of these settings (see Preparation), building it first if it is not there.

    Several processes may ask at once: one builds, the others wait.

    Args:
        cache_root: where stores and packages are kept; see files.find_cache_root.
        progress: called with a stage ("tokenizer" or "rows") and the documents read so far.
        verify: compare every file's hash when opening.
        settings: fields of Preparation; sources may be plain dictionaries.

    Raises:
        SourceError, RuleError, TokenizerError: the request or the text is wrong.
        OverlapError: the splits share texts.
        StoreError: the store is there but damaged.
    """
    preparation = _build_preparation(settings)
    root = find_cache_root(cache_root)
    key = compute_key(preparation, root)
    folder = root / "stores" / key
    if not folder.is_dir():
        with hold_lock(root / "stores" / f"{key}.lock"):
            if not folder.is_dir():
                _build_store(preparation, key, root, progress or _ignore_progress)
    return Store.open(folder, verify)


def find_store(*, cache_root: Path | str | None = None, **settings: Any) -> Store | None:
    """The store of these settings if it has been built, without reading more than it takes to find its key.

    Its files are compared by size, not by hash.

    Raises:
        SourceError: a source is not there.
    """
    preparation = _build_preparation(settings)
    root = find_cache_root(cache_root)
    folder = root / "stores" / compute_key(preparation, root)
    return Store.open(folder, verify=False) if folder.is_dir() else None


def compute_key(preparation: Preparation, cache_root: Path) -> str:
    """A hash of all that decides the store's content; names and places of files do not count."""
    parts = asdict(preparation) | {
        "sources": [hash_source(source, cache_root) for source in preparation.sources],
        "versions": [CONTENT_VERSION, FORMAT_VERSION],
        "tokenizer": None
        if preparation.tokenizer is None
        else _hash_tokenizer(preparation.tokenizer, cache_root),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _build_preparation(settings: dict[str, Any]) -> Preparation:
    sources = tuple(parse_source(spec) for spec in settings.pop("sources"))
    tokenizer = settings.pop("tokenizer", None)
    clean = tuple(settings.pop("clean", None) or ())
    return Preparation(sources=sources, clean=clean, tokenizer=tokenizer and str(tokenizer), **settings)


def _hash_tokenizer(folder: str, cache_root: Path) -> dict[str, str]:
    found = {path for pattern in TOKENIZER_FILES for path in Path(folder).glob(pattern) if path.is_file()}
    if not found:
        raise SourceError(f"{folder} holds no tokenizer (wanted tokenizer.json or a vocabulary file)")
    return {path.name: hash_file(path, cache_root) for path in sorted(found)}


def _build_store(preparation: Preparation, key: str, root: Path, progress: Progress) -> None:
    stores = root / "stores"
    # The lock is held, so what lies here was left by a process that died.
    for stale in stores.glob(f".{key}.*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=stores))
    try:
        manifest = _write_rows(preparation, temporary, root, progress)
        write_manifest(temporary, {"key": key} | manifest)
        temporary.chmod(0o755)
        temporary.rename(stores / key)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _write_rows(preparation: Preparation, folder: Path, root: Path, progress: Progress) -> dict[str, Any]:
    rows_per_shard = choose_rows_per_shard(preparation.row_length)
    writers = [SplitWriter(folder, name, preparation.kind, rows_per_shard) for name in SPLITS]
    splitter = Splitter(preparation.evaluation_share)
    if preparation.kind == "words":
        encoders = _build_word_encoders(preparation, folder, root, progress)
    else:
        encoders = [CharacterEncoder(preparation.row_length) for _ in SPLITS]
    num_documents = [0, 0]
    for parts in _read_parts(preparation, splitter, root, lambda count: progress("rows", count)):
        for split, part in enumerate(parts):
            num_documents[split] += part.num_documents
            writers[split].append(*encoders[split].encode(part))
    splits = {}
    for name, encoder, writer, count in zip(SPLITS, encoders, writers, num_documents, strict=True):
        writer.append(*encoder.finish())
        counted = writer.finish()
        capacity = counted["num_rows"] * encoder.row_capacity
        fill = counted["num_pieces"] / capacity if capacity else 0.0
        splits[name] = {"num_documents": count, "fill": fill} | counted | encoder.describe()
    if writers[0].num_rows == 0:
        reasons = (
            ", ".join(f"{reason} {count}" for reason, count in splitter.dropped.items()) or "nothing was read"
        )
        raise SourceError(f"no document is left to train on ({reasons}); check data.sources and data.clean")
    return {
        "kind": preparation.kind,
        "row_length": preparation.row_length,
        "rows_per_shard": rows_per_shard,
        "dropped": dict(sorted(splitter.dropped.items())),
        "splits": splits,
        "tokenizer": "tokenizer" if preparation.kind == "words" else None,
    } | encoders[0].describe_vocabulary()


def _read_parts(
    preparation: Preparation, splitter: Splitter, root: Path, progress: Callable[[int], None]
) -> Iterator[tuple[Batch, Batch]]:
    """Cleaned, new documents of the two splits, batch by batch; an overlap raises after the last one."""
    rules = parse_rules(list(preparation.clean))
    num_read = 0
    for source in preparation.sources:
        # A source behind the limit is not even opened: it may be a download.
        if preparation.limit is not None and num_read >= preparation.limit:
            break
        for batch in read_batches(source, root):
            if preparation.limit is not None:
                batch = batch.head(preparation.limit - num_read)
            num_read += batch.num_documents
            cleaned = apply_rules(batch, rules, splitter.dropped)
            if preparation.kind == "characters":
                cleaned = drop_unfit_characters(cleaned, splitter.dropped)
            yield splitter.part(cleaned)
            progress(num_read)
            if preparation.limit is not None and num_read >= preparation.limit:
                break
    splitter.check_overlap()


class CharacterEncoder:
    """Encodes documents as rows of code points and counts those."""

    def __init__(self, row_length: int):
        self.row_capacity = row_length - 2
        self._num_cut = 0
        self._counts = np.zeros(0x110000, np.int64)

    def encode(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Pieces and row lengths."""
        code_points, lengths, num_cut = encode_characters(batch.texts, self.row_capacity)
        self._num_cut += num_cut
        counts = np.bincount(code_points)
        self._counts[: len(counts)] += counts
        return code_points, lengths

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Nothing waits here."""
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)

    def describe(self) -> dict[str, Any]:
        """What the split's manifest says besides its size."""
        return {"num_cut_documents": self._num_cut}

    def describe_vocabulary(self) -> dict[str, Any]:
        """The code points seen and how often, sorted by code point."""
        code_points = np.flatnonzero(self._counts)
        return {"code_points": code_points.tolist(), "code_point_counts": self._counts[code_points].tolist()}


def _build_word_encoders(preparation: Preparation, folder: Path, root: Path, progress: Progress) -> list:
    # Imported here: the planning half finds stores without transformers.
    from data_pipes.vocab import train_tokenizer
    from data_pipes.words import WordEncoder, load_tokenizer

    if preparation.train_tokenizer is not None:
        splitter = Splitter(preparation.evaluation_share)
        parts = _read_parts(preparation, splitter, root, lambda count: progress("tokenizer", count))
        train_tokenizer(
            (train.texts for train, _ in parts), folder=folder / "tokenizer", **preparation.train_tokenizer
        )
        tokenizer = load_tokenizer(folder / "tokenizer")
    else:
        tokenizer = load_tokenizer(Path(preparation.tokenizer or ""))
        tokenizer.save_pretrained(str(folder / "tokenizer"))
    return [WordEncoder(tokenizer, preparation.row_length, preparation.packing) for _ in SPLITS]


def _ignore_progress(stage: str, num_documents: int) -> None:
    pass
