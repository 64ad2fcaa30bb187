import errno
import gzip
import io
import lzma
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipes.documents import SourceError
from data_pipes.reading import archives, lines
from data_pipes.reading.intake import Intake
from data_pipes.sources import CsvSource, JsonlSource, TextSource, count_estimate, read_batches

ROOT = Path(__file__).parents[2]


def pack_zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": pack_zstd}
TEXT = "".join(f"{number * 7919 % 10007}\n" for number in range(5000)).encode()


def read(path, kind=TextSource, intake=None):
    return [text for batch in read_batches(kind(str(path)), None, intake) for text in batch.texts.to_pylist()]


@pytest.fixture(params=PACK)
def suffix(request):
    return request.param


def test_archives_are_unpacked_and_several_in_one_file_are_read_one_after_the_other(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](TEXT))
    assert read(path) == TEXT.decode().split()
    path.write_bytes(PACK[suffix](TEXT) + PACK[suffix](b"") + PACK[suffix](b"more\n"))
    assert read(path) == [*TEXT.decode().split(), "more"]


def test_each_kind_of_line_file_can_be_packed(tmp_path, suffix):
    for name, kind, data in (
        ("a.jsonl", JsonlSource, b'{"text": "x"}\n'),
        ("a.csv", CsvSource, b'text\n"x"\n'),
    ):
        path = tmp_path / (name + suffix)
        path.write_bytes(PACK[suffix](data))
        assert read(path, kind) == ["x"]


def damage(data):
    """Truncated in the trailer, in the middle and to one byte; garbage behind; a flipped trailer; emptied."""
    yield data[:-3]
    yield data[: len(data) // 2]
    yield data[:1]
    yield data + b"garbage"
    yield data + data[:9]
    yield b""
    yield b"this is no archive\n"


def test_a_damaged_archive_is_an_error_under_both_policies_and_in_an_estimate(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    for data in damage(PACK[suffix](TEXT)):
        path.write_bytes(data)
        for intake in (Intake(), Intake("skip", 1.0)):
            with pytest.raises(SourceError, match=f"{path.name} cannot be read: .*fetch it again"):
                read(path, TextSource, intake)
    path.write_bytes(b"this is no archive\n")
    with pytest.raises(SourceError, match="it is named like a .* archive and holds something else"):
        count_estimate([TextSource(str(path))])


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_flipped_bit_anywhere_in_a_checked_archive_is_an_error(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    packed = PACK[suffix](TEXT)
    first = 10 if suffix == ".gz" else 0  # a gzip header holds a time and a system, which nothing checks
    for place in range(first, len(packed), len(packed) // 60):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :])
        with pytest.raises(SourceError, match=path.name):
            read(path, TextSource, Intake("skip", 1.0))


def test_an_xz_file_may_be_padded_and_may_not_ask_for_much_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one\n") + b"\0" * 8 + lzma.compress(b"two\n") + b"\0" * 70_000)
    assert read(path) == ["one", "two"]
    monkeypatch.setattr(archives, "MAX_XZ_MEMORY_BYTES", 1 << 16)
    with pytest.raises(SourceError, match="Memory usage limit"):
        read(path)


def test_a_bomb_is_stopped_and_text_that_packs_well_is_not(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(archives, "MIN_BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(archives, "MAX_EXPANSION", 100)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"\n" * (4 << 20)))
    intake = Intake("skip", 1.0)
    with pytest.raises(SourceError, match="over 100 times as many; if that is right, unpack it"):
        read(path, TextSource, intake)
    assert intake.num_lines < 2 << 20
    path.write_bytes(PACK[suffix](b"\n" * (1 << 20)))
    assert read(path) == []
    numbers = "".join(f"{number * 7919 % 1_000_003}\n" for number in range(200_000)).encode()
    path.write_bytes(PACK[suffix](numbers))
    assert len(numbers) > archives.MIN_BOMB_BYTES
    assert len(read(path)) == 200_000


def test_a_bomb_of_one_line_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 18)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"x" * (8 << 20) + b"\nend"))
    intake = Intake("skip", 1.0)
    assert read(path, TextSource, intake) == ["end"]
    assert intake.skipped == {"too_long": 1}


def test_a_packed_file_within_a_packed_file_is_named(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(gzip.compress(b"x")))
    with pytest.raises(SourceError, match="cannot be read as text: it is a gzip archive"):
        read(tmp_path / "a.txt.gz")


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (make_pipe, "is a named pipe, wanted a file"),
        (make_socket, "is a socket, wanted a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device, wanted a file"),
        (lambda path: path.symlink_to("nowhere"), "is not there, or a link that leads nowhere"),
        (make_loop, "its links lead in a circle"),
    ],
)
@pytest.mark.parametrize("pattern", ["a.txt", "*.txt", ""])
def test_what_is_no_regular_file_is_an_error_however_it_is_named(
    tmp_path, monkeypatch, make, wanted, pattern
):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "b.txt").write_text("b")
    make(Path("a.txt"))
    with pytest.raises(SourceError, match=f"a.txt .*{wanted}"):
        read(Path(f"{tmp_path}/{pattern}"))


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    code = (
        "import os, pathlib, sys; from data_pipes.reading import archives\n"
        "pipe, file = pathlib.Path('pipe'), pathlib.Path('file')\n"
        "pathlib.Path.stat = lambda path: os.stat('file')\n"  # what it was a moment ago
        "try:\n    with archives.open_file(pipe): pass\nexcept archives.SourceError as error: print(error)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "pipe is a named pipe, wanted a file; correct the path\n"


def make_text(num_lines):
    return "".join(f"{number}\n" for number in range(num_lines))


def append(path):
    with path.open("a") as file:
        file.write("more\n")


def rewrite(path):
    path.write_text(make_text(5000).replace("7", "8"))
    os.utime(path, ns=(1, 1))


def replace(path):
    other = path.with_name("other")
    other.write_text(make_text(5000))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def truncate(path):
    os.truncate(path, 100)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (append, "changed while it was read"),
        (rewrite, "changed while it was read"),
        (replace, "changed while it was read"),
        (truncate, "changed while it was read"),
        (Path.unlink, "is not there"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, monkeypatch, change, wanted):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 10_000)
    path = tmp_path / "a.txt"
    path.write_text(make_text(5000))
    batches = read_batches(TextSource(str(path)))
    next(batches)
    change(path)
    with pytest.raises(SourceError, match=f"a.txt .*{wanted}"):
        list(batches)


def test_reading_only_the_beginning_does_not_look_whether_the_file_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 10)
    path = tmp_path / "a.txt"
    path.write_text(make_text(5000))
    batches = read_batches(TextSource(str(path)))
    next(batches)
    path.unlink()
    batches.close()


class FailingFile(io.RawIOBase):
    def __init__(self, number):
        self.number = number

    def read(self, size=-1):
        raise OSError(self.number, os.strerror(self.number))


def test_a_failing_disk_is_not_called_a_wrong_file_but_a_forbidden_one_is(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as caught, archives.translate_errors(tmp_path):
        FailingFile(errno.EIO).read()
    assert not isinstance(caught.value, SourceError)
    wanted = "it may not be read; change its permissions"
    with pytest.raises(SourceError, match=wanted), archives.translate_errors(tmp_path):
        FailingFile(errno.EACCES).read()
