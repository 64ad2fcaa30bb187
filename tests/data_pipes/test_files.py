import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipes import files
from data_pipes.files import find_cache_root, hash_file, hold_lock, write_atomically

ROOT = Path(__file__).parents[2]


def test_the_cache_folder_is_the_one_given_else_named_else_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find_cache_root(tmp_path) == tmp_path
    assert find_cache_root() == tmp_path / "named"
    monkeypatch.delenv("MASKWRIGHT_CACHE")
    assert find_cache_root() == tmp_path / "xdg" / "maskwright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_root() == tmp_path / ".cache" / "maskwright"


def test_a_failed_write_leaves_the_old_file_and_no_other(monkeypatch, tmp_path):
    path = tmp_path / "a" / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_the_hash_of_a_file_is_its_sha256_and_is_remembered_until_it_changes(monkeypatch, tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"one")
    wanted = hashlib.sha256(b"one").hexdigest()
    assert hash_file(path, tmp_path / "cache") == wanted

    def fail(_):
        raise AssertionError("read again")

    with monkeypatch.context() as context:
        context.setattr(files, "hash_stream", fail)
        assert hash_file(path, tmp_path / "cache") == wanted
        os.utime(path, (5, 5))
        with pytest.raises(AssertionError, match="read again"):
            hash_file(path, tmp_path / "cache")
    path.write_bytes(b"two")
    assert hash_file(path, tmp_path / "cache") == hashlib.sha256(b"two").hexdigest()
    # Another file of the same size and time of change, as a copy that keeps times leaves it.
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"six")
    os.utime(path, ns=times)
    assert hash_file(path, tmp_path / "cache") == hashlib.sha256(b"six").hexdigest()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"{}"])
def test_a_damaged_memory_of_a_hash_is_not_used(tmp_path, data):
    path = tmp_path / "text"
    path.write_bytes(b"one")
    wanted = hash_file(path, tmp_path / "cache")
    (memo,) = (tmp_path / "cache" / "hashes").iterdir()
    memo.write_bytes(data)
    assert hash_file(path, tmp_path / "cache") == wanted
    assert hash_file(path, None) == wanted


def test_a_lock_keeps_a_second_process_waiting_and_is_free_when_its_holder_dies(tmp_path):
    lock = tmp_path / "x" / "lock"
    code = (
        "import sys, time, pathlib; from data_pipes.files import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(lock)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    waiter = None
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiter = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert waiter.stdout is not None
        os.set_blocking(waiter.stdout.fileno(), False)
        time.sleep(0.6)
        assert not waiter.stdout.readline()
        holder.kill()
        os.set_blocking(waiter.stdout.fileno(), True)
        assert waiter.stdout.readline() == "held\n"
    finally:
        for process in (holder, waiter):
            if process is not None:
                process.kill()
                process.communicate()
    with hold_lock(lock):
        pass
