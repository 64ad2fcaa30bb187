import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.plan import Plan
from launch.slurm import Job, add_slurm, build_task, render_sbatch, submit, submit_run
from launch.verdict import MACHINE, REQUEST, RunError
from tests.recorded.record_sbatch import FOLDER, OVERRIDES, WORLDS, describe


def make_job(output, nodes=1, devices=1, **more):
    return Job("canine-c-domains-char", Path(output), nodes, devices, True, **more)


@pytest.mark.parametrize("world", list(WORLDS))
def test_the_batch_file_is_the_recorded_one(world):
    path = FOLDER / f"{world}.sbatch"
    assert describe(world) == path.read_text()
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0


def test_the_users_options_stand_in_place_of_ours_of_the_same_name():
    job = make_job(
        "/r", devices=8, time="1:00", arguments=("--gres=gpu:a100:8", "-t 2:00:00", "--cpus-per-task=4")
    )
    options = job.options()
    assert [text for text in options if "gpu" in text] == ["--gres=gpu:a100:8"]
    assert [text for text in options if "cpus" in text] == ["--cpus-per-task=4"]
    assert "-t 2:00:00" in options
    assert "--time=1:00" not in options


@pytest.mark.parametrize(
    "text", ["--nodes=3", "-N 3", "--signal=TERM@9", "--no-requeue", "partition=gpu", "--", "--x=a\nb"]
)
def test_an_option_that_contradicts_the_job_or_is_none_is_refused(text):
    with pytest.raises(RunError, match="slurm-arg") as refused:
        make_job("/r", arguments=(text,)).options()
    assert refused.value.verdict.exit_code == REQUEST


def test_a_job_on_cpus_asks_for_no_gpu():
    text = "\n".join(Job("x", Path("/r"), 1, 2, has_gpus=False).options())
    assert "gpu" not in text
    assert "--cpus-per-task=2" in text


def test_the_task_is_what_the_plan_has_decided_and_the_job_what_the_command_line_says():
    fields = {"recipe": "r", "nodes": 2, "devices": 8, "rendezvous": "c10d", "output": "runs/r"}
    plan = Plan.model_construct(
        **fields, command=["accelerate", "launch", "-m", "launch.train", "r", "a.b=[1]"]
    )
    assert build_task(plan) == [sys.executable, "-m", "launch", "run", "r", "a.b=[1]", "--rendezvous", "c10d"]
    parser = argparse.ArgumentParser()
    add_slurm(parser)
    given = parser.parse_args(
        ["--slurm", "--slurm-arg=--qos=long", "--slurm-time", "9", "--slurm-signal", "60"]
    )
    job = Job.of(plan, given, has_gpus=True)
    assert (job.nodes, job.devices, job.time, job.arguments) == (2, 8, "9", ("--qos=long",))
    assert "--signal=B:USR1@60" in job.options()


# A cluster of small scripts. srun starts one process a node and, like the real one, kills them on SIGTERM;
# scancel reaches the processes of the step alone.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if word not in ("--kill-on-bad-exit=0", "--wait=120")]
nodes = range(int(os.environ["FAKE_NODES"]))
steps = [subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(n)}) for n in nodes]
signal.signal(signal.SIGTERM, lambda *_: [step.kill() for step in steps])
with open(os.environ["FAKE"] + "/pids", "w") as file:
    file.write(" ".join(str(step.pid) for step in steps))
sys.exit(max(step.wait() for step in steps))
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$FAKE/calls"
kill -TERM $(cat "$FAKE/pids")
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$FAKE/calls"
case "$2" in
hostnames) echo first-host; echo second-host;;
job) echo "JobId=$3 JobState=$FAKE_STATE Reason=None";;
esac
"""
TRAINER = """#!/bin/bash
trap 'mkdir -p "$FAKE_SAVES"; exit 143' TERM
printf '%s|' "$NODE_RANK" "$MASTER_ADDR" "$MASTER_PORT" "$HF_HOME" "$@" > "$FAKE/trainer-$SLURM_NODEID"
[[ -n "${FAKE_CODE:-}" ]] && exit "$FAKE_CODE"
while true; do sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "a cluster"
    folder.mkdir()
    scripts = {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, "trainer": TRAINER}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    run = folder / "run"
    run.mkdir()
    variables = {
        "FAKE": folder, "FAKE_NODES": 2, "FAKE_STATE": "RUNNING", "FAKE_SAVES": run / "checkpoint-9",
        "SLURM_JOB_ID": 40_007, "SLURM_JOB_NODELIST": "x", "PATH": f"{folder}:{os.environ['PATH']}",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    return folder


def start_job(folder):
    text = render_sbatch(
        [str(folder / "trainer"), *OVERRIDES],
        {"HF_HOME": "/hf home"},
        make_job(folder / "run", nodes=2),
        folder,
    )
    (folder / "job.sh").write_text(text)
    return subprocess.Popen(["bash", folder / "job.sh"], stderr=subprocess.PIPE, text=True)


def end_job(folder, job, number=None):
    if number is not None:
        deadline = time.monotonic() + 20
        while (
            not all((folder / f"trainer-{node}").exists() for node in (0, 1)) and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        job.send_signal(number)
    _, stderr = job.communicate(timeout=20)
    calls = (folder / "calls").read_text() if (folder / "calls").exists() else ""
    return job.returncode, "scontrol requeue 40007" in calls, stderr


def test_each_machine_knows_its_rank_and_the_first_host_and_words_arrive_as_they_were(cluster, monkeypatch):
    monkeypatch.setenv("FAKE_CODE", "0")
    assert end_job(cluster, start_job(cluster)) == (0, False, "")
    for node in (0, 1):
        found = (cluster / f"trainer-{node}").read_text()
        assert found == "|".join(
            [str(node), "first-host", str(15_000 + 40_007 % 15_000), "/hf home", *OVERRIDES, ""]
        )


@pytest.mark.parametrize("code", [1, 2, 5, 143])
def test_an_exit_code_passes_through_and_alone_requeues_nothing(cluster, monkeypatch, code):
    monkeypatch.setenv("FAKE_CODE", str(code))
    assert end_job(cluster, start_job(cluster))[:2] == (code, False)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_lets_the_trainers_save_and_the_job_is_queued_again(cluster, number):
    code, is_requeued, _ = end_job(cluster, start_job(cluster), number)
    assert (cluster / "run/checkpoint-9").is_dir()
    assert (code, is_requeued) == (143, True)


def test_a_cancelled_job_is_not_queued_again(cluster, monkeypatch):
    monkeypatch.setenv("FAKE_STATE", "CANCELLED")
    code, is_requeued, stderr = end_job(cluster, start_job(cluster), signal.SIGTERM)
    assert (code, is_requeued) == (143, False)
    assert "cancelled" in stderr


def test_a_job_that_saves_nothing_within_its_time_is_not_queued_for_ever(cluster, monkeypatch):
    (cluster / "run/checkpoint-9").mkdir()
    code, is_requeued, stderr = end_job(cluster, start_job(cluster), signal.SIGUSR1)
    assert (code, is_requeued) == (143, False)
    assert "more time" in stderr


def fake_sbatch(folder, monkeypatch, text):
    (folder / "sbatch").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_submitting_gives_the_id_of_the_job(tmp_path, monkeypatch):
    fake_sbatch(tmp_path, monkeypatch, f'echo "$@" > {shlex.quote(str(tmp_path))}/given; echo "4711;east"')
    assert submit(tmp_path / "a job.sbatch") == "4711"
    assert (tmp_path / "given").read_text() == f"--parsable {tmp_path}/a job.sbatch\n"


def test_a_plan_is_submitted_from_its_run_folder_or_only_printed(tmp_path, monkeypatch, capsys):
    fake_sbatch(tmp_path, monkeypatch, "echo 12")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    add_slurm(parser)
    fields = {"recipe": "r", "nodes": 1, "devices": 1, "output": str(tmp_path / "run")}
    plan = Plan.model_construct(**fields, command=["-m", "launch.train", "r", "--profile", "cpu"])
    assert submit_run(plan, parser.parse_args(["--dry-run"]), has_gpus=False) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert submit_run(plan, parser.parse_args([]), has_gpus=False) == 0
    assert (tmp_path / "run/job.sbatch").read_text() == printed
    assert "job 12" in capsys.readouterr().out
    assert "export HF_HUB_OFFLINE=1" in printed
    assert "hf_secret" not in printed


def test_a_refusal_says_what_slurm_said(tmp_path, monkeypatch):
    fake_sbatch(tmp_path, monkeypatch, "echo invalid partition >&2; exit 1")
    with pytest.raises(RunError, match="invalid partition") as refused:
        submit(tmp_path / "job")
    assert refused.value.verdict.exit_code == REQUEST


def test_without_sbatch_the_machine_lacks_something(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="PATH") as refused:
        submit(tmp_path / "job")
    assert refused.value.verdict.exit_code == MACHINE
