"""What a person sees on the terminal: plans, tables, verdicts."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
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

from launch.command import command_text
from launch.plan import Plan
from launch.recipe import Recipe
from launch.verdict import DONE, Verdict


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without frames."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def print_plan(plan: Plan, recipe: Recipe) -> None:
    """The plan in words and figures; what cannot work in red at the end."""
    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(recipe.name)}[/] on [bold]{plan.profile}[/]  {escape(recipe.description)}\n"
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, text in _plan_lines(plan, recipe):
        table.add_row(name, escape(text))
    console.print(table)
    console.print("\n[dim]command[/]")
    console.print(escape(command_text(plan)), soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"\n[yellow]note[/]  {escape(warning)}")
    if plan.errors:
        count = "1 reason" if len(plan.errors) == 1 else f"{len(plan.errors)} reasons"
        console.print(f"\n[bold red]This cannot work[/], for {count}:")
        for error in plan.errors:
            console.print(f"[red]  - [/]{escape(error)}")


def _plan_lines(plan: Plan, recipe: Recipe) -> list[tuple[str, str]]:
    ranks = f"{plan.world_size} process" + ("es" if plan.world_size > 1 else "")
    if plan.nodes > 1:
        ranks += f" on {plan.nodes} machines"
    batch = f"{plan.global_batch:,} rows a step"
    if plan.micro_batch:
        batch += f" = {plan.micro_batch:,} a micro-batch x {plan.accumulation:,} micro-batches x {ranks}"
    masking = recipe.objective.masking
    return [
        ("batch", batch),
        ("steps", f"{_count(plan.num_steps)}, of which {_count(plan.num_warmup_steps)} warmup"),
        ("epochs", f"{plan.num_epochs:.2f}" if plan.num_epochs is not None else "unknown"),
        ("corpus", f"{_count(plan.num_rows)} rows ({plan.corpus_origin})"),
        (
            "tokens",
            f"{_count(plan.num_tokens)} in the run, {masking.rate:.0%} of them hidden ({masking.kind})",
        ),
        ("evaluations", f"{_count(plan.num_evaluations)}, and one at step 0"),
        ("saves", f"{_count(plan.num_saves)} (every {recipe.checkpoint.every})"),
        ("precision", plan.precision),
        ("sharding", _sharding(plan)),
        ("memory", "not predicted" if plan.memory is None else str(plan.memory)),
        ("run folder", plan.output),
    ]


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _sharding(plan: Plan) -> str:
    parts = [f"ZeRO-{plan.zero_stage}" if plan.zero_stage is not None else "none"]
    parts += [f"{plan.offload} in CPU memory"] if plan.offload else []
    parts += ["gradient checkpointing"] if plan.gradient_checkpointing else []
    return ", ".join(parts)


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
