"""Watching a run that is somewhere else: every state told apart, nothing touched, resumes followed."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch import cli, liveness
from launch.liveness import Beat, find_place, write_beat
from launch.lock import Holder, hold
from launch.process import Process
from launch.verdict import RunError, Verdict, clear_verdict, write_verdict
from launch.watching import watch
from launch.watching.display import LivePanel, PlainLines
from launch.watching.runs import list_runs
from launch.watching.status import find_status
from launch.watching.view import Facts, View
from launch.watching.watch import Follower, Tail, parse_events

FAR = Process("another-machine", 4321, 99)


def train(step, loss=2.0, **more):
    return {
        "kind": "train", "step": step, "loss": loss, "learning_rate": 1e-3, "tokens_per_second": 10.0,
        "data_wait_fraction": 0.0, "rows_per_second": 4.0, **more,
    }  # fmt: skip


def evaluation(step, loss=2.0):
    return {
        "kind": "eval", "step": step, "loss": loss, "perplexity": 7.0, "accuracy": 0.5, "num_targets": 9,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A run folder of 100 planned steps in which nothing was logged."""
    place = tmp_path / "run"
    place.mkdir()
    (place / "plan.json").write_text(json.dumps({"num_steps": 100, "global_batch": 4, "recipe": "r"}))
    (place / "recipe.resolved.yaml").write_text("name: my-recipe\nevaluation: {every: 10}\n")
    return place


def write(folder, *events, mode="a"):
    with (folder / "metrics.jsonl").open(mode) as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def beat(folder, process=None, phase="step", step=5, rank=0, **more):
    write_beat(folder, Beat(rank, process or Process.of(os.getpid()), "token", phase, step, **more))


def find_dead():
    """A process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        process = Process.of(child.pid)
        child.kill()
    return process


@contextmanager
def unchanged(folder):
    """Nothing in the folder is written, made or removed meanwhile."""

    def look():
        return {
            path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
            for path in folder.rglob("*")
        }

    before = look()
    yield
    assert look() == before


def test_a_folder_without_events_is_new(folder):
    assert find_status(folder).state == "new"
    assert find_status(folder / "nothing").state == "new"


def test_a_run_that_lives_is_running_where_it_is(folder):
    write(folder, train(1))
    with hold(folder, "token"):
        beat(folder)
        status = find_status(folder)
        assert status.state == "running"
        assert status.place == f"{socket.gethostname()}, process {os.getpid()}"
        assert [one.step for one in status.beats] == [5]
        write_verdict(folder, Verdict(0, "done"))  # the launcher still ends
        assert find_status(folder).state == "running"
    find_place(folder, 0).unlink()
    assert find_status(folder).state == "finished"


def test_a_look_takes_no_lock_and_changes_nothing(folder):
    write(folder, train(1))
    beat(folder)
    with hold(folder, "token"):
        pass  # leaves an empty lock file
    with unchanged(folder):
        find_status(folder)
        Follower(folder, PlainLines(Console(file=io.StringIO()), View(Facts("x", 100)))).look()
        list_runs(folder)


def test_a_look_is_in_nobodys_way(folder, monkeypatch):
    """A run that starts while the lock is looked at must not be refused: so it is never taken."""
    with hold(folder, "token"):
        pass
    import fcntl

    def refuse(*_):
        raise AssertionError("a lock was taken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    find_status(folder)


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "finished"), (143, "stopped"), (6, "lost"), (5, "failed"), (3, "failed"), (1, "failed")],
)
def test_a_verdict_tells_how_a_run_ended(folder, code, state):
    write(folder, train(1))
    write_verdict(folder, Verdict(code, "the reason\nand more"))
    status = find_status(folder)
    assert (status.state, status.message, status.exit_code) == (state, "the reason", code)
    assert status.is_over


def test_a_run_that_was_killed_is_lost(folder):
    write(folder, train(1))
    beat(folder, find_dead(), step=7)
    status = find_status(folder)
    assert status.state == "lost"
    assert "ended without a word in step 7" in status.message
    find_place(folder, 0).unlink()
    holders = [{"role": "run", "process": str(find_dead()), "started": "then"}]
    (folder / ".lock").write_text(json.dumps({"token": "t", "holders": holders}))
    assert find_status(folder).state == "lost"


def test_a_run_without_a_lock_is_known_by_its_ranks(folder):
    beat(folder)
    assert find_status(folder).state == "running"


def test_a_run_on_another_machine_runs_while_it_is_heard_of(folder):
    (folder / ".lock").write_text(
        json.dumps({"token": "t", "holders": [{"role": "run", "process": str(FAR), "started": "then"}]})
    )
    beat(folder, FAR)
    now = find_place(folder, 0).stat().st_mtime
    status = find_status(folder, now + 3)
    assert status.state == "running"
    assert status.place == "another-machine, process 4321"
    assert find_status(folder, now + 60).message == "rank 0 is not heard of for 1 min 0 s"
    assert find_status(folder, now + liveness.find_timeout() + 1).state == "lost"


def test_a_run_that_ended_without_a_verdict_is_stopped_or_by_its_end_finished(folder):
    write(folder, train(1))
    assert find_status(folder).state == "stopped"
    write(folder, {"kind": "end", "step": 100, "reason": "steps"})
    assert find_status(folder).state == "finished"


def test_odd_files_do_not_stop_a_look(folder):
    (folder / "verdict.json").write_text("{")
    (folder / ".lock").write_text("x")
    (folder / "metrics.jsonl").write_bytes(b'\xff\xfe\n{}\n[1]\n{"kind": 3}\n')
    (folder / "plan.json").write_text("[]")
    (folder / "ranks").mkdir()
    (folder / "ranks" / "0.json").write_text("{")
    find_status(folder)
    assert Tail(folder / "metrics.jsonl").read() == []
    follow(folder)[0].look()
    assert [row.state for row in list_runs(folder)] == ["stopped"]


def test_events_that_lack_what_is_shown_are_left_out():
    lines = [train(1), {"kind": "train", "step": 1}, {"kind": "eval", "step": 1, "loss": 1}, {"kind": "note"}]
    lines += [{**train(2), "loss": None}, {**train(3), "step": "x"}]
    found = list(parse_events(json.dumps(line).encode() for line in lines))
    assert [event["kind"] for event in found] == ["train", "note", "train"]


def test_figures_that_are_not_finite_are_shown_as_such(folder, capsys):
    """They are null in a log; of a generator with its discriminator those of both."""
    lost = dict.fromkeys(("loss", "perplexity", "discriminator_auc", "discriminator_loss"))
    pair = {**evaluation(30), **lost, "discriminator_base_loss": 0.4, "num_positions": 70}
    write(folder, train(30, None, grad_norm=None), pair)
    assert cli.main(["watch", str(folder), "--once"]) == 0
    _, evaluated, trained = capsys.readouterr().out.splitlines()
    assert "evaluation: loss not finite  perplexity not finite  accuracy 50.0%" in evaluated
    assert evaluated.endswith("AUC not finite  loss not finite (base rate 0.4000)  on 70 pieces")
    assert "loss not finite  perplexity not finite" in trained


def test_a_tail_gives_each_whole_event_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    text = json.dumps(train(1)) + "\n" + json.dumps(train(2)) + "\n"
    path.write_text(text[:-20])
    assert [event["step"] for event in tail.read()] == [1]
    assert tail.is_new
    with path.open("a") as file:
        file.write(text[-20:] + json.dumps(train(3)) + "\n")
    assert [event["step"] for event in tail.read()] == [2, 3]
    assert not tail.is_new
    assert tail.read() == []


def test_a_tail_sees_that_a_file_was_written_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(train(step)) + "\n" for step in range(1, 6)))
    tail = Tail(path)
    tail.read()
    draft = tmp_path / "draft"
    draft.write_text("".join(json.dumps(train(step)) + "\n" for step in range(1, 20)))
    draft.replace(path)
    assert [event["step"] for event in tail.read()] == list(range(1, 20))
    assert tail.is_new
    path.write_text(json.dumps(train(1)) + "\n")  # the same file, shorter
    assert [event["step"] for event in tail.read()] == [1]
    assert tail.is_new


def follow(folder):
    out = io.StringIO()
    display = PlainLines(Console(file=out, width=300), View(Facts("x", 100)))
    display._last = float("inf")  # training steps only in the summary
    return Follower(folder, display), out


def test_one_who_comes_late_hears_how_it_stands_and_then_what_is_new(folder):
    write(folder, evaluation(0, 5.0), *(train(step) for step in range(1, 30)), evaluation(20, 3.0))
    beat(folder, phase="evaluation", step=30)
    follower, out = follow(folder)
    assert follower.look().state == "running"
    lines = out.getvalue().splitlines()
    assert f"running on {socket.gethostname()}" in lines[0]
    assert "evaluation: loss 3.0000" in lines[1]
    assert "step  29/100  loss 2.0000" in lines[2]
    assert len(lines) == 3
    assert str(follower.display.view.phase) == "evaluating"
    write(folder, evaluation(30, 2.5))
    follower.look()
    assert "step  30/100  evaluation: loss 2.5000" in out.getvalue().splitlines()[-1]
    assert follower.display.view.facts.name == "my-recipe"
    assert follower.display.view.best == (2.5, 30)


def test_one_who_is_there_from_the_start_hears_everything(folder):
    follower, out = follow(folder)
    follower.look()
    write(folder, {"kind": "data", "message": "data: 9 rows"}, evaluation(0))
    follower.look()
    assert "data: 9 rows" in out.getvalue()
    assert "step   0/100  evaluation" in out.getvalue()


def test_a_resume_is_followed_and_nothing_is_said_twice(folder):
    write(folder, evaluation(0, 5.0), *(train(step) for step in range(1, 30)), evaluation(20, 3.0))
    follower, out = follow(folder)
    follower.look()
    before = out.getvalue()
    # Cut back to step 10, and longer than it was by the time of the next look.
    (folder / "plan.json").write_text(json.dumps({"num_steps": 200, "global_batch": 4}))
    kept = [evaluation(0, 5.0), *(train(step) for step in range(1, 11))]
    new = [{"kind": "resume", "step": 10, "message": "going on from step 10"}]
    new += [*(train(step) for step in range(11, 60)), evaluation(20, 3.5)]
    draft = folder / "draft"
    draft.write_text("".join(json.dumps(event) + "\n" for event in [*kept, *new]))
    draft.replace(folder / "metrics.jsonl")
    follower.look()
    said = out.getvalue()[len(before) :].splitlines()
    assert said[0] == "going on from step 10"
    assert "step  20/200  evaluation: loss 3.5000" in said[1]
    assert len(said) == 2
    assert follower.display.view.best == (3.5, 20)
    assert follower.display.view.step == 59


def test_a_stopped_rank_is_told_once(folder, monkeypatch):
    beat(folder)
    place = find_place(folder, 0)
    os.utime(place, (place.stat().st_atime, place.stat().st_mtime - 100))
    follower, out = follow(folder)
    for _ in range(3):
        follower.look()
    assert out.getvalue().count("rank 0 is not heard of") == 1


def test_the_panel_of_a_watch_shows_the_phase_and_where(folder):
    write(folder, *(train(step) for step in range(1, 30)))
    beat(folder, phase="evaluation", step=29, num_done=3, num_all=8)
    out = io.StringIO()
    panel = LivePanel(Console(file=out, force_terminal=True, width=100), View(Facts("x", 100)))
    follower = Follower(folder, panel)
    follower.look()
    panel.close()
    text = out.getvalue()
    assert "evaluating 3/8" in text
    assert f"process {os.getpid()}" in text
    assert "my-recipe" in text


def test_watch_ends_with_the_run(folder, monkeypatch, capsys):
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_RESTART_SECONDS", 0.1)
    write(folder, train(1))
    beat(folder)

    def end():
        time.sleep(0.3)
        write(folder, evaluation(100), {"kind": "end", "step": 100, "reason": "steps"})
        write_verdict(folder, Verdict(0, "100 steps; model in x"))
        find_place(folder, 0).unlink()

    thread = threading.Thread(target=end)
    thread.start()
    assert cli.main(["watch", str(folder)]) == 0
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert "evaluation: loss" in lines[-2]
    assert lines[-1] == f"{folder}: finished: 100 steps; model in x"


def test_a_run_that_is_started_again_at_once_is_watched_on(folder, monkeypatch):
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "_RESTART_SECONDS", 1.0)
    write(folder, train(1))
    write_verdict(folder, Verdict(143, "stopped by a signal"))
    looks = []

    def restart():
        time.sleep(0.3)
        clear_verdict(folder)
        beat(folder)
        time.sleep(1.2)
        looks.append("still watched" if thread.is_alive() else "given up")
        write_verdict(folder, Verdict(0, "done"))
        find_place(folder, 0).unlink()

    thread = threading.Thread(target=lambda: looks.append(watch.watch(folder)))
    thread.start()
    restart()
    thread.join()
    assert looks == ["still watched", 0]


def test_watch_once_says_how_it_stands_and_ends(folder, capsys):
    write(
        folder,
        evaluation(0),
        train(5),
        {"kind": "flag", "step": 5, "name": "x", "is_on": True, "message": "odd"},
    )
    beat(folder)
    with unchanged(folder):
        assert cli.main(["watch", str(folder), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}: running, on ")
    assert "evaluation" in lines[1]
    assert "loss 2.0000" in lines[2]
    assert "! odd" in lines[3]
    write_verdict(folder, Verdict(5, "diverged"))
    find_place(folder, 0).unlink()
    assert cli.main(["watch", str(folder), "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{folder}: failed, diverged"


def test_watch_wants_a_run_or_waits_for_one(tmp_path, monkeypatch, capsys):
    with pytest.raises(RunError, match="is not there; name a run folder, or wait for it with --wait"):
        watch.watch(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="has no run in it yet"):
        watch.watch(tmp_path / "empty")
    assert cli.main(["watch", str(tmp_path / "x")]) == 2
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.02)

    def appear():
        time.sleep(0.2)
        (tmp_path / "x").mkdir()
        write_verdict(tmp_path / "x", Verdict(0, "done"))

    thread = threading.Thread(target=appear)
    thread.start()
    assert cli.main(["watch", str(tmp_path / "x"), "--wait"]) == 0
    thread.join()


def test_ctrl_c_ends_the_watch_only(folder, monkeypatch):
    beat(folder)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Follower, "look", interrupt)
    with unchanged(folder):
        assert watch.watch(folder) == 130


# The list of runs.


def make_run(place, num_events=50, **verdict):
    place.mkdir(parents=True)
    (place / "plan.json").write_text(json.dumps({"num_steps": 100, "recipe": place.name}))
    (place / "recipe.resolved.yaml").write_text(f"name: {place.name}\nstopping: {{metric: accuracy}}\n")
    events = [{"kind": "data", "step": 0, "message": "x"}, evaluation(0, 5.0)]
    for step in range(1, num_events + 1):
        events.append(train(step, 5.0 / step))
        if step % 10 == 0:
            events.append({**evaluation(step), "accuracy": 0.9 if step == 20 else 0.1})
    write(place, *events)
    if verdict:
        write_verdict(place, Verdict(**verdict))


def test_runs_are_listed_with_their_best_and_last(tmp_path, capsys):
    make_run(tmp_path / "a", exit_code=0, message="done")
    make_run(tmp_path / "sweep" / "lr=1", exit_code=5, message="diverged")
    make_run(tmp_path / "b")
    beat(tmp_path / "b")
    (tmp_path / "c").mkdir()
    rows = {Path(row.folder).name: row for row in list_runs(tmp_path)}
    assert {name: row.state for name, row in rows.items()} == {
        "a": "finished",
        "b": "running",
        "lr=1": "failed",
    }
    one = rows["lr=1"]
    assert (one.step, one.num_steps, one.metric, one.best, one.best_step, one.loss, one.exit_code) == (
        50, 100, "accuracy", 0.9, 20, 0.1, 5,
    )  # fmt: skip
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found} == {"a", "b", "lr=1"}
    assert cli.main(["runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "failed, exit 5" in text
    assert "accuracy 0.9000 at 20" in text
    assert "50/100" in text
    assert cli.main(["runs", str(tmp_path / "c")]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path / "nothing")]) == 2


def test_the_last_step_is_found_however_long_the_lines_after_it_are(tmp_path):
    make_run(tmp_path / "a", exit_code=0, message="done")
    examples = ({"kind": "example", "step": 50, "row": row, "text": "x" * 4_096} for row in range(12))
    write(tmp_path / "a", *examples, {"kind": "end", "step": 50, "reason": "steps"})
    (row,) = list_runs(tmp_path)
    assert (row.step, row.loss, row.best) == (50, 0.1, 0.9)


def test_a_line_that_is_not_whole_yet_is_not_the_last_one(tmp_path):
    make_run(tmp_path / "a", num_events=3)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train(4, 1.0))[:-5])
    (row,) = list_runs(tmp_path)
    assert (row.step, row.loss) == (3, 5 / 3)


def go_back(step):
    return {"kind": "rewind", "step": step, "message": "going back"}


def test_what_a_run_has_gone_back_before_is_not_its_best_nor_its_last(folder):
    """In the list of runs and in the view alike."""

    def look():
        (row,) = list_runs(folder)
        follower, _ = follow(folder)
        follower.look()
        view = follower.display.view
        assert view.best == (None if row.best is None else (row.best, row.best_step))
        assert view.step == row.step
        return row.step, row.loss, row.best, row.best_step, view.evaluation.get("step")

    write(folder, {"kind": "data", "step": 0}, train(400, 9.0), evaluation(400, 2.0))
    write(folder, train(500, 8.0), evaluation(500, 1.0))
    assert look() == (500, 8.0, 1.0, 500, 500)
    write(folder, go_back(400))
    assert look() == (400, 9.0, 2.0, 400, 400)
    write(folder, train(500, 7.0), evaluation(500, 1.5))
    assert look() == (500, 7.0, 1.5, 500, 500)
    write(folder, evaluation(600, 1.8), go_back(500), go_back(300))
    assert look() == (300, None, None, None, None)
    write(folder, train(310, 6.0), evaluation(400, 3.0))
    assert look() == (400, 6.0, 3.0, 400, 400)


def test_the_best_is_found_in_a_long_file_whose_end_alone_is_read(tmp_path):
    make_run(tmp_path / "a", num_events=5_000)
    (row,) = list_runs(tmp_path)
    assert (row.best, row.best_step, row.step) == (0.9, 20, 5_000)


def test_a_hundred_runs_are_listed_in_a_second_without_torch(tmp_path):
    for index in range(100):
        make_run(tmp_path / f"run-{index:03}", num_events=200, exit_code=0, message="done")
    code = (
        "import sys, time; sys.modules.update(torch=None, transformers=None, accelerate=None);"
        f"from launch import cli; start = time.process_time(); cli.main(['runs', {str(tmp_path)!r}]);"
        "print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("finished" in line for line in lines) == 100
    assert float(lines[-1]) < 2  # 0.6 s of a core


def test_a_holder_is_named_by_its_process():
    holder = Holder("run", FAR, "then")
    assert replace(find_status(Path("/nonexistent")), state="running", holder=holder).place == (
        "another-machine, process 4321"
    )
