import pytest

from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe, resolved_yaml
from tests.commands import RTD

LAYERS = "objective.generator.num_hidden_layers"
MLM, CANINE = "deberta-tiny-encyclopedia-wwm", "canine-tiny-domains-char"


def test_an_objective_without_a_kind_is_masked_language_modelling():
    recipe = read_recipe(MLM)
    assert recipe.objective.kind == "mlm"
    assert recipe.best.metric == "loss"


def test_the_shipped_recipe_of_replaced_tokens_reads_back_from_its_resolved_form(tmp_path):
    recipe = read_recipe(RTD)
    assert recipe.objective.kind == "rtd"
    assert recipe.best.metric == "discriminator_loss"
    path = tmp_path / "resolved.yaml"
    path.write_text(resolved_yaml(recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("reference", "overrides", "key", "words"),
    [
        (RTD, ["objective.kind=rdt"], "objective", "known kinds: 'mlm', 'rtd'"),
        (RTD, ["objective.masking.rate=15"], "objective.masking.rate", "below 1, given 15"),
        (RTD, ["objective.generatr={}"], "objective.generatr", "did you mean generator?"),
        (RTD, ["objective.discriminator_weight=0"], "objective.discriminator_weight", "above 0"),
        (RTD, ["objective.temperature=-1"], "objective.temperature", "above 0"),
        (RTD, ["objective.generator.share=0.5"], "objective.generator", "say the same"),
        (RTD, ["objective.generator.num_hidden_layers=4"], LAYERS, "the model's 3"),
        (RTD, ["objective=3"], "objective", "wanted a mapping, given 3"),
        (MLM, ["objective.generator={}"], "objective.generator", "unknown key"),
        (MLM, ["stopping={metric: discriminator_auc}"], "stopping.metric", "is of objective.kind: rtd"),
        (CANINE, ["objective.kind=rtd"], "objective.kind", "a canine model reads characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_objective_is_refused_at_its_place(reference, overrides, key, words):
    with pytest.raises(RecipeError) as caught:
        read_recipe(reference, overrides)
    found = {problem.key: problem.message for problem in caught.value.problems}
    assert list(found) == [key]
    assert words in found[key]
