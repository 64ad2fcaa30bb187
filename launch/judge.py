"""Judging a saved model on a recipe's evaluation rows, with the recipe's own frozen masks."""

import json
from pathlib import Path

import torch
from rich.console import Console

from data_pipes.feed import FrozenBatches
from launch.build import build_layout, build_masking, build_tokenizer
from launch.console import prepare_with_progress
from launch.display import describe_pair
from launch.evaluate import PairScore, Score, evaluate
from launch.objective import read_pair
from launch.predict import find_masked_lm
from launch.recipe import Recipe
from launch.verdict import REQUEST, RunError
from modeling import hf

_ROWS_AT_ONCE = 32


def judge(model: Path, recipe: Recipe, *, as_json: bool) -> int:
    """Print what the model reaches; the exit code.

    Args:
        model: a model folder, or a run folder (its `final`, else its `best`, is taken).
        recipe: gives rows, masks and family.
        as_json: print an object instead of a line.

    Raises:
        RunError: the model cannot be loaded, or is of another family.
    """
    folder = next(
        (f for f in (model, model / "final", model / "best") if (f / "config.json").is_file()), model
    )
    score = score_folder(folder, recipe)
    if as_json:
        print(json.dumps({"model": str(folder), "recipe": recipe.name, **score.as_dict()}))  # noqa: T201
    else:
        Console(highlight=False, soft_wrap=True).print(
            f"{folder}: loss {score.loss:.4f}  perplexity {score.perplexity:,.2f}  "
            f"accuracy {score.accuracy:.1%}  on {score.num_targets:,} targets of {recipe.name}"
        )
        if isinstance(score, PairScore):
            Console(highlight=False, soft_wrap=True).print(f"discriminator: {describe_pair(score.as_dict())}")
    return 0


def score_folder(folder: Path, recipe: Recipe) -> Score:
    """The score of a model folder on the recipe's frozen masks, on the GPU if there is one."""
    store = prepare_with_progress(recipe)
    tokenizer = build_tokenizer(recipe, store)
    code_points = store.code_points.tolist() if recipe.model.family == "canine" else None
    is_rtd = recipe.objective.kind == "rtd"
    folder = folder if is_rtd else find_masked_lm(folder)
    try:
        if is_rtd:
            model, report = read_pair(recipe, folder, tokenizer)
        else:
            model, report = hf.load(recipe.model.family, folder, head_code_points=code_points)
    except (OSError, ValueError) as error:
        raise RunError(REQUEST, f"{folder} cannot be judged: {error}") from error
    if report.new:
        console = Console(stderr=True, highlight=False)
        console.print(f"[yellow]note[/]  {len(report.new)} tensors are not in {folder}: {report.reason}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = FrozenBatches(
        store.evaluation,
        layout=build_layout(recipe, tokenizer, store),
        masking=build_masking(recipe, tokenizer, store, is_frozen=True),
        seed=recipe.training.seed,
        micro_batch=_ROWS_AT_ONCE,
    )
    torch.nn.Module.to(model, device)
    return evaluate(model, frozen, device)
