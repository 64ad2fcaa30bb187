"""The word of a run on disks that are full, broken, or have no hard links."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from launch import folder as run_folder
from launch import pulse, train
from launch.liveness import RANK_TIMEOUT
from launch.verdict import (
    UNDER_RUN,
    Verdict,
    clear_verdict,
    find_disk_failure,
    has_verdict,
    read_verdict,
    write_verdict,
)

CANINE = "canine-tiny-domains-char"


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("name", ["EPERM", "EOPNOTSUPP", "ENOSYS", "EMLINK"])
def test_without_hard_links_the_first_verdict_stands_too(name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", failing(getattr(errno, name)))
    write_verdict(tmp_path, Verdict(4, "first"))
    write_verdict(tmp_path, Verdict(1, "second"))
    assert read_verdict(tmp_path) == Verdict(4, "first")
    clear_verdict(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_verdict(tmp_path, Verdict(1, "third"))
    assert read_verdict(tmp_path) == Verdict(1, "third")


def test_a_verdict_that_is_just_being_written_is_none_yet(tmp_path):
    """Without hard links its name is there a moment before its text."""
    (tmp_path / "verdict.json").touch()
    assert read_verdict(tmp_path) is None
    assert not has_verdict(tmp_path)


DISK = ["ENOSPC", "EDQUOT", "EROFS", "EIO"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the trainer's `main` on a disk that fails while the run's files are written."""
    monkeypatch.setenv(RANK_TIMEOUT, "600")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    for name in ("WORLD_SIZE", "RANK", UNDER_RUN):
        monkeypatch.delenv(name, raising=False)

    def start_one(number):
        monkeypatch.setattr(run_folder, "resolved_yaml", failing(number))
        job = SimpleNamespace(recipe=None)
        monkeypatch.setattr(train, "run", lambda request, *_: run_folder.write_run_files(request.output, job))
        return train.main([CANINE, "--profile", "cpu", "--output", str(tmp_path / "run")])

    return start_one


@pytest.mark.parametrize("name", DISK)
def test_a_disk_that_fails_outside_of_saves_is_exit_3_in_one_line(name, start, tmp_path, capsys):
    number = getattr(errno, name)
    assert start(number) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"launch.folder.write_run_files failed: {os.strerror(number)}; the last checkpoint"
    )
    assert "repeat the command" in line
    assert json.loads((tmp_path / "run" / "verdict.json").read_text()) == {"exit_code": 3, "message": line}


def test_another_error_of_the_file_system_is_a_defect_still(start, capsys):
    assert start(errno.EACCES) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_disk_failure_names_the_file_where_the_error_does(tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "plan.json"))
    assert f"({tmp_path / 'plan.json'})" in find_disk_failure(error).message
    assert find_disk_failure(ValueError("28")) is None


@pytest.mark.parametrize("under_run", [False, True])
def test_a_verdict_that_cannot_be_left_is_told_and_its_exit_code_stands(
    under_run, start, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pulse, "write_verdict", failing(errno.EPERM))
    if under_run:  # which would print it, had it one
        monkeypatch.setenv(UNDER_RUN, "run")
        monkeypatch.setattr(pulse, "hold_as_trainer", lambda *_, **__: None)
    assert start(errno.ENOSPC) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("how this rank ends could not be left in the run folder: [Errno 1]")
    assert second.startswith("launch.folder.write_run_files failed")
    assert not (tmp_path / "run" / "verdict.json").exists()
