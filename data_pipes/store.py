"""The store: rows on disk as flat memory-mapped files, with a manifest that says what is in them.

Shapes: R rows of a split, N pieces in some rows.

Layout of a folder: manifest.json, there only once all is written; for each split `<split>-<type>.pieces`
(the pieces of all rows end to end), `<split>.lengths` (pieces in each row, the smallest unsigned type that
holds row_length) and `<split>.blocks` (uint64, where every 16th row begins). A word model's piece is a
uint32: bit 31 word start, bit 30 document start, the id below. A character model's piece is a code point in
the smallest unsigned type that holds them all. A domain name of 14 characters takes 15.5 bytes.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipes.files import hash_file
from data_pipes.rows import Rows

FORMAT_VERSION = 3
SPLITS = ("train", "evaluation")
WORD_BIT, DOCUMENT_BIT = np.uint32(1 << 31), np.uint32(1 << 30)
ID_MASK = np.uint32((1 << 30) - 1)
# Finding a row adds up the lengths before it in its block; an offset a row would cost 4 bytes a name.
BLOCK_ROWS = 16
# Rows longer than this on average are copied one by one, shorter ones piece by piece.
LONG_PIECES = 64

Kind = Literal["words", "characters"]


class StoreError(ValueError):
    """A store is damaged: names the file."""


@dataclass
class StoredRows:
    """R rows of one split on disk.

    Attributes:
        folder: the store's.
        kind: of the pieces.
        summary: the split's part of the manifest.
        rows_per_shard: rows that a streamed run takes at once in its first epoch; 0: the store is no stream.
    """

    folder: Path
    kind: Kind
    summary: dict[str, Any]
    rows_per_shard: int = 0

    @property
    def num_rows(self) -> int:
        """R."""
        return self.summary["num_rows"]

    @property
    def num_pieces(self) -> int:
        """Pieces in all rows, special ones included."""
        return self.summary["num_pieces"]

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each row, unsigned [R], memory-mapped."""
        return self._lengths

    def wait_for(self, num_rows: int) -> tuple[int, bool]:
        """Rows that are there, and that no more will come: a whole store waits for nothing."""
        del num_rows
        return self.num_rows, True

    def close(self) -> None:
        """Nobody waits for the rows of a whole store."""

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self._map("lengths", self.summary["lengths_type"], self.num_rows)

    @cached_property
    def _blocks(self) -> np.ndarray:
        return self._map("blocks", "uint64", -(-self.num_rows // BLOCK_ROWS))

    @cached_property
    def _pieces(self) -> np.ndarray:
        return self._map("pieces", self.summary["pieces_type"], self.num_pieces)

    def _map(self, what: str, dtype: str, num_entries: int) -> np.ndarray:
        if num_entries == 0:  # nothing to map
            return np.zeros(0, dtype)
        path = self.folder / self.summary["files"][what]
        # Not all of the file: a growing one may end in half an entry.
        return np.memmap(path, dtype, mode="r", shape=(num_entries,)).view(np.ndarray)

    def head(self, num_rows: int) -> "StoredRows":
        """The first rows, as they are now."""
        lengths = self._lengths[:num_rows]
        sizes = {"num_rows": len(lengths), "num_pieces": int(lengths.sum(dtype=np.int64))}
        rows = StoredRows(self.folder, self.kind, self.summary | sizes, self.rows_per_shard)
        rows.__dict__ |= {"_lengths": lengths, "_blocks": self._blocks, "_pieces": self._pieces}
        return rows

    def map_files(self) -> None:
        """Map all files now, so that they can be read after they have lost their names."""
        _ = self._lengths, self._blocks, self._pieces

    def take(self, indices: np.ndarray) -> Rows:
        """Read the named rows, in the given order; indices int [any number], 0 to R - 1."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} were asked of {self.num_rows}")
        lengths = self._lengths[indices].astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        starts = self._find_starts(indices)
        if offsets[-1] > LONG_PIECES * len(indices):
            spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
            return self._unpack(np.concatenate([self._pieces[start:end] for start, end in spans]), offsets)
        source = np.arange(offsets[-1])
        source += np.repeat(starts - offsets[:-1], lengths)
        return self._unpack(self._pieces[source], offsets)

    def _find_starts(self, indices: np.ndarray) -> np.ndarray:
        """Where rows begin in the file of pieces, int64."""
        blocks, places = np.divmod(indices, BLOCK_ROWS)
        before = np.arange(BLOCK_ROWS - 1)
        neighbours = np.minimum((blocks * BLOCK_ROWS)[:, None] + before, max(0, self.num_rows - 1))
        counted = self._lengths[neighbours] * (before < places[:, None])
        return self._blocks[blocks].astype(np.int64) + counted.sum(1, dtype=np.int64)

    def _unpack(self, pieces: np.ndarray, offsets: np.ndarray) -> Rows:
        if self.kind == "words":
            return Rows(pieces & ID_MASK, offsets, (pieces & WORD_BIT) != 0, (pieces & DOCUMENT_BIT) != 0)
        document_starts = np.zeros(len(pieces), bool)
        document_starts[offsets[:-1][np.diff(offsets) > 0]] = True
        return Rows(pieces.astype(np.uint32), offsets, np.ones(len(pieces), bool), document_starts)


@dataclass(frozen=True)
class Store:
    """A prepared corpus: the rows of two splits and the manifest."""

    folder: Path
    manifest: dict[str, Any]
    train: StoredRows = field(repr=False)
    evaluation: StoredRows = field(repr=False)

    @property
    def kind(self) -> Kind:
        """Whether rows hold pieces of words or characters."""
        return self.manifest["kind"]

    @property
    def tokenizer_folder(self) -> Path | None:
        """The tokenizer of a word store, as AutoTokenizer loads it."""
        name = self.manifest["tokenizer"]
        return None if name is None else self.folder / name

    @property
    def code_points(self) -> np.ndarray:
        """Code points seen in the training split of a character store, sorted, uint32."""
        return np.array(self.manifest["code_points"], np.uint32)

    @classmethod
    def of(cls, folder: Path, manifest: dict[str, Any], rows_class: type[StoredRows] = StoredRows) -> "Store":
        """Make a store of a manifest; `rows_class` reads the training rows."""
        shard = manifest["rows_per_shard"]
        train = rows_class(folder, manifest["kind"], manifest["splits"]["train"], shard)
        evaluation = StoredRows(folder, manifest["kind"], manifest["splits"]["evaluation"], shard)
        return cls(folder, manifest, train, evaluation)

    @classmethod
    def open(cls, folder: Path | str, verify: bool = True, cache_root: Path | None = None) -> "Store":
        """Open a whole store.

        Args:
            folder: the store's folder.
            verify: also compare every file's SHA-256 (sizes are always compared).
            cache_root: where hashes are remembered by size and time of change; None: read every byte.

        Raises:
            StoreError: a file is missing, cut short, or changed; names it.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for entry in manifest["files"]:
            _check_file(folder / entry["file"], entry, verify, cache_root)
        return cls.of(folder, manifest)


def pack_bits(rows: Rows) -> np.ndarray:
    """Pieces of word rows as stored, uint32 [N]: the id with its word and document bits."""
    return rows.pieces | rows.word_starts * WORD_BIT | rows.document_starts * DOCUMENT_BIT


def is_whole(folder: Path) -> bool:
    """Whether a store was written to its end."""
    return (folder / "manifest.json").is_file()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}; delete {folder} and prepare the data again"
        ) from error
    remedy = f"delete {folder} and prepare the data again"
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else manifest
        raise StoreError(f"{path} has format_version {found!r}, wanted {FORMAT_VERSION}; {remedy}")
    digest = manifest.pop("manifest_sha256", None)
    if digest != hash_manifest(manifest):
        raise StoreError(f"{path} has changed since it was written (sha256 differs); {remedy}")
    return manifest


def hash_manifest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own hash."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, entry: dict[str, Any], verify: bool, cache_root: Path | None) -> None:
    remedy = f"delete {path.parent} and prepare the data again"
    size = path.stat().st_size if path.is_file() else None
    if size != entry["num_bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise StoreError(f"{path} {found}, wanted {entry['num_bytes']} bytes; {remedy}")
    if verify and hash_file(path, cache_root) != entry["sha256"]:
        raise StoreError(f"{path} has changed since it was written (sha256 differs); {remedy}")
