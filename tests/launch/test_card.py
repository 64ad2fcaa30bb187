"""Model cards as the hub's own library reads them: metadata, results, and what they must not say."""

import hashlib
import json
import math
import re

import pytest
from huggingface_hub import ModelCard, ModelCardData

from launch.card import write_card
from launch.cards.metadata import read_licence
from launch.cards.sections import find_step
from launch.events import read_events
from launch.record import read_record
from tests.launch.reporting.runs import HOSTILE, RECIPE, list_further, make_run


def load(run, name="final"):
    (run / name).mkdir(exist_ok=True)
    return ModelCard.load(write_card(run / name, run_folder=run))


def results_of(card):
    return {result.metric_name: result for result in card.data.eval_results}


def test_the_results_are_read_with_their_values_names_and_data(tmp_path):
    card = load(make_run(tmp_path / "run"))
    assert card.data.model_name == "small"
    found = results_of(card)
    perplexity = found["Perplexity"]
    assert (perplexity.task_type, perplexity.metric_type, perplexity.metric_value) == (
        "fill-mask",
        "perplexity",
        43.0,
    )
    assert perplexity.dataset_name == "a-corpus 1.0.0 (held-out rows)"
    assert (perplexity.dataset_type, perplexity.dataset_split) == ("a-corpus", "evaluation")
    assert perplexity.dataset_args == {"masking": "whole_word", "rate": 0.15, "num_targets": 500}
    assert found["Loss"].metric_value == pytest.approx(math.log(43), abs=1e-6)
    assert found["Accuracy"].metric_value == 0.25
    assert found["Perplexity (terms)"].metric_value == 60.0


def test_the_baselines_are_results_of_their_own(tmp_path):
    found = results_of(load(make_run(tmp_path / "run")))
    assert found["Perplexity, before training (step 0)"].metric_value == 2014.0
    assert found["Perplexity (terms), before training (step 0)"].metric_value == 1200.0
    assert found["Perplexity of the unigram table, a baseline"].metric_value == 237.0
    assert found["Perplexity of the neighbour table, a baseline"].metric_value == 108.0


def test_another_corpus_is_another_data_set_in_the_results(tmp_path):
    recipe = RECIPE + "evaluation: {metrics: {general: {sources: [{kind: text, path: /data/news.txt}]}}}\n"
    found = results_of(load(make_run(tmp_path / "run", recipe=recipe)))
    assert found["Perplexity (general)"].dataset_name == "news.txt (a general corpus)"
    assert found["Perplexity (general)"].metric_value == 30.0


def test_a_card_reads_back_as_it_was_written(tmp_path):
    card = load(make_run(tmp_path / "run"))
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert ModelCardData(**card.data.to_dict() | {"eval_results": None}).pipeline_tag == "fill-mask"
    assert len({r.unique_identifier for r in card.data.eval_results}) == 2
    saved = tmp_path / "copy.md"
    card.save(saved)
    assert ModelCard.load(saved).data.to_dict() == card.data.to_dict()


def test_the_best_model_has_the_results_of_its_own_step(tmp_path):
    more = [
        {"kind": "eval", "step": 100, "loss": 9.0, "perplexity": 8103.0, "accuracy": 0.1, "num_targets": 500}
    ]
    run = make_run(tmp_path / "run", more=more)
    assert results_of(load(run, "best"))["Perplexity"].metric_value == 86.0
    assert results_of(load(run, "final"))["Perplexity"].metric_value == 8103.0


def test_the_card_of_the_best_model_is_of_the_step_that_its_manifest_says(tmp_path):
    """A later one was better, and could not be written."""
    run = make_run(tmp_path / "run")
    (run / "best" / "generator").mkdir(parents=True)
    step = read_events(run / "metrics.jsonl").of("eval")[-2]["step"]
    assert results_of(load(run, "best"))["Perplexity"].metric_value == 43.0
    manifest = {"step": step, "files": {"model.safetensors": {}}}
    (run / "best" / "manifest.json").write_text(json.dumps(manifest))
    card = load(run, "best")
    assert results_of(card)["Perplexity"].metric_value == 86.0
    assert f"- Weights of step {step:,} of 100" in card.text
    assert find_step(read_record(run), run / "best") == step


def test_a_value_that_is_no_number_is_no_result(tmp_path):
    more = [{"kind": "eval", "step": 100, "loss": math.nan, "perplexity": math.inf, "accuracy": 0.1}]
    found = results_of(load(make_run(tmp_path / "run", more=more)))
    assert "Perplexity" not in found
    assert "Loss" not in found
    assert found["Accuracy"].metric_value == 0.1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-SA 4.0", {"license": "cc-by-sa-4.0"}),
        ("unknown", {"license": "unknown"}),
        ("Our own terms", {"license": "other", "license_name": "our-own-terms"}),
        ("???", {"license": "other", "license_name": "other"}),
    ],
)
def test_a_licence_is_named_as_the_hub_does_or_other(text, wanted):
    assert read_licence(text) == wanted


def test_the_card_has_the_licence_of_the_recipe_and_makes_none_up(tmp_path):
    assert load(make_run(tmp_path / "none")).data.license is None
    assert "names no licence" in load(make_run(tmp_path / "without")).text
    named = load(make_run(tmp_path / "named", recipe=f"licence: MIT\n{RECIPE}"))
    assert named.data.license == "mit"
    assert "names no licence" not in named.text
    other = load(make_run(tmp_path / "other", recipe=f"licence: Shale 1\n{RECIPE}"))
    assert (other.data.license, other.data.license_name) == ("other", "shale-1")


def test_data_sets_and_base_models_of_the_hub_are_named_and_folders_are_not(tmp_path):
    recipe = RECIPE.replace("source: scratch", "source: google/canine-c")
    two = "{kind: hub, path: some/names}\n  - {kind: text, path: /data/own/names.txt}"
    recipe = recipe.replace("{kind: package, package: a-corpus, version: 1.0.0, licence: MIT}", two)
    card = load(make_run(tmp_path / "run", recipe=recipe))
    assert card.data.base_model == "google/canine-c"
    assert card.data.datasets == ["some/names"]
    perplexity = results_of(card)["Perplexity"]
    assert (perplexity.dataset_type, perplexity.dataset_name) == (
        "custom",
        "some/names, names.txt (held-out rows)",
    )


def test_the_weights_are_named_with_their_hashes(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "final").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (run / "final" / name).write_bytes(name.encode() * 100)
    text = load(run).text
    for path in (run / "final").glob("*.safetensors"):
        row = (
            f"| `{path.name}` | {path.stat().st_size:,} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |"
        )
        assert row in text


def test_the_card_says_how_to_make_the_model_again(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "command.txt").write_text("accelerate launch '```' x")
    text = load(run).text
    assert "````sh\naccelerate launch '```' x\n````" in text
    assert f"```yaml\n{RECIPE.strip()}\n```" in text


def test_further_metrics_stand_beside_step_0(tmp_path):
    text = load(make_run(tmp_path / "run")).text
    assert "| perplexity (terms) | 60.0 | 50.0 to 72.0 | 1,200 |" in text
    assert "| among the first five | 50.0% |  | 50.0% |" in text


def test_the_parts_of_a_pair_have_the_results_of_their_own_task(tmp_path):
    recipe = RECIPE.replace("objective: {", "objective: {kind: rtd, ")
    judged = {"discriminator_loss": 0.3, "discriminator_base_loss": 0.4, "discriminator_auc": 0.8}
    last = {"kind": "eval", "step": 100, "loss": 3.0, "perplexity": 20.0, "accuracy": 0.2, **judged}
    run = make_run(tmp_path / "run", recipe=recipe, more=[last | list_further(1)])
    whole = load(run)
    assert {r.task_type for r in whole.data.eval_results} == {"token-classification"}
    assert results_of(whole)["Discriminator AUC"].metric_value == 0.8
    assert "Perplexity" not in results_of(whole)
    assert whole.data.pipeline_tag == "feature-extraction"
    generator = load(run, "final/generator")
    assert {r.task_type for r in generator.data.eval_results} == {"fill-mask"}
    assert results_of(generator)["Perplexity"].metric_value == 20.0
    assert "Discriminator AUC" not in results_of(generator)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.7])
def test_a_run_that_was_cut_has_a_card_that_the_hub_reads(keep, tmp_path):
    run = make_run(tmp_path / "run")
    data = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(data[: int(len(data) * keep)])
    for name in ("plan.json", "environment.json", "command.txt"):
        (run / name).unlink()
    card = load(run)
    assert card.data.library_name == "transformers"


def test_hostile_names_stay_values_of_the_metadata(tmp_path):
    evil = f"---\nlicense: mit\n{HOSTILE}"
    recipe = {"name": evil, "description": evil, "licence": evil, "model": {"family": evil, "source": evil}}
    recipe["data"] = {"sources": [{"kind": "hub", "path": evil}, 3, {"kind": "package", "package": [1]}]}
    more = [{"kind": "yardstick", "step": 0, "name": evil, "perplexity": 99.0}]
    card = load(make_run(tmp_path / "run", recipe=json.dumps(recipe), more=more))
    assert card.data.model_name == evil
    assert card.data.license == "other"
    assert card.data.datasets is None
    assert "<script" not in re.sub("`[^`]*`", "", card.text.replace("```", "`"))
    assert "\n---\n" not in card.text
    assert card.data.base_model is None
    assert results_of(card)[f"Perplexity of {evil}, a baseline"].metric_value == 99.0
