"""A run that is killed again and again ends with the losses and weights of one that was left alone."""

import os
import random
import signal
import subprocess
import sys

import pytest

from data_pipes.files import hash_stream
from launch.checkpoints.manifest import find_checkpoints, find_damage
from tests.commands import ENVIRONMENT, ROOT, Ran

pytestmark = pytest.mark.ranks
# 326 rows to train on: an epoch has 11 steps of 32 rows, 10 of them whole.
RECIPE = "canine-tiny-domains-char"
SETTINGS = (
    "data.limit=400", "data.evaluation_share=0.2", "training.global_batch=32", "training.max_steps=24",
    "training.rank_timeout_seconds=20", "evaluation.every=epoch", "checkpoint.every=4",
    "evaluation.samples=[]", "model.dropout=0.1",
)  # fmt: skip
# A micro-batch of 8 is a quarter of the rows of one process, half of those of two.
WAY = ("--micro-batch", "8")
SEED = int(os.environ.get("MASKWRIGHT_TEST_SEED", random.SystemRandom().randrange(10**6)))


def run(folder, profile, fault=""):
    command = [sys.executable, "-m", "launch", "run", RECIPE, "--output", str(folder), "--profile", profile]
    done = subprocess.run(
        [*command, *WAY, *SETTINGS],
        capture_output=True, text=True, env={**ENVIRONMENT, "MASKWRIGHT_FAULT": fault}, cwd=ROOT, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr, folder)


def hash_weights(folder):
    with (folder / "final" / "model.safetensors").open("rb") as file:
        return hash_stream(file)


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("cpu-2proc", "cpu-2proc-zero2", "cpu-2proc-zero3")
        ),
    ],
)
def test_kills_in_an_accumulation_at_an_epochs_end_in_an_evaluation_and_anywhere_leave_no_trace(
    profile, tmp_path
):
    """Dropout is on; the step drawn at random is printed and set by MASKWRIGHT_TEST_SEED."""
    straight = run(tmp_path / "straight", profile)
    assert straight.exit_code == 0, straight.stderr
    epochs = [event["epoch"] for event in straight.events("train")]
    ends = [step for step, epoch in enumerate(epochs, 1) if int(epoch) > int(([0.0, *epochs])[step - 1])]
    assert len(ends) == 2, "the run was to pass the end of two epochs"
    drawn = random.Random(SEED).randrange(ends[0] + 1, 24)
    print(f"MASKWRIGHT_TEST_SEED={SEED} kills at step {drawn}")
    folder, last_rank = tmp_path / "killed", "1" if "2proc" in profile else "0"
    for fault in (
        "point=before_backward,action=kill,step=6,pass=2,rank=0",
        f"point=after_step,action=kill,step={ends[0]},rank={last_rank}",
        f"point=in_evaluation,action=kill,step={ends[0]},pass=2,rank=0",
        f"point=before_step,action=kill,step={drawn},rank={last_rank}",
    ):
        killed = run(folder, profile, fault)
        assert killed.exit_code in (6, -signal.SIGKILL), (fault, killed.exit_code, killed.stderr)
        found = find_checkpoints(folder)
        assert found, fault
        assert [find_damage(place) for place in found] == [None] * len(found)
    ended = run(folder, profile)
    assert ended.exit_code == 0, ended.stderr
    assert [e["step"] for e in ended.events("train")] == list(range(1, 25)), "a step is doubled or missing"
    assert list(map(float.hex, ended.losses())) == list(map(float.hex, straight.losses()))
    for kind, keys in (
        ("train", ("num_targets", "grad_norm", "epoch")),
        ("eval", ("step", "loss", "accuracy")),
    ):
        assert [[e[k] for k in keys] for e in ended.events(kind)] == [
            [e[k] for k in keys] for e in straight.events(kind)
        ]
    assert hash_weights(folder) == hash_weights(straight.folder)
