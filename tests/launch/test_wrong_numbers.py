"""Numbers that go wrong in real runs: skipped steps, spikes and the way back, patience over a kill."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.checkpoints.manifest import find_checkpoints, find_damage
from launch.events import read_events
from launch.fault import VARIABLE
from launch.recipe_file import read_recipe
from tests.commands import ENVIRONMENT, QUICK, ROOT, Ran, start

pytestmark = pytest.mark.ranks
slow, long = pytest.mark.slow, pytest.mark.long
CANINE = "canine-tiny-domains-char"
OVERRIDES = [*QUICK[CANINE], "training.max_steps=12", "evaluation.every=6", "checkpoint.every=2"]
OVERRIDES += ["checkpoint.keep=20"]


def run(folder, *arguments, fault="", exit_code=0):
    command = [sys.executable, "-m", "launch", "run", CANINE, "--output", str(folder), *OVERRIDES, *arguments]
    environment = {**ENVIRONMENT, VARIABLE: fault}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=300
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return Ran(done.returncode, done.stdout, done.stderr, folder)


def train_without(left_out, num_steps):
    """Losses of one process, in which some steps are not taken at all."""
    code = f"from tests.launch.test_wrong_numbers import train_here; train_here({left_out}, {num_steps})"
    done = start([sys.executable, "-c", code], ROOT)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def train_here(left_out, num_steps):
    from launch.build import build_job
    from launch.corpus import measure_corpus, prepare_corpus
    from launch.hardware import find_profile
    from launch.optim import set_rate
    from launch.options import Options
    from launch.plan import make_plan
    from launch.step import take_step

    recipe, profile = read_recipe(CANINE, OVERRIDES), find_profile("cpu")
    store = prepare_corpus(recipe)
    plan = make_plan(recipe, profile, Options(), measure_corpus(recipe))
    job = build_job(recipe, plan, profile, store)
    rates = plan.rate_schedule(recipe)
    found = {}
    for step, batch in enumerate(job.feed.steps(0, num_steps), start=1):
        if step not in left_out:
            set_rate(job.optimizer, rates.at(step))
            found[step] = take_step(job, batch).means["loss"]
    print(json.dumps(found))


WAYS = {
    "ddp": ("--profile", "cpu-2proc"),
    "zero1": ("--profile", "cpu-2proc-zero2", "--sharding", "zero1"),
    "zero2": ("--profile", "cpu-2proc-zero2"),
    "zero3": ("--profile", "cpu-2proc-zero2", "--sharding", "zero3"),
    "zero2-offload": ("--profile", "cpu-2proc-zero2", "--sharding", "zero2-offload"),
}
NAN = "rank=1,point={point},action=nan"


@pytest.mark.parametrize(
    "way",
    [
        *(pytest.param(way, marks=slow) for way in ("ddp", "zero2")),
        *(pytest.param(way, marks=long) for way in ("zero1", "zero3", "zero2-offload")),
    ],
)
def test_what_one_rank_cannot_count_all_ranks_skip_and_too_much_of_it_ends_the_run(way, tmp_path):
    """Step 3 has no number and no gradient, step 5 no number and a gradient, steps 9 to 11 again none."""
    faults = [f"{NAN.format(point='before_backward')},step=3", f"{NAN.format(point='before_sum')},step=5"]
    faults += [f"{NAN.format(point='before_backward')},step={step}" for step in (9, 10, 11)]
    limit = "training.max_skipped_in_a_row=3"
    ran = run(tmp_path / "run", *WAYS[way], limit, fault=";".join(faults), exit_code=5)
    assert "3 steps in a row" in ran.stderr
    skipped = [3, 5, 9, 10, 11]
    assert [(event["step"], event["num_in_a_row"]) for event in ran.events("skip")] == [
        (3, 1), (5, 1), (9, 1), (10, 2), (11, 3),
    ]  # fmt: skip
    losses = {event["step"]: event["loss"] for event in ran.events("train")}
    assert [step for step, loss in losses.items() if loss is None] == skipped
    # A step that is skipped is a step of the schedule all the same: one of warmup, then down in a line.
    peak = read_recipe(CANINE).training.learning_rate
    rates = [event["learning_rate"] for event in ran.events("train")]
    assert rates == [peak * (12 - step + 1) / (12 - 1) if step > 1 else peak for step in range(1, 12)]
    wanted = {int(step): loss for step, loss in train_without(skipped, 8).items()}
    assert {step: losses[step] for step in wanted} == pytest.approx(wanted, rel=1e-5)
    # Nothing is saved within the row: what is in the weights then may be the reason of it.
    newest = find_checkpoints(ran.folder)[0]
    assert (newest.name, find_damage(newest)) == ("checkpoint-8", None)
    if way == "ddp":
        done = run(tmp_path / "run", *WAYS[way], limit)
        assert [event["skipped_steps"] for event in done.events("train")][-1] == 2
    weights = load_file(newest / "model.safetensors")
    assert all(np.isfinite(weight).all() for weight in weights.values())


SPIKES = "training.spikes={window: 12}"
LONGER = ("training.max_steps=24", "checkpoint.every=4", SPIKES)
SPIKE = "point=before_backward,action=spike:6,step=14,count=2"


def count_targets(num_steps):
    """The hidden places of each data step, straight from the feed, from step 1 on."""
    code = (
        "import json; from tests.launch import test_wrong_numbers as t; "
        f"print(json.dumps(t.count_here({num_steps})))"
    )
    return [0, *json.loads(start([sys.executable, "-c", code], ROOT).stdout.splitlines()[-1])]


def count_here(num_steps):
    from data_pipes.feed import Feed
    from launch.build import build_layout, build_masking, build_order, build_tokenizer
    from launch.corpus import prepare_corpus

    recipe = read_recipe(CANINE, OVERRIDES)
    store = prepare_corpus(recipe)
    tokenizer = build_tokenizer(recipe, store)
    feed = Feed(
        store.train,
        order=build_order(recipe, store),
        masking=build_masking(recipe, tokenizer, store),
        layout=build_layout(recipe, tokenizer, store),
        seed=recipe.training.seed,
        global_batch=recipe.training.global_batch,
        micro_batch=recipe.training.global_batch,
    )
    return [batch.num_targets for batch in feed.steps(0, num_steps)]


def check_way_back(ran):
    (back,) = ran.events("rewind")
    assert (back["step"], back["spike_step"]) == (12, 14)
    assert (back["first_left_out"], back["last_left_out"], back["num_steps_left_out"]) == (13, 14, 2)
    kept = read_events(ran.folder / "metrics.jsonl").of("train")
    assert [event["step"] for event in kept] == list(range(1, 25))
    targets = count_targets(26)
    wanted = [*targets[1:13], *targets[15:27]]
    assert [event["num_targets"] for event in kept] == wanted
    assert wanted != targets[1:25]


def read_end(folder):
    """All that the rest of a run depends on: the last checkpoint's weights and progress, and every loss."""
    place = folder / "checkpoint-24"
    progress = json.loads((place / "training" / "progress.json").read_text())
    progress.pop("resumed_from")
    losses = [event["loss"] for event in read_events(folder / "metrics.jsonl").of("train")]
    return (place / "model.safetensors").read_bytes(), progress, losses


@slow
def test_a_run_goes_back_before_a_spike_and_a_kill_right_after_changes_no_bit(tmp_path):
    straight = run(tmp_path / "straight", "--profile", "cpu", *LONGER, fault=SPIKE)
    check_way_back(straight)
    kill = "point=before_step,action=kill,step=13,pass=2"
    run(tmp_path / "killed", "--profile", "cpu", *LONGER, fault=f"{SPIKE};{kill}", exit_code=6)
    resumed = run(tmp_path / "killed", "--profile", "cpu", *LONGER, fault=SPIKE)
    check_way_back(resumed)
    assert read_end(tmp_path / "killed") == read_end(tmp_path / "straight")


@long
@pytest.mark.parametrize("way", ["ddp", "zero1", "zero2", "zero3"])
def test_every_way_goes_back_as_one_process_does_and_a_later_kill_changes_no_bit(way, tmp_path):
    one = run(tmp_path / "one", "--profile", "cpu", *LONGER, fault=SPIKE)
    straight = run(tmp_path / "straight", *WAYS[way], *LONGER, fault=SPIKE)
    check_way_back(straight)
    found, wanted = (read_events(r.folder / "metrics.jsonl").of("train") for r in (straight, one))
    # The spike's factor lies on the micro-batches that it strikes, which are others on two ranks.
    assert [event["loss"] for event in found] == pytest.approx([e["loss"] for e in wanted], rel=1e-5)
    kill = "rank=0,point=before_step,action=kill,step=19"
    run(tmp_path / "killed", *WAYS[way], *LONGER, fault=f"{SPIKE};{kill}", exit_code=6)
    resumed = run(tmp_path / "killed", *WAYS[way], *LONGER)
    check_way_back(resumed)
    assert read_end(tmp_path / "killed") == read_end(tmp_path / "straight")


@long
def test_spikes_without_end_end_the_run_with_the_checkpoints_whole(tmp_path):
    faults = "point=before_sum,action=spike:9,step=14,count=9"
    settings = (*LONGER[:2], "training.spikes={window: 12, max_rewinds: 1}")
    ran = run(tmp_path / "run", "--profile", "cpu", *settings, fault=faults, exit_code=5)
    assert "max_rewinds" in ran.stderr
    assert [event["step"] for event in ran.events("rewind")] == [12]
    assert find_damage(find_checkpoints(ran.folder)[0]) is None


def test_patience_over_a_further_figure_outlives_a_kill(tmp_path):
    """At a rate of 0 nothing gets better: steps 2, 4, 6 and 8 use up a patience of 4, killed or not."""
    settings = ("--profile", "cpu", "training.learning_rate=0", "evaluation.every=2")
    settings += ("evaluation.metrics={pseudo: {num_pieces: 200}}",)
    settings += ("stopping=[{patience: 9}, {metric: eval/main/pseudo/perplexity, patience: 4}]",)
    folder = tmp_path / "run"
    run(folder, *settings, fault="point=before_step,action=kill,step=6", exit_code=6)
    ran = run(folder, *settings)
    assert [event["step"] for event in ran.events("eval")] == [0, 2, 4, 6, 8]
    (end,) = ran.events("end")
    assert (end["reason"], end["metric"]) == ("patience", "eval/main/pseudo/perplexity")
    assert "no better eval/main/pseudo/perplexity in 4 evaluations" in ran.stdout
    assert os.path.isdir(folder / "final")  # noqa: PTH112
