"""Real DeepSpeed engines on two gloo ranks: their shards read, other engines filled, and both trained on."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from launch import optim
from launch.checkpoints import partitions
from launch.checkpoints.shards import read_shards
from launch.checkpoints.universal import KEYS, fill_optimizer, find_misfit
from launch.recipe_file import read_recipe
from launch.sharding import fill_config, read_sharding
from modeling import hf
from tests.saved_job import run_ranks

pytestmark = pytest.mark.ranks
TRAINING = read_recipe("canine-tiny-domains-char").training
SHARDINGS = ("zero1", "zero2", "zero3")


class Model(nn.Module):
    """Odd sizes, a tied weight, both groups of decay, a frozen parameter, two weights of the same shape."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(13, 7)
        self.first = nn.Linear(7, 7)
        self.second = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 13)
        self.head.weight = self.embedding.weight
        self.idle = nn.Parameter(torch.full((3,), 0.1), requires_grad=False)

    def forward(self, ids):
        hidden = self.norm(self.second(torch.tanh(self.first(self.embedding(ids)))))
        return nn.functional.cross_entropy(self.head(hidden).float(), (ids * 3) % 13)


def make_engine(sharding, precision):
    import deepspeed

    config = fill_config(
        read_sharding(sharding), micro_batch=4, accumulation=1, max_grad_norm=1.0, precision=precision
    )
    model = Model()
    optimizer = optim.build_optimizer(model, TRAINING, hf.decays)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(engine, steps, rank):
    """What each rank sees differs; the loss is that of this rank."""
    losses = []
    for step in steps:
        loss = engine(torch.arange(8 * step + 4 * rank, 8 * step + 4 * rank + 4) % 13)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses


def train_alone(model, optimizer, steps):
    """The same steps on one process, with the rows of both ranks."""
    losses = []
    for step in steps:
        both = [model(torch.arange(8 * step + 4 * rank, 8 * step + 4 * rank + 4) % 13) for rank in (0, 1)]
        (sum(both) / 2).backward()
        optim.clip_gradients([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append([float(loss) for loss in both])
    return losses


def check_equal(state, engine, precision):
    """What was read from the shards is what DeepSpeed itself says that the engine has."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        found, wanted = state.read(name), partitions.read_part(engine, parameter)
        assert torch.equal(found.weight, wanted.weight), name
        assert all(torch.equal(found.moments[key], wanted.moments[key]) for key in KEYS), name
        assert all(found.moments[key].abs().sum() > 0 for key in KEYS), name
        assert (found.step, wanted.step) == (3, 3)
        assert precision == "fp32" or not torch.equal(found.weight, found.weight.bfloat16().float()), name


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # Another ninja than that of a run would compile the exchange over shared memory anew, each time.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    import deepspeed  # noqa: F401 - before the ranks are copies of this process


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.long)])
def test_every_engine_goes_on_from_the_shards_of_every_other(precision, tmp_path):
    def act(rank):
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        states, losses = {}, {}
        for sharding in SHARDINGS:
            engine: Any = make_engine(sharding, precision)
            train(engine, range(3), rank)
            engine.save_checkpoint(str(tmp_path / sharding), tag="state")
            torch.distributed.barrier()
            states[sharding] = state = read_shards(tmp_path / sharding / "state", 2)
            assert find_misfit(state, engine.module) is None
            check_equal(state, engine, precision)
            losses[sharding] = train(engine, range(3, 6), rank)
        for source in SHARDINGS:
            for target in SHARDINGS:
                engine = make_engine(target, precision)
                if target != source:  # as a run that goes back has it: it was trained already
                    train(engine, range(7, 9), rank)
                partitions.fill_partitions(engine, engine.module, states[source])
                assert partitions.find_difference(engine, engine.module, states[source]) is None
                found = train(engine, range(3, 6), rank)
                assert found == pytest.approx(losses[source], rel=1e-6 if precision == "fp32" else 1e-2)
                assert found[0] == pytest.approx(losses[source][0], rel=1e-7)
            if precision == "fp32":
                model = Model()
                optimizer = optim.build_optimizer(model, TRAINING, hf.decays)
                fill_optimizer(optimizer, model, states[source])
                alone = [pair[rank] for pair in train_alone(model, optimizer, range(3, 6))]
                assert alone == pytest.approx(losses[source], rel=1e-6)

    assert run_ranks(2, act, tmp_path / "meeting") == [0, 0]
