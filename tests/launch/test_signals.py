"""Real runs, real signals: whatever ends a process, nothing is lost, nobody is left and somebody says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.checkpoints.manifest import find_checkpoints, find_damage
from launch.lock import hold
from launch.process import Process
from launch.verdict import RunError
from tests.commands import ENVIRONMENT, QUICK, ROOT, Ran, run_recipe, start

pytestmark = pytest.mark.ranks
CANINE = "canine-tiny-domains-char"
MARK = "MASKWRIGHT_TEST_FOLDER"
BIN = Path(sys.executable).parent
STEPS = ("training.max_steps=16", "evaluation.every=8", "checkpoint.every=8", *QUICK[CANINE])
RUN = (sys.executable, "-m", "launch", "run", CANINE)
# A step takes some 30 ms; tests look at the metrics more seldom.
SLOW_STEPS = "point=before_step,action=delay:0.2,count=10000"
SLOW_EVALUATION = "point=in_evaluation,action=delay:1.5,count=10000"


class Started:
    """A command that runs, found again by a variable that all of its descendants carry."""

    def __init__(self, folder, command, **variables):
        self.folder = folder
        environment = {**ENVIRONMENT, MARK: str(folder), **variables}
        self.errors = folder.with_suffix(".err")
        with self.errors.open("wb") as errors, folder.with_suffix(".out").open("wb") as output:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=output, stderr=errors, start_new_session=True
            )

    def ranks(self):
        found = {}
        for place in (self.folder / "ranks").glob("[0-9]*.json"):
            values = json.loads(place.read_text())
            found[values["rank"]] = (Process.parse(values["process"]), values["phase"], values["step"])
        return found

    def pids(self):
        return [process.pid for _, (process, *_) in sorted(self.ranks().items())]

    def descendants(self):
        found = []
        for place in Path("/proc").glob("[0-9]*/environ"):
            try:
                is_ours = f"{MARK}={self.folder}".encode() in place.read_bytes().split(b"\0")
            except OSError:
                continue
            process = Process.of(int(place.parent.name))
            if is_ours and process.is_alive:
                found.append(process)
        return found

    def wait_for_step(self, step):
        metrics = self.folder / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and f'"train", "step": {step},' in metrics.read_text())

    def wait_for(self, is_there, seconds=240):
        end = time.monotonic() + seconds
        while not is_there():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < end, self.errors.read_text()
            time.sleep(0.02)

    def wait(self, seconds=60):
        """The exit code of the command; seconds are until the last of its descendants has ended."""
        end = time.monotonic() + seconds
        try:
            code = self.process.wait(timeout=seconds)
            self.wait_for_end(max(1.0, end - time.monotonic()))
        finally:
            self.kill()
        return code

    def wait_for_end(self, seconds=30):
        end = time.monotonic() + seconds
        while self.descendants():
            assert time.monotonic() < end, f"left behind: {self.descendants()}"
            time.sleep(0.05)

    def kill(self):
        for process in self.descendants():
            process.send(signal.SIGKILL)
        self.process.poll()

    def checkpoints(self):
        """The steps of the checkpoints, each of which is whole."""
        found = find_checkpoints(self.folder)
        assert [find_damage(place) for place in found] == [None] * len(found)
        return sorted(int(place.name.removeprefix("checkpoint-")) for place in found)

    def verdict(self):
        return json.loads((self.folder / "verdict.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbs, on two processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return run_recipe(folder, CANINE, "--profile", "cpu-2proc", num_steps=16)


@pytest.fixture
def begin(tmp_path):
    """Starts commands and leaves none of their processes behind."""
    started = []

    def start_one(*arguments, command=RUN, fault=SLOW_STEPS, name="run", **variables):
        folder = tmp_path / name
        line = [*command, "--output", str(folder), *STEPS, *arguments]
        started.append(Started(folder, line, MASKWRIGHT_FAULT=fault, **variables))
        return started[-1]

    yield start_one
    for one in started:
        one.kill()
        one.process.wait()


def check_resumed(run, whole):
    """The same command goes on and ends with the losses of the straight run."""
    again = start([*RUN, "--output", str(run.folder), *STEPS, "--profile", "cpu-2proc"], run.folder)
    assert again.exit_code == 0, again.stderr
    assert again.events("train")[-1]["step"] == 16
    assert again.losses() == whole.losses()
    assert again.events("eval") == whole.events("eval")
    assert not (run.folder / "ranks").exists()
    return again


def test_sigterm_to_the_run_leaves_one_checkpoint_of_all_ranks(begin, whole):
    run = begin("--profile", "cpu-2proc")
    run.wait_for_step(3)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143, run.errors.read_text()
    (step,) = run.checkpoints()
    assert 3 <= step < 8
    errors = run.errors.read_text()
    assert f"goes on from step {step}" in errors
    assert "Traceback" not in errors
    assert f"going on from step {step}" in check_resumed(run, whole).stdout


def test_a_killed_rank_is_named_and_nobody_waits_for_it(begin, whole):
    run = begin("--profile", "cpu-2proc")
    run.wait_for_step(9)
    os.kill(run.pids()[1], signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(40) == 6, run.errors.read_text()
    assert time.monotonic() - killed < 30
    errors = run.errors.read_text()
    assert "rank 1 was killed (SIGKILL) in " in errors
    assert "Traceback" not in errors
    assert run.checkpoints() == [8]
    check_resumed(run, whole)


def test_a_second_run_in_the_folder_is_refused_and_disturbs_nothing(begin):
    first = begin("--profile", "cpu")
    first.wait_for_step(2)
    second = start([*RUN, "--output", str(first.folder), *STEPS, "--profile", "cpu"], first.folder)
    assert second.exit_code == 7
    host = os.uname().nodename
    assert f"run {first.process.pid} on {host}, since 2" in second.stderr
    by_hand = [sys.executable, "-m", "launch.train", CANINE, "--output", str(first.folder), *STEPS]
    third = start([*by_hand, "--profile", "cpu"], first.folder)
    assert third.exit_code == 7
    assert not (first.folder / "verdict.json").exists()
    assert first.wait(60) == 0
    steps = [event["step"] for event in Ran(0, "", "", first.folder).events("train")]
    assert steps == list(range(1, 17))


slow, long = pytest.mark.slow, pytest.mark.long


@slow
def test_a_stopped_rank_is_named_within_the_timeout(begin):
    run = begin("--profile", "cpu-2proc", MASKWRIGHT_RANK_TIMEOUT="8")
    run.wait_for_step(9)
    os.kill(run.pids()[1], signal.SIGSTOP)
    stopped = time.monotonic()
    assert run.wait(60) == 6, run.errors.read_text()
    assert 7 < time.monotonic() - stopped < 45
    errors = run.errors.read_text()
    assert "rank 1 has not been heard of for" in errors
    assert "its process was stopped" in errors
    assert run.checkpoints() == [8]


@long
def test_a_rank_that_hangs_by_hand_is_named_by_rank_0(begin):
    """No `maskwright run` watches here: the other ranks do, and torchrun ends what is left."""
    torchrun = (str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "-m", "launch.train", CANINE)
    run = begin("--profile", "cpu-2proc", command=torchrun, MASKWRIGHT_RANK_TIMEOUT="8",
                TORCH_ELASTIC_SHUTDOWN_TIMEOUT="5")  # fmt: skip
    run.wait_for_step(9)
    os.kill(run.pids()[1], signal.SIGSTOP)
    assert run.wait(90) == 1
    assert run.verdict()["exit_code"] == 6
    assert "rank 1 has not been heard of for" in run.verdict()["message"]
    assert run.checkpoints() == [8]


def to_run(run, number):
    run.process.send_signal(number)


def to_all(run, number):
    for process in run.descendants():
        process.send(number)


def to_rank(run, number):
    os.kill(run.pids()[1], number)


@long
@pytest.mark.parametrize(
    ("profile", "number", "target"),
    [
        ("cpu-2proc", signal.SIGUSR1, to_run),
        ("cpu-2proc", signal.SIGINT, to_run),
        ("cpu-2proc", signal.SIGTERM, to_all),
        ("cpu-2proc", signal.SIGTERM, to_rank),
        ("cpu-2proc", signal.SIGUSR1, to_rank),
        ("cpu-2proc-zero2", signal.SIGTERM, to_run),
        ("cpu", signal.SIGTERM, to_run),
        ("cpu", signal.SIGTERM, to_all),
    ],
)
def test_whoever_gets_a_signal_all_stop_with_a_checkpoint(profile, number, target, begin):
    run = begin("--profile", profile)
    run.wait_for_step(3)
    target(run, number)
    assert run.wait(30) == 143, run.errors.read_text()
    (step,) = run.checkpoints()
    assert 3 <= step < 8
    assert "Traceback" not in run.errors.read_text()


@long
def test_a_stop_in_the_middle_of_an_evaluation_does_not_wait_for_its_end(begin, whole):
    run = begin("--profile", "cpu-2proc", fault=f"{SLOW_EVALUATION},step=8")
    run.wait_for(
        lambda: len(run.ranks()) == 2 and all(r[1:] == ("evaluation", 8) for r in run.ranks().values())
    )
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143, run.errors.read_text()
    assert run.checkpoints() == [8]
    steps = [event["step"] for event in Ran(0, "", "", run.folder).events("eval")]
    assert steps == [0], "the evaluation was over before it could be cut short"
    again = check_resumed(run, whole)
    assert [event["step"] for event in again.events("eval")] == [0, 8, 16]


@long
def test_a_stop_in_the_first_evaluation_leaves_a_run_that_starts_anew(begin):
    run = begin("--profile", "cpu", fault=SLOW_EVALUATION)
    run.wait_for(lambda: any(phase == "evaluation" for _, phase, _ in run.ranks().values()))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 143, run.errors.read_text()
    assert "starts anew" in run.errors.read_text()
    assert run.checkpoints() == []


@long
def test_signals_in_the_middle_of_saves_break_none(begin, whole):
    """The first comes while step 8 is saved, the others while the stop is."""
    run = begin(
        "--profile", "cpu-2proc", fault=f"{SLOW_STEPS};point=before_rename,action=delay:2,count=9,rank=0"
    )
    run.wait_for(lambda: list(run.folder.glob(".checkpoint-8.*.partial/manifest.json")))
    run.process.send_signal(signal.SIGTERM)
    run.wait_for(lambda: list(run.folder.glob(".checkpoint-9.*.partial/manifest.json")))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        to_all(run, number) if number == signal.SIGTERM else to_run(run, number)
        time.sleep(0.3)
    assert run.wait(30) == 143, run.errors.read_text()
    assert run.checkpoints() == [8, 9]
    check_resumed(run, whole)


@pytest.mark.parametrize("profile", [pytest.param("cpu", marks=long), pytest.param("cpu-2proc", marks=slow)])
def test_trainers_of_a_killed_run_save_stop_and_hold_the_folder_until_then(profile, begin, whole):
    run = begin("--profile", profile)
    run.wait_for_step(3)
    trainer = run.pids()[0]
    run.process.kill()
    assert run.process.wait() == -signal.SIGKILL
    with pytest.raises(RunError, match=f"trainer {trainer} on"), hold(run.folder, "another"):
        pass
    run.wait_for_end()
    (step,) = run.checkpoints()
    assert 3 <= step < 8
    assert "because its launcher is dead" in run.verdict()["message"]
    with hold(run.folder, "another") as left:
        assert left.process.pid == trainer
    assert "Traceback" not in (run.folder / "launcher.log").read_text()
    run.wait(30)
    if profile == "cpu-2proc":
        check_resumed(run, whole)


@long
def test_trainers_in_an_orphaned_run_that_cannot_agree_end_within_seconds(begin):
    run = begin("--profile", "cpu-2proc")
    run.wait_for_step(9)
    os.kill(run.pids()[1], signal.SIGSTOP)
    stopped = Process.of(run.pids()[1])
    run.wait_for(lambda: stopped.is_stopped)
    run.process.kill()
    limit = time.monotonic() + 20
    rank_0 = Process.of(run.pids()[0])
    while rank_0.is_alive:
        assert time.monotonic() < limit
        time.sleep(0.1)
    assert run.verdict()["exit_code"] == 6
    assert run.checkpoints() == [8]
    stopped.send(signal.SIGKILL)
    run.wait(40)


@long
@pytest.mark.parametrize(("profile", "number"), [("cpu", signal.SIGTERM), ("cpu-2proc", signal.SIGKILL)])
def test_a_launcher_that_dies_alone_takes_no_training_with_it(profile, number, begin):
    """`accelerate launch` with one process dies of SIGTERM and tells nobody."""
    run = begin("--profile", profile)
    run.wait_for_step(3)
    launcher = int(Path(f"/proc/{run.pids()[0]}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(launcher, number)
    assert run.wait(30) == 143, run.errors.read_text()
    (step,) = run.checkpoints()
    assert 3 <= step < 8
    assert "because its launcher is dead" in run.errors.read_text()


ACCELERATE = (str(BIN / "accelerate"), "launch", "--config_file")
WAYS = {
    "python": ((sys.executable, "-m", "launch.train", CANINE), "cpu", signal.SIGTERM, 143),
    "torchrun": ((str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "-m", "launch.train", CANINE),
                 "cpu-2proc", signal.SIGUSR1, -signal.SIGUSR1),
    "accelerate-1": ((*ACCELERATE, "accelerate_configs/cpu.yaml", "-m", "launch.train", CANINE),
                     "cpu", signal.SIGTERM, -signal.SIGTERM),
    "accelerate-2": ((*ACCELERATE, "accelerate_configs/cpu-ddp.yaml", "-m", "launch.train", CANINE),
                     "cpu-2proc", signal.SIGTERM, 1),
}  # fmt: skip


@long
@pytest.mark.parametrize("way", list(WAYS))
def test_a_trainer_started_by_hand_stops_with_a_checkpoint_too(way, begin):
    """torchrun dies of SIGUSR1, `accelerate launch` of one process of SIGTERM; their trainers see it."""
    command, profile, number, code = WAYS[way]
    run = begin("--profile", profile, command=command)
    run.wait_for_step(3)
    with pytest.raises(RunError, match=f"trainer {run.pids()[0]} on"), hold(run.folder, "another"):
        pass
    run.process.send_signal(number)
    assert run.wait(40) == code, run.errors.read_text()
    assert run.verdict()["exit_code"] == 143
    (step,) = run.checkpoints()
    assert 3 <= step < 8


@long
def test_a_run_on_a_terminal_leaves_it_as_it_was(tmp_path):
    """Under a real terminal, where a live panel hides the cursor."""
    ours, theirs = os.openpty()
    folder = tmp_path / "run"
    line = [*RUN, "--output", str(folder), *STEPS, "--profile", "cpu"]
    environment = {**ENVIRONMENT, "TERM": "xterm", "MASKWRIGHT_FAULT": SLOW_STEPS}
    process = subprocess.Popen(line, env=environment, cwd=ROOT, stdout=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last one to hold its other end is gone
            break
        shown += part
        metrics = folder / "metrics.jsonl"
        if b'"step": 3,' in (metrics.read_bytes() if metrics.exists() else b"") and process.poll() is None:
            process.send_signal(signal.SIGINT)
    assert process.wait(30) == 143
    assert shown.count(b"\x1b[?25l") >= 1
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    os.close(ours)


def test_a_finished_run_is_left_as_it_is_to_the_nanosecond(whole):
    folder = whole.folder
    notes = {"verdict.json", "launcher.log", ".lock"}  # of the command, not of the run
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in notes]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert len(before) > 20
    again = start([*RUN, "--output", str(folder), *STEPS, "--profile", "cpu-2proc"], folder)
    assert again.exit_code == 0, again.stderr
    assert "done already" in again.stdout
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in notes]
    assert {path: path.stat().st_mtime_ns for path in files} == before
