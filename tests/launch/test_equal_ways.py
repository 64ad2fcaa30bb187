"""Every way of training is the same run: each sharding of ds_configs, with real engines, against one process.

`straight` is one process without DeepSpeed. Stages 1 and 2 see a model's gradients as flat pieces, so one
recipe covers them (tests/launch/test_equal_runs.py has both under ZeRO-2); stage 3 takes the weights out of
the modules, so that both models go through it.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM

import modeling  # noqa: F401 - registers CANINE
from launch.recipe_file import read_recipe
from launch.sharding import list_shardings, read_sharding
from tests.commands import QUICK, RTD, run_recipe

pytestmark = pytest.mark.ranks
slow, long = pytest.mark.slow, pytest.mark.long
IN_CI = ("zero1", "zero2-offload", "zero3", "zero3-offload-parameters")
"""Between them every stage and every offload; the others take half an hour with all that is long."""
CANINE, DEBERTA = QUICK
# Micro-batches of a quarter of the step: with two processes accumulation is 2, with one it is 4.
MICRO_BATCH = {CANINE: "8", DEBERTA: "4", RTD: "4"}
CASES = [(DEBERTA, name) for name in list_shardings() if name not in ("none", "zero2")]
CASES += [(CANINE, "zero3-offload-parameters")]
# What a large model meets under the shipped files, at the size of the small ones: gradients that are larger
# than a bucket; and no weight that stays gathered because it is small or all of them are few.
LARGE = {
    "zero2-offload": {"reduce_bucket_size": 100_000},
    "zero3-offload-parameters": {
        "reduce_bucket_size": 100_000,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 300_000,
        "stage3_max_reuse_distance": 100_000,
    },
}


def check_equal(ran, one, *, rel, absolute):
    assert len(ran.losses()) == len(one.losses())
    assert ran.losses() == pytest.approx(one.losses(), rel=rel)
    for key in ("grad_norm", "num_targets", "learning_rate", "epoch", "skipped_steps"):
        found, wanted = ([event[key] for event in r.events("train")] for r in (ran, one))
        assert found == pytest.approx(wanted, rel=1e-4), key
    for found, wanted in zip(ran.events("eval"), one.events("eval"), strict=True):
        assert found.pop("accuracy") == pytest.approx(wanted.pop("accuracy"), abs=0.002)
        assert found.keys() == wanted.keys()
        assert list(found.values())[1:] == pytest.approx(list(wanted.values())[1:], rel=rel)
    for folder in ("final", "best"):
        assert (ran.folder / folder).exists() == (one.folder / folder).exists()
        if not (one.folder / folder).exists():  # no evaluation after the first was better
            continue
        found, wanted = (load_file(r.folder / folder / "model.safetensors") for r in (ran, one))
        assert found.keys() == wanted.keys()
        for name, weight in wanted.items():
            assert found[name].dtype == weight.dtype
            np.testing.assert_allclose(found[name], weight, rtol=0, atol=absolute, err_msg=name)


def check_planned(ran, sharding, num_processes):
    plan = json.loads((ran.folder / "plan.json").read_text())
    wanted = read_sharding(sharding)
    assert (plan["sharding"], plan["zero_stage"], plan["offload"]) == (
        sharding, wanted.zero_stage, wanted.offload
    )  # fmt: skip
    environment = json.loads((ran.folder / "environment.json").read_text())
    assert environment["num_processes"] == num_processes
    assert "DEEPSPEED" in environment["distributed"]
    assert plan["accumulation"] == 4 // num_processes


@slow
@pytest.mark.parametrize("recipe", list(QUICK))
def test_the_runs_that_are_compared_try_what_could_differ(recipe, straight):
    steps = straight[recipe].events("train")
    limit = read_recipe(recipe).training.max_grad_norm
    assert sum(event["grad_norm"] > limit for event in steps) > 25
    assert len({event["num_targets"] for event in steps}) > 5
    assert straight[recipe].losses()[-1] < straight[recipe].losses()[0] - 0.3


@pytest.mark.parametrize(
    ("recipe", "sharding"),
    [pytest.param(*case, marks=slow if case[1] in IN_CI and case[0] == DEBERTA else long) for case in CASES],
)
def test_a_sharding_on_two_processes_trains_as_one_process_does(recipe, sharding, straight, tmp_path):
    way = ("--profile", "cpu-2proc", "--sharding", sharding, "--micro-batch", MICRO_BATCH[recipe])
    ran = run_recipe(tmp_path / "run", recipe, *way)
    check_planned(ran, sharding, 2)
    tolerance = 1e-4 if "offload" in sharding else 1e-5
    check_equal(ran, straight[recipe], rel=tolerance, absolute=tolerance)
    for folder in ("final", "checkpoint-50"):
        _, found = AutoModelForMaskedLM.from_pretrained(ran.folder / folder, output_loading_info=True)
        assert not found["missing_keys"], folder
    num_parameters = {r.events("weights")[0]["num_parameters"] for r in (ran, straight[recipe])}
    assert len(num_parameters) == 1
    fills = [[event["completed"] for event in r.events("fill")] for r in (ran, straight[recipe])]
    assert fills[0] == fills[1]


@long
@pytest.mark.parametrize("sharding", list(LARGE))
def test_a_model_that_is_large_for_its_buckets_trains_the_same(sharding, straight, tmp_path):
    config = dict(read_sharding(sharding).config or {})
    config["zero_optimization"] = {**config["zero_optimization"], **LARGE[sharding]}
    (tmp_path / "own.json").write_text(json.dumps(config))
    way = ("--profile", "cpu-2proc", "--sharding", str(tmp_path / "own.json"), "--micro-batch", "4")
    ran = run_recipe(tmp_path / "run", DEBERTA, *way)
    largest = max(weight.size for weight in load_file(ran.folder / "final" / "model.safetensors").values())
    assert largest > LARGE[sharding]["reduce_bucket_size"]
    check_equal(ran, straight[DEBERTA], rel=1e-4, absolute=1e-4)


@slow
def test_zero2_on_one_process_trains_as_without_deepspeed(straight, tmp_path):
    """As on a single card with 11 GB, where only the optimizer is to leave the card."""
    way = ("--profile", "cpu", "--sharding", "zero2-offload", "--micro-batch", MICRO_BATCH[DEBERTA])
    ran = run_recipe(tmp_path / "run", DEBERTA, *way)
    check_planned(ran, "zero2-offload", 1)
    check_equal(ran, straight[DEBERTA], rel=1e-4, absolute=1e-4)


@long
def test_ranks_that_evaluate_unequally_many_batches_stay_together_under_zero3(straight):
    """The condition of the runs above: an odd number of batches for two processes."""
    data = straight[CANINE].events("data")[0]
    plan = json.loads((straight[CANINE].folder / "plan.json").read_text())
    assert -(-data["num_evaluation_rows"] // plan["evaluation_batch"]) % 2 == 1


@long
def test_zero3_goes_on_from_the_weights_of_a_folder_with_layers_computed_twice(straight, tmp_path):
    source = straight[DEBERTA].folder / "final"
    shared = [f"model.source={source}", "model.config={}", "model.dropout=null"]
    shared += [f"tokenizer={{source: {source}}}"]
    one = run_recipe(tmp_path / "one", DEBERTA, "--profile", "cpu", *shared, num_steps=4)
    way = ("--profile", "cpu-2proc-zero3", "--micro-batch", "4", "--checkpointing", "on")
    ran = run_recipe(tmp_path / "zero3", DEBERTA, *way, *shared, num_steps=4)
    assert ran.events("eval")[0]["loss"] == pytest.approx(
        straight[DEBERTA].events("eval")[-1]["loss"], rel=1e-6
    )
    check_equal(ran, one, rel=1e-5, absolute=1e-5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return run_recipe(tmp_path_factory.mktemp("pair") / "run", RTD, "--profile", "cpu", num_steps=6)


@long
@pytest.mark.parametrize("sharding", ["zero2-offload", "zero3"])
def test_replaced_token_detection_trains_the_same_under_zero(sharding, pair, tmp_path):
    way = ("--profile", "cpu-2proc", "--sharding", sharding, "--micro-batch", MICRO_BATCH[RTD])
    ran = run_recipe(tmp_path / "run", RTD, *way, num_steps=6)
    check_equal(ran, pair, rel=1e-4, absolute=1e-4)
