"""Judging a saved model on a recipe's evaluation rows, with the recipe's own frozen masks."""

from pathlib import Path

import torch
from rich.markup import escape

from data_pipes.feed import FrozenBatches
from launch.build import build_layout, build_masking, build_metrics, build_tokenizer
from launch.console import prepare_with_progress, print_table
from launch.evaluate import PairScore, Score, evaluate
from launch.events import to_plain
from launch.judging.fit import check_characters, check_pieces
from launch.judging.passes import Runner
from launch.objective import read_pair
from launch.predict import find_masked_lm
from launch.recipe import Recipe
from launch.terminal import Console, to_json
from launch.verdict import REQUEST, RunError
from launch.watching.display import describe_pair
from launch.watching.panel import show_finite
from modeling import hf
from modeling.pair import list_parts

_ROWS_AT_ONCE = 32


def judge(model: Path, recipe: Recipe, *, as_json: bool) -> int:
    """Print what the model reaches; the exit code.

    Args:
        model: a model folder, or a run folder (its `final`, else its `best`, is taken).
        recipe: gives rows, masks, family and metrics.
        as_json: print an object instead of a line.

    Raises:
        RunError: the model cannot be loaded, is of another family, or reads other pieces than the rows have.
    """
    folder = next(
        (f for f in (model, model / "final", model / "best") if (f / "config.json").is_file()), model
    )
    score, further = judge_folder(folder, recipe)
    if as_json:
        found = {"model": str(folder), "recipe": recipe.name, **score.as_dict(), **further}
        print(to_json(to_plain(found)))  # noqa: T201
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{folder}: loss {show_finite(score.loss, '.4f')}  "
        f"perplexity {show_finite(score.perplexity, ',.2f')}  "
        f"accuracy {score.accuracy:.1%}  on {score.num_targets:,} targets of {recipe.name}"
    )
    if isinstance(score, PairScore):
        console.print(f"discriminator: {describe_pair(score.as_dict())}")
    if further:
        print_table(
            ["metric", "value"], [(name, show_finite(value, ",.6g")) for name, value in further.items()]
        )
    return 0


def judge_folder(folder: Path, recipe: Recipe) -> tuple[Score, dict[str, float]]:
    """The score of a model folder on the recipe's frozen masks, and its further metrics by name.

    On the GPU if there is one.
    """
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
    console = Console(stderr=True, highlight=False)
    if code_points is not None:
        note = check_characters(folder, code_points)
    else:
        table = next(list_parts(model)).get_input_embeddings()
        note = check_pieces(folder, tokenizer, table.weight.shape[0])  # pyright: ignore[reportAttributeAccessIssue]
    if note:
        console.print(f"[yellow]note[/]  {escape(note)}", soft_wrap=True)
    if report.new:
        console.print(f"[yellow]note[/]  {len(report.new)} tensors are not in {folder}: {report.reason}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = build_layout(recipe, tokenizer, store)
    frozen = FrozenBatches(
        store.evaluation,
        layout=layout,
        masking=build_masking(recipe, tokenizer, store, is_frozen=True),
        seed=recipe.evaluation.seed,
        micro_batch=_ROWS_AT_ONCE,
    )
    suite = build_metrics(recipe, store, tokenizer, Runner(layout, _ROWS_AT_ONCE, device))
    torch.nn.Module.to(model, device)
    score = evaluate(model, frozen, device, suite=suite)
    return score, suite.measure(model) if suite else {}
