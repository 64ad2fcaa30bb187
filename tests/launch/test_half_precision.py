"""bf16 on a CPU: near fp32 over the first steps, and resumed after a kill to the bit."""

import pytest
from safetensors.torch import load_file

from launch import fault
from tests.commands import ENVIRONMENT, run_recipe, start_recipe

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
CANINE = "canine-tiny-domains-char"
NUM_STEPS = 20
HALF = ("--profile", "cpu", "precision=bf16", "model.dropout=0.1")


def test_bf16_stays_within_two_percent_of_fp32_and_a_killed_run_goes_on_to_the_bit(tmp_path):
    full = run_recipe(tmp_path / "full", CANINE, *HALF, "precision=fp32", num_steps=NUM_STEPS)
    half = run_recipe(tmp_path / "half", CANINE, *HALF, num_steps=NUM_STEPS)
    assert half.losses() == pytest.approx(full.losses(), rel=0.02)
    assert half.losses() != pytest.approx(full.losses(), rel=1e-5)
    kill = {**ENVIRONMENT, fault.VARIABLE: "point=before_step,step=14,action=kill"}
    killed = start_recipe(tmp_path / "killed", CANINE, *HALF, num_steps=NUM_STEPS, environment=kill)
    assert killed.exit_code == 6, killed.stderr
    resumed = run_recipe(tmp_path / "killed", CANINE, *HALF, num_steps=NUM_STEPS)
    assert "going on from step 10" in resumed.stdout
    assert resumed.losses() == half.losses()
    assert resumed.events("eval") == half.events("eval")
    ours, theirs = (load_file(ran.folder / "final" / "model.safetensors") for ran in (resumed, half))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
