"""The `maskwright` command. Each verb imports what it needs, so that `plan` answers in a second."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.cli_data import add_data, add_vocab
from launch.cli_doctor import add_doctor
from launch.cli_run import add_run
from launch.cli_watch import add_watch
from launch.hardware import ProfileError, load_profiles
from launch.recipe_check import RecipeError
from launch.recipe_file import json_schema, read_recipe, shipped_recipes
from launch.request import OVERRIDE_HELP, parse, positive
from launch.sweep import add_sweep
from launch.verdict import REQUEST, RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    parser = _build_parser()
    arguments = parse(parser, argv)
    try:
        return arguments.verb(arguments)
    except (RecipeError, ProfileError) as error:
        print(f"maskwright: {error}", file=sys.stderr)  # noqa: T201
        return REQUEST
    except RunError as error:
        print(f"maskwright: {error}", file=sys.stderr)  # noqa: T201
        return error.verdict.exit_code
    except BrokenPipeError:
        return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskwright",
        description="Masked-language-model pretraining: a recipe, a profile, a plan, a run.",
        epilog="start with:  maskwright plan deberta-tiny-encyclopedia-wwm --profile cpu",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(
        name: str, function: Callable | None, summary: str, example: str, **more: str
    ) -> argparse.ArgumentParser:
        verb = verbs.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  maskwright {example}" + (f"\n\n{more['after']}" if more else ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(verb=function)
        return verb

    add_run(add)
    add_watch(add)
    add_sweep(add)
    recipes = add("recipes", _recipes, "the shipped recipes", "recipes")
    recipes.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe file")
    add("profiles", _profiles, "the known hardware", "profiles")
    add_doctor(add)
    add_data(add)
    add_vocab(add)
    _add_model_verbs(add)
    return parser


def _add_model_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    evaluate = add(
        "evaluate", _evaluate, "the run's metrics on a saved model", "evaluate runs/NAME/final RECIPE"
    )
    evaluate.add_argument("model", help="a model folder, or a run folder")
    evaluate.add_argument("recipe", help="the recipe whose evaluation rows and masks are used")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDE_HELP)
    evaluate.add_argument("--json", action="store_true", help="print an object")
    fill = add("fill", _fill, "fill [MASK] (words) or _ (characters)", 'fill runs/NAME/final "goo_le.com"')
    fill.add_argument("model", help="a model folder, or a run folder")
    fill.add_argument("texts", nargs="+", metavar="TEXT", help="with hidden places; several at once are fine")
    fill.add_argument("--top", type=positive, default=5, metavar="K", help="candidates a place; default 5")
    fill.add_argument("--json", action="store_true", help="print a list of objects")
    report = add("report", _report, "one self-contained HTML file", "report runs/NAME")
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; several are compared")
    report.add_argument(
        "--output",
        metavar="FILE",
        help="default: report.html in the run folder; for several, comparison.html in the first",
    )
    export = add("export", _export, "a Hugging Face folder with a model card", "export runs/NAME my-encoder")
    export.add_argument(
        "run", metavar="RUN", help="a run folder: its final model, else its best, else its newest"
    )
    export.add_argument("folder", metavar="DIR", help="a new or an empty folder")
    export.add_argument(
        "--part",
        choices=["discriminator", "generator"],
        help="of replaced-token detection; default: the discriminator",
    )


def _recipes(arguments: argparse.Namespace) -> int:
    from launch.console import print_table

    if arguments.schema:
        print(json_schema(), end="")  # noqa: T201
        return 0
    recipes = [read_recipe(path) for path in shipped_recipes()]
    print_table(["recipe", "what it trains"], [[recipe.name, recipe.description] for recipe in recipes])
    return 0


def _profiles(_: argparse.Namespace) -> int:
    from launch.console import print_table

    print_table(["profile", "hardware"], [[p.name, p.summary] for p in load_profiles().values()])
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from launch.judge import judge

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    return judge(Path(arguments.model), recipe, as_json=arguments.json)


def _fill(arguments: argparse.Namespace) -> int:
    from launch.predict import as_dict, fill, render

    try:
        filled = fill(arguments.model, arguments.texts, top=arguments.top)
    except (ValueError, OSError) as error:
        raise RunError(REQUEST, str(error)) from error
    if arguments.json:
        from launch.terminal import to_json

        print(to_json([as_dict(one) for one in filled], indent=2))  # noqa: T201
    else:
        from launch.terminal import Console

        Console().print(render(filled))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from launch.report import write_report

    try:
        path = write_report(
            [Path(run) for run in arguments.runs], Path(arguments.output) if arguments.output else None
        )
    except (ValueError, OSError) as error:
        raise RunError(REQUEST, str(error)) from error
    print(path)  # noqa: T201
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from launch.export import export

    try:
        folder = export(Path(arguments.run), Path(arguments.folder), arguments.part)
    except (ValueError, OSError) as error:
        raise RunError(REQUEST, str(error)) from error
    print(folder)  # noqa: T201
    return 0
