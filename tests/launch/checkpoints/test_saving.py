"""Saves that fail, are killed or run in the background: whole or absent, and never a good one lost."""

import shutil
import subprocess
import threading
from concurrent.futures import Future
from itertools import product
from signal import SIGKILL

import pytest
import torch
from safetensors.torch import load_file

from launch import fault
from launch.checkpoints import saving, space, writer
from launch.checkpoints.choice import Start, choose_start, tidy_folder
from launch.checkpoints.manifest import find_checkpoints, find_damage, find_step, read_manifest
from launch.checkpoints.snapshot import Snapshot, count_bytes
from launch.fault import FaultError
from launch.verdict import RunError, make_folder, read_verdict, reserve_room, write_verdict
from launch.watching.track import Tracker
from tests.saved_job import Notes, at, change, make_job, open_saver, run_in_child

SAVE_POINTS = (
    "before_save", "after_shard_write", "before_manifest", "before_rename", "after_rename", "before_pointer",
    "during_rotate",
)  # fmt: skip
AT_ONCE = "checkpoint.in_background=false"


@pytest.fixture(autouse=True)
def disarmed():
    yield
    fault.arm("")


def whole_steps(folder):
    found = find_checkpoints(folder)
    assert [find_damage(place) for place in found] == [None] * len(found)
    return [find_step(place) for place in found]


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# Killed


@pytest.mark.parametrize(("point", "where"), list(product(SAVE_POINTS, ("background", "at once"))))
def test_a_kill_in_a_save_loses_no_checkpoint_and_the_next_start_saves_the_step_again(point, where, tmp_path):
    extra = () if where == "background" else (AT_ONCE,)

    def train():
        fault.arm(f"point={point},step=3,action=kill")
        job = make_job("checkpoint.keep=2", *extra)
        with open_saver(tmp_path, job=job) as saver:
            for step in (1, 2, 3):
                change(job)
                saver.save(at(step))
                saver.look()

    assert run_in_child(train) == SIGKILL
    is_there = point in ("after_rename", "before_pointer", "during_rotate")
    start = choose_start(tmp_path, "auto")
    assert (start.place, start.damages) == (tmp_path / f"checkpoint-{3 if is_there else 2}", ())
    assert tidy_folder(tmp_path, start, find_step(start.place)) == []
    assert hidden(tmp_path) == []
    with open_saver(tmp_path, "checkpoint.keep=2", *extra) as saver:
        saver.save(at(3))
        saver.save(at(4))
    assert whole_steps(tmp_path) == [4, 3]
    assert (tmp_path / "latest").read_text() == "checkpoint-4\n"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "point", ["after_shard_write", "before_manifest", "before_rename", "after_rename", "during_rotate"]
)
def test_a_kill_in_the_middle_of_replacing_the_best_model_leaves_one(point, tmp_path):
    def train():
        with open_saver(tmp_path, job=make_job()) as saver:
            saver.keep_best(at(1))
            saver.settle()
            fault.arm(f"point={point},action=kill")
            saver.keep_best(at(2))

    code = run_in_child(train)
    if point == "after_shard_write":
        assert code == 0, "a model has no such point"
        return
    assert code == SIGKILL
    tidy_folder(tmp_path, Start(), 0)
    is_new = point in ("after_rename", "during_rotate")
    assert read_manifest(tmp_path / "best")["step"] == (2 if is_new else 1)
    assert find_damage(tmp_path / "best") is None
    assert hidden(tmp_path) == []


def test_the_same_step_saved_again_is_kept_if_it_is_whole_and_set_aside_if_not(tmp_path):
    job = make_job()
    with open_saver(tmp_path, job=job) as saver:
        saver.save_last(at(1))
        place = tmp_path / "checkpoint-1"
        before = (place / "manifest.json").stat().st_ino
        change(job)
        saver.save_last(at(1))
        assert (place / "manifest.json").stat().st_ino == before
        (place / "model.safetensors").write_bytes(b"")
        saver.save_last(at(1))
    assert whole_steps(tmp_path) == [1]
    (damaged,) = tmp_path.glob("damaged-1-*")
    assert (damaged / "model.safetensors").read_bytes() == b""


# In the background


def act_in(saver, act):
    with saver:
        act(saver)


def hold_writes(monkeypatch):
    """Writes wait until it is set."""
    gate = threading.Event()
    whole = writer.write_state

    def wait_and_write(*arguments):
        assert gate.wait(30)
        whole(*arguments)

    monkeypatch.setattr(writer, "write_state", wait_and_write)
    return gate


def test_what_is_saved_is_the_state_at_the_save_and_not_that_of_later_steps(tmp_path, monkeypatch):
    gate, job, notes = hold_writes(monkeypatch), make_job(), Notes()
    with open_saver(tmp_path, job=job, notes=notes) as saver:
        wanted = {name: value.clone() for name, value in job.model.state_dict().items()}
        moments = [state["exp_avg"].clone() for state in job.optimizer.state.values()]
        random = torch.get_rng_state()
        saver.save(at(1))
        change(job)
        saver.look()
        assert notes.of("save") == []
        assert not (tmp_path / "checkpoint-1").exists()
        gate.set()
    place = tmp_path / "checkpoint-1"
    saved = load_file(place / "model.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in saved.items())
    state = torch.load(place / "training" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert all(torch.equal(state[i]["exp_avg"], moment) for i, moment in enumerate(moments))
    assert torch.equal(torch.load(place / "training" / "random-0.pt", weights_only=True)["torch"], random)
    assert [event["path"] for event in notes.of("save")] == [str(place)]


def test_a_save_made_at_once_and_one_in_the_background_are_the_same_to_the_byte(tmp_path):
    job = make_job()
    for name, is_later in (("now", False), ("later", True)):
        policy = job.recipe.checkpoint.model_copy(update={"in_background": is_later})
        job.recipe = job.recipe.model_copy(update={"checkpoint": policy})
        (tmp_path / name).mkdir()
        with open_saver(tmp_path / name, job=job) as saver:
            saver.save(at(1))
    now, later = (read_manifest(tmp_path / name / "checkpoint-1")["files"] for name in ("now", "later"))
    differing = [name for name in now if now[name] != later[name]]
    assert differing == ["training/progress.json"], "the recipe in it says how it was saved"


def test_a_save_waits_for_an_earlier_one_whose_buffers_it_needs_and_the_last_for_all(tmp_path, monkeypatch):
    gate, notes = hold_writes(monkeypatch), Notes()
    with open_saver(tmp_path, notes=notes) as saver:
        saver.save(at(1))
        threading.Timer(0.2, gate.set).start()
        saver.save(at(2))
        assert (tmp_path / "checkpoint-1").is_dir()
        saver.keep_best(at(2))
        saver.save_last(at(3))
        assert not saver._tasks
        assert (tmp_path / "best").is_dir()
    assert [event["step"] for event in notes.of("save")] == [1, 2, 3]


def test_a_run_that_ends_of_something_else_lets_its_save_come_to_its_end(tmp_path, monkeypatch):
    gate, notes = hold_writes(monkeypatch), Notes()

    def act(saver):
        saver.save(at(1))
        threading.Timer(0.2, gate.set).start()
        raise KeyError

    with pytest.raises(KeyError):
        act_in(open_saver(tmp_path, notes=notes), act)
    assert whole_steps(tmp_path) == [1]
    assert [event["step"] for event in notes.of("save")] == [1]


def test_points_in_the_thread_are_of_the_step_that_is_saved_and_leave_the_loops_alone(tmp_path, monkeypatch):
    gate = hold_writes(monkeypatch)
    fault.arm("point=before_rename,step=5,action=enospc;point=after_step,step=9,action=raise")
    with open_saver(tmp_path, notes=(notes := Notes())) as saver:
        saver.save(at(5))
        fault.at("before_step", step=9)
        gate.set()
        saver.settle()
        assert [event["step"] for event in notes.of("save_failed")] == [5]
        with pytest.raises(FaultError):
            fault.at("after_step")


def test_an_error_that_nobody_expects_in_the_thread_ends_the_run(tmp_path):
    fault.arm("point=before_manifest,action=raise")
    with pytest.raises(FaultError):
        act_in(open_saver(tmp_path), lambda saver: saver.save(at(1)))


def test_the_copy_keeps_what_is_tied_tied_uses_its_buffers_again_and_is_no_view():
    weight = torch.ones(4, 4)
    state = {"a": weight, "b": weight, "c": [torch.arange(3), "text"], "d": torch.ones(4, 4).t()}
    snapshot = Snapshot()
    first = snapshot.take(state)
    assert first["a"].data_ptr() == first["b"].data_ptr() != weight.data_ptr()
    place = first["a"].data_ptr()
    weight.mul_(2)
    assert first["a"].sum() == 16
    second = snapshot.take(state)
    assert second["a"].data_ptr() == place
    assert second["a"].sum() == 32
    assert second["c"][1] == "text"
    assert count_bytes(state) == 64 + 24 + 64


def test_buffers_are_made_ahead_and_the_first_save_uses_them(tmp_path):
    with open_saver(tmp_path) as saver:
        saver.look()
        assert saver._reserving is not None
        saver._reserving.result()
        made = dict(saver._snapshots["checkpoint"]._buffers)
        assert sum(buffer.nbytes for buffer in made.values()) > 100_000
        saver.save(at(1))
        kept = saver._snapshots["checkpoint"]._buffers
        assert all(kept[path] is buffer for path, buffer in made.items())
        assert {path[0] for path in set(kept) - set(made)} == {"random"}


def test_a_save_for_whose_copy_there_is_no_memory_is_made_at_once(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Snapshot, "take", fail)
    job, notes = make_job(), Notes()
    with open_saver(tmp_path, job=job, notes=notes) as saver:
        name = next(iter(job.model.state_dict()))
        wanted = job.model.state_dict()[name].clone()
        saver.save(at(1))
        change(job)
    assert torch.equal(load_file(tmp_path / "checkpoint-1" / "model.safetensors")[name], wanted)
    assert ["can't allocate" in event["message"] for event in notes.of("note")] == [True]
    assert whole_steps(tmp_path) == [1]


# Failed


FULL = "point={point},action=enospc,count=99"


@pytest.mark.parametrize(("point", "extra"), list(product(SAVE_POINTS[:4], ((), (AT_ONCE,)))))
def test_a_full_disk_costs_no_checkpoint_leaves_no_draft_and_the_run_goes_on(point, extra, tmp_path):
    notes = Notes()
    with open_saver(tmp_path, "checkpoint.keep=2", *extra, notes=notes) as saver:
        for step in (1, 2):
            saver.save(at(step))
        saver.settle()
        fault.arm(f"point={point},step=3,action=enospc")
        saver.save(at(3))
        saver.settle()
        assert whole_steps(tmp_path) == [2, 1]
        assert hidden(tmp_path) == []
        (failed,) = notes.of("save_failed")
        assert (failed["step"], failed["num_failures"]) == (3, 1)
        assert "No space left" in failed["reason"]
        assert "older ones are untouched" in failed["message"]
        saver.save(at(4))
    assert whole_steps(tmp_path) == [4, 2]


@pytest.mark.parametrize("extra", [(), (AT_ONCE,)])
def test_failures_in_a_row_end_the_run_and_a_success_between_them_counts_anew(extra, tmp_path):
    fault.arm("point=before_manifest,action=enospc;point=before_manifest,action=enospc,pass=3,count=9")
    notes = Notes()

    def act(saver):
        for step in (1, 2, 3):
            saver.save(at(step))
            saver.settle()
        saver.save(at(4))

    with pytest.raises(RunError) as caught:
        act_in(open_saver(tmp_path, "checkpoint.max_failures=2", *extra, notes=notes), act)
    assert [event["step"] for event in notes.of("save_failed")] == [1, 3, 4]
    assert caught.value.verdict.exit_code == 3
    assert "2 in a row failed" in str(caught.value)
    assert "goes on from checkpoint-2" in str(caught.value)
    assert whole_steps(tmp_path) == [2]


def test_a_recipe_may_say_that_the_run_stops_at_the_first_failure(tmp_path):
    fault.arm("point=before_rename,action=enospc")
    saver = open_saver(tmp_path, "checkpoint.on_failure=stop", AT_ONCE)
    with pytest.raises(RunError, match="on_failure is stop") as caught, saver:
        saver.save(at(1))
    assert caught.value.verdict.exit_code == 3


@pytest.mark.parametrize("extra", [(), (AT_ONCE,)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_not_saved_and_end_the_run(value, extra, tmp_path):
    saver = open_saver(tmp_path, *extra)
    saver.save(at(1))
    with torch.no_grad():
        next(saver._job.model.parameters()).view(-1)[-1] = value

    def save():
        saver.save(at(2))
        saver.settle()

    with pytest.raises(RunError, match="1 of .* weights are not finite: .*embeddings") as caught:
        save()
    saver.__exit__(RunError)
    assert caught.value.verdict.exit_code == 5
    assert whole_steps(tmp_path) == [1]
    assert hidden(tmp_path) == []


def test_a_save_that_failed_in_the_background_is_noticed_at_the_next_step(tmp_path):
    fault.arm("point=before_rename,action=enospc")
    saver = open_saver(tmp_path, "checkpoint.on_failure=stop")
    saver.save(at(1))
    outcome = saver._tasks[0].outcome
    assert isinstance(outcome, Future)
    outcome.result()
    with pytest.raises(RunError, match="No space left") as caught:
        saver.look()
    saver.__exit__(None)
    assert caught.value.verdict.exit_code == 3


@pytest.mark.parametrize("extra", [(), (AT_ONCE,)])
def test_the_last_save_must_succeed_whatever_the_policy(extra, tmp_path):
    fault.arm("point=after_shard_write,action=enospc")
    with pytest.raises(RunError, match="last save must succeed") as caught:
        act_in(open_saver(tmp_path, *extra), lambda saver: saver.save_last(at(1)))
    assert caught.value.verdict.exit_code == 3
    fault.arm("point=before_manifest,action=enospc")
    with pytest.raises(RunError, match=r"final could not be written") as caught:
        act_in(open_saver(tmp_path, *extra), lambda saver: saver.keep_final(at(1)))
    assert caught.value.verdict.exit_code == 3


def test_a_best_model_that_fails_leaves_the_older_one_and_at_the_end_it_is_an_error(tmp_path):
    with open_saver(tmp_path, notes=(notes := Notes())) as saver:
        saver.keep_best(at(1))
        saver.settle()
        fault.arm("point=before_rename,action=enospc")
        saver.keep_best(at(2))
        saver.settle()
        assert [event["path"] for event in notes.of("save_failed")] == [str(tmp_path / "best")]
        assert read_manifest(tmp_path / "best")["step"] == 1
        assert find_damage(tmp_path / "best") is None
        assert hidden(tmp_path) == []
    fault.arm("point=before_manifest,action=enospc")

    def act(saver):
        saver.keep_best(at(3, best_step=3))
        saver.save_last(at(4, best_step=3))
        saver.keep_final(at(4, best_step=3))

    with pytest.raises(RunError, match="best could not be written") as caught:
        act_in(open_saver(tmp_path), act)
    assert caught.value.verdict.exit_code == 3
    assert whole_steps(tmp_path) == [4]


@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize("extra", [(), (AT_ONCE,)])
def test_a_best_model_that_was_lost_long_ago_is_an_error_at_the_end_once_the_final_one_is_there(
    extra, is_resumed, tmp_path
):
    saver = open_saver(tmp_path, *extra)
    saver.keep_best(at(1, best_step=1))
    saver.settle()
    fault.arm("point=before_rename,action=enospc")
    saver.keep_best(at(2, best_step=2))
    saver.settle()
    last = at(4, best_step=2)
    saver.save_last(last)
    if is_resumed:  # the next start knows of it from the manifest alone
        saver.__exit__(None)
        saver = open_saver(tmp_path, *extra)
    for _ in range(2 if is_resumed else 1):
        with pytest.raises(RunError, match=r"final is written; .*best could not be written") as caught:
            saver.keep_final(last)
        assert caught.value.verdict.exit_code == 3
        assert "it is still of step 1. Move it away, and the same command" in str(caught.value)
    saver.__exit__(None)
    assert [find_damage(tmp_path / name) for name in ("best", "final", "checkpoint-4")] == [None] * 3
    assert (read_manifest(tmp_path / "best")["step"], read_manifest(tmp_path / "final")["step"]) == (1, 4)
    (tmp_path / "best").rename(tmp_path / "moved")
    with open_saver(tmp_path, *extra) as again:
        again.keep_final(last)


def test_a_first_best_model_that_was_lost_is_an_error_at_the_end_too(tmp_path):
    fault.arm("point=before_rename,action=enospc")
    with open_saver(tmp_path) as saver:
        saver.keep_best(at(2, best_step=2))
        saver.save_last(at(4, best_step=2))
        with pytest.raises(RunError, match="there is no older one; the same command ends the run"):
            saver.keep_final(at(4, best_step=2))
    assert find_damage(tmp_path / "final") is None


def test_a_best_model_that_could_not_be_written_and_is_the_last_one_is_written_at_the_end(tmp_path):
    with open_saver(tmp_path) as saver:
        saver.keep_best(at(1, best_step=1))
        saver.settle()
        fault.arm("point=before_rename,action=enospc")
        saver.keep_best(at(2, best_step=2))
        saver.save_last(at(2, best_step=2))
        assert read_manifest(tmp_path / "best")["step"] == 1
        saver.keep_final(at(2, best_step=2))
    assert read_manifest(tmp_path / "best")["step"] == 2
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("best", "final")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("extra", [(), (AT_ONCE,)])
def test_a_save_that_runs_out_of_memory_is_one_that_failed(extra, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(writer, "write_state", fail)
    with open_saver(tmp_path, *extra, notes=(notes := Notes())) as saver:
        saver.save(at(1))
    assert [event["reason"] for event in notes.of("save_failed")] == ["MemoryError"]
    assert whole_steps(tmp_path) == []
    assert hidden(tmp_path) == []


def test_what_a_full_disk_shows_as_in_torch_is_a_failed_save_too(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:858] . unexpected pos 64 vs 0\nand a stack")

    monkeypatch.setattr(writer, "write_state", fail)
    with open_saver(tmp_path, notes=(notes := Notes())) as saver:
        saver.save(at(1))
    assert ["disk full? torch says: [enforce" in event["reason"] for event in notes.of("save_failed")] == [
        True
    ]
    assert "\n" not in notes.of("save_failed")[0]["reason"]


@pytest.mark.parametrize("point", ["before_pointer", "during_rotate"])
def test_errors_after_the_commit_are_only_told(point, tmp_path):
    notes = Notes()
    with open_saver(tmp_path, "checkpoint.keep=2", notes=notes) as saver:
        saver.save(at(1))
        saver.save(at(2))
        saver.settle()
        fault.arm(f"point={point},step=3,action=enospc")
        saver.save(at(3))
        saver.settle()
        assert [event["step"] for event in notes.of("save")] == [1, 2, 3]
        assert notes.of("save_failed") == []
        assert len(notes.of("note")) == 1
    assert whole_steps(tmp_path) == [3, 2]
    tidy_folder(tmp_path, choose_start(tmp_path, "auto"), 3)
    assert hidden(tmp_path) == []


# Space


def test_a_save_without_room_is_not_begun_and_says_what_is_wanted_and_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2_000_000))
    begun = []
    monkeypatch.setattr(saving, "write_checkpoint", lambda *_: begun.append(1))
    with open_saver(tmp_path, job=make_job(num_bytes=1_000_000), notes=(notes := Notes())) as saver:
        saver.save(at(1))
    (failed,) = notes.of("save_failed")
    assert not begun
    # 1 MB of weights, their two moments, 5 % and 1 MiB; the small model adds a little
    wanted = float(failed["reason"].split(" MB are wanted")[0])
    assert wanted == pytest.approx(3 * 1.05 + 1.05, rel=0.15)
    assert "2.0 MB are free" in failed["reason"]
    assert space.find_shortage(tmp_path, 100_000) is None


def test_what_is_wanted_is_measured_at_the_last_save(tmp_path):
    with open_saver(tmp_path) as saver:
        saver.save(at(1))
        saver.settle()
        on_disk = sum(
            path.stat().st_size for path in (tmp_path / "checkpoint-1").rglob("*") if path.is_file()
        )
        manifest = (tmp_path / "checkpoint-1" / "manifest.json").stat().st_size
        assert saver._sizes["checkpoint"] == on_disk - manifest


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    done = (
        subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    )
    if done is None or done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip() if done else 'no mount command'}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("checks_space", [True, False], ids=["checked before", "met while writing"])
def test_a_disk_that_really_is_full_costs_nothing_and_the_run_saves_again_when_there_is_room(
    checks_space, small_disk, monkeypatch
):
    if not checks_space:
        monkeypatch.setattr(saving, "find_shortage", lambda *_: None)
    job, notes = make_job("checkpoint.keep=2", num_bytes=1_000_000), Notes()
    with open_saver(small_disk, job=job, notes=notes) as saver:
        saver.save(at(1))  # 3.2 MB
        saver.settle()
        (small_disk / "filler").write_bytes(bytes(2_500_000))
        for step in (2, 3):
            saver.save(at(step))
            saver.settle()
        assert whole_steps(small_disk) == [1]
        assert hidden(small_disk) == []
        assert [event["step"] for event in notes.of("save_failed")] == [2, 3]
        (small_disk / "filler").unlink()
        saver.save(at(4))
    assert whole_steps(small_disk) == [4, 1]


def test_on_a_disk_without_a_byte_left_there_is_room_for_the_verdict_and_the_log_says_why(small_disk):
    folder = make_folder(small_disk / "run")
    reserve_room(folder)
    with Tracker(folder, is_main=True, display=None) as tracker:
        tracker.log("train", 1, loss=1.0)
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(bytes(8 << 20))
        with pytest.raises(RunError, match="metrics.jsonl cannot be written") as caught:
            log_until_it_fails(tracker)
        assert caught.value.verdict.exit_code == 3
    write_verdict(folder, caught.value.verdict)
    assert read_verdict(folder) == caught.value.verdict
    (small_disk / "filler").unlink()
    reserve_room(folder)
    assert (folder / ".reserve").stat().st_size > 4096


def log_until_it_fails(tracker):
    for step in range(2, 500):
        tracker.log("train", step, text="x" * 100)
