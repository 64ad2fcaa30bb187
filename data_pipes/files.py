"""Files: writes that are whole or absent, content hashes, and locks between processes."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def find_cache_root(cache_root: Path | str | None = None) -> Path:
    """The cache folder: the one given, else MASKWRIGHT_CACHE, else maskwright in the user's cache folder."""
    if cache_root is not None:
        return Path(cache_root)
    if named := os.environ.get("MASKWRIGHT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maskwright"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def hash_stream(file: IO[bytes]) -> str:
    """SHA-256 of what is left in an open file, in constant memory."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path, cache_root: Path | None) -> str:
    """SHA-256 of a file, remembered in the cache by path, size and times of change; None: not remembered."""
    if cache_root is None:
        with path.open("rb") as file:
            return hash_stream(file)
    state = path.stat()
    # Copying tools set the time of the content back; nobody sets that of the inode.
    identity = [str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    memo = cache_root / "hashes" / f"{hashlib.sha256(identity[0].encode()).hexdigest()[:32]}.json"
    known = _read_memo(memo)
    if known.get("identity") == identity:
        return known["sha256"]
    with path.open("rb") as file:
        digest = hash_stream(file)
    write_atomically(memo, json.dumps({"identity": identity, "sha256": digest}).encode())
    return digest


def _read_memo(memo: Path) -> dict:
    """What is remembered; nothing if the memo is not there or damaged."""
    try:
        known = json.loads(memo.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait for the lock file and hold it; the system frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
