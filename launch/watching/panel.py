"""The panel: a view of a run, drawn for a terminal of any width."""

import math
import sys
from collections.abc import Iterator
from itertools import pairwise

from rich import console as drawing
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from launch.events import number
from launch.figure import show_bytes
from launch.watching.view import View

WIDE = 108
_SPARK_WIDTH = 30
"""Columns from which figures stand side by side."""
_SPARKS = " .:-=+*#%@" if not (sys.stdout.encoding or "").lower().startswith("utf") else "▁▂▃▄▅▆▇█"
_BORDERS = {"finished": "green", "lost": "red", "failed": "red", "stopped": "yellow"}

Row = tuple[str, str]


class RunPanel:
    """Draws a view each time it is asked to.

    Attributes:
        state: what stands at the top right; None: what the loop does.
        note: a line at the bottom.
    """

    def __init__(self, view: View):
        self.view = view
        self.state: str | None = None
        self.note = ""

    def __rich_console__(
        self, console: drawing.Console, options: drawing.ConsoleOptions
    ) -> drawing.RenderResult:
        width = options.max_width - 4
        view = self.view
        state = self.state or describe_phase(view)
        parts: list[drawing.RenderableType] = [_draw_progress(view, width)]
        if view.train or view.evaluation:
            parts.append(_draw_figures(view, width))
        parts += [f"[bold red]![/] [red]{escape(str(flag.get('message', '')))}[/]" for flag in _flags(view)]
        if self.note:
            parts.append(f"[dim]{escape(self.note)}[/]")
        place = f" [dim]{escape(view.facts.place)}[/]" if view.facts.place else ""
        title = f"[bold]{escape(view.facts.name)}[/]{place}  {escape(state)}"
        color = _BORDERS.get(state.split(":")[0].split(" ")[0], "red" if view.flags else "cyan")
        yield Panel(
            drawing.Group(*parts), title=title, title_align="left", border_style=color, padding=(0, 1)
        )


def _flags(view: View) -> list[dict]:
    return list(view.flags.values())


def _draw_progress(view: View, width: int) -> Table:
    num_steps = view.facts.num_steps
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    left = format_left(view.find_seconds_left())
    bar = ProgressBar(total=max(num_steps, 1), completed=view.step)
    grid.add_row(bar, f"{view.step:,}/{num_steps:,}  left {left}")
    return grid


def _draw_figures(view: View, width: int) -> Table:
    short, long = list(_list_short(view)), list(_list_long(view))
    is_wide = width >= WIDE
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2 if is_wide else 1):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
    if is_wide:
        half = -(-len(short) // 2)
        right = [*short[half:], ("", "")]
        for index in range(half):
            grid.add_row(*short[index], *right[index])
    else:
        for row in short:
            grid.add_row(*row)
    whole = Table.grid(padding=(0, 2), expand=True)
    whole.add_column(style="dim", no_wrap=True, width=10)
    whole.add_column(ratio=1, overflow="fold")
    for row in long:
        whole.add_row(*row)
    both = Table.grid(expand=True)
    both.add_row(grid)
    both.add_row(whole)
    grid.columns[0].width = 10
    if is_wide:
        grid.columns[2].width = 10
    return both


def _list_short(view: View) -> Iterator[Row]:
    event = view.train
    if not event:
        return
    loss = number(event, "loss")
    yield (
        "loss",
        f"[bold]{_show_figure(event, 'loss', '.4f')}[/]  {draw_sparkline(view.losses, _SPARK_WIDTH)}",
    )
    perplexity = {"perplexity": None if loss is None else to_perplexity(loss)} if "loss" in event else {}
    yield "perplexity", _show_figure(perplexity, "perplexity", ",.2f")
    rate, epoch = number(event, "learning_rate"), number(event, "epoch")
    yield "rate", _show(rate, "{:.2e}") + ("" if epoch is None else f", epoch {epoch:,.2f}")
    yield "gradient", _describe_gradient(view)
    yield "data wait", _show(number(event, "data_wait_fraction"), "{:.1%} of the time")
    num_skipped = number(event, "skipped_steps")
    if num_skipped is not None:
        yield "skipped", f"{num_skipped:,.0f} {'step' if num_skipped == 1 else 'steps'}"


def _list_long(view: View) -> Iterator[Row]:
    if view.train:
        yield "speed", describe_speed(view.train) + describe_step_time(view)
        yield "memory", describe_memory(view)
    if view.evaluation:
        yield "evaluation", _describe_evaluation(view)
    due = [
        (name, view.find_next(cadence))
        for name, cadence in (("evaluation", view.facts.evaluations), ("save", view.facts.saves))
    ]
    parts = [f"{name} at step {at[0]:,} in {format_left(at[1])}" for name, at in due if at is not None]
    if parts:
        yield "next", ", ".join(parts)


def _describe_gradient(view: View) -> str:
    norm, clip = number(view.train, "grad_norm"), view.facts.limits.max_grad_norm
    found = "overflow, step skipped" if norm is None else f"norm {norm:.2f}"
    return found if clip is None or norm is None else f"{found} before clipping to {clip:g}"


def _describe_evaluation(view: View) -> str:
    event, metric = view.evaluation, view.facts.best.metric
    forms = {
        "loss": ("loss", ".4f"),
        "perplexity": ("perplexity", ",.2f"),
        "accuracy": ("accuracy", ".1%"),
        "discriminator_auc": ("AUC", ".4f"),
    }
    parts = [
        f"{name} {_show_figure(event, key, form)}" for key, (name, form) in forms.items() if key in event
    ]
    text = f"{', '.join(parts)} at step {event['step']:,}"
    if view.best is None:
        return text
    value, step = view.best
    name = metric.replace("_", " ")
    best = f"; best {name} {value:.4f} at step {step:,}"
    return f"{text} [green](best)[/]" if step == event["step"] else text + best


def describe_phase(view: View) -> str:
    """What the loop does now, and how long an evaluation or a save still takes."""
    left = view.find_phase_seconds_left()
    return str(view.phase) if left is None else f"{view.phase}, {format_left(left)} left"


def describe_step_time(view: View) -> str:
    """The time of a step, to be put behind the speed; empty where it is not known."""
    seconds = view.step_seconds
    if seconds is None:
        return ""
    return f", {seconds * 1e3:,.0f} ms a step" if seconds < 1 else f", {seconds:,.2f} s a step"


def describe_speed(event: dict) -> str:
    """Tokens a second, those with padding too, and the share of the devices' peak."""
    text = _show(number(event, "tokens_per_second"), "{:,.0f} tokens/s")
    slots, mfu = number(event, "slots_per_second"), number(event, "mfu")
    more = [] if slots is None else [f"{slots:,.0f} with padding"]
    more += [] if mfu is None else [f"MFU {mfu:.1%}"]
    return f"{text} ({', '.join(more)})" if more else text


def describe_memory(view: View) -> str:
    """The measured peak against what was predicted and what there is: of a card, else of the process."""
    peak, limits = number(view.train, "peak_memory_bytes"), view.facts.limits
    if peak is None:
        return "not known"
    parts = [f"{show_bytes(peak)} at most"]
    predicted = limits.predicted_bytes or limits.process_bytes
    if predicted:
        parts.append(f"{peak / predicted:.0%} of {show_bytes(predicted)} predicted")
    if limits.limit_bytes:
        parts.append(f"limit {show_bytes(limits.limit_bytes)}")
    return ", ".join(parts)


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


def format_left(seconds: float | None) -> str:
    """A time to come; `--:--` where it is not known."""
    return "--:--" if seconds is None else format_seconds(seconds)


def format_seconds(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def to_perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def show_finite(value: float | None, form: str) -> str:
    """A figure, which is null in a log where it is not finite."""
    return "not finite" if value is None or not math.isfinite(value) else format(value, form)


def _show_figure(event: dict, key: str, form: str) -> str:
    return show_finite(number(event, key), form) if key in event else "not known"


def _show(value: float | None, form: str) -> str:
    return "not known" if value is None else form.format(value)
