"""Saves of real runs that are killed, damaged or fail: the same command ends as if nothing had been."""

import json
import shutil
import subprocess
import sys

import pytest

from launch import fault
from launch.checkpoints.manifest import find_checkpoints, find_damage, find_step
from tests.commands import ENVIRONMENT, QUICK, ROOT, Ran

CANINE = "canine-tiny-domains-char"
pytestmark = pytest.mark.ranks


def run(folder, *arguments, text="", num_steps=50):
    command = [sys.executable, "-m", "launch", "run", CANINE, "--output", str(folder), *QUICK[CANINE]]
    steps = (f"training.max_steps={num_steps}", f"evaluation.every={num_steps // 2}")
    done = subprocess.run(
        [*command, *steps, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, fault.VARIABLE: text},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr, folder)


def whole_steps(folder):
    found = find_checkpoints(folder)
    assert [find_damage(place) for place in found] == [None] * len(found)
    return [find_step(place) for place in found]


def hidden(folder):
    """What a run has left; the reserve for its last word is what one that was killed leaves too."""
    names = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return [name for name in names if name not in (".lock", ".reserve")]


def test_a_kill_in_a_background_save_and_a_damaged_checkpoint_change_nothing_in_the_end(tmp_path, straight):
    every = ("--profile", "cpu", "checkpoint.every=10")
    ran = run(tmp_path / "run", *every, text="point=before_rename,step=30,action=kill")
    assert ran.exit_code == 6, ran.stdout + ran.stderr
    assert whole_steps(ran.folder) == [20, 10]
    assert [name.split(".")[1] for name in hidden(ran.folder)] == ["checkpoint-30"]
    weights = ran.folder / "checkpoint-20" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    again = run(tmp_path / "run", *every)
    assert again.exit_code == 0, again.stdout + again.stderr
    (damage,) = again.events("damage")
    assert damage["reason"] == "model.safetensors was changed after it was written"
    assert again.stdout.count("checkpoint-20 is damaged") == 1
    assert again.losses() == straight[CANINE].losses()
    assert again.events("eval") == straight[CANINE].events("eval")
    assert [event["step"] for event in again.events("save")] == [10, 20, 30, 40, 50]
    assert whole_steps(again.folder)[0] == 50
    assert hidden(again.folder) == []
    assert len(list(again.folder.glob("damaged-20-*"))) == 1


@pytest.mark.slow
def test_a_run_may_save_and_evaluate_at_the_end_of_each_pass_over_the_rows(tmp_path):
    text = "\n".join(f"name{number:03d}.example" for number in range(400))
    (tmp_path / "names.txt").write_text(text)
    sources = f"data.sources=[{{kind: text, path: {tmp_path / 'names.txt'}}}]"
    every = ("training.epochs=3", "checkpoint.every=epoch", "evaluation.every=epoch", "checkpoint.keep=5")
    length = ("training.max_steps=null", "data.limit=null", "data.evaluation_share=0.1")
    ran = run(tmp_path / "run", "--profile", "cpu", sources, *every, *length)
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    num_rows = json.loads((ran.folder / "plan.json").read_text())["num_rows"]
    ends = [-(-num * num_rows // 32) for num in (1, 2, 3)]
    assert [event["step"] for event in ran.events("eval")] == [0, *ends]
    assert sorted(whole_steps(ran.folder)) == ends
    assert [event["epoch"] >= 1 for event in ran.events("train")].index(True) == ends[0] - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "point"),
    [
        ("cpu-2proc-zero2", "after_shard_write"),
        pytest.param("cpu-2proc", "before_save", marks=pytest.mark.long),
    ],
)
def test_a_full_disk_under_one_of_two_ranks_costs_that_save_and_nothing_else(profile, point, tmp_path):
    ran = run(
        tmp_path / "run", "--profile", profile, "checkpoint.every=4",
        text=f"point={point},step=8,rank=1,action=enospc", num_steps=16,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    (failed,) = ran.events("save_failed")
    assert failed["step"] == 8
    assert failed["reason"].startswith("rank 1: [Errno 28] No space left")
    assert [event["step"] for event in ran.events("save")] == [4, 12, 16]
    assert whole_steps(ran.folder) == [16, 12]
    assert hidden(ran.folder) == []


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_stop_is_exit_3_and_no_word_of_a_checkpoint(tmp_path):
    """The loop goes on after the save of step 4; that of the end must succeed."""
    full = "point=before_manifest,action=enospc,count=9"
    text = f"{full},step=4;{full},step=8"
    ran = run(tmp_path / "run", "--profile", "cpu", "checkpoint.every=4", text=text, num_steps=8)
    assert ran.exit_code == 3, ran.stdout + ran.stderr
    assert "could not be written" in ran.stderr
    assert whole_steps(ran.folder) == []
    assert hidden(ran.folder) == []
    shutil.rmtree(ran.folder)
