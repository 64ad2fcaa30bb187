"""The builder: encoded documents become the rows of a store, in order, and it goes on where it was stopped.

All that looks across documents is here: duplicates, overlaps of the splits, packing, counts. Everything is
saved together now and then; a build that died reads its sources again, skips what it has, and goes on.
"""

import io
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data_pipes.building.encode import Encoded, encode_in_order, open_near_duplicates, take_documents
from data_pipes.building.preparation import Preparation
from data_pipes.building.writer import SplitWriter
from data_pipes.documents import Batch, SourceError
from data_pipes.files import write_atomically
from data_pipes.pack import Packer
from data_pipes.rows import Rows
from data_pipes.split import Splitter
from data_pipes.store import SPLITS, StoreError, pack_bits
from data_pipes.tokenize import PieceEncoder, Pieces

SAVE_SECONDS = 20.0
STATE, PROGRESS = "state.npz", "progress.json"

Progress = Callable[[str, int], None]


class RowSink:
    """Packs and writes the documents of one split, and counts them."""

    def __init__(self, preparation: Preparation, folder: Path, name: str, encoder: PieceEncoder | None):
        self.writer = SplitWriter(folder, name, preparation.kind, preparation.row_length)
        self._packer = None
        self._capacity = preparation.row_length - 2
        if encoder is not None:
            self._capacity = preparation.row_length
            ids = (encoder.cls_id, encoder.sep_id)
            self._packer = Packer(preparation.row_length, *ids, preparation.packing)
        self._counts = Counter()
        self._source_rows: list[int] = []
        is_characters = encoder is None
        self.code_point_counts = np.zeros(0x110000 if is_characters else 0, np.int64)
        self.length_counts = np.zeros(self._capacity + 1 if is_characters else 0, np.int64)

    def add(self, pieces: Pieces, num_cut: int) -> None:
        """Write documents."""
        self._counts["num_documents"] += len(pieces.offsets) - 1
        if self._packer is not None:
            self._write(self._packer.pack(pieces))
            return
        self._counts["num_cut_documents"] += num_cut
        counts = np.bincount(pieces.ids)
        self.code_point_counts[: len(counts)] += counts
        lengths = np.diff(pieces.offsets)
        self.length_counts += np.bincount(lengths, minlength=len(self.length_counts))
        self.writer.append(pieces.ids, lengths)

    def _write(self, rows: Rows) -> None:
        num_parts = int(np.count_nonzero(rows.document_starts))
        self._counts["num_parts"] += num_parts
        # [CLS] and [SEP] of a part are no words.
        self._counts["num_words"] += int(np.count_nonzero(rows.word_starts)) - 2 * num_parts
        self.writer.append(pack_bits(rows), rows.lengths)

    def end_source(self) -> None:
        """Close the open rows, so that the rows of a source lie together."""
        if self._packer is not None:
            self._write(self._packer.finish())
        self._source_rows.append(self.writer.num_rows - sum(self._source_rows))

    def summarise(self, written: dict[str, Any]) -> dict[str, Any]:
        """The split's part of the manifest."""
        num_slots = self.writer.num_rows * self._capacity
        # Character rows are padded to their own length, not to row_length.
        fill = self.writer.num_pieces / num_slots if num_slots else 0.0
        named = {"fill": fill, "source_rows": list(self._source_rows), "num_documents": 0}
        return written | named | dict(self._counts)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain data and arrays that `restore` takes."""
        plain = {
            "written": self.writer.flush(),
            "counts": dict(self._counts),
            "source_rows": self._source_rows,
        }
        arrays = {} if self._packer is None else {f"packer_{k}": v for k, v in self._packer.state().items()}
        seen = np.flatnonzero(self.code_point_counts)
        arrays |= {"code_points": seen, "code_point_counts": self.code_point_counts[seen]}
        return plain, arrays | {"length_counts": self.length_counts}

    def restore(self, plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go back to a saved state."""
        self.writer.restore(plain["written"])
        self._counts, self._source_rows = Counter(plain["counts"]), plain["source_rows"]
        if self._packer is not None:
            packed = {k.removeprefix("packer_"): v for k, v in arrays.items() if k.startswith("packer_")}
            self._packer.restore(packed)
        self.code_point_counts[arrays["code_points"]] = arrays["code_point_counts"]
        self.length_counts = arrays["length_counts"]


@dataclass
class Position:
    """How far the reading is.

    Attributes:
        num_batches: batches whose documents are in the rows.
        num_documents: read so far.
        source: the number of the source that is being read.
        is_closed: a stream's first shard is whole: its evaluation rows and its code points are settled.
        code_points: of a character store, settled with the first shard of a stream.
        length_counts: training rows of each length in characters, settled likewise.
    """

    num_batches: int = 0
    num_documents: int = 0
    source: int = 0
    is_closed: bool = False
    code_points: list[int] = field(default_factory=list)
    length_counts: list[int] = field(default_factory=list)


class Builder:
    """Builds one store in its folder.

    Args:
        preparation: the settings.
        key: of the store.
        folder: of the store; what lies there from an earlier build is taken up.
        root: the cache, for packages and hashes.
        tokenizer: folder of the tokenizer of a word store.
    """

    def __init__(self, preparation: Preparation, key: str, folder: Path, root: Path, tokenizer: Path | None):
        self._preparation, self._key = preparation, key
        self._folder, self._root, self._tokenizer = folder, root, tokenizer
        encoder = None if tokenizer is None else PieceEncoder.from_folder(tokenizer)
        self._sinks = [RowSink(preparation, folder, name, encoder) for name in SPLITS]
        self._splitter = Splitter(preparation.evaluation_share, folder=folder / "hashes")
        self._near = open_near_duplicates(preparation, folder / "near")
        self._intake = preparation.open_intake()
        self._dropped: Counter = Counter()
        self._position = Position()
        self._saved_at, self._saved_rows = time.monotonic(), 0

    def build(self, num_workers: int, progress: Progress) -> dict[str, Any]:
        """Read everything and write all rows; what the manifest says of them.

        Raises:
            SourceError: a source cannot be read, or no document is left.
            OverlapError: the splits share texts.
        """
        self._restore()
        sources: deque[tuple[int, int]] = deque()
        batches = self._read(sources)
        for encoded in encode_in_order(batches, self._preparation, self._tokenizer, num_workers):
            source, num_documents = sources.popleft()
            while self._position.source < source:
                self._end_source()
            self._add(encoded)
            self._position.num_batches += 1
            self._position.num_documents += num_documents
            self._save_if_due()
            progress("rows", self._position.num_documents)
        while self._position.source < len(self._preparation.sources):
            self._end_source()
        self._splitter.check_overlap()
        if self._near is not None:
            self._near.check_overlap()
        if self._sinks[0].writer.num_rows == 0:
            self._complain_of_nothing()
        self._close_stream()
        return self._describe([sink.writer.close() for sink in self._sinks])

    def _read(self, sources: deque[tuple[int, int]]) -> Iterator[Batch]:
        """Batches that are not in the rows yet; the source and the size of each go into the queue."""
        skipped = self._position.num_batches
        for index, batch in islice(self._preparation.read(self._root, self._intake), skipped, None):
            sources.append((index, batch.num_documents))
            yield batch

    def _add(self, encoded: Encoded) -> None:
        self._dropped.update(encoded.dropped)
        is_new = self._splitter.admit(encoded.batch, encoded.hashes, encoded.is_evaluation)
        if self._near is not None and encoded.sketches is not None:
            is_new &= self._near.admit(encoded.batch, encoded.sketches, encoded.is_evaluation, is_new)
        for split, sink in enumerate(self._sinks):
            is_chosen = is_new & (encoded.is_evaluation == bool(split))
            if split and self._position.is_closed:
                self._dropped["evaluation_after_the_first_shard"] += int(np.count_nonzero(is_chosen))
            elif is_chosen.any():
                sink.add(take_documents(encoded.pieces, is_chosen), int(encoded.is_cut[is_chosen].sum()))
        shard = self._preparation.rows_per_shard
        if shard and self._sinks[0].writer.num_rows >= shard:
            self._close_stream()

    def _close_stream(self) -> None:
        """Settle a stream's evaluation rows and code points."""
        if self._position.is_closed:
            return
        if self._preparation.rows_per_shard and self._position.source < len(self._preparation.sources):
            self._sinks[1].end_source()
        self._position.is_closed = True
        self._position.code_points = np.flatnonzero(self._sinks[0].code_point_counts).tolist()
        self._position.length_counts = self._sinks[0].length_counts.tolist()

    def _end_source(self) -> None:
        for split, sink in enumerate(self._sinks):
            if not (split and self._position.is_closed):
                sink.end_source()
        self._position.source += 1

    def _save_if_due(self) -> None:
        shard = self._preparation.rows_per_shard
        is_shard_new = shard > 0 and self._sinks[0].writer.num_rows // shard > self._saved_rows // shard
        if is_shard_new or time.monotonic() - self._saved_at > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        """Save all that a later build needs to go on from here, then tell the readers of a stream."""
        parts = {name: sink.state() for name, sink in zip(SPLITS, self._sinks, strict=True)}
        parts["splitter"] = self._splitter.state()
        if self._near is not None:
            parts["near"] = self._near.state()
        plain = {name: part for name, (part, _) in parts.items()}
        arrays = {f"{name}/{key}": array for name, (_, part) in parts.items() for key, array in part.items()}
        plain |= {"position": asdict(self._position), "dropped": dict(self._dropped)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, plain=np.array(json.dumps(plain)), **arrays)
        write_atomically(self._folder / STATE, buffer.getvalue())
        if self._preparation.rows_per_shard and self._position.is_closed:
            manifest = self._describe([parts[name][0]["written"] for name in SPLITS])
            write_atomically(self._folder / PROGRESS, json.dumps(manifest).encode())
        self._saved_at, self._saved_rows = time.monotonic(), self._sinks[0].writer.num_rows

    def _restore(self) -> None:
        if not (self._folder / STATE).is_file():
            return
        try:
            with np.load(self._folder / STATE) as saved:
                plain = json.loads(str(saved["plain"]))
                arrays = {name: saved[name] for name in saved.files if name != "plain"}
        except (BadZipFile, KeyError, ValueError, EOFError) as error:
            raise StoreError(
                f"{self._folder / STATE}, from which an earlier build would go on, is damaged ({error}) and "
                "was removed; prepare the data again, from the start"
            ) from error

        def of(part: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}

        for name, sink in zip(SPLITS, self._sinks, strict=True):
            sink.restore(plain[name], of(name))
        self._splitter.restore(plain["splitter"], of("splitter"))
        if self._near is not None:
            self._near.restore(plain["near"], of("near"))
        self._position = Position(**plain["position"])
        self._dropped = Counter(plain["dropped"])
        self._saved_rows = self._sinks[0].writer.num_rows

    def _describe(self, written: list[dict[str, Any]]) -> dict[str, Any]:
        splits = {
            name: sink.summarise(part) for name, sink, part in zip(SPLITS, self._sinks, written, strict=True)
        }
        counts = self._sinks[0].code_point_counts
        points = self._position.code_points
        is_words = self._preparation.kind == "words"
        return {
            "key": self._key,
            "kind": self._preparation.kind,
            "row_length": self._preparation.row_length,
            "rows_per_shard": self._preparation.rows_per_shard,
            "dropped": dict(sorted(self._count_dropped().items())),
            "input": self._intake.describe(),
            "splits": splits,
            "tokenizer": "tokenizer" if is_words else None,
            "code_points": points,
            "code_point_counts": counts[points].tolist(),
            "length_counts": self._position.length_counts,
        }

    def _count_dropped(self) -> Counter:
        near = Counter() if self._near is None else self._near.dropped
        return self._dropped + self._splitter.dropped + near

    def _complain_of_nothing(self) -> None:
        dropped = self._count_dropped()
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "nothing was read"
        raise SourceError(f"no document is left to train on ({reasons}); check data.sources and data.clean")
