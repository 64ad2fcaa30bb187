"""What `evaluate` says of a saved model that has diverged."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from launch import judge
from launch.evaluate import PairScore


@pytest.fixture
def recipe(monkeypatch):
    nan = math.nan
    score = PairScore(nan, math.inf, 0.0, 70, nan, 0.25, nan, 900, 20)
    monkeypatch.setattr(judge, "judge_folder", lambda folder, recipe: (score, {"eval/x/perplexity": nan}))
    found: Any = SimpleNamespace(name="my-recipe")
    return found


def test_figures_that_are_not_finite_are_shown_as_such(recipe, tmp_path, capsys):
    assert judge.judge(tmp_path, recipe, as_json=False) == 0
    text = capsys.readouterr().out
    assert "loss not finite  perplexity not finite  accuracy 0.0%  on 70 targets of my-recipe" in text
    assert "discriminator: AUC not finite  loss not finite (base rate 0.2500)  on 900 pieces" in text
    assert "nan" not in text.lower()


def test_in_json_they_are_null_as_in_a_log(recipe, tmp_path, capsys):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    assert judge.judge(tmp_path, recipe, as_json=True) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["loss"] is found["perplexity"] is found["eval/x/perplexity"] is None
    assert found["discriminator_base_loss"] == 0.25
