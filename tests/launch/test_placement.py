"""Where a step lies, with a memory that is a formula: what the plan says of it, and what it refuses."""

import json

import pytest

from launch import placement
from launch.costing.ladder import USABLE_SHARE
from launch.costing.memory import Memory, TraceError
from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from launch.steps import Corpus

PALEO = "deberta-v3-base-paleo-wwm"
GIB = 2**30


def predict(trace, setting):
    row = 0.15 if setting.checkpointing else 0.6
    logits = 0.05 if setting.loss_chunk else 0.15
    states = {None: 2.75, "optimizer": 0.7, "parameters": 0.4}[setting.offload] * trace
    terms = {
        "optimizer": round(states * GIB),
        "activations": round(setting.micro_batch * row * GIB),
        "logits": round(setting.micro_batch * logits * GIB),
    }
    dominant = max(terms, key=lambda name: terms[name])
    cpu = {"pinned optimizer": round(4.1 * GIB)} if setting.offload else {"process": 2 * GIB}
    return Memory(sum(terms.values()), sum(cpu.values()), terms, cpu, dominant, "traced")


@pytest.fixture
def formula(monkeypatch):
    asked = []

    def trace(shape, precision, kernel):
        asked.append((shape, precision, kernel))
        return 1.0

    monkeypatch.setattr(placement, "trace_model", trace)
    monkeypatch.setattr(placement, "find_trace", lambda *_: None)
    monkeypatch.setattr(placement, "predict_memory", predict)
    return asked


def plan_of(profile="rtx2080ti-11gb", *overrides, memory="traced", **options):
    recipe, corpus = read_recipe(PALEO, overrides), Corpus(97_657, 50_000_000, "declared")
    return make_plan(recipe, load_profiles()[profile], Options(**options), corpus, memory=memory)


def test_the_largest_micro_batch_that_fits_is_taken(formula):
    plan = plan_of()
    assert plan.errors == []
    assert (plan.sharding, plan.gradient_checkpointing, plan.loss_chunk, plan.offload) == (
        "none",
        False,
        None,
        None,
    )
    # 2.75 + 8 * 0.75 = 8.75 GiB; twice the rows would want 14.75 of the 10.7 that there are
    assert (plan.micro_batch, plan.accumulation) == (8, 16)
    assert plan.memory is not None
    assert plan.memory["gpu_bytes"] == pytest.approx(8.75 * GIB)
    assert plan.memory["limit_bytes"] == pytest.approx(11 * USABLE_SHARE * GIB)
    assert sum(plan.memory["terms"]["gpu"].values()) == plan.memory["gpu_bytes"]
    assert [rung["name"] for rung in plan.ladder] == ["plain", "checkpointing"]
    assert "would take 29% longer" in plan.ladder_reason
    json.loads(plan.model_dump_json())


def test_the_trace_is_asked_for_what_the_recipe_trains(formula):
    plan_of()
    ((shape, precision, kernel),) = formula
    assert (shape.row_length, shape.num_targets, shape.device) == (512, 77, "cuda")
    assert shape.sizes["hidden_size"] == 768
    assert (precision, kernel) == ("fp16", "fast")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"checkpointing": "on"}, ("none", True, None, 16)),
        ({"checkpointing": "on", "loss_chunk": 64}, ("none", True, 64, 32)),
        ({"prefer": "offload", "checkpointing": "off"}, ("zero2-offload", False, None, 8)),
        ({"sharding": "zero2", "micro_batch": 4}, ("zero2", False, None, 4)),
    ],
)
def test_what_the_options_settle_is_not_tried_otherwise(formula, options, found):
    plan = plan_of(**options)
    assert plan.errors == []
    assert (plan.sharding, plan.gradient_checkpointing, plan.loss_chunk, plan.micro_batch) == found


def test_the_offload_profile_takes_the_fastest_micro_batch_within_the_card(formula):
    plan = plan_of("rtx2080ti-11gb-offload")
    assert (plan.sharding, plan.offload) == ("zero2-offload", "optimizer")
    seconds = {rung["name"]: rung["step_seconds"] for rung in plan.ladder if rung["fits"]}
    taken = next(
        r
        for r in plan.ladder
        if r["micro_batch"] == plan.micro_batch and r["checkpointing"] == plan.gradient_checkpointing
    )
    assert taken["step_seconds"] == min(seconds.values())
    assert plan.accumulation is not None
    assert plan.accumulation <= 16


def test_a_setting_that_does_not_fit_is_refused_with_the_smallest_change(formula):
    (error,) = plan_of(micro_batch=32, checkpointing="off", sharding="none").errors
    assert "26.8 GiB" in error
    assert "most of it activations" in error
    assert "10.7 to give" in error
    assert "--checkpointing on" in error
    (error,) = plan_of(micro_batch=64, checkpointing="off", sharding="none").errors
    assert "The smallest change that fits: --micro-batch 8" in error


def test_a_model_too_large_for_everything_is_refused(monkeypatch, formula):
    monkeypatch.setattr(placement, "trace_model", lambda *_: 40.0)
    plan = plan_of()
    assert "a smaller model" in plan.errors[0]
    assert len(plan.ladder) == 5
    assert plan.ladder_reason == "none fits"


def test_several_devices_share_the_optimizer_before_it_leaves_them(monkeypatch, formula):
    def sharded(trace, setting):
        found = predict(trace, setting)
        return found if setting.zero_stage else Memory(20 * GIB, 0, {}, {}, "optimizer", "traced")

    monkeypatch.setattr(placement, "predict_memory", sharded)
    plan = plan_of(devices=4)
    assert (plan.sharding, plan.offload) == ("zero2", None)


def test_without_memory_the_micro_batch_is_a_rule_of_thumb_and_the_plan_says_so(formula):
    plan = plan_of(memory="none")
    assert formula == []
    assert (plan.micro_batch, plan.memory, plan.ladder) == (8, None, [])
    assert any("assumed" in text for text in plan.warnings)
    assert plan_of(memory="cached").memory is None


def test_a_trace_that_fails_leaves_a_plan_without_memory(monkeypatch, formula):
    def fail(*_):
        raise TraceError("no such layer")

    monkeypatch.setattr(placement, "trace_model", fail)
    plan = plan_of()
    assert plan.memory is None
    assert any("cannot be predicted: no such layer" in text for text in plan.warnings)
    assert plan.errors == []


def test_a_cpu_profile_keeps_its_micro_batch_and_shows_what_it_takes(formula):
    plan = plan_of("cpu")
    assert plan.micro_batch == 32
    assert plan.memory is not None
    assert plan.memory["limit_bytes"] is None


def test_nothing_is_traced_where_the_plan_cannot_work_anyway(formula):
    plan = plan_of("rtx2080ti-11gb", "precision=bf16")
    assert plan.errors
    assert formula == []
