"""Replaced-token detection in the loop: equal runs, resumes, folders, figures."""

import json
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForMaskedLM

from launch.evaluate import Score, measure_auc, score_pair
from launch.objective import list_terms
from launch.recipe_file import read_recipe
from launch.step import take_step
from modeling.pair import build_pair
from modeling.rtd import count_scores
from tests.commands import RTD, SETTINGS, run_recipe, start
from tests.modeling.small_models import NUM_PIECES, make_batch, make_model

NUM_STEPS = 12
WAYS = {
    "accumulation-4": ("--profile", "cpu", "--micro-batch", "4"),
    "two-ranks": ("--profile", "cpu-2proc"),
    "two-ranks-accumulation-2": ("--profile", "cpu-2proc", "--micro-batch", "4"),
    "zero2": ("--profile", "cpu-2proc-zero2", "--micro-batch", "4"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtd") / "run"
    return run_recipe(folder, RTD, "--profile", "cpu", num_steps=NUM_STEPS)


def figures(event):
    return {name: value for name, value in event.items() if name not in ("kind", "step", "model", "recipe")}


def verb(ran, name, *arguments):
    return start([sys.executable, "-m", "launch", name, *map(str, arguments)], ran.folder)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "way", [way if way == "two-ranks" else pytest.param(way, marks=pytest.mark.long) for way in WAYS]
)
def test_the_steps_are_those_of_one_process(way, whole, tmp_path):
    ran = run_recipe(tmp_path / "run", RTD, *WAYS[way], num_steps=NUM_STEPS)
    for key in ("loss", "discriminator_loss", "grad_norm", "num_targets"):
        assert [e[key] for e in ran.events("train")] == pytest.approx(
            [e[key] for e in whole.events("train")], rel=1e-4
        )
    assert ran.events("eval")[0] == whole.events("eval")[0]
    last, wanted = (figures(run.events("eval")[-1]) for run in (ran, whole))
    assert last == pytest.approx(wanted, rel=1e-3)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "profile",
    [
        pytest.param("cpu", marks=pytest.mark.long),
        pytest.param("cpu-2proc", marks=pytest.mark.long),
        pytest.param("cpu-2proc-zero2", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_straight_one(profile, tmp_path):
    arguments = ("--profile", profile, "model.dropout=0.1")
    straight = run_recipe(tmp_path / "run", RTD, *arguments, num_steps=NUM_STEPS)
    events, wanted = straight.events("train", "eval"), read_weights(straight.folder)
    for name in (f"checkpoint-{NUM_STEPS}", "final", "best"):
        shutil.rmtree(straight.folder / name)
    resumed = run_recipe(tmp_path / "run", RTD, *arguments, num_steps=NUM_STEPS)
    assert "going on from step 6" in resumed.stdout
    for event, before in zip(resumed.events("train", "eval"), events, strict=True):
        for key in ("loss", "discriminator_loss", "grad_norm", "discriminator_auc"):
            assert event.get(key) == before.get(key)
    found = read_weights(resumed.folder)
    assert set(found) == set(wanted)
    assert all((found[name] == wanted[name]).all() for name in wanted)


def read_weights(folder):
    files = ("model.safetensors", "generator/model.safetensors")
    return {
        (file, name): value for file in files for name, value in load_file(folder / "final" / file).items()
    }


@pytest.mark.ranks
def test_an_evaluation_gives_figures_of_both_parts(whole):
    first, *_, last = whole.events("eval")
    for event in (first, last):
        assert 0 < event["num_replaced"] <= event["num_targets"] < event["num_positions"]
        share = event["num_replaced"] / event["num_positions"]
        base = -share * np.log(share) - (1 - share) * np.log(1 - share)
        assert event["discriminator_base_loss"] == pytest.approx(base)
        assert event["perplexity"] == pytest.approx(np.exp(event["loss"]))
        assert 0 < event["discriminator_auc"] < 1
    assert last["discriminator_loss"] < first["discriminator_loss"] - 0.1
    assert "discriminator: AUC" in whole.stdout
    assert "log-loss" in (whole.folder / "report.html").read_text()


@pytest.mark.ranks
def test_the_verbs_read_either_part(whole, tmp_path):
    final = whole.folder / "final"
    encoder = AutoModel.from_pretrained(final)
    generator = AutoModelForMaskedLM.from_pretrained(final / "generator")
    assert (encoder.config.num_hidden_layers, generator.config.num_hidden_layers) == (3, 2)
    assert "replaced-token-detection" in (final / "README.md").read_text()
    assert "fill-mask" in (final / "generator" / "README.md").read_text()
    filled = verb(whole, "fill", whole.folder, "Paris is the [MASK] of France.", "--json")
    assert filled.exit_code == 0, filled.stderr
    for part in ("generator", "discriminator"):
        out = verb(whole, "export", whole.folder, tmp_path / part, "--part", part)
        assert out.exit_code == 0, out.stderr
        files = (final if part == "discriminator" else final / "generator", tmp_path / part)
        ours, theirs = (load_file(folder / "model.safetensors") for folder in files)
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        assert not (tmp_path / part / "generator").exists()
    judged = verb(whole, "evaluate", whole.folder, RTD, "--json", *SETTINGS[RTD])
    assert judged.exit_code == 0, judged.stderr
    assert figures(json.loads(judged.stdout)) == pytest.approx(figures(whole.events("eval")[-1]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.ranks
def test_training_goes_on_from_the_pair_that_a_run_left(whole, tmp_path):
    source = whole.folder / "final"
    arguments = [
        f"model.source={source}",
        "model.config={}",
        "model.dropout=null",
        f"tokenizer={{source: {source}}}",
    ]
    again = run_recipe(tmp_path / "run", RTD, "--profile", "cpu", *arguments, num_steps=2)
    found, wanted = again.events("eval")[0], whole.events("eval")[-1]
    for key in ("loss", "discriminator_loss", "discriminator_auc"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4)


class OneProcess:
    """What `take_step` asks of an Accelerator; as that does, it divides a loss by the accumulation."""

    device, num_processes, sync_gradients = torch.device("cpu"), 1, True
    optimizer_step_was_skipped, scaler = False, None

    def __init__(self, accumulation):
        self.gradient_accumulation_steps = accumulation

    def accumulate(self, _):
        return nullcontext()

    def backward(self, loss):
        (loss / self.gradient_accumulation_steps).backward()

    def unscale_gradients(self):
        pass


def test_a_step_weighs_the_means_of_both_parts_over_all_micro_batches():
    """Against one backward of the recipe's formula over the rows of all micro-batches at once."""
    recipe = read_recipe(RTD, ["objective.discriminator_weight=7"])
    whole = make_model("v3", num_hidden_layers=3, dtype=torch.float32)
    pair = build_pair(whole, share=0.5, special_pieces=[1, 2, 3], num_pieces=NUM_PIECES, seed=0).eval()
    rows = make_batch(num_rows=6)
    rows["labels"][2:4, 5:] = -100  # so that micro-batches have unequal numbers of targets
    output = pair(**rows)
    means = output.loss_sum / output.num_targets, output.discriminator_loss_sum / output.num_positions
    (means[0] + 7 * means[1]).backward()
    wanted = {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}
    pair.zero_grad()
    parts = [{name: values[i : i + 2] for name, values in rows.items()} for i in (0, 2, 4)]
    batch = SimpleNamespace(
        micro_batches=parts,
        num_targets=int(output.num_targets),
        num_rows=6,
        num_pieces=9,
        num_slots=9,
        epoch=0.0,
    )
    job = SimpleNamespace(
        accelerator=OneProcess(len(parts)),
        terms=list_terms(recipe, pair),
        counter=None,
        stop=SimpleNamespace(is_asked=False),
        model=pair,
        plan=SimpleNamespace(zero_stage=None, precision="fp32"),
        recipe=SimpleNamespace(training=SimpleNamespace(max_grad_norm=None)),
        optimizer=SimpleNamespace(step=lambda: None, zero_grad=lambda: None),
    )
    outcome: Any = take_step(job, batch)
    assert list(outcome.means.values()) == pytest.approx([float(mean) for mean in means], rel=1e-5)
    assert set(outcome.means) == {"loss", "discriminator_loss"}
    for name, parameter in pair.named_parameters():
        if name in wanted:
            assert torch.allclose(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6), name


def test_looking_for_a_generator_looks_where_pairs_keep_it():
    from launch.predict import GENERATOR
    from modeling.pair import GENERATOR_FOLDER

    assert GENERATOR == GENERATOR_FOLDER


def test_a_part_of_a_model_that_is_one_is_refused(tmp_path):
    from launch.export import find_part

    with pytest.raises(ValueError, match="holds one model and no generator"):
        find_part(tmp_path, "generator")


@pytest.mark.parametrize("spread", [0.0, 0.001, 1.0, 20.0])
def test_the_auc_is_that_of_all_pairs(spread):
    rng = np.random.default_rng(3)
    replaced = rng.random(1500) < 0.2
    scores = np.round(rng.normal(replaced * spread, spread), 3)
    counts = count_scores(torch.from_numpy(scores), torch.from_numpy(replaced))
    positive, negative = scores[replaced][:, None], scores[~replaced][None, :]
    wanted = ((positive > negative) + 0.5 * (positive == negative)).mean()
    assert measure_auc(counts) == pytest.approx(wanted, abs=2e-4 if spread < 10 else 2e-2)


def test_an_auc_without_pairs_is_chance_and_its_base_loss_0():
    counts = count_scores(torch.tensor([1.0, 2.0]), torch.tensor([False, False]))
    score = score_pair(Score.of(1.0, 0, 1), 0.5, 0, 2, counts)
    assert (score.discriminator_auc, score.discriminator_base_loss) == (0.5, 0.0)
    assert score.discriminator_loss == 0.25
