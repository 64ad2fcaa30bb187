"""Taking over a checkpoint of another world: what is put into a job is compared before the run goes on."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.checkpoints import partitions, takeover
from launch.checkpoints.origin import Origin
from launch.checkpoints.universal import LossScale, Part, UniversalError
from launch.verdict import RunError
from tests.saved_job import at, change, make_job, open_saver

ELSEWHERE = Origin(2, "zero2", 2, False)
"""Written by one process, and taken for one of another world, so that the state goes in by name."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    job, folder = make_job(), tmp_path_factory.mktemp("run")
    change(job)
    with open_saver(folder, job=job) as saver:
        saver.save_last(at(2))
    return job, folder / "checkpoint-2"


def make_other():
    """The same model with other weights, that another optimizer has never updated."""
    job = make_job()
    job.plan.sharding, job.plan.precision = "none", "fp32"  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for parameter in job.model.parameters():
            parameter.mul_(3)
    return job


def take_over(job, place, num_updates=2):
    takeover.take_over(job, place, place / "training", ELSEWHERE, num_updates=num_updates)


def test_weights_moments_and_counts_are_those_of_the_checkpoint(checkpoint):
    old, place = checkpoint
    state = json.loads((place / "training" / "progress.json").read_text())
    assert (state["world_size"], state["sharding"]) == (1, "none")
    new = make_other()
    take_over(new, place)
    for (name, ours), theirs in zip(new.model.named_parameters(), old.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(new.optimizer.state[ours][key], old.optimizer.state[theirs][key]), name


def test_another_count_of_updates_is_refused(checkpoint):
    with pytest.raises(RunError, match=r"has made \[2.0\] updates, the run 3") as caught:
        take_over(make_other(), checkpoint[1], num_updates=3)
    assert caught.value.verdict.exit_code == 4
    assert "Resume it on 2 processes" in str(caught.value)


def test_weights_that_are_not_those_of_the_checkpoint_are_refused(checkpoint, monkeypatch):
    job = make_other()
    name = next(iter(job.model.state_dict()))
    wrong = {**checkpoint[0].model.state_dict()}
    wrong[name] = wrong[name] + 1e-6
    monkeypatch.setattr(takeover, "collect_weights", lambda job: wrong)
    with pytest.raises(RunError, match=f"the weight {name} is another than that of its model.safetensors"):
        take_over(job, checkpoint[1])


def test_a_shard_that_would_call_something_is_not_opened(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    folder = tmp_path / "training" / "engine" / "state"
    folder.mkdir(parents=True)
    torch.save({"optimizer_state_dict": Evil()}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save({"param_shapes": []}, folder / "mp_rank_00_model_states.pt")
    for path in (checkpoint[1]).glob("model.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="would call .*open when it is opened") as caught:
        takeover.take_over(
            make_other(), tmp_path, tmp_path / "training", Origin(1, "zero2", 2, True), num_updates=2
        )
    assert caught.value.verdict.exit_code == 4
    assert not (tmp_path / "canary").exists()


def test_a_disk_cannot_be_filled():
    job: Any = SimpleNamespace(
        plan=SimpleNamespace(zero_stage=3),
        model=SimpleNamespace(optimizer=SimpleNamespace(swap_optimizer=True)),
    )
    assert "nvme" in (takeover._find_lack(job) or "")
    job.model.optimizer.swap_optimizer = False
    assert takeover._find_lack(job) is None


def test_the_loss_scale_goes_into_either_kind_of_scaler():
    scaler = SimpleNamespace(dynamic=True, scale_window=1000, cur_scale=1.0, cur_iter=7, last_overflow_iter=3)
    partitions._set_loss_scale(SimpleNamespace(loss_scaler=scaler), LossScale(512.0, 1020))
    # DeepSpeed doubles it when `cur_iter - last_overflow_iter - 1` is a multiple of the window.
    assert scaler.cur_scale == 512.0
    assert scaler.cur_iter - scaler.last_overflow_iter - 1 == 20
    job = make_job()
    job.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=2000)  # pyright: ignore[reportPrivateImportUsage]
    state: Any = SimpleNamespace(
        loss_scale=LossScale(512.0, 2020),
        read=lambda name: SimpleNamespace(weight=dict(job.model.named_parameters())[name].data, moments={}),
    )
    takeover._fill(job, job.model.state_dict(), state)
    found = job.accelerator.scaler.state_dict()
    assert (found["scale"], found["_growth_tracker"]) == (512.0, 20)


def test_parameters_that_were_updated_unequally_often_fit_no_engine():
    """A rank without any part of them knows it too."""
    model = torch.nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter._hp_mapping = None  # pyright: ignore[reportAttributeAccessIssue]
    steps = {"weight": 2.0, "bias": 3.0}
    state: Any = SimpleNamespace(
        read=lambda name: Part(torch.zeros(()), {"exp_avg": torch.zeros(())}, steps[name]), loss_scale=None
    )
    zero = SimpleNamespace(single_partition_of_fp32_groups=[], optimizer=SimpleNamespace(state={}))
    engine = SimpleNamespace(optimizer=zero, zero_optimization_stage=lambda: 2)
    with pytest.raises(UniversalError, match=r"were updated \[2.0, 3.0\] times"):
        partitions.fill_partitions(engine, model, state)
