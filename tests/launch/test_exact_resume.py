"""What a run that goes on must have again, part by part: whole runs say only that something is missing."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipes.collate import Layout
from data_pipes.feed import FrozenBatches
from data_pipes.masking import Masking
from data_pipes.rows import Rows
from launch.checkpoints.resume import load_checkpoint
from launch.engine import build_accelerator
from launch.evaluate import evaluate
from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.progress import Patience, Progress
from launch.recipe_file import read_recipe
from launch.steps import Corpus
from launch.stop import StopAsked
from launch.train import catch_up, is_over
from launch.verdict import STOPPED, RunError
from tests.saved_job import Notes, change, make_job, open_saver, run_ranks

PROGRESS = Progress(
    step=3, best_step=2, best_value=1 / 3, patience={"loss": Patience(0.1 + 0.2, 4)}, num_skipped=1,
    is_evaluation_due=True, num_steps_left_out=5, num_rewinds=1, rewound_to=2, losses=(1.1, 2 / 3),
)  # fmt: skip
SCALE = 1024.0


def scale_losses(job, scale):
    """As under fp16 without DeepSpeed."""
    job.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # pyright: ignore[reportPrivateImportUsage]
    job.accelerator.scaler.scale(torch.ones(1))  # only then it has a state
    return job


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A job that was saved, one that goes on from it, and its progress; a number that each draws then."""
    folder = tmp_path_factory.mktemp("run")
    old = scale_losses(make_job(), SCALE)
    change(old)
    torch.manual_seed(11)
    torch.rand(3)
    with open_saver(folder, job=old) as saver:
        saver.save_last(PROGRESS)
        drawn = [torch.rand(1).item()]
    new = scale_losses(make_job(), 8.0)
    with torch.no_grad():
        for parameter in new.model.parameters():
            parameter.mul_(3)
    progress = load_checkpoint(new, folder / "checkpoint-3", folder)
    drawn.append(torch.rand(1).item())
    return SimpleNamespace(old=old, new=new, progress=progress, drawn=drawn)


def test_random_numbers_go_on_where_they_were(resumed):
    assert resumed.drawn[0] == resumed.drawn[1]


def test_weights_and_the_optimizers_moments_and_counts_are_those_that_were_saved(resumed):
    old, new = resumed.old, resumed.new
    for (name, ours), theirs in zip(new.model.named_parameters(), old.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(new.optimizer.state[ours][key], old.optimizer.state[theirs][key]), name


def test_the_loss_scale_is_that_of_the_run_that_was_saved(resumed):
    assert resumed.new.accelerator.scaler.get_scale() == SCALE
    assert resumed.new.accelerator.scaler.state_dict() == resumed.old.accelerator.scaler.state_dict()


def test_all_progress_is_that_of_the_run_that_was_saved(resumed):
    assert resumed.progress == replace(PROGRESS, resumed_from=3)


def test_an_evaluation_that_a_signal_cut_short_is_due_and_made_at_the_next_start(monkeypatch):
    score = SimpleNamespace(as_dict=lambda: {"loss": 2.0})
    asked = [True]

    def evaluate_or_stop(*_):
        if asked:
            raise StopAsked
        return score

    monkeypatch.setattr("launch.evaluate.evaluate", evaluate_or_stop)
    stop = SimpleNamespace(mark=lambda *_: None, reason="by a signal")
    job: Any = SimpleNamespace(
        recipe=read_recipe("canine-tiny-domains-char"), stop=stop, bare_model=None, frozen=None, suite=None,
        accelerator=SimpleNamespace(device=torch.device("cpu")), plan=SimpleNamespace(num_steps=7),
    )  # fmt: skip
    tracker: Any = Notes()
    kept: list[Progress] = []
    saver: Any = SimpleNamespace(keep_best=kept.append)
    cut_short = Progress(step=7).with_evaluation_due()
    assert not is_over(job, cut_short), "the last evaluation is part of the run"
    with pytest.raises(RunError, match="goes on from step 7") as caught:
        catch_up(job, cut_short, tracker, saver)
    assert caught.value.verdict.exit_code == STOPPED
    with pytest.raises(RunError, match="starts anew"):
        catch_up(job, Progress(), tracker, saver)
    assert (tracker.events, kept) == ([], [])
    asked.clear()
    made = catch_up(job, cut_short, tracker, saver)
    assert [event["step"] for event in tracker.of("eval")] == [7]
    assert [progress.best_step for progress in kept] == [7]
    assert is_over(job, made)
    assert catch_up(job, made, tracker, saver) == made
    assert len(tracker.of("eval")) == 1


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_on_a_cpu_accelerate_is_given_deepspeed_and_gloo_and_not_told_that_it_is_a_cpu(sharding, monkeypatch):
    """With `cpu=True` it drops DeepSpeed without a word, see test_engine."""
    pytest.importorskip("deepspeed")
    given: dict[str, Any] = {}

    def accelerate(**arguments):
        given.update(arguments)
        return SimpleNamespace(num_processes=2, distributed_type="DEEPSPEED")

    monkeypatch.setattr("launch.engine.Accelerator", accelerate)
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe, profile = read_recipe("canine-tiny-domains-char"), load_profiles()[f"cpu-2proc-{sharding}"]
    plan = make_plan(recipe, profile, Options(), Corpus(10_000, 150_000, "declared"))
    build_accelerator(plan, profile, recipe.training)
    assert "cpu" not in given
    assert given["deepspeed_plugin"].zero_stage == plan.zero_stage == int(sharding[-1])
    (group,) = given["kwargs_handlers"]
    assert group.backend == "gloo"


class Counting(torch.nn.Module):
    """Gives sums that float32 cannot add up: each is one more than its whole numbers hold."""

    def forward(self, labels, **_):
        large = torch.tensor(2**24 + 1, dtype=torch.float64)
        loss = (labels[labels >= 0].double() / 7).sum() * 1e-3
        return {"loss_sum": loss, "num_correct": large - 1, "num_targets": large}


def make_frozen(rank=0, world_size=1):
    chance = np.random.default_rng(0)
    offsets = np.concatenate(([0], np.cumsum(chance.integers(1, 25, 29)))).astype(np.int64)
    pieces = chance.integers(10, 60, offsets[-1]).astype(np.uint32)
    starts = np.zeros(len(pieces), bool)
    starts[offsets[:-1]] = True
    masking = Masking(
        kind="whole_word", rate=0.25, mask_piece=4, random_pieces=np.arange(10, 60),
        special_pieces=np.arange(5),
    )  # fmt: skip
    rows, layout = Rows(pieces, offsets, starts, starts), Layout(kind="words", row_length=24)
    return FrozenBatches(
        rows, layout=layout, masking=masking, seed=3, micro_batch=4, rank=rank, world_size=world_size
    )


def test_frozen_targets_are_counted_to_the_last_one_and_alike_by_any_number_of_ranks(tmp_path):
    cpu = torch.device("cpu")
    alone = evaluate(Counting(), make_frozen(), cpu)
    assert alone.num_targets == 8 * (2**24 + 1)
    assert alone.accuracy == 2**24 / (2**24 + 1)
    losses = [float(Counting()(**batch)["loss_sum"]) for _, batch in make_frozen()]
    assert alone.loss == pytest.approx(math.fsum(losses) / alone.num_targets, rel=1e-15)

    def act(rank):
        assert evaluate(Counting(), make_frozen(rank, 3), cpu) == alone

    assert run_ranks(3, act, tmp_path / "meeting") == [0, 0, 0]
