"""Equal runs are equal: however a recipe is spread over processes and micro-batches, it trains the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from modeling.trust import load_tensors
from tests.commands import ENVIRONMENT, QUICK, ROOT, run_recipe, start

pytestmark = pytest.mark.ranks
CANINE, DEBERTA = QUICK
BIN = Path(sys.executable).parent
MIXED = "two-ranks-accumulation-2"
WAYS = {
    "accumulation-2": lambda batch: ("--profile", "cpu", "--micro-batch", str(batch // 2)),
    "accumulation-4": lambda batch: ("--profile", "cpu", "--micro-batch", str(batch // 4)),
    "two-ranks": lambda _: ("--profile", "cpu-2proc"),
    MIXED: lambda batch: ("--profile", "cpu-2proc", "--micro-batch", str(batch // 4)),
    "zero2": lambda batch: ("--profile", "cpu-2proc-zero2", "--micro-batch", str(batch // 4)),
}


# Both families go every way; the mixed one is the same sum over two ranks for either.
CASES = [(way, recipe) for way in WAYS for recipe in QUICK if (way, recipe) != (MIXED, DEBERTA)]
# One family covers in part what the other does, two micro-batches what four do.
SLOW = [("accumulation-4", DEBERTA), ("zero2", CANINE), ("two-ranks", DEBERTA)]
LONG = [("accumulation-4", CANINE), ("accumulation-2", CANINE)]
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW) + [pytest.mark.long] * (case in LONG))
    for case in CASES
]


@pytest.mark.parametrize(("way", "recipe"), CASES)
def test_the_first_50_steps_are_those_of_one_process(way, recipe, straight, tmp_path):
    batch = {CANINE: 32, DEBERTA: 16}[recipe]
    ran = run_recipe(tmp_path / "run", recipe, *WAYS[way](batch))
    one = straight[recipe]
    assert len(one.losses()) == 50
    assert ran.losses() == pytest.approx(one.losses(), rel=1e-5)
    # The loss would be equal even if gradients were scaled wrongly under Adam; the norm would not.
    for key in ("grad_norm", "num_targets", "learning_rate", "epoch"):
        assert [e[key] for e in ran.events("train")] == pytest.approx(
            [e[key] for e in one.events("train")], rel=1e-4
        )
    plan = json.loads((ran.folder / "plan.json").read_text())
    assert plan["world_size"] == (1 if way.startswith("accumulation") else 2)
    assert plan["zero_stage"] == (2 if way == "zero2" else None)
    # The same bits, however many ranks share the evaluation rows.
    assert ran.events("eval")[0] == one.events("eval")[0]
    found, wanted = ([{**event, "time": 0} for event in r.events("yardstick")] for r in (ran, one))
    assert found == wanted


def test_the_run_learns_and_leaves_a_whole_folder(straight):
    for ran in straight.values():
        names = {path.name for path in ran.folder.iterdir()}
        assert {
            "recipe.resolved.yaml", "plan.json", "command.txt", "environment.json", "metrics.jsonl",
            "checkpoint-25", "checkpoint-50", "best", "final", "report.html",
        } <= names  # fmt: skip
        evaluations = ran.events("eval")
        assert [event["step"] for event in evaluations] == [0, 25, 50]
        assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.2
        assert {event["name"] for event in ran.events("yardstick")} == {"unigram", "neighbours"}
        assert [event["step"] for event in ran.events("train")] == list(range(1, 51))


def test_running_a_finished_run_again_changes_nothing(straight):
    ran = straight[CANINE]
    before = (ran.folder / "metrics.jsonl").read_bytes()
    again = run_recipe(ran.folder, CANINE, "--profile", "cpu")
    assert "done already" in again.stdout
    assert (ran.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("profile", "sharding"),
    [
        ("cpu", "none"),
        pytest.param("cpu-2proc", "none", marks=pytest.mark.slow),
        ("cpu-2proc", "zero2"),
        pytest.param("cpu-2proc", "zero2-offload", marks=pytest.mark.long),
        pytest.param("cpu-2proc", "zero3", marks=pytest.mark.slow),
        pytest.param("cpu-2proc", "zero3-offload-parameters", marks=pytest.mark.long),
    ],
)
def test_a_killed_run_resumes_to_the_same_losses_and_weights(profile, sharding, tmp_path):
    arguments = ("--profile", profile, "--sharding", sharding, "model.dropout=0.1")
    whole = run_recipe(tmp_path / "whole", CANINE, *arguments, num_steps=12)
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "launch", "run", CANINE, "--output", str(folder), *QUICK[CANINE]]
    command += ["training.max_steps=12", "evaluation.every=6", "checkpoint.every=6", *arguments]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(folder / "checkpoint-6", process)
    finally:
        for trainer in find_trainers(folder):
            os.kill(trainer, signal.SIGKILL)
        process.wait(timeout=60)
    assert not (folder / "final").exists(), "the run was over before it could be killed"
    resumed = run_recipe(folder, CANINE, *arguments, num_steps=12)
    assert "going on from step 6" in resumed.stdout
    assert resumed.losses() == whole.losses()
    assert resumed.events("eval") == whole.events("eval")
    ours, theirs = (load_file(ran.folder / "final" / "model.safetensors") for ran in (resumed, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param("cpu", marks=pytest.mark.long),
        pytest.param("cpu-2proc", marks=pytest.mark.slow),
        pytest.param("cpu-2proc-zero2", marks=pytest.mark.long),
        pytest.param("cpu-2proc-zero3", marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_saves_where_it_is_and_goes_on_from_there(profile, straight, tmp_path):
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "launch", "run", CANINE, "--output", str(folder), *QUICK[CANINE]]
    command += ["training.max_steps=50", "evaluation.every=25", "checkpoint.every=25", "--profile", profile]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (
        (folder / "metrics.jsonl").exists() and '"step": 3,' in (folder / "metrics.jsonl").read_text()
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "stopped by a signal" in errors
    assert "Traceback" not in errors
    assert find_trainers(folder) == []
    (saved,) = folder.glob("checkpoint-*")
    assert 3 <= int(saved.name.removeprefix("checkpoint-")) < 25, "the signal came too late for this test"
    resumed = run_recipe(folder, CANINE, "--profile", profile)
    assert [event["step"] for event in resumed.events("train")] == list(range(1, 51))
    assert resumed.losses() == pytest.approx(straight[CANINE].losses(), rel=0 if profile == "cpu" else 1e-5)


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, f"the run ended before it wrote {path.name}"
        assert time.monotonic() < deadline, f"no {path.name} after two minutes"
        time.sleep(0.02)


def find_trainers(folder):
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and b"launch.train" in words and b"accelerate" not in words[1]:
            found.append(int(entry.parent.name))
    return found


STEPS = ("training.max_steps=2", "evaluation.every=1", "checkpoint.every=1", *QUICK[CANINE])
ACCELERATE = [str(BIN / "accelerate"), "launch", "--config_file"]
TRAINER = ["-m", "launch.train"]
LAUNCHES = {
    "python": ([sys.executable, *TRAINER], 1, None),
    "torchrun": ([str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", *TRAINER], 2, None),
    "torchrun-zero3": (
        [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", *TRAINER, "--sharding", "zero3"], 2, 3
    ),
    "accelerate": ([*ACCELERATE, "accelerate_configs/cpu-ddp.yaml", *TRAINER], 2, None),
    "accelerate-cpu": ([*ACCELERATE, "accelerate_configs/cpu.yaml", *TRAINER], 1, None),
    "accelerate-zero2": ([*ACCELERATE, "accelerate_configs/zero2.yaml", *TRAINER], 2, 2),
    "accelerate-zero3": ([*ACCELERATE, "accelerate_configs/zero3.yaml", *TRAINER], 2, 3),
    "accelerate-parameters": (
        [*ACCELERATE, "accelerate_configs/zero3-offload-parameters.yaml", *TRAINER], 2, 3
    ),
}  # fmt: skip
# What `accelerate` and `accelerate-zero3` cover in part.
RARE = {"accelerate-zero2": pytest.mark.slow, "accelerate-zero3": pytest.mark.slow}
RARE |= dict.fromkeys(("accelerate-cpu", "accelerate-parameters", "torchrun-zero3"), pytest.mark.long)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=RARE[way]) if way in RARE else way for way in LAUNCHES]
)
def test_the_trainer_plans_from_the_world_that_a_launcher_made(way, tmp_path):
    command, world_size, zero_stage = LAUNCHES[way]
    ran = start([*command, CANINE, "--output", str(tmp_path / "run"), *STEPS], tmp_path / "run")
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    plan = json.loads((ran.folder / "plan.json").read_text())
    assert (plan["world_size"], plan["zero_stage"]) == (world_size, zero_stage)
    assert json.loads((ran.folder / "environment.json").read_text())["num_processes"] == world_size
    offload = "parameters" if way == "accelerate-parameters" else None
    assert plan["offload"] == offload
    assert (ran.folder / "final" / "model.safetensors").exists()
    training = ran.folder / "checkpoint-2" / "training"
    states = [load_tensors(training / f"random-{rank}.pt")["torch"] for rank in range(world_size)]
    assert len({state.numpy().tobytes() for state in states}) == world_size, "ranks drop the same units"


def verdict_of(folder):
    return json.loads((folder / "verdict.json").read_text())


@pytest.mark.parametrize("devices", ["1", "4"])
def test_a_launcher_that_starts_another_number_of_processes_is_refused(devices, tmp_path):
    command = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "-m", "launch.train", CANINE]
    ran = start(
        [*command, "--output", str(tmp_path), "--devices", devices, "--profile", "cpu", *STEPS], tmp_path
    )
    assert ran.exit_code != 0
    verdict = verdict_of(tmp_path)
    assert verdict["exit_code"] == 2
    assert f"wants {devices} processes, the launcher started 2" in verdict["message"]


def test_a_launcher_that_drops_to_one_process_is_refused(tmp_path):
    """`distributed_type: MULTI_CPU` starts one process where two are asked for, without a word."""
    config = tmp_path / "multi-cpu.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 1\n"
        "num_processes: 2\n"
    )
    command = [str(BIN / "accelerate"), "launch", "--config_file", str(config), "-m", "launch.train", CANINE]
    ran = start([*command, "--output", str(tmp_path), "--profile", "cpu-2proc", *STEPS], tmp_path)
    assert ran.exit_code != 0
    assert "wants 2 processes, the launcher started 1" in verdict_of(tmp_path)["message"]


def test_deepspeed_that_was_not_asked_for_is_refused(tmp_path):
    command = [str(BIN / "accelerate"), "launch", "--config_file", "accelerate_configs/zero2.yaml"]
    command += ["-m", "launch.train", CANINE, "--output", str(tmp_path), "--sharding", "none", *STEPS]
    ran = start(command, tmp_path)
    assert ran.exit_code != 0
    assert (
        "the launcher was given zero2 (ZeRO-2, offload None), the plan wants none"
        in verdict_of(tmp_path)["message"]
    )
