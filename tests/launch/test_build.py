import pytest

from launch.build import _check_rows
from launch.recipe_file import read_recipe
from modeling import hf

CANINE = "canine-tiny-domains-char"
DEBERTA = "deberta-tiny-encyclopedia-wwm"


def build_canine(**config):
    recipe = read_recipe(CANINE)
    sizes = {**recipe.model.config, **config}
    return hf.build("canine", config=sizes, head_code_points=[97], dropout=0.0, seed=0)


def test_rows_longer_than_a_canine_reads_are_refused_before_training():
    _check_rows(read_recipe(CANINE), build_canine())
    with pytest.raises(ValueError, match="row_length 66 takes 72 slots, and the model reads 64"):
        _check_rows(read_recipe(CANINE), build_canine(max_position_embeddings=64))
    with pytest.raises(ValueError, match="the model reads 70"):
        _check_rows(read_recipe(CANINE), build_canine(num_hash_buckets=70))


def test_packing_is_refused_for_a_model_with_absolute_positions():
    recipe = read_recipe(DEBERTA)
    config = {**recipe.model.config, "position_biased_input": True}
    model = hf.build("deberta", config=config, num_pieces=50, dropout=0.0, seed=0)
    with pytest.raises(ValueError, match="packing: false"):
        _check_rows(recipe, model)
    _check_rows(read_recipe(DEBERTA, ["data.packing=false"]), model)
