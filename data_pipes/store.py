"""The store: rows on disk as flat memory-mapped shards, with a manifest that says what is in them.

Shapes: R rows of a split, N pieces in some rows.

Layout of a folder: manifest.json; for each split `<split>.lengths` (uint32 [R]) and per shard
`<split>-<number>.pieces` (N pieces) and `.offsets` (uint32, rows of the shard + 1). A word model's piece is a
uint32: bit 31 word start, bit 30 document start, the id below. A character model's piece is a code
point in the smallest unsigned type that holds its shard.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipes.files import hash_stream
from data_pipes.rows import Rows

FORMAT_VERSION = 2
SPLITS = ("train", "evaluation")
WORD_BIT, DOCUMENT_BIT = np.uint32(1 << 31), np.uint32(1 << 30)
ID_MASK = np.uint32((1 << 30) - 1)
# At most 64 Mi pieces (256 MB while it is written) and 1 Mi rows in a shard; offsets fit uint32.
SHARD_PIECES, SHARD_ROWS = 1 << 26, 1 << 20

Kind = Literal["words", "characters"]


class StoreError(ValueError):
    """A store is damaged: names the file."""


@dataclass
class StoredRows:
    """R rows of one split on disk."""

    folder: Path
    kind: Kind
    rows_per_shard: int
    summary: dict[str, Any]

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
        """Pieces in each row, uint32 [R], memory-mapped."""
        return self._mapped_lengths

    @cached_property
    def _mapped_lengths(self) -> np.ndarray:
        return _map_file(self.folder / self.summary["lengths"]["file"], "uint32")

    @cached_property
    def _shards(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (
                _map_file(self.folder / s["pieces"]["file"], s["dtype"]),
                _map_file(self.folder / s["offsets"]["file"], "uint32"),
            )
            for s in self.summary["shards"]
        ]

    def take(self, indices: np.ndarray) -> Rows:
        """Read the named rows, in the given order; indices int [any number], 0 to R - 1."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.num_rows:
            raise IndexError(f"rows {indices.min()} to {indices.max()} were asked of {self.num_rows}")
        lengths = self.lengths[indices].astype(np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        pieces = np.empty(offsets[-1], np.uint32)
        shards, places = np.divmod(indices, self.rows_per_shard)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            stored, stored_offsets = self._shards[shard]
            inside = np.arange(lengths[chosen].sum())
            inside -= np.repeat(np.cumsum(lengths[chosen]) - lengths[chosen], lengths[chosen])
            begins = stored_offsets[places[chosen]].astype(np.int64)
            source = np.repeat(begins, lengths[chosen]) + inside
            pieces[np.repeat(offsets[:-1][chosen], lengths[chosen]) + inside] = stored[source]
        return self._unpack(pieces, offsets)

    def _unpack(self, pieces: np.ndarray, offsets: np.ndarray) -> Rows:
        if self.kind == "words":
            return Rows(pieces & ID_MASK, offsets, (pieces & WORD_BIT) != 0, (pieces & DOCUMENT_BIT) != 0)
        document_starts = np.zeros(len(pieces), bool)
        document_starts[offsets[:-1][np.diff(offsets) > 0]] = True
        return Rows(pieces, offsets, np.ones(len(pieces), bool), document_starts)


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
    def open(cls, folder: Path | str, verify: bool = True) -> "Store":
        """Open a store.

        Args:
            folder: the store's folder.
            verify: also compare every file's SHA-256 (sizes are always compared).

        Raises:
            StoreError: a file is missing, cut short, or changed; names it.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        for entry in manifest["files"]:
            _check_file(folder / entry["file"], entry, verify)
        splits = [
            StoredRows(folder, manifest["kind"], manifest["rows_per_shard"], manifest["splits"][name])
            for name in SPLITS
        ]
        return cls(folder, manifest, *splits)


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
    if digest != _hash_manifest(manifest):
        raise StoreError(f"{path} has changed since it was written (sha256 differs); {remedy}")
    return manifest


def _hash_manifest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    remedy = f"delete {path.parent} and prepare the data again"
    size = path.stat().st_size if path.is_file() else None
    if size != entry["num_bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise StoreError(f"{path} {found}, wanted {entry['num_bytes']} bytes; {remedy}")
    if verify:
        with path.open("rb") as file:
            if hash_stream(file) != entry["sha256"]:
                raise StoreError(f"{path} has changed since it was written (sha256 differs); {remedy}")


def _map_file(path: Path, dtype: str) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing to map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


class SplitWriter:
    """Writes the rows of one split into a folder, shard by shard, holding one shard in memory."""

    def __init__(self, folder: Path, name: str, kind: Kind, rows_per_shard: int):
        self._folder, self._name, self._kind, self._rows_per_shard = folder, name, kind, rows_per_shard
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0
        self._shards: list[dict[str, Any]] = []
        self.num_rows = self.num_pieces = 0
        (folder / f"{name}.lengths").write_bytes(b"")

    def append(self, pieces: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows: pieces uint32 [N] as stored (see pack_bits), lengths [R]."""
        while len(lengths):
            num_rows = min(len(lengths), self._rows_per_shard - self._num_waiting)
            num_pieces = int(lengths[:num_rows].sum())
            self._waiting.append((pieces[:num_pieces], lengths[:num_rows]))
            self._num_waiting += num_rows
            pieces, lengths = pieces[num_pieces:], lengths[num_rows:]
            if self._num_waiting == self._rows_per_shard:
                self._write_shard()

    def _write_shard(self) -> None:
        pieces = np.concatenate([part for part, _ in self._waiting])
        lengths = np.concatenate([part for _, part in self._waiting]).astype(np.uint32)
        self._waiting, self._num_waiting = [], 0
        dtype = "uint32" if self._kind == "words" else _smallest_type(int(pieces.max(initial=0)))
        stem = f"{self._name}-{len(self._shards):05d}"
        with (self._folder / f"{self._name}.lengths").open("ab") as file:
            file.write(lengths.tobytes())
        (self._folder / f"{stem}.pieces").write_bytes(pieces.astype(dtype).tobytes())
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        (self._folder / f"{stem}.offsets").write_bytes(offsets.astype(np.uint32).tobytes())
        self._shards.append(
            {"pieces": {"file": f"{stem}.pieces"}, "offsets": {"file": f"{stem}.offsets"}, "dtype": dtype}
            | {"num_rows": len(lengths), "num_pieces": len(pieces)}
        )
        self.num_rows += len(lengths)
        self.num_pieces += len(pieces)

    def finish(self) -> dict[str, Any]:
        """Write what is left and give the split's part of the manifest."""
        if self._num_waiting:
            self._write_shard()
        return {
            "num_rows": self.num_rows,
            "num_pieces": self.num_pieces,
            "lengths": {"file": f"{self._name}.lengths"},
            "shards": self._shards,
        }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the size and hash of every other file of the folder."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hash_stream(file)
            name = path.relative_to(folder).as_posix()
            files.append({"file": name, "num_bytes": path.stat().st_size, "sha256": digest})
    whole = {"format_version": FORMAT_VERSION} | manifest | {"files": files}
    signed = whole | {"manifest_sha256": _hash_manifest(whole)}
    (folder / "manifest.json").write_text(json.dumps(signed, indent=1))


def choose_rows_per_shard(row_length: int) -> int:
    """Rows in a shard, so that one fits in memory while it is written."""
    return max(1, min(SHARD_ROWS, SHARD_PIECES // row_length))


def pack_bits(rows: Rows) -> np.ndarray:
    """Pieces of word rows as stored, uint32 [N]: the id with its word and document bits."""
    return rows.pieces | rows.word_starts * WORD_BIT | rows.document_starts * DOCUMENT_BIT


def _smallest_type(largest: int) -> str:
    return np.min_scalar_type(largest).name
