"""What a real run leaves: examples and words among its events, a page that shows them, cards for a hub."""

import pytest
from huggingface_hub import ModelCard

from tests.commands import run_recipe
from tests.launch.test_report import read_page

DEBERTA, CANINE = "deberta-tiny-encyclopedia-wwm", "canine-tiny-domains-char"


def check(run):
    examples, (words,) = run.events("example"), run.events("words")
    evaluation = run.events("eval")[-1]
    assert 0 < len(examples) <= 12
    assert words["num_targets"] <= evaluation["num_targets"]
    _, text = read_page(run.folder / "report.html")
    assert "Masked rows of the evaluation" in text
    assert f"evaluation row {examples[0]['row']}," in text
    assert words["worst"][0]["text"] in text
    for name in ("best", "final"):
        card = ModelCard.load(run.folder / name / "README.md")
        found = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert found["Perplexity, before training (step 0)"] == pytest.approx(
            run.events("eval")[0]["perplexity"]
        )
        assert "Perplexity of the unigram table, a baseline" in found
    assert found["Perplexity"] == pytest.approx(evaluation["perplexity"])
    assert found["Accuracy"] == pytest.approx(evaluation["accuracy"], abs=1e-6)
    return examples, words


@pytest.mark.slow
@pytest.mark.ranks
def test_a_run_ends_with_examples_and_cards(tmp_path):
    run = run_recipe(tmp_path / "run", CANINE, "--profile", "cpu", num_steps=6)
    _, words = check(run)
    assert words["unit"] == "character"
    assert words["num_targets"] == run.events("eval")[-1]["num_targets"], "so few that all are read"


@pytest.mark.long
def test_ranks_that_share_out_the_weights_give_the_same_examples(tmp_path):
    alone = run_recipe(tmp_path / "one", DEBERTA, "--profile", "cpu", num_steps=4)
    shared = run_recipe(
        tmp_path / "three", DEBERTA, "--profile", "cpu-2proc-zero2", "--sharding", "zero3", num_steps=4
    )
    (one, _), (other, _) = check(alone), check(shared)
    assert [event["row"] for event in one] == [event["row"] for event in other]
    for first, second in zip(one, other, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-3)
