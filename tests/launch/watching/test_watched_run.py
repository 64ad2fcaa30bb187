"""A real run watched from elsewhere, on a terminal and through a pipe, from before its start to its end."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import threading

import pytest

from tests.commands import ENVIRONMENT, QUICK, ROOT, start

pytestmark = pytest.mark.ranks
CANINE = "canine-tiny-domains-char"
STEPS = ("training.max_steps=24", "evaluation.every=12", "checkpoint.every=12", *QUICK[CANINE])
SLOW = {"MASKWRIGHT_FAULT": "point=before_step,action=delay:0.15,count=10000"}
COMMAND = (sys.executable, "-m", "launch")


def read_terminal(command, **variables):
    """Run a command on a terminal of its own: exit code and all that it wrote there."""
    master, slave = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **variables}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=slave, stderr=slave)
    os.close(slave)
    parts = []
    with contextlib.suppress(OSError):  # the terminal is closed
        while part := os.read(master, 1 << 16):
            parts.append(part)
    os.close(master)
    return process.wait(), b"".join(parts).decode()


def strip(text):
    """Without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.slow
def test_a_run_is_watched_from_before_its_start_to_its_end(tmp_path):
    """Of its two ranks only the first speaks."""
    folder = tmp_path / "run"
    found = {}

    def look_on_a_terminal():
        found["terminal"] = read_terminal([*COMMAND, "watch", str(folder), "--wait"])

    def look_through_a_pipe():
        found["pipe"] = start([*COMMAND, "watch", str(folder), "--wait"], folder)

    threads = [threading.Thread(target=look) for look in (look_on_a_terminal, look_through_a_pipe)]
    for thread in threads:
        thread.start()
    run = [*COMMAND, "run", CANINE, "--output", str(folder), *STEPS, "--profile", "cpu-2proc"]
    code, text = read_terminal(run, **SLOW)
    for thread in threads:
        thread.join()
    assert code == 0, text

    own = strip(text)
    assert "24/24" in own
    assert "evaluating" in own
    assert "before clipping to 1" in own
    assert own.count("step 24/24  evaluation: loss") == 1

    code, text = found["terminal"]
    watched = strip(text)
    assert code == 0, watched
    assert "24/24" in watched
    assert f"{CANINE} cpu-2proc, 2 ranks" in watched
    assert "training" in watched
    assert watched.count("step 12/24  evaluation: loss") == 1
    assert re.search(r"finished: 24 steps; model in", watched.replace("\r\n", ""))

    pipe = found["pipe"]
    assert pipe.exit_code == 0, pipe.stderr
    lines = pipe.stdout.splitlines()
    assert sum("evaluation: loss" in line for line in lines) == 3
    assert lines[-1].startswith(f"{folder}: finished: 24 steps")
    assert "\x1b" not in pipe.stdout
    event = pipe.events("train")[-1]
    assert event["slots_per_second"] > event["tokens_per_second"] > 0
    listed = start([*COMMAND, "runs", str(tmp_path)], folder)
    assert "finished" in listed.stdout
    assert "24/24" in listed.stdout


@pytest.mark.long
def test_a_run_whose_terminal_is_closed_goes_on_to_its_end(tmp_path):
    folder = tmp_path / "run"
    metrics = folder / "metrics.jsonl"
    master, slave = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color", **SLOW}
    command = [*COMMAND, "run", CANINE, "--output", str(folder), *STEPS, "--profile", "cpu"]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=slave, stderr=slave)
    os.close(slave)
    while not (metrics.exists() and '"train", "step": 5,' in metrics.read_text()):
        while select.select([master], [], [], 0.05)[0]:
            os.read(master, 1 << 16)
        assert process.poll() is None
    os.close(master)
    assert process.wait() == 0
    assert metrics.read_text().count('"kind": "train"') == 24
    log = (folder / "launcher.log").read_text()
    assert log.startswith("done  24 steps")
    assert "\x1b" not in log  # no panel is drawn into it
