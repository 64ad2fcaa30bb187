"""What a person sees while a run trains: a live panel on a terminal, plain lines elsewhere."""

import math
import sys
import time
from itertools import pairwise
from typing import Any, Protocol

from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from launch.terminal import Console

_SECONDS_BETWEEN_LINES = 10.0
_SPARKS = " .:-=+*#%@" if not (sys.stdout.encoding or "").lower().startswith("utf") else "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Shows events as they come."""

    def show(self, event: dict[str, Any]) -> None:
        """Show one event."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def open_display(name: str, num_steps: int, first_step: int) -> Display:
    """A live panel if stdout is a terminal, plain lines if not."""
    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(console, name, num_steps, first_step)
    return PlainLines(console, num_steps, first_step)


class _Pace:
    """Steps a second and what is left, from the steps of this process."""

    def __init__(self, num_steps: int, first_step: int):
        self.num_steps, self.first_step = num_steps, first_step
        self.start: float | None = None

    def eta(self, step: int) -> str:
        """Time left; the first step is left out, as it warms up."""
        if self.start is None:
            self.first_step, self.start = step, time.monotonic()
        done = step - self.first_step
        if done <= 0:
            return "--:--"
        seconds = (time.monotonic() - self.start) / done * (self.num_steps - step)
        return format_seconds(seconds)


class PlainLines:
    """A line for each evaluation and every ten seconds of training; for logs and pipes."""

    def __init__(self, console: Console, num_steps: int, first_step: int):
        self._console = console
        self._pace = _Pace(num_steps, first_step)
        self._last = -math.inf

    def show(self, event: dict[str, Any]) -> None:
        """Print one event, training steps not too often."""
        now = time.monotonic()
        is_last = event["step"] == self._pace.num_steps
        if event["kind"] == "train" and now - self._last < _SECONDS_BETWEEN_LINES and not is_last:
            return
        if event["kind"] == "train":
            self._last = now
        text = describe(event, self._pace)
        if text:
            self._console.print(escape(text), soft_wrap=True)

    def close(self) -> None:
        """Nothing to do."""


class LivePanel:
    """Progress, the figures of the last step, and a line for each evaluation above them."""

    def __init__(self, console: Console, name: str, num_steps: int, first_step: int):
        self._pace = _Pace(num_steps, first_step)
        self._losses: list[float] = []
        self._train: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[eta]}"),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task(name, total=num_steps, completed=first_step, eta="--:--")
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, event: dict[str, Any]) -> None:
        """Update the panel; evaluations and the like are printed above it and stay."""
        if event["kind"] == "train":
            self._train = event
            self._losses = [*self._losses, event["loss"]][-2000:]
            self._progress.update(self._task, completed=event["step"], eta=self._pace.eta(event["step"]))
            self._live.update(self._render())
            return
        text = describe(event, self._pace)
        if text:
            self._live.console.print(escape(text))

    def close(self) -> None:
        """Leave the last state of the panel on the screen."""
        self._live.update(self._render())
        self._live.stop()

    def _render(self) -> Table:
        grid = Table.grid(expand=True)
        grid.add_row(self._progress)
        event = self._train
        if event:
            figures = Table(box=None, pad_edge=False, header_style="dim")
            num_skipped = event.get("skipped_steps", 0)
            names = ("loss", "perplexity", "rate", "grad norm", "tokens/s", "data wait", "epoch")
            for name in (*names, *(["skipped"] if num_skipped else [])):
                figures.add_column(name, justify="right")
            figures.add_row(
                f"{event['loss']:.4f}",
                f"{_exp(event['loss']):,.2f}",
                f"{event['learning_rate']:.2e}",
                "overflow" if event["grad_norm"] is None else f"{event['grad_norm']:.2f}",
                f"{event['tokens_per_second']:,.0f}",
                f"{event['data_wait_fraction']:.1%}",
                f"{event['epoch']:.2f}",
                *([f"{num_skipped:,}"] if num_skipped else []),
            )
            grid.add_row(figures)
            grid.add_row(f"[dim]loss[/] {draw_sparkline(self._losses, 60)}")
        return grid


def describe(event: dict[str, Any], pace: _Pace) -> str:
    """One event as one line; empty for events that are not for the terminal."""
    step = f"step {event['step']:>{len(f'{pace.num_steps:,}')},}/{pace.num_steps:,}"
    if event["kind"] == "train":
        num_skipped = event.get("skipped_steps", 0)
        skipped = f"  {describe_skipped(num_skipped)}" if num_skipped else ""
        return (
            f"{step}  loss {event['loss']:.4f}  perplexity {_exp(event['loss']):,.2f}  "
            f"rate {event['learning_rate']:.2e}  {event['tokens_per_second']:,.0f} tokens/s  "
            f"data wait {event['data_wait_fraction']:.1%}  left {pace.eta(event['step'])}{skipped}"
        )
    if event["kind"] == "eval":
        text = (
            f"{step}  evaluation: loss {event['loss']:.4f}  perplexity {event['perplexity']:,.2f}  "
            f"accuracy {event['accuracy']:.1%}  on {event['num_targets']:,} targets"
        )
        return f"{text}; discriminator: {describe_pair(event)}" if "discriminator_auc" in event else text
    if event["kind"] == "yardstick":
        figures = f"perplexity {event['perplexity']:,.2f}  on {event['num_targets']:,} targets"
        return f"yardstick {event['name']}: {figures}"
    if event["kind"] == "save":
        return f"{step}  saved {event['path']}"
    return event.get("message", "")


def describe_skipped(num_steps: int) -> str:
    """How many steps so far changed nothing, and why."""
    return f"{num_steps:,} {'step' if num_steps == 1 else 'steps'} skipped: fp16 overflow"


def describe_pair(score: dict[str, Any]) -> str:
    """What an evaluation found about a discriminator, on one line."""
    return (
        f"AUC {score['discriminator_auc']:.4f}  loss {score['discriminator_loss']:.4f} "
        f"(base rate {score['discriminator_base_loss']:.4f})  on {score['num_positions']:,} pieces"
    )


def draw_sparkline(values: list[float], width: int) -> str:
    """The last values as a line of blocks, each the mean of an equal share of them."""
    if not values:
        return ""
    width = min(width, len(values))
    bounds = [round(index * len(values) / width) for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((mean - low) * scale)] for mean in means)


def format_seconds(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
