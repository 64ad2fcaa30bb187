"""Corpora: what a model is judged on, and what counting the training rows makes of their targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipes import yardsticks
from data_pipes.masking import Masking
from data_pipes.prepare import prepare_store
from data_pipes.rows import RowSource
from data_pipes.store import Store
from launch.corpus import describe_source, store_arguments
from launch.judging.passes import Runner
from launch.judging.suite import sum_arrays
from launch.recipe import Recipe
from launch.recipe_metrics import General
from launch.verdict import MACHINE, REQUEST, RunError

_YARDSTICKS = ("unigram", "neighbours")


@dataclass(frozen=True)
class Corpus:
    """Rows to judge a model on.

    Attributes:
        place: of their figures' names, ends in `/`.
        source: the rows.
        figures: of all their targets together.
    """

    place: str
    source: RowSource
    figures: Sequence[str]


def prepare_general(recipe: Recipe, wanted: General, store: Store) -> RowSource:
    """Rows of another corpus, cut as those of the run; kept in the cache like them.

    Raises:
        RunError: it cannot be used, or a package is missing.
    """
    arguments = store_arguments(recipe)
    assert arguments is not None
    sources = [source.model_copy(update={"split": "train", "weight": None}) for source in wanted.sources]
    arguments |= {
        "sources": [describe_source(source) for source in sources],
        "limit": wanted.limit,
        "evaluation_share": 0.0,
        "near_duplicates": None,
        "rows_per_shard": 0,
    }
    if recipe.model.family != "canine":
        arguments |= {"tokenizer": store.tokenizer_folder, "train_tokenizer": None}
    try:
        return prepare_store(**arguments).train
    except ValueError as error:
        raise RunError(REQUEST, f"evaluation.metrics.general cannot be used: {error}") from error
    except (OSError, ModuleNotFoundError) as error:
        raise RunError(MACHINE, f"evaluation.metrics.general cannot be prepared: {error}") from error


def score_yardsticks(
    train: RowSource, rows: RowSource, masking: Masking, runner: Runner, *, seed: int, num_classes: int
) -> Mapping[str, float]:
    """The perplexities of both yardsticks on the frozen targets of some rows; empty where there are none.

    Every rank calls it. The first one counts, which takes some memory and a minute for a large corpus.
    """
    found = np.zeros(len(_YARDSTICKS))
    if runner.rank == 0:
        try:
            scores = yardsticks.score(train, rows, masking=masking, seed=seed, num_classes=num_classes)
            found = np.array([scores[name]["perplexity"] for name in _YARDSTICKS])
        except ValueError:  # there is no target, and the other ranks wait
            found = np.full(len(_YARDSTICKS), np.nan)
    values = sum_arrays(found, runner.device).tolist()
    return {
        f"{name}_perplexity": value
        for name, value in zip(_YARDSTICKS, values, strict=True)
        if not np.isnan(value)
    }
