"""Other families through the real command and through the recipe's checks."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM

from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe
from launch.row_check import check_rows
from launch.steps import Corpus
from modeling import hf
from tests.commands import QUICK, run_recipe, start

RECIPE = "deberta-tiny-encyclopedia-wwm"
SIZES = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48"
AUTO = "model.family=auto"
MODERNBERT = f"model.config={{model_type: modernbert, {SIZES}, local_attention: 16}}"
BERT = f"model.config={{model_type: bert, {SIZES}, max_position_embeddings: 64}}"


@pytest.mark.ranks
def test_modernbert_trains_is_judged_and_loads_as_a_plain_folder(tmp_path):
    ran = run_recipe(tmp_path / "run", RECIPE, "--profile", "cpu", AUTO, MODERNBERT, num_steps=6)
    losses = ran.losses()
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    for event in ran.events("train"):
        assert event["flops_per_second"] > 0
        assert "mfu" not in event
    model = AutoModelForMaskedLM.from_pretrained(ran.folder / "final")
    assert type(model).__module__.startswith("transformers.")
    command = [sys.executable, "-m", "launch", "evaluate", str(ran.folder), RECIPE, "--json"]
    done = start([*command, *QUICK[RECIPE], AUTO, MODERNBERT], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["loss"] == pytest.approx(ran.events("eval")[-1]["loss"], rel=1e-6)


@pytest.mark.ranks
@pytest.mark.slow
def test_bert_trains_the_same_on_one_and_on_two_processes(tmp_path):
    one, two = (
        run_recipe(tmp_path / profile, RECIPE, "--profile", profile, AUTO, BERT, num_steps=6)
        for profile in ("cpu", "cpu-2proc")
    )
    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)
    assert two.events("train")[0]["num_targets"] == one.events("train")[0]["num_targets"]


def build(config):
    return hf.build("auto", config=config, num_pieces=60, dropout=0.0, seed=0)


def test_rows_that_a_model_cannot_read_are_refused_before_training():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    recipe = read_recipe(RECIPE)  # rows of 64, packed
    check_rows(recipe, build({"model_type": "bert", "max_position_embeddings": 64, **sizes}))
    with pytest.raises(ValueError, match="row_length 64 is longer than the 63 positions"):
        check_rows(recipe, build({"model_type": "bert", "max_position_embeddings": 63, **sizes}))
    # RoBERTa's first position is the one after that of padding.
    roberta = {"model_type": "roberta", "pad_token_id": 0, **sizes}
    check_rows(recipe, build({**roberta, "max_position_embeddings": 65}))
    with pytest.raises(ValueError, match="longer than the 63 positions"):
        check_rows(recipe, build({**roberta, "max_position_embeddings": 64}))
    electra = build({"model_type": "electra", "max_position_embeddings": 64, **sizes})
    with pytest.raises(ValueError, match=r"documents cannot share a row: .*; set data\.packing: false"):
        check_rows(recipe, electra)
    check_rows(read_recipe(RECIPE, ["data.packing=false"]), electra)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([AUTO], "config.model_type is wanted for family auto"),
        ([MODERNBERT], "config.model_type is for family auto; deberta says it already"),
        ([AUTO, BERT, "tokenizer=null"], "family auto wants a tokenizer"),
        ([AUTO, BERT, "objective.masking.kind=character"], "auto wants whole_word, token or span"),
        ([AUTO, BERT, "objective.kind=rtd"], "rtd is for family deberta"),
    ],
)
def test_recipes_that_contradict_themselves_say_so(overrides, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(RECIPE, overrides)


def test_the_plan_counts_other_families_and_keeps_their_own_attention():
    recipe, profile = read_recipe(RECIPE, [AUTO, BERT]), load_profiles()["a100-40gb"]
    plan = make_plan(recipe, profile, Options(), Corpus(10_000, None, "declared"))
    assert (plan.attention, plan.errors) == ("eager", [])
    assert plan.flops_per_step is not None
    flash = make_plan(recipe, profile, Options(attention="flash"), Corpus(10_000, None, "declared"))
    assert any("leave it out for auto" in error for error in flash.errors)


def test_piece_zero_is_trained_where_another_one_is_the_padding():
    from types import SimpleNamespace
    from typing import Any

    from launch.build import build_model

    tokenizer: Any = type("Tokenizer", (SimpleNamespace,), {"__len__": lambda _: 60})(pad_token_id=7)
    store: Any = None
    model: Any = build_model(read_recipe(RECIPE, [AUTO, BERT]), store, tokenizer)[0]
    assert model.get_input_embeddings().padding_idx == 7
    assert isinstance(model(torch.arange(8, 20)[None]).logits, torch.Tensor)
