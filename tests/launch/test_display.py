import io

import pytest
from rich.console import Console

from launch import display
from launch.display import LivePanel, PlainLines, draw_sparkline, format_seconds, open_display

TRAIN = {
    "kind": "train",
    "step": 10,
    "loss": 2.0,
    "learning_rate": 1e-3,
    "grad_norm": 0.7,
    "tokens_per_second": 12_345.6,
    "data_wait_fraction": 0.012,
    "epoch": 0.25,
}
EVAL = {"kind": "eval", "step": 10, "loss": 1.5, "perplexity": 4.48, "accuracy": 0.5, "num_targets": 1234}


def plain(events, num_steps=100):
    out = io.StringIO()
    lines = PlainLines(Console(file=out, width=200), num_steps, 0)
    for event in events:
        lines.show(event)
    lines.close()
    return out.getvalue()


def test_plain_lines_show_what_a_person_asks_for():
    text = plain([TRAIN, EVAL])
    assert (
        "step  10/100  loss 2.0000  perplexity 7.39  rate 1.00e-03  12,346 tokens/s  data wait 1.2%" in text
    )
    assert "evaluation: loss 1.5000  perplexity 4.48  accuracy 50.0%  on 1,234 targets" in text


def test_plain_lines_do_not_flood_a_log_but_show_the_last_step():
    text = plain([{**TRAIN, "step": step} for step in range(1, 101)])
    assert text.count("loss") == 2
    assert "step 100/100" in text


def test_text_of_a_corpus_is_not_read_as_markup():
    assert "[bold]x[/]" in plain([{"kind": "note", "step": 0, "message": "[bold]x[/]"}])


def test_events_without_a_message_are_silent():
    assert plain([{"kind": "fill", "step": 0, "text": "a"}]) == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_the_live_panel_and_a_pipe_plain_lines(is_terminal, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    opened = open_display("name", 10, 0)
    opened.close()
    assert isinstance(opened, LivePanel if is_terminal else PlainLines)


def test_the_live_panel_shows_the_last_step_and_keeps_evaluations():
    out = io.StringIO()
    panel = LivePanel(Console(file=out, force_terminal=True, width=140, highlight=False), "my-recipe", 100, 0)
    panel.show(EVAL)
    panel.show(TRAIN)
    panel.show({**TRAIN, "step": 11, "loss": 1.0})
    panel.show({**TRAIN, "step": 12, "grad_norm": None})
    panel.close()
    text = out.getvalue()
    assert "overflow" in text
    assert "my-recipe" in text
    assert "evaluation: loss 1.5000" in text
    assert "12/100" in text
    assert "12,346" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_seconds_read_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_a_sparkline_falls_with_the_loss():
    line = draw_sparkline([float(10 - i) for i in range(100)], 10)
    levels = [display._SPARKS.index(mark) for mark in line]
    assert len(levels) == 10
    assert levels == sorted(levels, reverse=True)
    assert draw_sparkline([], 10) == ""
    assert len(draw_sparkline([1.0, 1.0], 10)) == 2
