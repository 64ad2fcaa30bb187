import io
import os
import sys

import pytest
from rich.console import Console

from launch.recipe_stopping import Condition
from launch.schedule import Cadence
from launch.terminal import Stream
from launch.watching import display, panel
from launch.watching.display import LivePanel, PlainLines, open_display
from launch.watching.flags import Limits
from launch.watching.panel import RunPanel, draw_sparkline, format_seconds
from launch.watching.track import Tracker
from launch.watching.view import Facts, Phase, View

TRAIN = {
    "kind": "train",
    "step": 10,
    "loss": 2.0,
    "learning_rate": 1e-3,
    "grad_norm": 0.7,
    "tokens_per_second": 12_345.6,
    "slots_per_second": 15_000.0,
    "rows_per_second": 64.0,
    "data_wait_fraction": 0.012,
    "peak_memory_bytes": 4 * 2**30,
    "epoch": 0.25,
}
EVAL = {"kind": "eval", "step": 10, "loss": 1.5, "perplexity": 4.48, "accuracy": 0.5, "num_targets": 1234}
FLAG = {"kind": "flag", "step": 10, "name": "data_starving", "is_on": True, "message": "data starving: 40%"}
FACTS = Facts(
    "my-recipe", 100, 128, Cadence(20, 128, None), Cadence(50, 128, None), place="cpu, 2 ranks",
    limits=Limits(100, 1.0, 5 * 2**30, 8 * 2**30),
)  # fmt: skip


def plain(events, num_steps=100):
    out = io.StringIO()
    lines = PlainLines(Console(file=out, width=200), View(Facts("name", num_steps, 128)))
    for event in events:
        lines.show(event)
    lines.close()
    return out.getvalue()


def draw(view, width=120, state=None, note=""):
    console = Console(file=io.StringIO(), width=width, record=True)
    drawn = RunPanel(view)
    drawn.state, drawn.note = state, note
    console.print(drawn)
    return console.export_text()


def test_plain_lines_show_what_a_person_asks_for():
    text = plain([TRAIN, EVAL])
    assert (
        "step  10/100  loss 2.0000  perplexity 7.39  rate 1.00e-03  12,346 tokens/s  data wait 1.2%" in text
    )
    assert "left 3:00" in text  # 90 steps of 128 rows at 64 rows a second
    assert "gradient 0.70" in text
    assert "evaluation: loss 1.5000  perplexity 4.48  accuracy 50.0%  on 1,234 targets" in text


def test_plain_lines_do_not_flood_a_log_but_show_the_last_step():
    text = plain([{**TRAIN, "step": step} for step in range(1, 101)])
    assert text.count("loss") == 2
    assert "step 100/100" in text


def test_text_of_a_corpus_is_not_read_as_markup():
    assert "[bold]x[/]" in plain([{"kind": "note", "step": 0, "message": "[bold]x[/]"}])
    view = View(Facts("[red]name[/]", 10))
    view.observe({**FLAG, "message": "[bold]x[/]"})
    text = draw(view, note="[blink]y[/]", state="[u]z[/]")
    assert all(part in text for part in ("[red]name[/]", "[bold]x[/]", "[blink]y[/]", "[u]z[/]"))


def test_events_without_a_message_are_silent():
    assert plain([{"kind": "fill", "step": 0, "text": "a"}]) == ""


def test_a_flag_is_one_line_when_it_begins_and_one_when_it_ends():
    over = {**FLAG, "step": 20, "is_on": False, "message": "data is no longer starving"}
    text = plain([FLAG, over])
    assert text.splitlines() == [
        "step  10/100  ! data starving: 40%",
        "step  20/100  over: data is no longer starving",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_the_live_panel_and_a_pipe_plain_lines(is_terminal, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=120)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    opened = open_display(Facts("name", 10), 0)
    opened.close()
    assert isinstance(opened, LivePanel if is_terminal else PlainLines)


def test_the_live_panel_shows_the_last_step_and_keeps_evaluations():
    out = io.StringIO()
    live = LivePanel(Console(file=out, force_terminal=True, width=140, highlight=False), View(FACTS))
    live.show(EVAL)
    live.show(TRAIN)
    live.show({**TRAIN, "step": 11, "loss": 1.0})
    live.show({**TRAIN, "step": 12, "grad_norm": None})
    live.show({**FLAG, "step": 12})
    live.mark("evaluation", 12, 3, 40)
    live.close()
    text = out.getvalue()
    assert "overflow" in text or "not finite" in text
    assert "my-recipe" in text
    assert "evaluation: loss 1.5000" in text
    assert "12/100" in text
    assert "12,346" in text
    assert text.count("data starving: 40%") >= 2  # a line above that stays, and in the panel
    assert "evaluating 3/40" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_panel_has_every_figure_at_any_width(width):
    view = View(FACTS)
    for event in (EVAL, TRAIN, {**TRAIN, "step": 11, "mfu": 0.41, "skipped_steps": 3}, FLAG):
        view.observe(event)
    text = draw(view, width)
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.replace("│", " ").split())
    for part in (
        "my-recipe cpu, 2 ranks starting",
        "11/100 left 2:58",
        "loss 2.0000",
        "perplexity 7.39",
        "1.00e-03, epoch 0.25",
        "norm 0.70 before clipping to 1",
        "12,346 tokens/s (15,000 with padding, MFU 41.0%)",
        "1.2% of the time",
        "4.00 GiB at most, 80% of 5.00 GiB predicted, limit 8.00 GiB",
        "skipped 3 steps",
        "MFU 41.0%), 2.00 s a step",
        "loss 1.5000, perplexity 4.48, accuracy 50.0% at step 10 (best)",
        "evaluation at step 20 in 0:18, save at step 50 in 1:18",
        "! data starving: 40%",
    ):
        if width >= 80:
            assert part in flat, part


def flatten(text):
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("lost", [None, float("nan")])
def test_the_panel_of_a_run_whose_loss_is_not_finite_says_so_beside_its_course(lost, width):
    view = View(FACTS)
    for step, loss in ((8, 3.0), (9, 2.0), (10, lost)):
        view.observe({**TRAIN, "step": step, "loss": loss})
    view.observe({**EVAL, "loss": lost, "perplexity": lost, "discriminator_auc": lost})
    flat = flatten(draw(view, width))
    assert f"loss not finite {panel._SPARKS[-1]}{panel._SPARKS[0]}" in flat
    assert "perplexity not finite" in flat
    assert (
        "evaluation loss not finite, perplexity not finite, accuracy 50.0%, AUC not finite at step 10" in flat
    )


def test_skipped_steps_are_counted_from_none_on():
    for number, words in ((0, "0 steps"), (1, "1 step"), (1_234, "1,234 steps")):
        assert f"skipped {words} " in flatten(draw_after(View(FACTS), {**TRAIN, "skipped_steps": number}))


def test_the_memory_of_a_process_is_shown_against_the_plan_where_there_is_no_card():
    plan = {"num_steps": 100, "memory": {"gpu_bytes": 0, "cpu_bytes": 5 * 2**30, "limit_bytes": None}}
    text = flatten(draw_after(View(Facts.of(plan, {})), TRAIN))
    assert "memory 4.00 GiB at most, 80% of 5.00 GiB predicted" in text
    assert "limit" not in text


@pytest.mark.parametrize(("rows", "words"), [(64.0, ", 2.00 s a step"), (1_280.0, ", 100 ms a step")])
def test_the_time_of_a_step_is_shown(rows, words):
    assert words in flatten(draw_after(View(FACTS), {**TRAIN, "rows_per_second": rows}))


def test_an_evaluation_and_a_save_on_their_way_say_how_long_they_still_take():
    now = [0.0]
    view = View(FACTS, clock=lambda: now[0])

    def look(seconds, name, *parts):
        now[0] += seconds
        view.mark(Phase(name, 10, *parts))
        return panel.describe_phase(view)

    assert look(0, "step") == "training"
    assert look(1, "evaluation") == "evaluating"
    assert look(0, "evaluation", 0, 40) == "evaluating 0/40"
    assert look(8, "evaluation", 4, 40) == "evaluating 4/40, 1:12 left"
    now[0] += 2  # between two marks the time goes on
    assert panel.describe_phase(view) == "evaluating 4/40, 1:10 left"
    assert "evaluating 4/40, 1:10 left" in draw(view, 80)
    assert look(10, "evaluation", 40, 40) == "evaluating 40/40"
    assert look(80, "evaluation") == "evaluating"  # metrics beside the score, for the first time
    assert look(0, "save") == "saving"
    assert look(30, "step") == "training"
    # By the last one, which took 100 s with its metrics; by the parts where they say more.
    assert look(5, "evaluation", 0, 40) == "evaluating 0/40, 1:40 left"
    assert look(4, "evaluation", 20, 40) == "evaluating 20/40, 1:36 left"
    assert look(96, "evaluation", 22, 40) == "evaluating 22/40, 1:22 left"
    assert look(500, "evaluation") == "evaluating, 0:00 left"
    assert look(0, "save") == "saving, 0:30 left"
    # One who comes in the middle of it knows the pace from what he has seen.
    late = View(FACTS, clock=lambda: now[0])
    late.mark(Phase("evaluation", 10, 30, 40))
    assert panel.describe_phase(late) == "evaluating 30/40"
    now[0] += 6
    late.mark(Phase("evaluation", 10, 33, 40))
    assert panel.describe_phase(late) == "evaluating 33/40, 0:14 left"


def test_a_panel_without_events_is_drawn():
    text = draw(View(Facts("name")))
    assert "starting" in text
    assert "0/0" in text
    assert "not known" in draw_after(View(Facts("name", 10)), {"kind": "train", "step": 1})


def draw_after(view, event):
    view.observe(event)
    return draw(view)


def test_the_time_left_counts_evaluations_and_saves_that_were_timed():
    now = [0.0]
    view = View(FACTS, clock=lambda: now[0])
    assert view.find_seconds_left() is None
    view.observe(TRAIN)
    assert view.find_seconds_left() == pytest.approx(90 * 2)
    for name, seconds in (("step", 1), ("evaluation", 10), ("save", 5), ("step", 1)):
        view.mark(Phase(name, 10))
        now[0] += seconds
    # From step 10 to 100: evaluations at 20, 40, 60, 80 and 100, saves at 50 and 100.
    assert view.find_seconds_left() == pytest.approx(90 * 2 + 5 * 10 + 2 * 5)
    # To the save at 50: two evaluations on the way.
    assert view.find_next(FACTS.saves) == (50, pytest.approx(40 * 2 + 2 * 10))
    view.observe({**TRAIN, "step": 100})
    assert view.find_seconds_left() == 0
    assert view.find_next(FACTS.saves) is None


@pytest.mark.parametrize(("every", "num_rows"), [(7, None), (1, None), ("epoch", 1_000), ("epoch", 50)])
def test_what_is_due_next_is_what_is_due_next(every, num_rows):
    cadence = Cadence(every, 128, num_rows)
    for step in range(60):
        following = next(number for number in range(step + 1, 1_000) if cadence.is_due(number))
        assert cadence.next_after(step) == following


def test_the_best_is_by_the_figure_of_the_recipe():
    view = View(Facts("x", 100, best=Condition("accuracy", "higher")))
    for step, accuracy in ((0, 0.1), (10, 0.5), (20, 0.4)):
        view.observe({**EVAL, "step": step, "accuracy": accuracy})
    assert view.best == (0.5, 10)
    assert "best accuracy 0.5000 at step 10" in draw(view)


def test_a_view_keeps_the_course_of_any_number_of_steps():
    view = View(Facts("x", 10**6))
    for step in range(1, 5_001):
        view.observe({**TRAIN, "step": step, "loss": float(step)})
    assert 256 <= len(view.losses) <= 512
    gaps = {b - a for a, b in zip(view.losses, view.losses[1:], strict=False)}
    assert gaps == {16.0}


def test_facts_are_read_from_plain_data_whatever_it_is():
    plan = {"num_steps": 10, "global_batch": 4, "num_rows": 8, "profile": "cpu-2proc", "world_size": 2}
    recipe = {"name": "x", "evaluation": {"every": "epoch"}, "checkpoint": {"every": 3}}
    facts = Facts.of(plan, recipe)
    assert (facts.name, facts.num_steps, facts.place) == ("x", 10, "cpu-2proc, 2 ranks")
    assert facts.evaluations == Cadence("epoch", 4, 8)
    assert facts.saves == Cadence(3, 4, 8)
    odd = Facts.of(
        {"num_steps": "x", "memory": 3}, {"evaluation": 5, "checkpoint": {"every": True}}, "folder"
    )
    assert (odd.name, odd.num_steps, odd.evaluations, odd.saves) == ("folder", 0, None, None)


class Pipe:
    """An output whose reader has ended."""

    encoding = "utf-8"

    def __init__(self, is_terminal=False):
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    def fileno(self):
        return 1

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = lambda self: self.write("")  # noqa: E731


def test_a_display_that_nobody_sees_is_dropped_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Pipe())
    shown = open_display(Facts("name", 100, 128), 0)
    with Tracker(tmp_path, is_main=True, display=shown) as tracker:
        for step in range(1, 101):
            tracker.log(
                "train", step, **{key: value for key, value in TRAIN.items() if key not in ("kind", "step")}
            )
        assert shown.is_gone
        assert tracker._display is None
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100


def test_a_panel_whose_terminal_has_become_a_file_is_dropped():
    """Its output is turned into a log file when the terminal is closed; a panel there would fill the disk."""
    master, slave = os.openpty()
    terminal = os.fdopen(slave, "w")
    stream = Stream(terminal)
    stream.write("x")
    assert not stream.is_gone
    log = os.open("/dev/null", os.O_WRONLY)
    os.dup2(log, terminal.fileno())
    stream.write("x")
    assert stream.is_gone
    terminal.close()
    os.close(log)
    os.close(master)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_seconds_read_as_a_clock(seconds, text):
    assert format_seconds(seconds) == text


def test_a_sparkline_falls_with_the_loss():
    line = draw_sparkline([float(10 - i) for i in range(100)], 10)
    levels = [panel._SPARKS.index(mark) for mark in line]
    assert len(levels) == 10
    assert levels == sorted(levels, reverse=True)
    assert draw_sparkline([], 10) == ""
    assert len(draw_sparkline([1.0, 1.0], 10)) == 2
