"""training.deterministic: what torch is told, what the plan says, and small recipes that train under it."""

import os

import pytest
import torch

from launch.engine import set_determinism
from launch.hardware import load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from launch.steps import Corpus
from tests.commands import SETTINGS, run_recipe

CANINE, DEBERTA = "canine-tiny-domains-char", "deberta-tiny-encyclopedia-wwm"
ON = "training.deterministic=true"


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_torch_is_told_to_fail_rather_than_to_warn(kept):
    torch.backends.cudnn.benchmark = True
    set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_determinism(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def plan_of(recipe, profile, *overrides, **options):
    found = read_recipe(recipe, overrides)
    return make_plan(found, load_profiles()[profile], Options(**options), Corpus(100_000, 1e7, "declared"))


def test_the_plan_leaves_the_kernel_out_whose_sums_come_in_any_order_and_says_what_it_costs():
    assert plan_of(DEBERTA, "a100-40gb").attention == "auto"
    plan = plan_of(DEBERTA, "a100-40gb", ON)
    assert plan.attention == "fast"
    (note,) = [note for note in plan.warnings if "deterministic" in note]
    assert "flash is left out" in note
    assert "on a GPU was not measured by us" in note
    (error,) = plan_of(DEBERTA, "a100-40gb", ON, attention="flash").errors
    assert "--attention flash may not give the same bits twice" in error
    (note,) = [note for note in plan_of(CANINE, "cpu", ON).warnings if "deterministic" in note]
    assert "measured on small recipes" in note
    assert not any("deterministic" in note for note in plan_of(CANINE, "cpu").warnings)


@pytest.mark.ranks
@pytest.mark.long
@pytest.mark.parametrize("recipe", SETTINGS)
def test_the_small_recipes_train_under_it(recipe, tmp_path):
    runs = [
        run_recipe(tmp_path / name, recipe, "--profile", "cpu", *more, num_steps=4)
        for name, more in (("a", [ON]), ("b", [ON]), ("plain", []))
    ]
    assert runs[0].losses() == runs[1].losses()
    assert runs[0].losses() == pytest.approx(runs[2].losses(), rel=1e-6)
