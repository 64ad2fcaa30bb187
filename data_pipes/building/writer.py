"""Writing a store: rows appended to flat files that can be cut back to what was last saved.

Shapes: R rows of a split, N pieces in some rows.
"""

import json
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipes.files import hash_file, write_atomically
from data_pipes.store import BLOCK_ROWS, FORMAT_VERSION, Kind, hash_manifest

COPY_BYTES = 1 << 24


class SplitWriter:
    """Appends the rows of one split to its three files (see store).

    Args:
        folder: where the files are.
        name: of the split.
        kind: of the pieces.
        row_length: the most pieces in a row.
    """

    def __init__(self, folder: Path, name: str, kind: Kind, row_length: int):
        self._folder, self._name, self._kind = folder, name, kind
        self._lengths_type = np.dtype(np.min_scalar_type(row_length))
        self._pieces_type = np.dtype(np.uint32 if kind == "words" else np.uint8)
        self.num_rows = self.num_pieces = 0
        self._files: dict[str, IO[bytes]] = {}
        self._open()

    def append(self, pieces: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows: pieces uint32 [N] as stored (see pack_bits), lengths [R]."""
        needed = np.min_scalar_type(int(pieces.max(initial=0)))
        if self._kind == "characters" and needed.itemsize > self._pieces_type.itemsize:
            self._widen(needed)
        starts = self.num_pieces + np.cumsum(lengths, dtype=np.int64) - lengths
        is_first = (self.num_rows + np.arange(len(lengths))) % BLOCK_ROWS == 0
        self._files["pieces"].write(pieces.astype(self._pieces_type).tobytes())
        self._files["lengths"].write(np.asarray(lengths).astype(self._lengths_type).tobytes())
        self._files["blocks"].write(starts[is_first].astype(np.uint64).tobytes())
        self.num_rows += len(lengths)
        self.num_pieces += len(pieces)

    def _widen(self, pieces_type: np.dtype) -> None:
        """Copy the pieces into a file of a wider type; the old one stays for those who read it."""
        self._files["pieces"].flush()
        narrow_path, narrow_type = self._path("pieces"), self._pieces_type
        self._pieces_type = pieces_type
        with narrow_path.open("rb") as narrow, self._path("pieces").open("wb") as wide:
            while block := narrow.read(COPY_BYTES):
                wide.write(np.frombuffer(block, narrow_type).astype(pieces_type).tobytes())
        self._open()

    def _path(self, what: str) -> Path:
        return self._folder / self.summarise()["files"][what]

    def _open(self) -> None:
        for what in ("pieces", "lengths", "blocks"):
            if what in self._files:
                self._files[what].close()
            self._files[what] = self._path(what).open("ab")

    def summarise(self) -> dict[str, Any]:
        """The split's part of the manifest, as far as it is written."""
        return {
            "num_rows": self.num_rows,
            "num_pieces": self.num_pieces,
            "pieces_type": self._pieces_type.name,
            "lengths_type": self._lengths_type.name,
            "files": {
                "pieces": f"{self._name}-{self._pieces_type.name}.pieces",
                "lengths": f"{self._name}.lengths",
                "blocks": f"{self._name}.blocks",
            },
        }

    def flush(self) -> dict[str, Any]:
        """Bring everything to the disk; the summary up to here, which `restore` takes."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return self.summarise()

    def restore(self, summary: dict[str, Any]) -> None:
        """Cut the files back to a flushed state."""
        self._pieces_type = np.dtype(summary["pieces_type"])
        self.num_rows, self.num_pieces = summary["num_rows"], summary["num_pieces"]
        self._open()
        num_blocks = -(-self.num_rows // BLOCK_ROWS)
        self._files["pieces"].truncate(self.num_pieces * self._pieces_type.itemsize)
        self._files["lengths"].truncate(self.num_rows * self._lengths_type.itemsize)
        self._files["blocks"].truncate(num_blocks * np.dtype(np.uint64).itemsize)

    def close(self) -> dict[str, Any]:
        """Flush, close, and remove narrower copies; the summary."""
        summary = self.flush()
        for file in self._files.values():
            file.close()
        for path in self._folder.glob(f"{self._name}-*.pieces"):
            if path.name != summary["files"]["pieces"]:
                path.unlink()
        return summary


def write_manifest(folder: Path, manifest: dict[str, Any], cache_root: Path | None) -> None:
    """Write manifest.json with the size and hash of every other file of the folder, as the last of all."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hash_file(path, cache_root)
            name = path.relative_to(folder).as_posix()
            files.append({"file": name, "num_bytes": path.stat().st_size, "sha256": digest})
    whole = {"format_version": FORMAT_VERSION} | manifest | {"files": files}
    signed = whole | {"manifest_sha256": hash_manifest(whole)}
    write_atomically(folder / "manifest.json", json.dumps(signed, indent=1).encode())
