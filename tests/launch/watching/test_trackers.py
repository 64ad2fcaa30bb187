"""Trackers beside metrics.jsonl: what reaches them, once each, over resumes too, and what failure does.

TensorBoard is always there; Weights & Biases, trackio and MLflow are read back where they are installed.
"""

import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch.recipe_file import read_recipe
from launch.verdict import RunError
from launch.watching import courier, trackers
from launch.watching.courier import Courier, CourierError
from launch.watching.track import Tracker
from launch.watching.trackers import OPENERS, Wish, describe_config, require_packages, to_values

ROOT = Path(__file__).parents[3]
CANARY = "hf_" + "Canary" * 5
NAMES = ("tensorboard", "wandb", "trackio", "mlflow")


class Fake:
    """A tracker that keeps what it gets, or fails as it is told."""

    def __init__(self, target, rows, fails_at=None, sent=None, delay=0.0):
        self.id, self.sent = target.id or "new-id", sent
        self.rows, self._fails_at, self._delay = rows, fails_at, delay

    def write(self, values, step):
        time.sleep(self._delay)
        if step == self._fails_at:
            raise ConnectionError("no route to host")
        self.rows.append((step, sorted(values)[0].partition("/")[0]))

    def finish(self):
        self.rows.append("end")


@pytest.fixture
def fake(monkeypatch):
    """Makes `wandb` a tracker of ours; gives its rows and a way to make it fail."""
    rows, settings, targets = [], {}, []

    def open_fake(target):
        targets.append(target)
        if settings.get("error"):
            raise settings["error"]
        return Fake(target, rows, **{key: value for key, value in settings.items() if key != "error"})

    monkeypatch.setitem(OPENERS, "wandb", open_fake)
    return rows, settings, targets


def train(folder, first, last, resumed_step=None, names=("wandb",), every=5):
    with Tracker(folder, is_main=True, display=None, wish=Wish(names), resumed_step=resumed_step) as tracker:
        if first == 1:
            tracker.log("eval", 0, loss=5.0)
        for step in range(first, last + 1):
            tracker.log("train", step, loss=1 / step, grad_norm=None)
            if step % every == 0:
                tracker.log("eval", step, loss=2 / step, **{"eval/terms/perplexity@5": 3.0})


def list_steps(rows, kind="train"):
    return [row[0] for row in rows if row != "end" and row[1] == kind]


def messages(folder):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event["message"] for event in events if event["kind"] == "tracker"]


def test_only_numbers_of_training_and_evaluation_go_out_under_their_keys():
    event = {"kind": "eval", "step": 5, "loss": 2.0, "eval/terms/perplexity": 3.0, "text": "x", "flag": True}
    assert to_values(event) == {"eval/loss": 2.0, "eval/terms/perplexity": 3.0}
    assert to_values({"kind": "train", "step": 5, "loss": 2.0, "grad_norm": None}) == {"train/loss": 2.0}
    assert to_values({"kind": "save", "step": 5, "path": "x", "loss": 1}) == {}


def test_a_tracker_gets_each_step_once_over_two_resumes(tmp_path, fake):
    rows, _, targets = fake
    train(tmp_path, 1, 12)
    train(tmp_path, 11, 14, resumed_step=10)
    train(tmp_path, 11, 20, resumed_step=10)
    assert list_steps(rows) == list(range(1, 21))
    assert list_steps(rows, "eval") == [0, 5, 10, 15, 20]
    assert [target.id for target in targets] == [None, "new-id", "new-id"]
    assert messages(tmp_path)[-1] == "wandb has the steps up to 14 already; they are not sent again"


def test_a_tracker_that_is_asked_for_later_gets_what_came_before(tmp_path, fake):
    rows, _, _ = fake
    train(tmp_path, 1, 12, names=())
    train(tmp_path, 11, 20, resumed_step=10)
    assert list_steps(rows) == list(range(1, 21))
    assert list_steps(rows, "eval") == [0, 5, 10, 15, 20]


def test_a_tracker_that_is_left_out_for_a_while_has_no_gap_afterwards(tmp_path, fake):
    rows, _, _ = fake
    train(tmp_path, 1, 10)
    train(tmp_path, 11, 20, resumed_step=10, names=())
    train(tmp_path, 21, 30, resumed_step=20)
    assert list_steps(rows) == list(range(1, 31))


def test_what_a_tracker_says_that_it_has_counts_more_than_what_was_logged(tmp_path, fake):
    rows, settings, _ = fake
    train(tmp_path, 1, 10)
    rows.clear()
    settings["sent"] = {"train": 7, "eval": 5}  # it was killed before the last ones reached it
    train(tmp_path, 11, 12, resumed_step=10)
    assert list_steps(rows) == [8, 9, 10, 11, 12]
    assert list_steps(rows, "eval") == [10]


def test_steps_that_are_taken_again_in_one_session_are_sent_once(tmp_path, fake):
    rows, _, _ = fake
    with Tracker(tmp_path, is_main=True, display=None, wish=Wish(["wandb"])) as tracker:
        for step in (1, 2, 3, 2, 3, 4):
            tracker.log("train", step, loss=1.0)
    assert list_steps(rows) == [1, 2, 3, 4]


def test_a_tracker_that_is_asked_for_later_gets_the_course_that_counts(tmp_path, fake, monkeypatch):
    """Of a run that went back the steps that it took again, and not those before which it went back."""
    losses = []
    monkeypatch.setattr(Fake, "write", lambda self, values, step: losses.append((step, *values.values())))
    with Tracker(tmp_path, is_main=True, display=None) as tracker:
        for step, loss in ((1, 4.0), (2, 9.0), (3, 8.0)):
            tracker.log("train", step, loss=loss)
        tracker.log("rewind", 1, message="going back")
        tracker.log("train", 2, loss=0.5)
    train(tmp_path, 4, 4, resumed_step=3)
    assert losses == [(1, 4.0), (2, 0.5), (4, 0.25)]


def test_a_fresh_start_is_a_new_run_there(tmp_path, fake):
    rows, _, targets = fake
    train(tmp_path, 1, 3)
    train(tmp_path, 1, 3)
    assert [target.id for target in targets] == [None, None]
    assert list_steps(rows) == [1, 2, 3, 1, 2, 3]


def test_a_tracker_that_fails_is_dropped_with_a_word_and_a_resume_sends_the_rest(tmp_path, fake):
    rows, settings, _ = fake
    settings["fails_at"] = 4
    with Tracker(tmp_path, is_main=True, display=None, wish=Wish(["wandb"])) as tracker:
        for step in range(1, 11):
            tracker.log("train", step, loss=1 / step)
            time.sleep(0.01)
    assert list_steps(rows) == [1, 2, 3]
    (said,) = messages(tmp_path)
    assert "wandb is left out from here: ConnectionError: no route to host" in said
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "train"] == list(range(1, 11))
    settings.clear()
    train(tmp_path, 9, 12, resumed_step=8)
    assert list_steps(rows) == list(range(1, 13))


def test_a_slow_tracker_holds_up_no_step(tmp_path, fake):
    rows, settings, _ = fake
    settings["delay"] = 0.05
    with Tracker(tmp_path, is_main=True, display=None, wish=Wish(["wandb"])) as tracker:
        start = time.monotonic()
        for step in range(1, 21):
            tracker.log("train", step, loss=1.0)
        assert time.monotonic() - start < 0.5
    assert list_steps(rows) == list(range(1, 21))  # all of it is sent at the end


def test_one_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(courier, "_MAX_WAITING", 3)
    slow = Courier("x")
    slow._waiting.maxsize = 3
    target = trackers.Target(Path(), "p", "r", {})
    slow.start(lambda: Fake(target, [], delay=30), 5)
    for step in range(4):  # one is under way
        slow.send({"train/loss": 1.0}, step)
        time.sleep(0.02)
    with pytest.raises(CourierError, match="events wait for it"):
        slow.send({"train/loss": 1.0}, 5)
    late = Courier("y")
    late.start(lambda: Fake(target, [], delay=30), 5)
    late.send({"train/loss": 1.0}, 1)
    with pytest.raises(CourierError, match="did not end within"):
        late.close(0.1)
    with pytest.raises(CourierError, match="did not open within"):
        Courier("z").start(lambda: time.sleep(30), 0.1)


def test_one_that_does_not_start_ends_a_fresh_run_and_is_left_out_of_a_resumed_one(tmp_path, fake):
    rows, settings, _ = fake
    settings["error"] = SystemExit(1)
    with pytest.raises(RunError, match="wandb, which does not start: SystemExit") as caught:
        train(tmp_path, 1, 3)
    assert caught.value.verdict.exit_code == 3
    settings.clear()
    train(tmp_path, 1, 10)
    settings["error"] = OSError("network is unreachable")
    train(tmp_path, 11, 15, resumed_step=10)
    assert "network is unreachable" in messages(tmp_path)[-1]
    settings.clear()
    train(tmp_path, 16, 20, resumed_step=15)
    assert list_steps(rows) == list(range(1, 21))


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    require_packages([])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"wandb, mlflow; pip install wandb mlflow") as caught:
        require_packages(["wandb", "mlflow"])
    assert caught.value.verdict.exit_code == 3


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RunError):
        require_packages(["no_such_tracker"])


def test_nothing_is_imported_unless_it_is_asked_for(tmp_path):
    code = f"""
        import sys
        names = "wandb trackio mlflow tensorboard accelerate torch".split()
        sys.modules.update(dict.fromkeys(names))
        from pathlib import Path
        from launch.watching.track import Tracker
        with Tracker(Path({str(tmp_path)!r}), is_main=True, display=None) as tracker:
            tracker.log("train", 1, loss=1.0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "trackers.json").exists()


def test_settings_that_go_along_hold_no_secret_and_nothing_that_is_not_listed(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "a-secret-value-123")
    recipe = read_recipe("deberta-tiny-encyclopedia-wwm").model_dump(mode="json")
    recipe["data"]["sources"][0]["path"] = f"https://user:pass@host/{CANARY}"
    recipe["model"]["source"] = "a-secret-value-123"
    recipe["evaluation"]["samples"] = ["a text of the corpus"]
    config = describe_config(
        recipe,
        {"num_steps": 10, "command": [CANARY], "environment": {"A": CANARY}, "output": "/home/me"},
        {"python": "3.11", "packages": {"torch": "2"}, "host": "machine"},
    )
    text = json.dumps(config)
    assert CANARY not in text
    assert "a-secret-value-123" not in text
    assert "user:pass" not in text
    assert not any(word in text for word in ("machine", "/home/me", "a text of the corpus"))
    assert config["recipe.training.learning_rate"] == recipe["training"]["learning_rate"]
    assert config["plan.num_steps"] == 10
    assert config["environment.packages.torch"] == "2"


# The trackers themselves.

SCRIPT = """
    import json, os, sys, time
    from pathlib import Path
    from accelerate import PartialState
    from launch.watching.track import Tracker
    from launch.watching.trackers import Wish
    PartialState(cpu=True)
    folder, name, first, last, resumed, kills = json.loads(sys.argv[1])
    config = {"recipe.name": "x", "recipe.training.learning_rate": 0.001}
    wish = Wish([name], "proj", "my-run", config)
    with Tracker(Path(folder), is_main=True, display=None, wish=wish, resumed_step=resumed) as tracker:
        if first == 1:
            tracker.log("eval", 0, loss=5.0, perplexity=148.0)
        for step in range(first, last + 1):
            tracker.log("train", step, loss=1 / step, grad_norm=None)
            if step % 5 == 0:
                tracker.log("eval", step, loss=2 / step, perplexity=7.0, **{"eval/terms/perplexity@5": 3.0})
        if kills:
            time.sleep(2)
            os.kill(os.getpid(), 9)
"""


def run_session(folder, name, first, last, resumed=None, kills=False):
    folder.mkdir(exist_ok=True)
    arguments = json.dumps([str(folder), name, first, last, resumed, kills])
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "MLFLOW"))},
        "TRACKIO_DIR": str(folder / "trackio"),
        "HOME": str(folder),
        "HF_TOKEN": CANARY,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-signal.SIGKILL if kills else 0), done.stderr
    return done


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(tag, point.step, point.value) for tag in found.Tags()["scalars"] for point in found.Scalars(tag)]


def read_wandb(folder):
    """The history of all sessions, from the files of offline runs (records of LevelDB's log format)."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    points, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        ids.add(path.stem)
        for data in read_log(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            points += [(key, row["_step"], value) for key, value in row.items() if not key.startswith("_")]
    assert len(ids) == 1
    return points


def read_log(data):
    offset, parts = 7, []
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        if kind == 0:
            return
        parts.append(data[offset + 7 : offset + 7 + length])
        offset += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def read_trackio(folder):
    with sqlite3.connect(folder / "trackio" / "proj.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert len({row[0] for row in rows}) == 1
    return [(key, step, value) for _, step, text in rows for key, value in json.loads(text).items()]


def read_mlflow(folder):
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as base:
        rows = base.execute("select key, step, value, run_uuid from metrics").fetchall()
    assert len({row[3] for row in rows}) == 1
    return [row[:3] for row in rows]


READERS = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
}


def check_points(points, name, last=20):
    odd = "eval/terms/perplexity_5" if name == "mlflow" else "eval/terms/perplexity@5"
    found = {
        key: [(step, value) for tag, step, value in points if tag == key] for key in {p[0] for p in points}
    }
    assert set(found) == {"train/loss", "eval/loss", "eval/perplexity", odd}
    steps = range(1, last + 1)
    assert sorted(found["train/loss"]) == [(step, pytest.approx(1 / step)) for step in steps]
    assert sorted(found[odd]) == [(step, 3.0) for step in steps if step % 5 == 0]
    assert [step for step, _ in sorted(found["eval/loss"])] == [0, *(step for step in steps if step % 5 == 0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_has_every_step_once_after_resumes_and_a_kill(name, tmp_path):
    pytest.importorskip(name)
    folder = tmp_path / "run"
    run_session(folder, name, 1, 12)
    run_session(folder, name, 11, 16, resumed=10, kills=True)
    run_session(folder, name, 16, 20, resumed=15)
    check_points(READERS[name](folder), name)
    leaked = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert leaked == []
    config = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"recipe.training.learning_rate" in config


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate import PartialState

    PartialState(cpu=True)
    train(tmp_path, 1, 12, names=["tensorboard"])
    train(tmp_path, 11, 20, resumed_step=10, names=["tensorboard"])
    train(tmp_path, 21, 22, resumed_step=20, names=["tensorboard"])
    found = [(step, value) for tag, step, value in read_tensorboard(tmp_path) if tag == "train/loss"]
    assert found == [(step, pytest.approx(1 / step)) for step in range(1, 23)]


def test_tensorboard_forgets_an_attempt_without_a_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate import PartialState

    PartialState(cpu=True)
    for _ in range(2):
        train(tmp_path, 1, 3, names=["tensorboard"])
    assert [step for tag, step, _ in read_tensorboard(tmp_path) if tag == "train/loss"] == [1, 2, 3]
