"""Signs of life: who is lost, by processes that are really killed and by a clock of the tests' own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import pulse
from launch.liveness import (
    Beat,
    Lost,
    Watch,
    clear_beats,
    describe_lost,
    find_dead,
    find_place,
    find_timeout,
    read_beats,
    read_signals,
    write_beat,
)
from launch.process import Process, find_marked
from launch.pulse import Origin, Pulse, keep_streams
from launch.stop import StopFlag
from launch.verdict import RunError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def beat(folder, rank, pid, step=41, phase="step", token="run"):
    found = Beat(rank, Process.of(pid), token, phase, step)
    write_beat(folder, found)
    return found


def end(process):
    """Kill without waiting: a zombie is what a launcher has until it looks."""
    process.kill()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


def test_a_process_is_told_from_another_with_its_number(sleeper):
    process = Process.of(sleeper.pid)
    assert process.is_alive
    assert Process.parse(str(process)) == process
    assert not Process(process.host, process.pid, process.ticks + 1).is_alive
    assert not process.is_stopped
    sleeper.send_signal(signal.SIGSTOP)
    while not process.is_stopped:
        time.sleep(0.01)
    assert process.is_alive
    end(sleeper)
    assert not process.is_alive
    assert not process.send(signal.SIGTERM)
    assert Process.parse("1") is None


def test_processes_are_found_by_a_variable_of_theirs():
    process = subprocess.Popen(SLEEP, env={**os.environ, "MASKWRIGHT_TEST_MARK": "here"})
    try:
        while not list(find_marked("MASKWRIGHT_TEST_MARK", "here")):
            time.sleep(0.01)
        assert [one.pid for one in find_marked("MASKWRIGHT_TEST_MARK", "here")] == [process.pid]
        assert list(find_marked("MASKWRIGHT_TEST_MARK", "her")) == []
    finally:
        process.kill()
        process.wait()


def test_a_rank_without_a_process_is_dead_until_its_file_goes(tmp_path, sleeper):
    beat(tmp_path, 0, os.getpid())
    beat(tmp_path, 1, sleeper.pid)
    beats = read_beats(tmp_path, "run")
    assert find_dead(tmp_path, beats) == []
    end(sleeper)
    (lost,) = find_dead(tmp_path, beats)
    assert lost.beat.rank == 1
    assert read_beats(tmp_path, "another run") == []
    find_place(tmp_path, 1).unlink()
    assert find_dead(tmp_path, beats) == []


def test_a_silent_rank_is_lost_after_the_timeout_and_not_before(tmp_path):
    ranks = [beat(tmp_path, rank, os.getpid()) for rank in (0, 1)]
    watch = Watch(tmp_path, "run", timeout_seconds=60)
    for now in range(0, 61, 10):
        write_beat(tmp_path, ranks[0])
        assert watch.look(now) == []
    write_beat(tmp_path, ranks[0])
    (lost,) = watch.look(60.5)
    assert lost.beat.rank == 1
    assert lost.silent_seconds == pytest.approx(60.5)
    write_beat(tmp_path, ranks[1])
    assert watch.look(61) == []


def test_a_watch_that_was_held_up_itself_blames_nobody(tmp_path):
    beat(tmp_path, 0, os.getpid())
    watch = Watch(tmp_path, "run", timeout_seconds=60)
    watch.look(0)
    assert watch.look(3600) == []
    for now in range(3610, 3660, 10):
        assert watch.look(now) == []
    assert watch.look(3661)


def test_the_lost_are_named_with_signal_step_and_state(tmp_path, sleeper):
    lost = Lost(beat(tmp_path, 1, sleeper.pid))
    pid = sleeper.pid
    assert describe_lost([lost], {pid: 9}).startswith(
        "rank 1 was killed (SIGKILL) in step 41; the kernel does"
    )
    assert describe_lost([lost], {pid: 11}).startswith("rank 1 was killed (SIGSEGV) in step 41. ")
    host = os.uname().nodename
    assert describe_lost([lost]).startswith(
        f"rank 1 (process {pid} on {host}) ended without a word in step 41"
    )
    sleeper.send_signal(signal.SIGSTOP)
    while not lost.beat.process.is_stopped:
        time.sleep(0.01)
    silent = Lost.silent(beat(tmp_path, 0, sleeper.pid, 1200, "evaluation"), 60.2)
    end(sleeper)
    assert describe_lost([lost, silent]).startswith(
        "rank 0 has not been heard of for 60 s (it last stood in the evaluation of step 1,200; its process "
        "was stopped); rank 1 "
    )


TORCHRUN = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
Root Cause (first observed failure):
[0]:
  time      : 2026-11-24_15:00:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 4711)
  traceback : Signal 9 (SIGKILL) received by PID 4711
"""
AGENT = "E1124 failed (exitcode: -11) local_rank: 0 (pid: 4710) of binary: /usr/bin/python3"
ACCELERATE = "subprocess.CalledProcessError: Command '['python']' died with <Signals.SIGKILL: 9>."


def test_the_launchers_words_say_which_signal_it_was():
    assert read_signals(TORCHRUN) == {4711: 9}
    assert read_signals(AGENT + TORCHRUN) == {4710: 11, 4711: 9}
    assert read_signals(ACCELERATE) == {0: 9}
    assert read_signals("exitcode  : 1 (pid: 4711)") == {}


def test_files_that_are_no_beats_are_no_ranks(tmp_path):
    beat(tmp_path, 0, os.getpid())
    for name, text in (("1", "{"), ("2", "[]"), ("3", '{"rank": 3}')):
        (tmp_path / "ranks" / f"{name}.json").write_text(text)
    assert [found.rank for found in read_beats(tmp_path, "run")] == [0]
    theirs = Beat(4, Process("another-machine", 1, 1), "their run", "step", 1)
    write_beat(tmp_path, theirs)
    clear_beats(tmp_path)
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["4.json"]
    find_place(tmp_path, 4).unlink()
    clear_beats(tmp_path)
    assert not (tmp_path / "ranks").exists()


@pytest.mark.parametrize(("text", "seconds"), [("", 600), ("8", 8), ("0.5", 0.5), ("0", 600), ("long", 600)])
def test_the_timeout_is_read_from_the_environment(text, seconds, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_RANK_TIMEOUT", text)
    assert find_timeout() == seconds


def origin(parent=None, run=None):
    return Origin(parent, run, "run")


def wait_until(is_so):
    limit = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_pulse_beats_says_where_it_is_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.02)
    with Pulse(tmp_path, 3, 4, origin()) as own:
        (first,) = read_beats(tmp_path, "run")
        assert (first.rank, first.process, first.phase) == (3, Process.of(os.getpid()), "starting")
        wait_until(lambda: read_beats(tmp_path, "run")[0].touched > first.touched)
        own.mark("step", 7)
        wait_until(lambda: read_beats(tmp_path, "run")[0].step == 7)
        values = json.loads(find_place(tmp_path, 3).read_text())
        assert {"rank", "pid", "host", "phase", "step", "time"} <= values.keys()
        # A full disk: the file cannot be written anew, yet the rank lives.
        monkeypatch.setattr(pulse, "write_beat", _fail)
        own.mark("step", 8)
        (before,) = read_beats(tmp_path, "run")
        wait_until(lambda: read_beats(tmp_path, "run")[0].touched > before.touched)
    assert list((tmp_path / "ranks").iterdir()) == []


def _fail(*_):
    raise OSError(28, "No space left on device")


def test_a_dead_launcher_is_a_wish_to_stop(tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.02)
    run = Process.of(sleeper.pid)
    with Pulse(tmp_path, 0, 1, origin(run=run)) as own:
        flag = StopFlag()
        flag.pulse = own
        flag.mark("step", 1)
        time.sleep(0.1)
        assert not flag.is_asked
        end(sleeper)
        wait_until(lambda: flag.is_asked)


def test_the_reason_of_another_ranks_wish_is_the_launcher_that_both_had(tmp_path, sleeper, monkeypatch):
    """The thread here has not looked yet."""
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 60)
    with Pulse(tmp_path, 0, 2, origin(run=Process.of(sleeper.pid))) as own:
        flag = StopFlag()
        flag.pulse = own
        assert flag.reason == "by a signal"
        end(sleeper)
        wait_until(lambda: flag.reason == "because its launcher is dead")
        assert not own.is_orphaned


def test_what_nobody_reads_any_more_goes_into_the_log(tmp_path):
    (read, write), (kept, whole) = os.pipe(), os.pipe()
    keep_streams(tmp_path, (write, whole))
    os.write(write, b"read\n")
    assert os.read(read, 10) == b"read\n"
    os.close(read)
    keep_streams(tmp_path, (write, whole))
    os.write(write, b"logged\n")
    os.write(whole, b"read\n")
    assert (tmp_path / "launcher.log").read_bytes() == b"logged\n"
    assert os.read(kept, 10) == b"read\n"
    for descriptor in (write, kept, whole):
        os.close(descriptor)


def test_another_parent_than_at_the_start_is_a_dead_launcher():
    assert not origin(parent=os.getppid()).is_dead
    assert origin(parent=os.getppid() + 1).is_dead
    assert not origin().is_dead


def test_a_broken_connection_is_explained_by_who_is_gone(tmp_path, sleeper, monkeypatch):
    monkeypatch.setattr(pulse, "_NOTICE_SECONDS", 0.3)
    with Pulse(tmp_path, 0, 2, origin()) as own:
        own.mark("step", 41)
        beat(tmp_path, 1, sleeper.pid, step=40)
        broken = RuntimeError("[../third_party/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
        alive = own.explain(broken)
        assert alive.exit_code == 6
        assert "rank 1 stands in step 40" in alive.message
        assert "Connection closed by peer" in alive.message
        # Errors of the rank's own are its own while the others live.
        assert own.explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        assert own.explain(ValueError("gloo")) is None
        end(sleeper)
        assert "rank 1 (process" in own.explain(broken).message
        assert own.explain(RuntimeError("some word of the engine")).exit_code == 6
        saving = RunError(3, "could not be written")
        assert own.explain(saving) is None
        saving.__cause__ = broken
        assert own.explain(saving).exit_code == 6


def test_a_process_that_is_alone_has_no_lost_ranks(tmp_path):
    with Pulse(tmp_path, 0, 1, origin()) as own:
        assert own.explain(RuntimeError("gloo")) is None


def test_a_second_signal_after_the_first_does_not_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with StopFlag() as flag:
            assert not flag.is_asked
        assert signal.getsignal(signal.SIGTERM) is before
        with StopFlag() as flag:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert flag.is_asked
        os.kill(os.getpid(), signal.SIGTERM)  # would end the tests
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
