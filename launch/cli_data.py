"""The `data` and `vocab` verbs of the command."""

import argparse
from collections.abc import Callable
from pathlib import Path

from launch.recipe_file import read_recipe
from launch.request import OVERRIDE_HELP, positive

RECIPE_HELP = "a recipe file, or the name of a shipped recipe"
Adder = Callable[..., argparse.ArgumentParser]


def add_data(add: Adder) -> None:
    """Add `data prepare`, `data normalize` and `data preview`."""
    step = _open_steps(
        add("data", None, "prepare, normalise or look at a recipe's data", "data preview RECIPE --rows 5")
    )
    prepare = step(
        "prepare", _prepare, "read, clean, split and tokenise once; later runs reuse it",
        "data prepare my-recipe.yaml",
    )  # fmt: skip
    _add_recipe(prepare)
    prepare.add_argument(
        "--workers", type=int, metavar="N", help="processes for a large corpus; default: one a core"
    )
    normalize = step(
        "normalize", _normalize, "write the sources as records with normalised text and align maps",
        "data normalize my-recipe.yaml corpus.norm.jsonl.gz",
    )  # fmt: skip
    normalize.add_argument("recipe", help=RECIPE_HELP)
    normalize.add_argument("out", metavar="OUT", help="a new .jsonl or .jsonl.gz file")
    _add_overrides(normalize)
    normalize.add_argument(
        "--sample", type=int, default=0, metavar="N", help="also print N bound terms in their context"
    )
    preview = step(
        "preview", _preview, "rows with their hidden words or characters",
        "data preview my-recipe.yaml --rows 3 data.limit=1000",
    )  # fmt: skip
    _add_recipe(preview)
    preview.add_argument("--rows", type=positive, default=5, metavar="N", help="how many rows; default 5")
    preview.add_argument("--json", action="store_true", help="one JSON object a line")


def add_vocab(add: Adder) -> None:
    """Add `vocab mine`, `vocab extend` and `vocab report`."""
    step = _open_steps(
        add("vocab", None, "find missing terms, give them to a tokenizer, and see what that did",
            "vocab mine RECIPE terms.tsv --list taxa.txt")
    )  # fmt: skip
    mine = step(
        "mine", _mine, "propose terms that a tokenizer cuts, by frequency and fragmentation",
        "vocab mine my-recipe.yaml terms.tsv --list taxa.txt --list localities.txt --terms 500",
    )  # fmt: skip
    mine.add_argument("recipe", help=f"{RECIPE_HELP}: its sources are read")
    mine.add_argument("out", metavar="OUT", help="the list that is written (.tsv)")
    _add_overrides(mine)
    mine.add_argument("--tokenizer", metavar="FOLDER", help="default: the recipe's")
    mine.add_argument(
        "--list", action="append", default=[], metavar="FILE", help="known terms, one a line, _ for a space"
    )
    mine.add_argument("--terms", type=positive, default=500, metavar="N", help="at most so many; default 500")
    mine.add_argument(
        "--min-count", type=int, default=5, metavar="N", help="occurrences that a term needs; default 5"
    )
    mine.add_argument("--lists-only", action="store_true", help="propose terms of the lists only")
    extend = step(
        "extend", _extend, "give terms pieces of their own; all other text stays as it was",
        "vocab extend microsoft/deberta-v3-base terms.tsv my-tokenizer",
    )  # fmt: skip
    extend.add_argument("tokenizer", help="a folder, or a hub id")
    extend.add_argument("terms", metavar="TERMS", help="a list from `vocab mine`, or one term a line")
    extend.add_argument("out", metavar="OUT", help="a new folder")
    extend.add_argument("--version", metavar="V", help="of the new tokenizer; default: one up")
    report = step(
        "report", _report, "tokens a word, terms cut and new pieces used, before and after",
        "vocab report my-recipe.yaml microsoft/deberta-v3-base my-tokenizer --terms terms.tsv",
    )  # fmt: skip
    report.add_argument("recipe", help=f"{RECIPE_HELP}: its sources are read")
    report.add_argument("before", help="a tokenizer: a folder, or a hub id")
    report.add_argument("after", help="a tokenizer: a folder, or a hub id")
    _add_overrides(report)
    report.add_argument("--terms", metavar="FILE", help="domain terms; default: the pieces that are new")
    report.add_argument("--json", action="store_true", help="print an object")


def _open_steps(verb: argparse.ArgumentParser) -> Adder:
    steps = verb.add_subparsers(title="steps", metavar="STEP", required=True)

    def add(name: str, function: Callable, summary: str, example: str) -> argparse.ArgumentParser:
        step = steps.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  maskwright {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        step.set_defaults(verb=function)
        return step

    return add


def _add_recipe(step: argparse.ArgumentParser) -> None:
    step.add_argument("recipe", help=RECIPE_HELP)
    _add_overrides(step)


def _add_overrides(step: argparse.ArgumentParser) -> None:
    step.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDE_HELP)


def _prepare(arguments: argparse.Namespace) -> int:
    from launch.preview import prepare

    return prepare(read_recipe(arguments.recipe, arguments.overrides), num_workers=arguments.workers)


def _preview(arguments: argparse.Namespace) -> int:
    from launch.preview import preview

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    return preview(recipe, num_rows=arguments.rows, as_json=arguments.json)


def _normalize(arguments: argparse.Namespace) -> int:
    from launch.corpus import describe_source
    from launch.normalized import normalize_corpus

    data = read_recipe(arguments.recipe, arguments.overrides).data
    return normalize_corpus(
        [describe_source(source) for source in data.sources],
        [normalizer.model_dump(exclude_none=True) for normalizer in data.normalize],
        Path(arguments.out),
        limit=data.limit,
        bad_input=data.bad_input.model_dump(),
        num_samples=arguments.sample,
    )


def _mine(arguments: argparse.Namespace) -> int:
    from launch.vocabulary import mine

    return mine(
        read_recipe(arguments.recipe, arguments.overrides),
        Path(arguments.out),
        tokenizer=arguments.tokenizer,
        lists=[Path(path) for path in arguments.list],
        num_terms=arguments.terms,
        min_count=arguments.min_count,
        lists_only=arguments.lists_only,
    )


def _extend(arguments: argparse.Namespace) -> int:
    from launch.vocabulary import extend

    return extend(arguments.tokenizer, Path(arguments.terms), Path(arguments.out), version=arguments.version)


def _report(arguments: argparse.Namespace) -> int:
    from launch.vocabulary import report

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    terms = Path(arguments.terms) if arguments.terms else None
    return report(recipe, arguments.before, arguments.after, terms=terms, as_json=arguments.json)
