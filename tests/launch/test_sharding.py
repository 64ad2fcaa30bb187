"""What a DeepSpeed file may say: each contradiction has a word of its own, and all come at once."""

import json

import pytest

from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from launch.sharding import ShardingError, read_sharding
from launch.steps import Corpus

GATHER = "stage3_gather_16bit_weights_on_model_save"


def write(tmp_path, zero, **more):
    path = tmp_path / f"own{len(list(tmp_path.iterdir()))}.json"
    path.write_text(json.dumps({"zero_optimization": zero, **more}))
    return str(path)


def errors_of(tmp_path, zero, **more):
    return read_sharding(write(tmp_path, zero, **more)).find_errors()


def test_a_file_says_its_stage_and_what_it_offloads(tmp_path):
    assert (read_sharding("none").zero_stage, read_sharding("none").is_deepspeed) == (None, False)
    assert read_sharding("zero2-offload").offload == "optimizer"
    zero = {
        "stage": 3,
        GATHER: True,
        "offload_param": {"device": "cpu"},
        "offload_optimizer": {"device": "cpu"},
    }
    own = read_sharding(write(tmp_path, zero))
    assert (own.zero_stage, own.offload, own.find_errors()) == (3, "parameters", [])
    kept = read_sharding(write(tmp_path, {"stage": 1, "offload_optimizer": {"device": "none"}}))
    assert kept.offload is None


@pytest.mark.parametrize(
    ("key", "value", "home"),
    [
        ("train_micro_batch_size_per_gpu", 4, "the plan (--micro-batch)"),
        ("train_batch_size", 64, "training.global_batch"),
        ("gradient_accumulation_steps", 2, "the plan"),
        ("gradient_clipping", 1.0, "training.max_grad_norm"),
        ("fp16", {"enabled": True}, "precision"),
        ("optimizer", {"type": "AdamW"}, "training of the recipe"),
    ],
)
def test_a_number_with_two_homes_is_refused(tmp_path, key, value, home):
    (error,) = errors_of(tmp_path, {"stage": 2}, **{key: value})
    assert f"{key} has its home in {home}" in error
    assert errors_of(tmp_path, {"stage": 2}, **{key: "auto"}) == []


def test_zero_3_that_could_not_be_saved_is_refused(tmp_path):
    (error,) = errors_of(tmp_path, {"stage": 3})
    assert GATHER in error


def test_parameters_are_offloaded_in_stage_3_only(tmp_path):
    cpu = {"device": "cpu"}
    assert (
        "wants ZeRO stage 3"
        in errors_of(tmp_path, {"stage": 2, "offload_param": cpu, "offload_optimizer": cpu})[0]
    )
    assert "give both" in errors_of(tmp_path, {"stage": 3, GATHER: True, "offload_param": cpu})[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "zero_optimization"),
        ("[", "no DeepSpeed"),
        ('{"zero_optimization": {"stage": 7}}', "stage is 7"),
    ],
)
def test_what_is_no_deepspeed_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(ShardingError, match=reason):
        read_sharding(str(path))


def test_all_contradictions_come_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.placement.shutil.which", lambda _: None)
    monkeypatch.setattr("launch.placement.importlib.util.find_spec", lambda _: None)
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    own = write(tmp_path, zero, train_batch_size=64)
    recipe = read_recipe("deberta-tiny-encyclopedia-wwm", ["precision=fp16"])
    options = Options(devices=3, sharding=own)
    plan = make_plan(recipe, load_profiles()["cpu"], options, Corpus(10_000, 600_000, "declared"))
    wanted = ("fp16 wants a GPU", GATHER, "train_batch_size has its home", "not divisible by 3")
    for text in wanted:
        assert len([error for error in plan.errors if text in error]) == 1, text
    assert len(plan.errors) == len(wanted) + 1
    assert "ninja" in plan.errors[-1]
