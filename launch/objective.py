"""The objective at work: the terms of a step's loss, and the pair that replaced-token detection trains."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from data_pipes.feed import StepBatch
from launch.recipe import Recipe
from launch.recipe_objective import ReplacedTokens
from modeling.hf import LoadReport
from modeling.pair import GENERATOR_FOLDER, build_pair, load_pair
from modeling.rtd import RtdModel


@dataclass(frozen=True)
class Term:
    """A part of a step's loss: a sum over all ranks and micro-batches, divided by one count.

    Attributes:
        name: of the mean in the log; the model gives its sum as `<name>_sum`.
        weight: of the mean in the loss.
        count: what a rank's part of a step adds to the count.
    """

    name: str
    weight: float
    count: Callable[[StepBatch], int]


def list_terms(recipe: Recipe, model: torch.nn.Module) -> tuple[Term, ...]:
    """The terms of a recipe's loss; the first is that of the hidden places."""
    hidden = Term("loss", 1.0, lambda batch: batch.num_targets)
    if not isinstance(model, RtdModel):
        return (hidden,)
    assert isinstance(recipe.objective, ReplacedTokens)

    def count_positions(batch: StepBatch) -> int:
        return sum(map(model.count_positions, batch.micro_batches))

    return hidden, Term("discriminator_loss", recipe.objective.discriminator_weight, count_positions)


def is_pair(folder: str | Path) -> bool:
    """Whether a folder holds a generator and a discriminator."""
    return (Path(folder) / GENERATOR_FOLDER / "config.json").is_file()


def make_pair(recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase) -> RtdModel:
    """The pair of a recipe, from the masked language model that its model section gives.

    Raises:
        ValueError: the generator would have more layers than the model.
    """
    wanted = recipe.objective
    assert isinstance(wanted, ReplacedTokens)
    return build_pair(
        model,
        share=wanted.generator.share,
        num_generator_layers=wanted.generator.num_hidden_layers,
        **_settle(recipe, tokenizer),
    )


def read_pair(
    recipe: Recipe, folder: str | Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[RtdModel, LoadReport]:
    """The pair that another run left in a folder.

    Raises:
        OSError, ValueError: the folder is not whole, or knows fewer pieces than the tokenizer.
    """
    model = load_pair(folder, dropout=recipe.model.dropout, **_settle(recipe, tokenizer))
    num_known = model.generator.config.vocab_size
    if len(tokenizer) > num_known:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} pieces and the pair {num_known:,}: "
            "a pair does not grow, take the tokenizer that it was trained with"
        )
    reason = "generator and discriminator were loaded: the losses at step 0 depend on the text"
    return model, LoadReport(sorted(model.state_dict()), [], [], None, reason)


def _settle(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    assert isinstance(recipe.objective, ReplacedTokens)
    return {
        "special_pieces": sorted(tokenizer.all_special_ids),
        "num_pieces": len(tokenizer),
        "temperature": recipe.objective.temperature,
        "seed": recipe.training.seed,
    }
