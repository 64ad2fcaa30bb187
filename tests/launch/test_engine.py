"""The guards of the trainer's start: each was seen to pass silently where it is not asked for."""

import json
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from launch.sharding import fill_config, read_sharding
from launch.steps import Corpus
from launch.verdict import RunError
from launch.world import World
from tests.commands import ENVIRONMENT, ROOT

PROFILES = load_profiles()


def plan_on(profile):
    return make_plan(
        read_recipe("canine-tiny-domains-char"),
        PROFILES[profile],
        Options(),
        Corpus(10_000, 150_000, "declared"),
    )


def fake_model(kind, stage=None):
    return type(kind, (), {"zero_optimization_stage": lambda self: stage})()


@pytest.mark.parametrize(
    ("profile", "kind", "stage", "is_right"),
    [
        ("cpu", "CanineForMaskedLM", None, True),
        ("cpu", "DistributedDataParallel", None, False),
        ("cpu-2proc", "DistributedDataParallel", None, True),
        ("cpu-2proc", "CanineForMaskedLM", None, False),
        ("cpu-2proc", "DeepSpeedEngine", 2, False),
        ("cpu-2proc-zero2", "DeepSpeedEngine", 2, True),
        ("cpu-2proc-zero2", "DeepSpeedEngine", 1, False),
        ("cpu-2proc-zero2", "DistributedDataParallel", None, False),
        ("cpu-2proc-zero1", "DeepSpeedEngine", 1, True),
        ("cpu-2proc-zero3", "DeepSpeedEngine", 3, True),
        ("cpu-2proc-zero3", "DeepSpeedEngine", 2, False),
    ],
)
def test_a_prepared_model_that_is_not_the_planned_engine_is_refused(profile, kind, stage, is_right):
    from launch.engine import check_model

    model, plan = fake_model(kind, stage), plan_on(profile)
    if is_right:
        check_model(model, plan)
    else:
        with pytest.raises(RunError, match=f"the model is a {kind}"):
            check_model(model, plan)


@pytest.mark.parametrize(
    ("profile", "num_processes", "distributed", "launched", "is_right"),
    [
        ("cpu", 1, "NO", "1", True),
        ("cpu-2proc", 2, "MULTI_CPU", "2", True),
        ("cpu-2proc", 1, "NO", "2", False),
        ("cpu-2proc", 1, "NO", "1", False),
        ("cpu-2proc-zero2", 2, "DEEPSPEED", "2", True),
        ("cpu-2proc-zero2", 2, "MULTI_CPU", "2", False),
        ("cpu-2proc", 2, "DEEPSPEED", "2", False),
    ],
)
def test_an_accelerator_that_came_up_as_something_else_is_refused(
    profile, num_processes, distributed, launched, is_right, monkeypatch
):
    from accelerate import DistributedType

    from launch.engine import _check

    monkeypatch.setenv("WORLD_SIZE", launched)
    accelerator: Any = SimpleNamespace(
        num_processes=num_processes, distributed_type=DistributedType[distributed]
    )
    if is_right:
        _check(accelerator, plan_on(profile))
    else:
        with pytest.raises(RunError, match="planned"):
            _check(accelerator, plan_on(profile))


def test_a_loss_in_chunks_is_refused_where_ranks_would_gather_the_head_unequally_often():
    from launch.engine import check_model

    for profile, stage, is_right in (("cpu-2proc-zero2", 2, True), ("cpu-2proc-zero3", 3, False)):
        plan = plan_on(profile).model_copy(update={"loss_chunk": 16})
        if is_right:
            check_model(fake_model("DeepSpeedEngine", stage), plan)
        else:
            with pytest.raises(RunError, match="--loss-chunk 16 under ZeRO-3"):
                check_model(fake_model("DeepSpeedEngine", stage), plan)
    alone = plan_on("cpu-2proc-zero3").model_copy(update={"loss_chunk": 16, "world_size": 1})
    check_model(fake_model("DeepSpeedEngine", 3), alone)


@pytest.mark.parametrize(("precision", "is_allowed"), [("tf32", True), ("fp32", False), ("bf16", False)])
def test_products_are_rounded_to_tf32_only_where_the_plan_says_so(precision, is_allowed):
    import torch

    from launch.engine import set_products

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = not is_allowed
        set_products(precision)
        assert [backend.allow_tf32 for backend in backends] == [is_allowed, is_allowed]
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def test_the_deepspeed_file_is_filled_from_the_plan():
    plan = plan_on("cpu-2proc-zero2")
    config = fill_config(
        read_sharding("zero2"),
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        max_grad_norm=None,
        precision=plan.precision,
    )
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2 == 256
    assert config["gradient_clipping"] == 0.0
    assert "auto" not in json.dumps(config)


WITHOUT_DEEPSPEED = """
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
accelerator = Accelerator(cpu=True, deepspeed_plugin=DeepSpeedPlugin(zero_stage=2))
print(accelerator.distributed_type)
"""


def test_accelerate_still_drops_deepspeed_with_cpu_true():
    """The trap that the guard is for. Should this fail, Accelerate has mended it."""
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, check=True)
    assert done.stdout.split()[-1] == "DistributedType.NO"


def test_the_world_is_read_from_the_launchers_variables(monkeypatch):
    values = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero2.json")
    world = World.find()
    assert world == World(8, 5, 4, 1, "zero2", launched=True)
    assert world.default_profile(has_gpu=False) == "cpu-2proc"
    assert world.default_profile(has_gpu=True) is None
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "own/zero2.json")
    assert World.find().sharding == "own/zero2.json"
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    with pytest.raises(RunError, match="second home"):
        World.find()


def test_what_the_launcher_says_fills_what_the_command_line_does_not():
    world = World(8, 5, 4, 1, "zero2", launched=True)
    arguments = Namespace(devices=None, nodes=1, sharding=None)
    world.fill(arguments)
    assert (arguments.devices, arguments.nodes, arguments.sharding) == (4, 2, "zero2")
    arguments = Namespace(devices=8, nodes=1, sharding="none")
    world.fill(arguments)
    assert (arguments.devices, arguments.nodes, arguments.sharding) == (8, 1, "none")


def test_a_gpu_profile_without_a_gpu_is_exit_3():
    import torch

    from launch.world import check_gpu

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(RunError, match="wants 1 GPUs") as caught:
        check_gpu(plan_on("a100-40gb"), PROFILES["a100-40gb"])
    assert caught.value.verdict.exit_code == 3
