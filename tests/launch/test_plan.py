import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.corpus import measure_corpus
from launch.hardware import ProfileError, find_profile, load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe, shipped_recipes
from launch.steps import Corpus

FIXTURES = Path(__file__).parent.parent / "recipes"
PALEO = "deberta-v3-base-paleo-wwm"
TINY = "deberta-tiny-encyclopedia-wwm"


def plan_of(reference, profile="cpu", *overrides, corpus=None, **options):
    corpus = corpus or Corpus(97_657, 50_000_000, "declared")
    return make_plan(read_recipe(reference, overrides), load_profiles()[profile], Options(**options), corpus)


def rows_of_a_step(plan):
    return (plan.micro_batch or 0) * (plan.accumulation or 0) * plan.world_size


def test_the_paleobert_arithmetic_is_the_one_worked_out_by_hand():
    plan = plan_of(PALEO, "rtx2080ti-11gb")
    # 50,000,000 pieces / 512 = 97,657 rows; / 128 rows a step * 3 epochs = 2,288.8 steps
    assert (plan.num_steps, plan.num_warmup_steps) == (2289, 138)
    assert (plan.global_batch, plan.micro_batch, plan.accumulation, plan.world_size) == (128, 8, 16, 1)
    assert plan.num_evaluations == 5
    assert plan.num_saves == 5
    assert plan.num_epochs == pytest.approx(2289 * 128 / 97_657)
    assert plan.num_tokens == pytest.approx(2289 * 128 * 512, rel=1e-4)
    assert plan.precision == "fp16"
    assert plan.errors == []


def test_paleoberts_own_schedule_is_refused_with_every_reason_and_what_to_change():
    plan = plan_of(FIXTURES / "paleobert-own-schedule.yaml", "rtx2080ti-11gb")
    assert plan.num_steps == 2289
    assert plan.num_evaluations == 1
    assert plan.num_saves == 0
    warmup, saves = plan.errors
    assert "warmup_steps 10,000 is longer than the run of 2,289 steps" in warmup
    assert "4.6e-05" in warmup
    assert "0.06 (138 steps)" in warmup
    assert "checkpoint.every 10000: no save before the end" in saves
    assert "457 or less" in saves


@pytest.mark.parametrize(
    ("options", "micro_batch", "accumulation"),
    [
        ({}, 32, 2),
        ({"micro_batch": 16}, 16, 4),
        ({"micro_batch": 64}, 64, 1),
        ({"devices": 2}, 32, 1),
        ({"devices": 2, "nodes": 2, "micro_batch": 4}, 4, 4),
        ({"devices": 64}, 1, 1),
    ],
)
def test_rows_of_a_step_are_split_evenly_over_devices_and_micro_batches(options, micro_batch, accumulation):
    plan = plan_of(TINY, "cpu", **options)
    assert (plan.micro_batch, plan.accumulation) == (micro_batch, accumulation)
    assert rows_of_a_step(plan) == plan.global_batch
    assert plan.errors == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"devices": 3}, "64 is not divisible by 3 devices; set it to 63 or 66"),
        ({"micro_batch": 5}, "possible: 1, 2, 4, 8, 16, 32, 64"),
        ({"attention": "magic"}, "known: auto, eager, fast, flash"),
        ({"sharding": "zero9"}, "did you mean zero"),
    ],
)
def test_options_that_cannot_work_are_refused(options, text):
    assert any(text in error for error in plan_of(TINY, "cpu", **options).errors)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["training.warmup_steps=2500"], "warmup_steps 2,500"),
        (["evaluation.every=2500"], "no evaluation before the end"),
        (["checkpoint.every=2500"], "no save before the end"),
        (["data.evaluation_share=0"], "nothing to evaluate on"),
        (["precision=fp16"], "fp16 wants a GPU"),
    ],
)
def test_schedules_that_cannot_work_are_refused(overrides, text):
    assert any(text in error for error in plan_of(TINY, "cpu", *overrides).errors)


def test_all_reasons_are_given_at_once():
    overrides = [
        "training.warmup_steps=9999",
        "evaluation.every=9999",
        "checkpoint.every=9999",
        "precision=fp16",
    ]
    plan = plan_of(TINY, "cpu", *overrides, devices=3)
    assert len(plan.errors) == 5


def test_an_unknown_corpus_is_one_error_that_names_the_keys():
    nothing = Corpus(None, None, "unknown", "the corpus is not there")
    plan = plan_of(PALEO, "cpu", corpus=nothing)
    assert len([error for error in plan.errors if "data.expected_rows" in error]) == 1
    assert plan.num_steps is None
    assert plan_of(TINY, "cpu", corpus=nothing).errors == []


def test_epochs_and_steps_together_end_at_whichever_comes_first():
    assert plan_of(PALEO, "cpu", "training.max_steps=500", "checkpoint.every=100").num_steps == 500
    assert plan_of(PALEO, "cpu", "training.max_steps=99999").num_steps == 2289


@pytest.mark.parametrize(
    ("profile", "wish", "precision"),
    [
        ("cpu", "auto", "fp32"),
        ("rtx2080ti-11gb", "auto", "fp16"),
        ("a100-40gb", "auto", "bf16"),
        ("h100-80gb", "fp32", "fp32"),
    ],
)
def test_precision_is_the_recipes_wish_and_what_the_hardware_has(profile, wish, precision):
    assert plan_of(PALEO, profile, f"precision={wish}").precision == precision


def test_bf16_is_refused_on_turing():
    assert any("8.0" in error for error in plan_of(PALEO, "rtx2080ti-11gb", "precision=bf16").errors)


@pytest.mark.parametrize("profile", list(load_profiles()))
@pytest.mark.parametrize("recipe", [path.stem for path in shipped_recipes()])
def test_every_shipped_recipe_plans_on_every_profile(recipe, profile):
    corpus = Corpus(255_000_000, None, "declared") if recipe == "canine-c-domains-char" else None
    plan = plan_of(recipe, profile, corpus=corpus)
    assert plan.errors == []
    assert (plan.num_evaluations or 0) >= 5
    assert (plan.num_saves or 0) >= 5
    assert rows_of_a_step(plan) == plan.global_batch


@pytest.mark.parametrize(("memory", "capability"), [(-1, 7.5), (0, 8.0), (24, 2.0), (24, None)])
def test_an_own_gpu_that_cannot_be_is_a_profile_error(memory, capability):
    with pytest.raises(ProfileError, match="own GPU"):
        find_profile("", memory, capability)


def text_recipe(tmp_path, *overrides, lines=200):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog\n" * lines)
    source = f"data.sources=[{{kind: text, path: {tmp_path / 'corpus.txt'}}}]"
    return read_recipe(TINY, [source, "data.evaluation_share=0.1", *overrides])


def test_an_estimate_knows_limit_and_packing(tmp_path):
    whole = measure_corpus(text_recipe(tmp_path))
    limited = measure_corpus(text_recipe(tmp_path, "data.limit=50"))
    unpacked = measure_corpus(text_recipe(tmp_path, "data.packing=false"))
    assert whole.origin == limited.origin == unpacked.origin == "estimated"
    # 180 documents of 43 characters, 3.2 to a piece, in rows of 64
    assert whole.num_rows == pytest.approx(180 * 43 / 3.2 / 64, rel=0.05)
    assert limited.num_rows == pytest.approx((whole.num_rows or 0) / 4, rel=0.1)
    assert unpacked.num_rows == 180


def test_an_empty_file_is_a_corpus_of_nothing(tmp_path):
    assert measure_corpus(text_recipe(tmp_path, lines=0)).problem == "the sources hold no document"


def test_a_cache_that_cannot_be_written_does_not_stop_a_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", "/proc/nowhere")
    found = measure_corpus(text_recipe(tmp_path))
    assert found.origin == "unknown"
    assert "/proc/nowhere" in (found.problem or "")


def test_a_zero_profile_takes_its_stage_from_the_deepspeed_file():
    assert plan_of(TINY, "cpu-2proc-zero2").zero_stage == 2
    offload = plan_of(PALEO, "rtx2080ti-11gb-offload")
    assert (offload.zero_stage, offload.offload) == (2, "optimizer")
    assert plan_of(TINY, "cpu-2proc").zero_stage is None


PLANNING = """
import sys
sys.modules["torch"] = None
sys.modules["transformers"] = None
from launch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_torch(*arguments):
    command = [sys.executable, "-c", PLANNING, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, check=False
    )


def test_plan_prints_json_without_torch_and_exits_2_on_errors():
    good = run_without_torch("plan", TINY, "--profile", "cpu", "--no-memory", "--json")
    assert good.returncode == 0, good.stderr
    plan = json.loads(good.stdout)
    wanted = (
        "recipe profile world_size global_batch micro_batch accumulation num_steps num_epochs "
        "num_warmup_steps num_evaluations num_saves num_tokens precision gradient_checkpointing offload "
        "zero_stage attention memory seconds ladder command environment errors warnings"
    )
    assert set(wanted.split()) <= set(plan)
    assert plan["command"][:2] == ["accelerate", "launch"]
    bad = run_without_torch(
        "plan", str(FIXTURES / "paleobert-own-schedule.yaml"), "--profile", "cpu", "--json"
    )
    assert bad.returncode == 2
    assert len(json.loads(bad.stdout)["errors"]) == 2


def test_plan_in_words_shows_the_arithmetic_and_the_reasons():
    shown = run_without_torch(
        "plan",
        PALEO,
        "--no-memory",
        "training.warmup_steps=10_000",
        "--profile",
        "a100-40gb",
        "checkpoint.every=10_000",
    )
    assert shown.returncode == 2
    assert "128 rows a step = 16 a micro-batch x 8 micro-batches x 1 process" in shown.stdout
    assert "This cannot work, for 2 reasons" in shown.stdout
    assert "accelerate launch --config_file" in shown.stdout


def test_a_wrong_recipe_is_one_report_and_exit_code_2_without_a_traceback():
    shown = run_without_torch("plan", str(FIXTURES / "ten-mistakes.yaml"))
    assert shown.returncode == 2
    assert "15 problems" in shown.stderr
    assert shown.stdout == ""
    as_json = run_without_torch("plan", str(FIXTURES / "ten-mistakes.yaml"), "--json")
    assert as_json.returncode == 2
    assert len(json.loads(as_json.stdout)["errors"]) == 15
    assert "Traceback" not in shown.stderr


def test_recipes_and_profiles_are_listed_without_torch():
    recipes = run_without_torch("recipes")
    assert all(path.stem in recipes.stdout for path in shipped_recipes())
    profiles = run_without_torch("profiles")
    assert all(name in profiles.stdout for name in load_profiles())


def test_the_attention_kernel_follows_the_hardware_and_the_family():
    def plan_of(recipe, profile, wanted=None):
        read = read_recipe(recipe)
        return make_plan(read, find_profile(profile), Options(attention=wanted), measure_corpus(read))

    assert plan_of(TINY, "cpu").attention == "fast"
    assert plan_of(TINY, "rtx2080ti-11gb").attention == "fast"
    assert plan_of(TINY, "a100-40gb").attention == "auto"
    assert plan_of(TINY, "a100-40gb", "flash").attention == "flash"
    assert plan_of(TINY, "cpu", "eager").attention == "eager"
    assert plan_of("canine-tiny-domains-char", "a100-40gb").attention == "eager"
    for recipe, profile, wanted in (
        (TINY, "cpu", "flash"),
        (TINY, "rtx2080ti-11gb", "flash"),
        ("canine-tiny-domains-char", "cpu", "fast"),
    ):
        assert [e for e in plan_of(recipe, profile, wanted).errors if f"--attention {wanted}" in e]


def test_a_recipe_that_calls_canine_c_by_the_name_of_canine_s_gets_a_warning():
    large = "canine-c-domains-char"
    for wanted, description in (
        (1, "CANINE-S on names"),
        (1, "canine s, characters"),
        (0, "CANINE-C, suffixes"),
    ):
        recipe = read_recipe(large, [f"description={description!r}"])
        plan = make_plan(recipe, find_profile("a100-40gb"), Options(), measure_corpus(recipe))
        assert len([text for text in plan.warnings if "CANINE-S" in text]) == wanted
