"""What a plan is launched with: compared whole with what was recorded, and read by those who read it."""

import json
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import ROOT, read_recipe
from launch.rendering import render_configs, write_configs
from launch.sharding import list_shardings
from launch.steps import Corpus
from launch.strict_yaml import load_yaml
from tests.recorded.record import FOLDER, RECIPES, describe_all

CORPUS = Corpus(1_000_000, 500_000_000, "declared")


@pytest.mark.parametrize("recipe", RECIPES)
def test_commands_and_configuration_files_are_the_recorded_ones(recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    recorded = (FOLDER / f"{recipe}.txt").read_text(encoding="utf-8")
    assert describe_all(recipe) == recorded, "record them anew with python -m tests.recorded.record"


def render(tmp_path, sharding, nodes=1, **options):
    recipe, profile = read_recipe("deberta-v3-base-paleo-wwm"), load_profiles()["a100-40gb"]
    plan = make_plan(recipe, profile, Options(devices=2, nodes=nodes, sharding=sharding, **options), CORPUS)
    return plan, write_configs(render_configs(plan, profile, recipe.training, str(tmp_path)), tmp_path)


def test_no_file_of_an_earlier_plan_is_left_beside_the_new_ones(tmp_path):
    render(tmp_path, "zero2")
    render(tmp_path, "none")
    assert [path.name for path in tmp_path.iterdir()] == ["accelerate.yaml"]


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("sharding", list_shardings())
def test_accelerate_and_deepspeed_read_what_is_rendered(sharding, nodes, tmp_path):
    plan, paths = render(tmp_path, sharding, nodes)
    config = load_config_from_file(str(tmp_path / "accelerate.yaml"))
    assert (config.num_processes, config.num_machines) == (2 * nodes, nodes)
    assert len(paths) == (1 if sharding == "none" else 2)
    if sharding == "none":
        return
    written = json.loads((tmp_path / "ds_config.json").read_text())
    assert "auto" not in json.dumps(written)
    total = written["train_micro_batch_size_per_gpu"] * written["gradient_accumulation_steps"] * 2 * nodes
    assert total == plan.global_batch
    named = config.deepspeed_config["deepspeed_config_file"]  # pyright: ignore
    plugin = DeepSpeedPlugin(hf_ds_config=named)
    assert plugin.zero_stage == plan.zero_stage
    topology: Any = load_yaml((tmp_path / "accelerate.yaml").read_text())
    has_launcher = "deepspeed_multinode_launcher" in topology["deepspeed_config"]
    assert has_launcher == (nodes > 1)
