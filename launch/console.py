"""What a person sees on the terminal: tables, progress, verdicts."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from launch.recipe import Recipe
from launch.terminal import Console
from launch.verdict import DONE, Verdict


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without frames."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def print_verdict(verdict: Verdict) -> None:
    """One line: to stdout when all is well, else to stderr."""
    done = verdict.exit_code == DONE
    Console(stderr=not done, highlight=False, soft_wrap=True).print(
        f"[{'green' if done else 'red'}]{'done' if done else f'exit {verdict.exit_code}'}[/]  "
        f"{escape(verdict.message)}"
    )


def print_intake(read: dict[str, Any], console: Console | None = None) -> None:
    """What became of the lines that were read, from `Intake.describe`: counts, and the first bad ones."""
    from data_pipes.reading.intake import describe_example

    console = console or Console(highlight=False, soft_wrap=True)
    console.print(f"read: {read['lines']:,} lines, {read['good']:,} good, {read['blank']:,} blank")
    for reason, count in read["skipped"].items():
        console.print(f"skipped, {reason}: {count:,}")
    for example in read["examples"]:
        console.print(f"  {describe_example(example)}", markup=False, soft_wrap=True)


def count_progress() -> Progress:
    """A bar on stderr that counts documents; it is gone when the work is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} documents"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def prepare_with_progress(recipe: Recipe, num_workers: int | None = None) -> Any:
    """The recipe's store; while it is built, stderr says what is being done and how far it is."""
    from launch.corpus import count_documents, prepare_corpus

    with count_progress() as bar:
        task = bar.add_task("opening the data", total=None)
        totals: list[int | None] = []

        def show(stage: str, num_documents: int) -> None:
            if not totals:  # counted only when something is built
                totals.append(count_documents(recipe))
            (total,) = totals
            what = {"tokenizer": "reading for the tokenizer", "rows": "reading into rows"}.get(stage, stage)
            # The count of a large file is an estimate from its first part.
            whole = total and max(total, num_documents)
            bar.update(task, description=what, completed=num_documents, total=whole)

        return prepare_corpus(recipe, show, num_workers=num_workers)
