"""`make demo`: both small recipes on two cores, and what they learnt against two yardsticks."""

import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from launch.cli import main as run_verb
from launch.events import Events, read_events
from launch.report import write_report
from launch.terminal import Console

DEMOS = (("canine-tiny-domains-char", "cpu-2proc"), ("deberta-tiny-encyclopedia-wwm", "cpu-2proc"))


def main() -> int:
    """Train what is not trained yet, compare and report it; the exit code of the first failure."""
    folders = [Path("runs") / recipe for recipe, _ in DEMOS]
    for (recipe, profile), folder in zip(DEMOS, folders, strict=True):
        exit_code = run_verb(["run", recipe, "--profile", profile, "--output", str(folder)])
        if exit_code:
            return exit_code
    console = Console(highlight=False)
    events = [read_events(folder / "metrics.jsonl") for folder in folders]
    console.print("\n[bold]Perplexity on the same hidden words and characters, never trained on[/]")
    console.print(_compare([recipe for recipe, _ in DEMOS], events))
    for found in events:
        console.print(_show_fills(found))
    for folder in folders:
        console.print(f"report: {write_report([folder])}", soft_wrap=True)
    both = write_report(folders, folders[0].parent / "demo.html")
    console.print(f"both in one report: {both}", soft_wrap=True)
    return 0


def _compare(names: list[str], events: list[Events]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "step 0", "unigram table", "neighbour table", "trained", "beats both"):
        table.add_column(
            column, justify="left" if column == "recipe" else "right", no_wrap=column == "recipe"
        )
    for name, found in zip(names, events, strict=True):
        judged = [event["perplexity"] for event in found.of("eval")]
        marks = {event["name"]: event["perplexity"] for event in found.of("yardstick")}
        figures = [judged[0], marks["unigram"], marks["neighbours"], judged[-1]]
        table.add_row(
            name, *(f"{figure:,.2f}" for figure in figures), "yes" if judged[-1] < min(figures[:3]) else "NO"
        )
    return table


def _show_fills(events: Events) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("fill this", "before", "after"):
        table.add_column(column, overflow="fold")
    fills = events.of("fill")
    last_step = max((event["step"] for event in fills), default=0)
    before = {event["text"]: event["completed"] for event in fills if event["step"] == 0}
    for event in fills:
        if event["step"] == last_step:
            texts = (event["text"], before.get(event["text"], ""), event["completed"])
            table.add_row(*map(escape, texts))
    return table


if __name__ == "__main__":
    sys.exit(main())
