"""Several ranks: what one of them meets all of them know, and none waits for one that gave up."""

from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import fault
from launch.agreement import check_folder, find_error, gather, share
from launch.checkpoints.choice import Start, agree_on_start
from launch.checkpoints.contents import write_shards
from launch.checkpoints.manifest import find_checkpoints, find_damage, find_step
from launch.verdict import RunError
from tests.saved_job import Notes, at, change, make_job, open_saver, run_ranks


@pytest.fixture(autouse=True)
def disarmed():
    yield
    fault.arm("")


def test_one_process_agrees_with_itself(tmp_path):
    assert (share(3), gather("x"), find_error([None])) == (3, ["x"], None)
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert agree_on_start(Start(tmp_path)) == Start(tmp_path)


def test_the_first_error_is_named_with_its_rank():
    assert find_error([None, "no space", "no quota"]) == "rank 1: no space"
    assert find_error(["no space"]) == "no space"


def test_ranks_share_gather_and_start_from_what_rank_0_chose(tmp_path):
    def act(rank):
        assert share(f"of {rank}") == "of 0"
        assert gather(rank * 10) == [0, 10]
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        assert agree_on_start(Start(tmp_path / "ab"[rank])) == Start(tmp_path / "a")

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]


@pytest.mark.parametrize("is_shared", [True, False])
def test_machines_without_a_shared_run_folder_are_found_on_every_rank(is_shared, tmp_path):
    def act(rank):
        folder = tmp_path / ("run" if is_shared else f"run{rank}")
        folder.mkdir(exist_ok=True)
        if is_shared:
            check_folder(folder, 5.0)
            return
        with pytest.raises(RunError, match="rank 1 does not see the run folder") as caught:
            check_folder(folder, 0.3)
        assert caught.value.verdict.exit_code == 3
        assert "same --output on a file system that they share" in str(caught.value)
        assert not list(folder.iterdir())

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]


def test_a_start_that_one_rank_does_not_see_is_exit_4_on_all(tmp_path, monkeypatch):
    def act(rank):
        if rank == 1:
            monkeypatch.setattr("pathlib.Path.is_dir", lambda _: False)
        with pytest.raises(RunError, match=r"rank 1 does not see .*checkpoint-5") as caught:
            agree_on_start(Start(tmp_path / "checkpoint-5"))
        assert caught.value.verdict.exit_code == 4

    (tmp_path / "checkpoint-5").mkdir()
    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]


def as_rank(job, rank):
    """The job as DDP would have it; its model is the same on all ranks."""
    accelerator: Any = SimpleNamespace(
        is_main_process=rank == 0,
        process_index=rank,
        scaler=None,
        get_state_dict=lambda model: model.state_dict(),
    )
    job.accelerator = accelerator
    return job


@pytest.mark.parametrize(
    ("text", "extra", "failed"),
    [
        ("rank=1,step=2,point=before_save,action=enospc", (), [2]),
        ("rank=0,step=2,point=after_shard_write,action=enospc", (), [2]),
        ("rank=0,step=2,point=before_rename,action=enospc", ("checkpoint.in_background=false",), [2]),
        ("rank=0,step=2,point=before_manifest,action=delay:0.5", (), []),
    ],
)
def test_all_ranks_go_on_after_a_save_that_failed_on_one(text, extra, failed, tmp_path):
    def act(rank):
        fault.arm(text)
        job, notes = as_rank(make_job(*extra), rank), Notes()
        with open_saver(tmp_path, job=job, notes=notes) as saver:
            for step in (1, 2, 3):
                change(job)
                saver.save(at(step))
                futures.wait([task.outcome for task in saver._tasks if task.outcome])
                saver.look()
                assert saver._tasks == []
            saver.save_last(at(4))
        assert [event["step"] for event in notes.of("save_failed")] == failed
        assert saver._num_failures == {}

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]
    found = find_checkpoints(tmp_path)
    assert [find_step(place) for place in found] == [4, 3]
    assert [find_damage(place) for place in found] == [None, None]
    states = [path.name for path in (found[0] / "training").glob("random-*")]
    assert sorted(states) == ["random-0.pt", "random-1.pt"]


def test_all_ranks_end_with_the_same_word_when_the_policy_says_so(tmp_path):
    def act(rank):
        fault.arm("rank=0,point=before_manifest,action=enospc,count=9")
        job = as_rank(make_job("checkpoint.max_failures=2"), rank)
        saver = open_saver(tmp_path, job=job)
        with saver:
            saver.save(at(1))
            saver.save(at(2))
            with pytest.raises(RunError, match="2 in a row failed") as caught:
                saver.settle()
        assert caught.value.verdict.exit_code == 3
        assert len(set(gather(str(caught.value)))) == 1

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]


class Engine:
    """Saves as DeepSpeed's does: two files of each rank, with exchanges before, between and after."""

    def __init__(self, rank, fails):
        self.rank, self.fails = rank, fails
        self.checkpoint_engine = self

    def save(self, state_dict, path):
        if self.fails:
            raise OSError(28, "No space left on device")
        path.write_bytes(state_dict)

    def _copy_recovery_script(self, save_path):
        (save_path / "script.py").write_text("")

    def save_checkpoint(self, folder, tag, save_latest=True):
        place = Path(folder) / tag
        gather("start")
        place.mkdir(exist_ok=True)
        for number in range(2):
            self.checkpoint_engine.save(b"shard", place / f"rank{self.rank}-{number}.pt")
        if self.rank == 0:
            self._copy_recovery_script(place)
        if save_latest:
            raise OSError(28, "No space left on device")
        gather("end")


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_a_rank_whose_shard_cannot_be_written_leaves_nobody_in_an_exchange(failing, tmp_path):
    def act(rank):
        job = as_rank(make_job(), rank)
        job.plan.zero_stage, job.plan.world_size = 2, 2  # pyright: ignore[reportAttributeAccessIssue]
        weights = job.model.state_dict()
        job.accelerator.get_state_dict = lambda _: weights
        engine: Any = Engine(rank, rank == failing)
        job.model = engine
        notes = Notes()
        with open_saver(tmp_path, job=job, notes=notes) as saver:
            saver.save(at(1))
            engine.fails = False
            saver.save(at(2))
        assert engine.save.__self__ is engine, "the engine is as it was"
        assert [event["step"] for event in notes.of("save")] == ([1, 2] if failing is None else [2])
        for event in notes.of("save_failed"):
            assert event["reason"].startswith(f"rank {failing}: [Errno 28]")

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]
    found = find_checkpoints(tmp_path)
    assert [find_step(place) for place in found] == ([2, 1] if failing is None else [2])
    assert [find_damage(place) for place in found] == [None] * len(found)
    files = {str(path.relative_to(found[0])) for path in found[0].rglob("*.pt")}
    shards = {f"training/engine/state/rank{rank}-{number}.pt" for rank in range(2) for number in range(2)}
    assert files == shards | {"training/random-0.pt", "training/random-1.pt"}
    assert not list(tmp_path.glob(".*"))


def test_shards_that_went_wrong_are_told_and_not_raised(tmp_path):
    job: Any = SimpleNamespace(model=Engine(0, True), accelerator=SimpleNamespace(is_main_process=True))
    (tmp_path / "training" / "engine").mkdir(parents=True)
    files, error = write_shards(job, tmp_path)
    assert (files, error) == ({}, "[Errno 28] No space left on device")
