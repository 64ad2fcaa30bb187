"""What a person sees while a run trains: a live panel on a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any, Protocol

from rich.live import Live
from rich.markup import escape

from launch.terminal import Console, Stream
from launch.watching.panel import RunPanel, format_left, show_finite, to_perplexity
from launch.watching.view import Facts, Phase, View

_SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Shows events as they come.

    Attributes:
        view: what is known of the run.
    """

    view: View

    def show(self, event: dict[str, Any]) -> None:
        """Show one event.

        Raises:
            OSError: there is nothing to show it on any more.
        """
        ...

    def mark(self, phase: str, step: int, num_done: int, num_all: int) -> None:
        """Take note of what the loop does now."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...

    def say(self, text: str) -> None:
        """Print a line that stays; likewise."""
        ...

    def head(self, state: str | None, note: str) -> None:
        """What stands in the head instead of the phase, and at the bottom, where there is a panel."""
        ...

    def renew(self, view: View) -> None:
        """Go on with another view."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether nobody sees it any more."""
        ...


def open_display(facts: Facts, first_step: int) -> Display:
    """A live panel if stdout is a terminal, plain lines if not."""
    stream = Stream(sys.stdout)
    console = Console(file=stream, highlight=False)  # pyright: ignore[reportArgumentType]
    view = View(facts, first_step)
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(console, view, stream)
    return PlainLines(console, view, stream)


class _Shown:
    """What both displays do: follow the events, and end with their output."""

    def __init__(self, console: Console, view: View, stream: Stream | None = None):
        self.view = view
        self._console, self._stream = console, stream

    def mark(self, phase: str, step: int, num_done: int, num_all: int) -> None:
        """Take note of what the loop does now."""
        self.view.mark(Phase(phase, step, num_done, num_all))

    @property
    def is_gone(self) -> bool:
        """Whether nobody sees it any more."""
        return self._stream is not None and self._stream.is_gone

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if text:
            self._console.print(escape(text), soft_wrap=True)
        if self.is_gone:
            raise OSError("nobody reads the output any more")

    def renew(self, view: View) -> None:
        """Go on with another view."""
        self.view = view

    def head(self, state: str | None, note: str) -> None:
        """Nothing: lines have no head."""


class PlainLines(_Shown):
    """A line for each evaluation and every ten seconds of training; for logs and pipes."""

    _last = -math.inf

    def show(self, event: dict[str, Any]) -> None:
        """Print one event, training steps not too often."""
        self.view.observe(event)
        if event["kind"] == "train":
            now = time.monotonic()
            is_last = event["step"] == self.view.facts.num_steps
            if now - self._last < _SECONDS_BETWEEN_LINES and not is_last:
                return
            self._last = now
        self.say(describe(event, self.view))

    def close(self) -> None:
        """Nothing to do."""


class LivePanel(_Shown):
    """The figures of the last step, drawn some times a second; other events are lines above, which stay."""

    def __init__(self, console: Console, view: View, stream: Stream | None = None):
        super().__init__(console, view, stream)
        self.panel = RunPanel(view)
        self._live = Live(
            get_renderable=lambda: self.panel, console=console, refresh_per_second=4, transient=False
        )
        self._live.start()

    def renew(self, view: View) -> None:
        """Go on with another view."""
        self.view = self.panel.view = view

    def head(self, state: str | None, note: str) -> None:
        """What stands in the head instead of the phase, and at the bottom."""
        self.panel.state, self.panel.note = state, note

    def show(self, event: dict[str, Any]) -> None:
        """Take an event into the panel; evaluations and the like are printed above it."""
        self.view.observe(event)
        self.say("" if event["kind"] == "train" else describe(event, self.view))

    def close(self) -> None:
        """Leave the last state of the panel on the screen."""
        self._live.stop()


def describe(event: dict[str, Any], view: View) -> str:
    """One event as one line; empty for events that are not for the terminal."""
    num_steps = view.facts.num_steps
    step = f"step {event['step']:>{len(f'{num_steps:,}')},}/{num_steps:,}"
    if event["kind"] == "train":
        return f"{step}  {_describe_step(event, view)}"
    if event["kind"] == "eval":
        text = (
            f"{step}  evaluation: loss {show_finite(event['loss'], '.4f')}  "
            f"perplexity {show_finite(event['perplexity'], ',.2f')}  "
            f"accuracy {event['accuracy']:.1%}  on {event['num_targets']:,} targets"
        )
        return f"{text}; discriminator: {describe_pair(event)}" if "discriminator_auc" in event else text
    if event["kind"] == "yardstick":
        figures = f"perplexity {event['perplexity']:,.2f}  on {event['num_targets']:,} targets"
        return f"yardstick {event['name']}: {figures}"
    if event["kind"] == "save":
        return f"{step}  saved {event['path']}"
    if event["kind"] == "flag":
        return f"{step}  {'!' if event.get('is_on') else 'over:'} {event.get('message', '')}"
    return event.get("message", "")


def _describe_step(event: dict[str, Any], view: View) -> str:
    num_skipped = event.get("skipped_steps", 0)
    norm = event.get("grad_norm")
    mfu = f"  MFU {event['mfu']:.1%}" if event.get("mfu") is not None else ""
    loss = event["loss"]
    perplexity = None if loss is None else to_perplexity(loss)
    return (
        f"loss {show_finite(loss, '.4f')}  perplexity {show_finite(perplexity, ',.2f')}  "
        f"rate {event['learning_rate']:.2e}  {event['tokens_per_second']:,.0f} tokens/s{mfu}  "
        f"data wait {event['data_wait_fraction']:.1%}  left {format_left(view.find_seconds_left())}"
        f"{'' if norm is None else f'  gradient {norm:.2f}'}"
        f"{f'  {describe_skipped(num_skipped)}' if num_skipped else ''}"
    )


def describe_skipped(num_steps: int) -> str:
    """How many steps so far changed nothing, and why."""
    return f"{num_steps:,} {'step' if num_steps == 1 else 'steps'} skipped: loss or gradient not finite"


def describe_pair(score: dict[str, Any]) -> str:
    """What an evaluation found about a discriminator, on one line."""
    auc, loss, base = (
        show_finite(score[f"discriminator_{name}"], ".4f") for name in ("auc", "loss", "base_loss")
    )
    return f"AUC {auc}  loss {loss} (base rate {base})  on {score['num_positions']:,} pieces"
