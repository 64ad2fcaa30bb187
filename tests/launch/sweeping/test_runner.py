import os
import signal
import time

import pytest

from launch.sweeping import runner
from launch.sweeping.runner import LOG, RunWorker, describe_end, run_all, share_devices
from launch.sweeping.state import Entry
from launch.verdict import RunError, Verdict, write_verdict


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 0)


class Fake:
    """A run that ends after so many looks, or sooner when it is asked to."""

    def __init__(self, num_looks, exit_code):
        self.num_looks, self.exit_code, self.num_stops = num_looks, exit_code, 0

    def poll(self):
        self.num_looks -= 1
        return self.exit_code if self.num_looks < 0 else None

    def stop(self):
        self.num_stops += 1
        self.num_looks, self.exit_code = 0, 143


class Books:
    """A supply that notes what happens."""

    def __init__(self, names):
        self.names, self.running, self.notes, self.most = list(names), set(), [], 0

    def take(self):
        if not self.names:
            return None
        entry = Entry(self.names.pop(0), {})
        self.running.add(entry.name)
        self.most = max(self.most, len(self.running))
        return entry

    def give_back(self, entry, exit_code):
        self.running.remove(entry.name)
        self.notes.append((entry.name, exit_code))


@pytest.mark.parametrize("num_slots", [1, 2, 3, 9])
def test_all_runs_are_run_once_and_never_more_than_so_many_at_once(num_slots):
    books, slots, codes = Books("abcdefg"), {}, {"c": 5}

    def start(entry, slot):
        assert slot not in slots.values() or num_slots == 1 or entry.name not in slots
        slots[entry.name] = slot
        return Fake(ord(entry.name) % 3, codes.get(entry.name, 0))

    run_all(books, start, num_slots=num_slots, came=[])
    assert sorted(books.notes) == [(name, codes.get(name, 0)) for name in "abcdefg"]
    assert books.most == min(num_slots, 7)
    assert set(slots.values()) == set(range(min(num_slots, 7)))
    if num_slots == 1:
        assert [name for name, _ in books.notes] == list("abcdefg")


def test_a_signal_stops_what_runs_and_nothing_more_is_started():
    books, came, workers = Books("abcd"), [], []

    def start(entry, slot):
        workers.append(Fake(10**9 if len(workers) < 2 else 0, 0))
        if entry.name == "b":
            came.append(signal.SIGTERM)
        return workers[-1]

    run_all(books, start, num_slots=2, came=came)
    assert sorted(books.notes) == [("a", 143), ("b", 143)]
    assert books.names == ["c", "d"]
    assert [worker.num_stops for worker in workers] == [1, 1]


def test_a_second_signal_is_passed_on_too():
    class Deaf(Fake):
        def stop(self):
            self.num_stops += 1
            if self.num_stops == 2:
                self.num_looks = 0
            else:
                came.append(signal.SIGINT)

    books, came, worker = Books("a"), [signal.SIGTERM], Deaf(10**9, 143)
    books_take = books.take
    came.clear()

    def take():
        entry = books_take()
        if entry is not None:
            came.append(signal.SIGTERM)
        return entry

    books.take = take
    run_all(books, lambda entry, slot: worker, num_slots=1, came=came)
    assert worker.num_stops == 2


def test_gpus_are_dealt_out_and_too_few_are_refused():
    cuda = [slot["CUDA_VISIBLE_DEVICES"] for slot in share_devices(2, 2, ["4", "5", "6", "7", "8"], 8)]
    assert cuda == ["4,5", "6,7"]
    with pytest.raises(RunError, match=r"wants 6 GPUs, and 5 are visible") as error:
        share_devices(3, 2, ["4", "5", "6", "7", "8"], 8)
    assert error.value.verdict.exit_code == 2
    # One at a time takes what the machine has; on a CPU the cores are shared.
    assert share_devices(1, 2, ["0"], 8) == [{}]
    assert share_devices(3, 2, None, 16) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert share_devices(9, 2, None, 4) == [{"OMP_NUM_THREADS": "1"}] * 9


def test_an_end_is_told_in_the_trainers_words_where_they_are_of_this_run(tmp_path):
    write_verdict(tmp_path, Verdict(5, "the loss is not a number at step 7"))
    assert describe_end(tmp_path, 5) == "the loss is not a number at step 7"
    assert "not a number" not in describe_end(tmp_path, 2)
    assert describe_end(tmp_path / "nowhere", 143) == "stopped before it began"
    assert "killed" in describe_end(tmp_path, 6)


def wait_for(worker):
    deadline = time.monotonic() + 60
    while worker.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return worker.poll()


def test_a_run_is_the_command_run_in_a_process_of_its_own(tmp_path):
    command = ["canine-tiny-domains-char", "--profile", "cpu", "--dry-run", "--output", str(tmp_path / "r")]
    worker = RunWorker(command, {"OMP_NUM_THREADS": "3"}, tmp_path / "logs" / LOG)
    assert wait_for(worker) == 0
    log = (tmp_path / "logs" / LOG).read_text()
    assert "-m launch.train canine-tiny-domains-char" in log
    assert "OMP_NUM_THREADS=3" in log
    assert os.environ.get("OMP_NUM_THREADS") != "3"
    assert wait_for(RunWorker([*command, "nonsense.key=1"], {}, tmp_path / LOG)) == 2
    assert "unknown key" in (tmp_path / LOG).read_text()


def test_a_run_that_is_killed_is_lost_and_one_that_was_asked_is_stopped(tmp_path):
    for is_asked, code in ((False, 6), (True, 143)):
        worker = RunWorker(["canine-tiny-domains-char"], {}, tmp_path / LOG)
        if is_asked:
            worker.stop()  # long before it listens
        else:
            worker._process.kill()
        assert wait_for(worker) == code
