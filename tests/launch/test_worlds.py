"""A run goes on in another world: other processes, another sharding, another micro-batch, other feed threads.

Against the run of one process that never stopped: the same rows and masks in the same order, the same losses.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from launch.checkpoints.shards import read_shards
from tests.commands import ENVIRONMENT, QUICK, ROOT, RTD, run_recipe, start

pytestmark = pytest.mark.ranks
slow, long = pytest.mark.slow, pytest.mark.long
CANINE, DEBERTA = QUICK
ONE, TWO = ("--profile", "cpu", "--micro-batch", "8"), ("--profile", "cpu-2proc", "--micro-batch", "8")
WORLDS = {
    "one": ONE,
    "one-large": ("--profile", "cpu", "--micro-batch", "32"),
    "one-zero2": (*ONE, "--sharding", "zero2"),
    "one-zero3": (*ONE, "--sharding", "zero3"),
    "two": TWO,
    "zero1": (*TWO, "--sharding", "zero1"),
    "zero2": (*TWO, "--sharding", "zero2"),
    "zero3": (*TWO, "--sharding", "zero3"),
    "zero2-offload": (*TWO, "--sharding", "zero2-offload"),
    "zero3-offload-parameters": (*TWO, "--sharding", "zero3-offload-parameters"),
}
IN_WORDS = {
    "one": "1 process",
    "one-large": "1 process",
    "one-zero2": "1 process under zero2",
    "one-zero3": "1 process under zero3",
    "two": "2 processes",
    **{name: f"2 processes under {name}" for name in list(WORLDS)[5:]},
}
OFTEN = ("checkpoint.every=5", "checkpoint.keep=6")


def go_on(checkpoint, folder, recipe, *way):
    """Resume a checkpoint in a folder of its own, to step 50."""
    folder.mkdir()
    shutil.copytree(checkpoint, folder / checkpoint.name)
    return run_recipe(folder, recipe, *way)


def check_equal(ran, one, *, source, target):
    """The same rows, masks and losses as the run that never stopped; how it is said."""
    (resume,) = ran.events("resume")
    first = resume["step"] + 1
    found = ran.events("train")
    wanted = [event for event in one.events("train") if event["step"] >= first]
    assert [event["step"] for event in found] == list(range(first, 51))
    for key in ("num_targets", "learning_rate", "epoch"):
        assert [event[key] for event in found] == [event[key] for event in wanted], key
    assert ran.losses() == pytest.approx([event["loss"] for event in wanted], rel=1e-5)
    norms = [[event["grad_norm"] for event in events] for events in (found, wanted)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    final = [r.events("eval")[-1] for r in (ran, one)]
    assert final[0]["step"] == final[1]["step"] == 50
    assert final[0]["loss"] == pytest.approx(final[1]["loss"], rel=1e-5)
    if source == target or IN_WORDS[source] == IN_WORDS[target]:
        assert resume["message"] == f"going on from step {first - 1}"
    else:
        text = f"going on from step {first - 1}, written by {IN_WORDS[source]}, on {IN_WORDS[target]}"
        assert resume["message"] == text
        assert text in ran.stdout


def test_a_run_goes_on_under_zero_and_back_with_another_micro_batch(straight, tmp_path):
    one = straight[CANINE]
    sharded = go_on(one.folder / "checkpoint-25", tmp_path / "zero2", CANINE, *WORLDS["zero2"], *OFTEN)
    check_equal(sharded, one, source="one", target="zero2")
    state = json.loads((sharded.folder / "checkpoint-40" / "training" / "progress.json").read_text())
    assert (state["world_size"], state["sharding"]) == (2, "zero2")
    shards = sharded.folder.glob("checkpoint-40/training/engine/state/*_optim_states.pt")
    assert len(list(shards)) == 2, "a normal checkpoint, with as many shards as ranks"
    back = go_on(sharded.folder / "checkpoint-40", tmp_path / "one", CANINE, *WORLDS["one-large"])
    check_equal(back, one, source="zero2", target="one")


@slow
def test_a_run_goes_on_under_zero_3_and_then_on_two_plain_ranks(straight, tmp_path):
    one = straight[CANINE]
    sharded = go_on(one.folder / "checkpoint-25", tmp_path / "zero3", CANINE, *WORLDS["zero3"], *OFTEN)
    check_equal(sharded, one, source="one", target="zero3")
    plain = go_on(sharded.folder / "checkpoint-35", tmp_path / "two", CANINE, *WORLDS["two"])
    check_equal(plain, one, source="zero3", target="two")


@slow
def test_other_feed_threads_change_no_bit(straight, tmp_path):
    """Threads are as many as there are cores for a rank: here one core, before as many as there are."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one core only")
    one, folder = straight[CANINE], tmp_path / "run"
    folder.mkdir()
    shutil.copytree(one.folder / "checkpoint-25", folder / "checkpoint-25")
    pin = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); os.execv(sys.executable, "
    command = [sys.executable, "-c", f"{pin}[sys.executable, *sys.argv[1:]])", "-m", "launch", "run", CANINE]
    command += ["--output", str(folder), *QUICK[CANINE], "training.max_steps=50", "evaluation.every=25"]
    command += ["checkpoint.every=25", "--profile", "cpu"]
    ran = start(command, folder)
    assert ran.exit_code == 0, ran.stderr
    assert ran.losses() == one.losses()[25:]
    assert ran.events("eval")[-1] == one.events("eval")[-1]


@slow
def test_half_precision_under_zero_leaves_whole_masters(tmp_path):
    """Every folder has the weights that the optimizer updates, in fp32, not those that it rounds them to."""
    ran = run_recipe(tmp_path / "run", CANINE, *WORLDS["zero2"], "precision=bf16", num_steps=4)
    masters = read_shards(ran.folder / "checkpoint-4" / "training" / "engine" / "state", 2)
    for name in ("final", "checkpoint-4"):
        weights = load_file(ran.folder / name / "model.safetensors")
        assert set(masters.shapes) <= set(weights)
        for key, weight in weights.items():
            assert weight.dtype == torch.float32, key
            assert key not in masters.shapes or torch.equal(weight, masters.read(key).weight), key
        assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())
        assert json.loads((ran.folder / name / "config.json").read_text())["dtype"] == "float32"
    before = ran.events("eval")[-1]["loss"]
    shutil.rmtree(ran.folder / "checkpoint-4")
    shutil.rmtree(ran.folder / "final")
    again = run_recipe(ran.folder, CANINE, *WORLDS["zero3"], "precision=bf16", num_steps=4)
    assert "written by 2 processes under zero2, on 2 processes under zero3" in again.stdout
    assert again.events("eval")[-1]["loss"] == pytest.approx(before, rel=1e-3)


PAIRS = [
    (source, target)
    for source in WORLDS
    for target in WORLDS
    if IN_WORDS[source] != IN_WORDS[target] and {"one", "zero3"} & {source, target} and target != "one-large"
]


@pytest.fixture(scope="module")
def checkpoints(straight, tmp_path_factory):
    """A checkpoint of step 40 by the world that wrote it."""
    found = {}

    def write(world, recipe):
        if (world, recipe) not in found:
            folder = tmp_path_factory.mktemp("worlds") / world
            source = straight[recipe].folder / "checkpoint-25"
            ran = go_on(source, folder, recipe, *WORLDS[world], *OFTEN)
            found[world, recipe] = ran.folder / "checkpoint-40"
        return found[world, recipe]

    return write


@long
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_world_goes_on_from_every_other(source, target, checkpoints, straight, tmp_path):
    ran = go_on(checkpoints(source, CANINE), tmp_path / "run", CANINE, *WORLDS[target])
    check_equal(ran, straight[CANINE], source=source, target=target)


@long
@pytest.mark.parametrize(("source", "target"), [("one", "zero3"), ("zero3", "one"), ("zero2", "zero3")])
def test_a_deberta_with_tied_weights_goes_on_elsewhere(source, target, checkpoints, straight, tmp_path):
    way = (*WORLDS[target], "--micro-batch", "4")
    ran = go_on(checkpoints(source, DEBERTA), tmp_path / "run", DEBERTA, *way)
    check_equal(ran, straight[DEBERTA], source=source, target=target)


@long
@pytest.mark.parametrize(("source", "target"), [("one", "zero2"), ("zero2", "one"), ("zero3", "two")])
def test_a_pair_goes_on_elsewhere(source, target, tmp_path):
    one = run_recipe(tmp_path / "one", RTD, *ONE, num_steps=8)
    written = one if source == "one" else run_recipe(tmp_path / "source", RTD, *WORLDS[source], num_steps=8)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(written.folder / "checkpoint-4", folder / "checkpoint-4")
    ran = run_recipe(folder, RTD, *WORLDS[target], num_steps=8)
    assert ran.losses() == pytest.approx(one.losses()[4:], rel=1e-5)
    assert "going on from step 4, written by" in ran.stdout


def test_what_cannot_be_taken_over_is_refused_with_what_can(straight, tmp_path):
    """Moments that belong to no parameter: the file is whole, and of another model."""
    folder = tmp_path / "run"
    folder.mkdir()
    place = folder / "checkpoint-25"
    shutil.copytree(straight[CANINE].folder / "checkpoint-25", place)
    path = place / "training" / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    saved["names"][0] = "somewhere.else.weight"
    torch.save(saved, path)
    (place / "manifest.json").write_text(json.dumps(describe(place)))
    command = [sys.executable, "-m", "launch", "run", CANINE, "--output", str(folder), *QUICK[CANINE]]
    command += ["training.max_steps=50", "evaluation.every=25", "checkpoint.every=25", *WORLDS["one"]]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=False)
    assert done.returncode == 4, done.stderr
    assert "checkpoint-25 was written by 1 process and does not fit 1 process" in done.stderr
    assert "no weight somewhere.else.weight" in done.stderr
    assert f"model.source={place}" in done.stderr


def describe(place):
    """A manifest that fits the files."""
    from launch.checkpoints.manifest import describe_files

    manifest = json.loads((place / "manifest.json").read_text())
    files = [path for path in place.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {**manifest, "files": describe_files(place, files)}
