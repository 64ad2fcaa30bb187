"""The first phase of a run on a grown vocabulary, in which nothing but the rows of new pieces changes."""

import json
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.build import build_model, build_tokenizer
from launch.corpus import prepare_corpus
from launch.hardware import find_profile
from launch.new_rows import FirstPhase, build_first_phase
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe
from launch.steps import Corpus
from launch.verdict import RunError
from modeling import hf
from modeling.new_rows import NewRows
from tests.commands import start
from tests.data_pipes.tiny_tokenizers import make_unigram

RECIPE = "deberta-tiny-encyclopedia-wwm"
TERMS = ("trilobites", "Wheeler_Formation", "yields")
NUM_STEPS, NUM_FIRST = 30, 10
EMBEDDING = "deberta.embeddings.word_embeddings.weight"
BIAS = {True: "cls.predictions.bias", False: "lm_predictions.lm_head.bias"}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TOKENIZER = (
    "tokenizer={{source: {folder}/tokenizer, extend: {{terms: {folder}/terms.txt, first_phase: {phase}}}}}"
)


def write_prose(folder, legacy=False):
    """Text, terms, a tokenizer that cuts them, and a model with that tokenizer."""
    lines = [f"The Wheeler_Formation yields {n} trilobites, they say ({n % 7} fossils)." for n in range(300)]
    (folder / "prose.txt").write_text("\n".join(lines))
    (folder / "terms.txt").write_text("\n".join(TERMS))
    tokenizer = make_unigram()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = {**SIZES, "legacy": legacy}
    model = hf.build("deberta", config=config, num_pieces=len(tokenizer), dropout=0.1, seed=3)
    hf.save(model, folder / "model", tokenizer)


def list_overrides(folder, phase=f"{{steps: {NUM_FIRST}, learning_rate: 2.0e-3}}"):
    return [
        f"data.sources=[{{kind: text, path: {folder / 'prose.txt'}}}]",
        "data.limit=null",
        "data.evaluation_share=0.1",
        TOKENIZER.format(folder=folder, phase=phase),
        f"model={{family: deberta, source: {folder / 'model'}, dropout: 0.1}}",
        "training.global_batch=8",
        f"training.max_steps={NUM_STEPS}",
        "training.weight_decay=0.1",
        "training.max_grad_norm=0.05",
        "evaluation.every=15",
        "evaluation.samples=[]",
        "checkpoint={every: 5, keep: 10}",
    ]


def run(folder, output, profile, *arguments):
    command = [sys.executable, "-m", "launch", "run", RECIPE, "--output", str(output), "--profile", profile]
    ran = start([*command, *arguments, *list_overrides(folder)], output)
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    return ran


def load_weights(place):
    return load_file(place / "model.safetensors")


def count_moments(place):
    """Numbers in Adam's moments that are not zero, of all ranks."""
    files = sorted((place / "training").rglob("*optim_states.pt")) or [place / "training" / "optimizer.pt"]
    return sum(count_in(torch.load(file, weights_only=False)) for file in files)


def count_in(state):
    """DeepSpeed nests them in another way at each stage."""
    if isinstance(state, dict):
        own = torch.count_nonzero(state["exp_avg"]) if isinstance(state.get("exp_avg"), torch.Tensor) else 0
        return int(own) + sum(map(count_in, state.values()))
    return sum(map(count_in, state)) if isinstance(state, list | tuple) else 0


WAYS = {
    "cpu": ("cpu", "--micro-batch", "4"),
    "ddp": ("cpu-2proc", "--micro-batch", "2"),
    "zero2": ("cpu-2proc-zero2", "--micro-batch", "2"),
    "zero3": ("cpu-2proc", "--sharding", "zero3", "--micro-batch", "2"),
}
RESUMED = {"cpu": (5, NUM_FIRST), "zero2": (5,)}
CASES = [
    pytest.param("cpu", False, marks=pytest.mark.slow),
    pytest.param("ddp", True, marks=pytest.mark.long),
    pytest.param("zero2", False, marks=pytest.mark.long),
    pytest.param("zero3", False, marks=pytest.mark.long),
]


@pytest.mark.ranks
@pytest.mark.parametrize(("way", "legacy"), CASES)
def test_only_the_new_rows_change_in_the_first_phase_and_a_resume_within_is_exact(way, legacy, tmp_path):
    write_prose(tmp_path, legacy)
    whole = run(tmp_path, tmp_path / "whole", *WAYS[way])
    plan = json.loads((whole.folder / "plan.json").read_text())
    assert (plan["num_first_phase_steps"], plan["accumulation"]) == (NUM_FIRST, 2)
    recipe = read_recipe(RECIPE, list_overrides(tmp_path))
    store = prepare_corpus(recipe)
    tokenizer = build_tokenizer(recipe, store)
    model, _ = build_model(recipe, store, tokenizer)
    before, after = model.state_dict(), load_weights(whole.folder / f"checkpoint-{NUM_FIRST}")
    new = [tokenizer.convert_tokens_to_ids(f"\u2581{term}") for term in TERMS]
    assert sorted(new) == list(range(len(tokenizer) - 3, len(tokenizer)))
    num_old = len(tokenizer) - 3
    for key, value in after.items():
        if key in (EMBEDDING, BIAS[legacy]):
            assert (value[num_old:] != before[key][num_old:]).all(), key
            assert torch.equal(value[:num_old], before[key][:num_old]), key
        else:
            assert torch.equal(value, before[key]), key
    assert count_moments(whole.folder / f"checkpoint-{NUM_FIRST}") == 3 * (SIZES["hidden_size"] + 1)
    later = load_weights(whole.folder / f"checkpoint-{NUM_FIRST + 5}")
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad} & set(later)
    assert all(not torch.equal(later[key], before[key]) for key in trained)
    check_events(whole, recipe)
    for step in RESUMED.get(way, ()):
        resumed = run(
            tmp_path,
            tmp_path / f"from-{step}",
            *WAYS[way],
            "--resume",
            str(whole.folder / f"checkpoint-{step}"),
        )
        assert resumed.losses() == whole.losses()[step:]
        ours, theirs = (load_weights(ran.folder / "final") for ran in (resumed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def check_events(ran, recipe):
    rates = [event["learning_rate"] for event in ran.events("train")]
    assert rates[:NUM_FIRST] == [2e-3] * NUM_FIRST
    num_left = NUM_STEPS - NUM_FIRST
    warmup = math.ceil(recipe.training.warmup_steps * NUM_STEPS)
    peak = recipe.training.learning_rate
    assert rates[NUM_FIRST : NUM_FIRST + warmup] == pytest.approx(
        [peak * step / warmup for step in range(1, warmup + 1)]
    )
    assert rates[-1] == pytest.approx(peak / (num_left - warmup))
    first, last = ran.events("phase")
    assert (first["step"], first["message"]) == (1, "new rows only until step 10: 3 new pieces")
    assert (last["step"], last["message"]) == (11, "all weights from step 11 on")
    norms = [event["grad_norm"] for event in ran.events("train")]
    # The norm before clipping, of 99 numbers in the phase and of all after it.
    assert max(norms[:NUM_FIRST]) < min(norms[NUM_FIRST:])


def test_a_phase_writes_its_decays_even_after_a_checkpoint_brought_others():
    model: Any = hf.build("deberta", config=SIZES, num_pieces=20, dropout=0.0, seed=0)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": parameters[:3], "weight_decay": 0.1}, {"params": parameters[3:], "weight_decay": 0.0}]
    )
    phase = FirstPhase(4, NewRows(model, [19]), [0.1, 0.0])
    for step, decays, is_on in ((3, [0.0, 0.0], True), (5, [0.1, 0.0], False), (4, [0.0, 0.0], True)):
        optimizer.param_groups[1]["weight_decay"] = 7.0
        phase.enter(optimizer, step)
        assert [group["weight_decay"] for group in optimizer.param_groups] == decays
        assert phase.rows.is_on == is_on


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.9, 0.999)])
@pytest.mark.parametrize("num_first", [10, 200])
def test_the_first_update_after_a_phase_is_as_large_as_the_docstring_says(betas, num_first):
    b1, b2 = betas
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=betas, eps=1e-12, weight_decay=0.0)
    for _ in range(num_first):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    assert parameter.item() == 0.0
    parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.step()
    correction = math.sqrt(1 - b2 ** (num_first + 1)) / (1 - b1 ** (num_first + 1))
    assert parameter.item() == pytest.approx((1 - b1) / math.sqrt(1 - b2) * correction, rel=1e-9)
    if (betas, num_first) == ((0.9, 0.98), 200):
        assert parameter.item() == pytest.approx(0.70, abs=0.005)


def make_plan_of(recipe):
    return make_plan(recipe, find_profile("cpu"), Options(), Corpus(10_000, 100_000, "declared"))


def test_the_plan_counts_the_phase_and_refuses_one_that_leaves_nothing(tmp_path):
    write_prose(tmp_path)
    plan = make_plan_of(read_recipe(RECIPE, list_overrides(tmp_path, "{steps: 0.1}")))
    assert (plan.num_first_phase_steps, plan.errors) == (3, [])
    recipe = read_recipe(RECIPE, list_overrides(tmp_path, "{steps: 0.1}"))
    assert plan.rate_schedule(recipe).at(3) == recipe.training.learning_rate
    assert plan.rate_schedule(recipe).at(4) < recipe.training.learning_rate
    zero = read_recipe(RECIPE, list_overrides(tmp_path, "{steps: 3, learning_rate: 0}"))
    assert make_plan_of(zero).rate_schedule(zero).at(3) == 0.0
    long = make_plan_of(read_recipe(RECIPE, list_overrides(tmp_path, "{steps: 30}")))
    (error,) = long.errors
    assert "30 steps in which only new rows are trained and a warmup of 2 leave none of the 30" in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model={family: deberta, source: scratch, config: {hidden_size: 32}}"], "every row is new"),
        (["objective={kind: rtd, masking: {kind: whole_word}}"], "sums of two embeddings"),
        ([TOKENIZER.format(folder="x", phase="{steps: 2.5}")], "a share below 1 or a whole number, not 2.5"),
        ([TOKENIZER.format(folder="x", phase="{steps: 0}")], "wanted a number above 0, given 0"),
    ],
)
def test_recipes_that_cannot_have_a_phase_say_so(overrides, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        read_recipe(RECIPE, [*list_overrides(tmp_path), *overrides])


def test_a_model_that_knows_every_piece_cannot_have_a_phase(tmp_path):
    write_prose(tmp_path)
    recipe = read_recipe(RECIPE, list_overrides(tmp_path))
    plan: Any = SimpleNamespace(num_first_phase_steps=10)
    nothing: Any = None
    with pytest.raises(RunError, match="no piece is new to") as caught:
        build_first_phase(recipe, plan, nothing, make_unigram(), nothing)
    assert caught.value.verdict.exit_code == 2
    plan.num_first_phase_steps = 0
    assert build_first_phase(recipe, plan, nothing, nothing, nothing) is None
