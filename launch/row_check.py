"""Whether a model can read the rows of a recipe: said before training, not by an index error in it."""

from typing import Any

from launch.recipe import Recipe
from modeling.canine import CanineForMaskedLM, row_slots
from modeling.deberta import DebertaForMaskedLM, check_packing
from modeling.general import TargetScoring, count_positions, find_packing_obstacle


def check_rows(recipe: Recipe, model: Any) -> None:
    """Refuse rows, as the recipe makes them, that the model cannot read.

    Raises:
        ValueError: they are too long, or hold several documents that the model would not keep apart.
    """
    if isinstance(model, CanineForMaskedLM):
        num_slots = row_slots(recipe.data.row_length)
        # transformers gives the position table num_hash_buckets rows.
        most = min(model.config.max_position_embeddings, model.config.num_hash_buckets)
        if num_slots > most:
            raise ValueError(
                f"data.row_length {recipe.data.row_length} takes {num_slots} slots, and the model reads "
                f"{most} (the smaller of max_position_embeddings and num_hash_buckets); shorten the rows"
            )
    elif isinstance(model, DebertaForMaskedLM) and recipe.data.packing:
        try:
            check_packing(model.config)
        except ValueError as error:
            raise ValueError(f"{error} (data.packing: false)") from error
    elif isinstance(model, TargetScoring):
        _check_general_rows(recipe, model)


def _check_general_rows(recipe: Recipe, model: Any) -> None:
    most, num_slots = count_positions(model.config), recipe.data.row_length
    if most is not None and num_slots > most:
        raise ValueError(
            f"data.row_length {num_slots} is longer than the {most} positions of the model; shorten the rows"
        )
    if recipe.data.packing and (obstacle := find_packing_obstacle(model)):
        raise ValueError(f"documents cannot share a row: {obstacle}; set data.packing: false")
