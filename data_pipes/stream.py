"""Streams: a store that is trained on while another process still writes it.

The writer is one process for all ranks of a machine, started by whichever finds no writer at work. A rank
that needs rows which are not there yet waits for them; what the writer dies of is raised where a rank
waits.
"""

import fcntl
import json
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from data_pipes.building.builder import PROGRESS, STATE
from data_pipes.building.preparation import Preparation
from data_pipes.documents import SourceError
from data_pipes.files import find_cache_root, write_atomically
from data_pipes.prepare import build_store
from data_pipes.rows import Rows
from data_pipes.store import Kind, Store, StoredRows, is_whole

POLL_SECONDS = 0.2
FAILURE = "failure.json"
# So often in a row a writer may die without a word (killed for memory, say) and without a new shard.
MAX_LOSSES = 3


class StreamError(SourceError):
    """The process that writes a stream found fault with the request or the text: says why."""


class WriterError(OSError):
    """The process that writes a stream lacked something of the machine, or was lost again and again."""


FAULTS: dict[str, type[Exception]] = {"text": StreamError, "machine": WriterError, "defect": RuntimeError}


@dataclass
class Writer:
    """The process that writes a stream, ours or another rank's."""

    preparation: Preparation
    key: str
    root: Path
    _process: BaseProcess | None = None
    _num_losses: int = 0
    _saved_at: int = 0

    @property
    def folder(self) -> Path:
        """Of the store."""
        return self.root / "stores" / self.key

    @property
    def _failure(self) -> Path:
        return self.root / "stores" / f"{self.key}.{FAILURE}"

    def start(self) -> None:
        """Start the process unless one is at work; forget an earlier failure."""
        if not is_whole(self.folder) and _try_lock(self.root, self.key):
            self._failure.unlink(missing_ok=True)
        self.check()

    def check(self) -> None:
        """Start the process again if it was lost.

        Raises:
            StreamError: the request or the text is wrong.
            WriterError: it wants something of the machine, or was lost MAX_LOSSES times without a new shard.
            RuntimeError: it ended with an error that nobody foresaw.
        """
        if is_whole(self.folder) or not _try_lock(self.root, self.key):
            return
        if self._failure.is_file():
            failure = json.loads(self._failure.read_text())
            raise FAULTS[failure["fault"]](failure["message"])
        if self._process is not None:
            if self._process.is_alive():
                return  # it is starting, or has just let go of the lock
            self._count_loss(self._process.exitcode)
        arguments = (self.preparation, self.key, self.root, self._failure, os.getpid())
        self._process = get_context("spawn").Process(target=_write, args=arguments, daemon=True)
        self._process.start()

    def _count_loss(self, exit_code: int | None) -> None:
        if exit_code == 0:  # another rank's writer was there first
            return
        state = self.folder / STATE
        saved_at = state.stat().st_mtime_ns if state.is_file() else 0
        self._num_losses = 1 if saved_at != self._saved_at else self._num_losses + 1
        self._saved_at = saved_at
        if self._num_losses >= MAX_LOSSES:
            raise WriterError(
                f"the process that writes the stream ended {self._num_losses} times without a new shard, "
                f"with exit code {exit_code} (below 0: a signal); see that it has memory enough, or lower "
                "data.shard_rows"
            )


def _try_lock(root: Path, key: str) -> bool:
    """Whether nobody writes the store now."""
    path = root / "stores" / f"{key}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _write(preparation: Preparation, key: str, root: Path, failure: Path, parent: int) -> None:
    # Ctrl-C reaches this process too; its parent decides when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def stop_with_parent(stage: str, num_documents: int) -> None:
        del stage, num_documents
        if os.getppid() != parent:
            raise SystemExit(0)

    with (root / "stores" / f"{key}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if is_whole(root / "stores" / key):
            return
        try:
            build_store(preparation, key, root, 0, stop_with_parent)
        except ValueError as error:
            _record(failure, "text", f"{error}")
        except (OSError, ImportError, MemoryError) as error:
            _record(failure, "machine", f"{error}" or type(error).__name__)
        except Exception as error:
            # Those who wait would start the process again, and it would end like this again.
            _record(failure, "defect", f"{type(error).__name__}: {error}")
            raise


def _record(failure: Path, fault: str, message: str) -> None:
    write_atomically(failure, json.dumps({"fault": fault, "message": message}).encode())


class GrowingRows(StoredRows):
    """Training rows of a stream: those that are written and saved so far. Several threads may read."""

    writer: Writer | None = None

    def __init__(self, folder: Path, kind: Kind, summary: dict[str, Any], rows_per_shard: int):
        super().__init__(folder, kind, summary, rows_per_shard)
        self._is_ended = self._is_closed = False
        self._lock = Lock()
        self._now = StoredRows(folder, kind, summary, rows_per_shard)

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each row that is there, unsigned [R], memory-mapped."""
        return self._now.lengths

    def take(self, indices: np.ndarray) -> Rows:
        """Read the named rows, in the given order; indices int [any number], 0 to R - 1."""
        return self._now.take(indices)

    def map_files(self) -> None:
        """Map all files now, so that they can be read after they have lost their names."""
        self._now.map_files()

    def head(self, num_rows: int) -> StoredRows:
        """The first rows, as they are now."""
        return self._now.head(num_rows)

    def wait_for(self, num_rows: int) -> tuple[int, bool]:
        """Wait until so many rows are there or the stream has ended; rows there now, and whether it has.

        Raises:
            StreamError, WriterError, RuntimeError: see Writer.check; StreamError too if `close` was called.
        """
        assert self.writer is not None
        while True:
            with self._lock:
                if not self._is_ended and self.num_rows < num_rows:
                    self._look()
                if self._is_ended or self.num_rows >= num_rows:
                    return self.num_rows, self._is_ended
                if self._is_closed:
                    raise StreamError("the stream was closed while rows were waited for")
                self.writer.check()
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Let those who wait for rows go: nobody will train on them."""
        self._is_closed = True

    def _look(self) -> None:
        manifest, is_ended = _read_progress(self.folder)
        if manifest is None:
            return
        now = StoredRows(self.folder, self.kind, manifest["splits"]["train"], self.rows_per_shard)
        try:
            now.map_files()
        except FileNotFoundError:
            return  # a wider copy is taking this file's place, and the whole manifest will name it
        # One assignment: other threads read all their arrays of the old state or of the new one.
        self._now = now
        self.summary, self._is_ended = now.summary, is_ended


def _read_progress(folder: Path) -> tuple[dict[str, Any] | None, bool]:
    """The manifest so far, and whether it is whole; None before the first shard."""
    if is_whole(folder):
        return Store.open(folder, verify=False).manifest, True
    try:
        return json.loads((folder / PROGRESS).read_text()), False
    except FileNotFoundError:
        # Either not yet, or the writer has just put the manifest in its place.
        return (Store.open(folder, verify=False).manifest, True) if is_whole(folder) else (None, False)


def _map_store(writer: Writer, manifest: dict[str, Any]) -> Store | None:
    """A store with all its files mapped; None if the writer has just put a wider one in the place of one."""
    store = Store.of(writer.folder, manifest, GrowingRows)
    assert isinstance(store.train, GrowingRows)
    store.train.writer = writer
    try:
        store.train.map_files()
        store.evaluation.map_files()
    except FileNotFoundError:
        return None
    return store


def open_stream(*, cache_root: Path | str | None = None, verify: bool = True, **settings: Any) -> Store:
    """Open a store that may still be growing, as soon as its first shard is whole; see Preparation.

    Its evaluation rows, its code points and its tokenizer are settled by then and stay as they are.

    Raises:
        StreamError, WriterError, RuntimeError: it cannot be written, see Writer.check.
    """
    preparation = Preparation.of(settings)
    if not preparation.rows_per_shard:
        raise ValueError("rows_per_shard is 0: give the rows of a shard to stream")
    preparation.settle_sources()
    root = find_cache_root(cache_root)
    writer = Writer(preparation, preparation.compute_key(root), root)
    if is_whole(writer.folder):
        return Store.open(writer.folder, verify, root)
    writer.start()
    while True:
        manifest, is_ended = _read_progress(writer.folder)
        if is_ended:
            return Store.open(writer.folder, verify, root)
        if manifest is not None and (store := _map_store(writer, manifest)):
            return store
        writer.check()
        time.sleep(POLL_SECONDS)
