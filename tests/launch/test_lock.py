"""The lock of a run folder, with real processes: the kernel gives it back, whatever becomes of them."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import lock
from launch.lock import find_holders, hold, hold_as_trainer
from launch.process import Process
from launch.verdict import HELD, MACHINE, RunError
from tests.commands import ROOT

HOLD = """
import sys, time
from pathlib import Path
from launch.lock import hold, hold_as_trainer
folder = Path(sys.argv[2])
if sys.argv[1] == "run":
    with hold(folder, sys.argv[3]):
        (folder / "ready").touch()
        time.sleep(60)
hold_as_trainer(folder, 0, is_first_machine=True, token=sys.argv[3], is_under_run=sys.argv[1] == "joined")
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def holding(tmp_path):
    started = []

    def start(role, token):
        (tmp_path / "ready").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", HOLD, role, str(tmp_path), token], cwd=ROOT)
        started.append(process)
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            time.sleep(0.01)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def take(folder, token="mine"):
    with hold(folder, token) as left:
        return left


def test_a_held_folder_is_refused_with_who_holds_it(holding, tmp_path):
    holder = holding("run", "theirs")
    with pytest.raises(RunError, match=f"run {holder.pid} on {os.uname().nodename}, since 20") as caught:
        take(tmp_path)
    assert caught.value.verdict.exit_code == HELD
    assert [one.process.pid for one in find_holders(tmp_path)] == [holder.pid]


@pytest.mark.parametrize("role", ["run", "by hand"])
def test_what_a_killed_holder_left_is_taken_over_and_told(role, holding, tmp_path):
    holder = holding(role, "theirs")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    left = take(tmp_path)
    assert left is not None
    assert left.process.pid == holder.pid
    assert take(tmp_path) is None, "a lock that was given back is no left one"


def test_a_trainer_that_outlives_its_launcher_still_holds_the_folder(holding, tmp_path):
    run = holding("run", "theirs")
    trainer = holding("joined", "theirs")
    run.kill()
    run.wait()
    with pytest.raises(RunError, match=f"trainer {trainer.pid} on") as caught:
        take(tmp_path)
    assert str(run.pid) not in caught.value.verdict.message
    trainer.kill()
    trainer.wait()
    take(tmp_path)


def test_a_trainer_does_not_join_the_lock_of_another_run(holding, tmp_path):
    """Its own launcher has died, and somebody else has the folder by now."""
    holding("run", "theirs")
    with pytest.raises(RunError) as caught:
        hold_as_trainer(tmp_path, 0, is_first_machine=True, token="mine", is_under_run=True)
    assert caught.value.verdict.exit_code == HELD


def test_a_trainer_by_hand_is_refused_where_a_run_is(holding, tmp_path):
    holding("run", "theirs")
    with pytest.raises(RunError) as caught:
        hold_as_trainer(tmp_path, 0, is_first_machine=True, token="mine", is_under_run=False)
    assert caught.value.verdict.exit_code == HELD


def test_other_ranks_wait_for_their_own_rank_0(holding, tmp_path, monkeypatch):
    """A rank of a refused run must not write into the folder before its rank 0 finds it held."""
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.3)
    wait = {"rank": 1, "is_first_machine": True, "is_under_run": False}
    with pytest.raises(RunError):
        hold_as_trainer(tmp_path, token="mine", **wait)
    first = holding("by hand", "mine")
    hold_as_trainer(tmp_path, token="mine", **wait)
    with pytest.raises(RunError, match=str(first.pid)):
        hold_as_trainer(tmp_path, token="another", **wait)
    first.kill()
    first.wait()
    with pytest.raises(RunError):  # the words are still there, the one who wrote them is not
        hold_as_trainer(tmp_path, token="mine", **wait)


def test_other_machines_look_at_no_lock(holding, tmp_path):
    holding("run", "theirs")
    hold_as_trainer(tmp_path, 2, is_first_machine=False, token="mine", is_under_run=True)


def test_of_many_at_once_one_gets_it(tmp_path):
    got, refused = [], []
    done = threading.Barrier(8)

    def attempt(number):
        try:
            with hold(tmp_path, f"token {number}"):
                got.append(number)
                done.wait()
        except RunError as error:
            refused.append(error.verdict.exit_code)
            done.wait()

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert refused == [HELD] * 7


def test_a_file_system_without_locks_is_refused_unless_that_is_asked_for(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunError, match="--no-lock") as caught:
        take(tmp_path)
    assert caught.value.verdict.exit_code == MACHINE
    monkeypatch.setenv(lock.NO_LOCK, "1")
    take(tmp_path)
    hold_as_trainer(tmp_path, 0, is_first_machine=True, token="mine", is_under_run=False)


def test_a_lock_file_with_anything_in_it_is_a_free_one(tmp_path):
    for text in ("", "{", '{"token": 1, "holders": [{}]}', "\0" * 100):
        (tmp_path / lock.NAME).write_text(text)
        assert take(tmp_path) is None


def test_looking_does_not_take(tmp_path):
    assert find_holders(tmp_path) == []
    assert not (tmp_path / lock.NAME).exists()
    with hold(tmp_path, "mine"):
        (holder,) = find_holders(tmp_path)
        assert holder.process == Process.of(os.getpid())
        assert json.loads((tmp_path / lock.NAME).read_text())["token"] == "mine"
    assert find_holders(tmp_path) == []


def test_somebody_who_only_looks_refuses_nobody(tmp_path, monkeypatch):
    """`find_holders` has the free lock for a moment, in which another run may want it."""
    looks, flock = iter(range(2)), fcntl.flock

    def lock_later(descriptor, kind):
        if next(looks, None) is not None:
            raise BlockingIOError
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", lock_later)
    assert take(tmp_path) is None


def test_a_lock_whose_words_cannot_be_wiped_off_is_given_back_and_the_run_ends_as_it_did(
    tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with hold(tmp_path, "mine"):
        monkeypatch.setattr(os, "pwrite", fail)
    monkeypatch.undo()
    assert find_holders(tmp_path) == []
