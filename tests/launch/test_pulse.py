"""The thread of a rank on a file system that fails: it goes on beating, and always comes to its end."""

import errno
import os
import subprocess
import sys

import pytest

from launch import pulse
from launch.liveness import find_place, read_beats
from launch.process import Process
from launch.pulse import Origin, Pulse
from launch.verdict import Verdict, read_verdict
from tests.commands import ROOT
from tests.launch.test_liveness import wait_until

ORIGIN = Origin(None, None, "run")


def failing(function, num_times):
    """The function, but its first calls fail as on a file server that was away for a moment."""
    failures = iter(range(num_times))

    def call(*arguments, **options):
        if next(failures, None) is not None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("act", ["touch", "streams", "watch"])
def test_a_passing_error_of_the_file_system_ends_no_pulse(act, tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.02)
    own = Pulse(tmp_path, 0, 2, ORIGIN)
    if act == "touch":
        monkeypatch.setattr(pulse.os, "utime", failing(os.utime, 1))
    elif act == "streams":
        monkeypatch.setattr(pulse, "keep_streams", failing(pulse.keep_streams, 1))
    else:
        monkeypatch.setattr(own._watch, "look", failing(own._watch.look, 1))
    with own:
        for step in (1, 2):
            own.mark("step", step)
            wait_until(lambda wanted=step: read_beats(tmp_path, "run")[0].step == wanted)
            (before,) = read_beats(tmp_path, "run")
            wait_until(lambda last=before: read_beats(tmp_path, "run")[0].touched > last.touched)


@pytest.mark.parametrize("act", ["_write", "_keep_streams", "_look_at_others"])
def test_a_dead_launcher_is_seen_while_the_file_system_does_nothing_else(act, tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(Pulse, "_see_to_end", lambda _: None)
    gone = Process(os.uname().nodename, os.getpid(), 1)
    own = Pulse(tmp_path, 0, 1, Origin(None, gone, "run"))
    setattr(own, act, failing(getattr(own, act), 10**9) if act != "_write" else fail_after_first(own._write))
    with own:
        wait_until(lambda: own.is_orphaned)


def fail_after_first(function):
    """The first sign of life is the main thread's own."""
    first = iter([function])

    def call():
        for one in first:
            return one()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    return call


def test_an_orphan_that_cannot_read_its_folder_ends_after_the_timeout(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_RANK_TIMEOUT", "0.001")
    own = Pulse(tmp_path, 0, 2, ORIGIN)
    own.mark("step", 7)
    monkeypatch.setattr(own, "_find_lost", failing(list, 10**9))
    ended = []
    monkeypatch.setattr(own, "_exit", ended.append)
    wait_until(lambda: own._see_to_end() or ended)
    assert ended[0].exit_code == 6
    assert "in step 7 for too long" in ended[0].message


EXIT = """
import sys
from pathlib import Path
from launch.pulse import Origin, Pulse
from launch.verdict import Verdict
own = Pulse(Path(sys.argv[1]), 0, 1, Origin(None, None, "run"))
sys.stdin.read()
own._exit(Verdict(143, "the launcher is dead"))
"""


def start_exit(folder):
    return subprocess.Popen(
        [sys.executable, "-c", EXIT, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_whose_folder_is_gone_still_says_why_and_ends(tmp_path):
    process = start_exit(tmp_path / "removed")
    _, errors = process.communicate()
    assert process.returncode == 143
    assert errors == "the launcher is dead\n"


def test_a_process_that_nobody_listens_to_any_more_ends_with_its_code(tmp_path):
    process = start_exit(tmp_path)
    process.stderr.close()
    process.stdin.close()
    assert process.wait() == 143
    assert read_verdict(tmp_path) == Verdict(143, "the launcher is dead")


def test_a_rank_that_cannot_leave_its_verdict_gives_no_sign_of_life_any_more(tmp_path, monkeypatch):
    own = Pulse(tmp_path, 1, 2, ORIGIN).__enter__()
    monkeypatch.setattr(pulse, "write_verdict", failing(None, 1))
    with pytest.raises(OSError, match=r"[Ss]tale"):
        own.leave(Verdict(3, "the disk is full"))
    assert not own._thread.is_alive()
    assert not find_place(tmp_path, 1).exists()
