"""The loss in chunks, through the real command and where a model cannot have it."""

import json

import pytest

from launch.engine import set_loss_chunk
from launch.verdict import RunError
from modeling import hf
from tests.commands import QUICK, run_recipe
from tests.modeling.test_rtd import make_pair

RECIPE = "deberta-tiny-encyclopedia-wwm"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def build_general(model_type):
    config = {"model_type": model_type, **SIZES}
    return hf.build("auto", config=config, num_pieces=50, dropout=0.0, seed=0)


def test_a_model_gets_its_chunk():
    model = build_general("bert")
    set_loss_chunk(model, 64)
    assert model.loss_chunk == 64
    set_loss_chunk(model, None)
    assert model.loss_chunk is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (make_pair, "--loss-chunk 64: replaced-token detection draws from the logits of all targets"),
        (lambda: build_general("electra"), "of electra the logits of every slot are computed"),
    ],
)
def test_a_model_that_needs_all_logits_refuses_chunks(build, message):
    set_loss_chunk(build(), None)
    with pytest.raises(RunError, match=message) as caught:
        set_loss_chunk(build(), 64)
    assert caught.value.verdict.exit_code == 2


@pytest.mark.ranks
@pytest.mark.parametrize("profile", ["cpu", pytest.param("cpu-2proc-zero2", marks=pytest.mark.long)])
@pytest.mark.parametrize("recipe", [RECIPE, pytest.param("canine-tiny-domains-char", marks=pytest.mark.long)])
def test_a_run_in_chunks_is_the_run_without(recipe, profile, tmp_path):
    assert recipe in QUICK
    parts, whole = (
        run_recipe(tmp_path / chunk, recipe, "--profile", profile, "--loss-chunk", chunk, num_steps=6)
        for chunk in ("10", "off")
    )
    assert json.loads((parts.folder / "plan.json").read_text())["loss_chunk"] == 10
    assert parts.events("train")[0]["num_targets"] > 5 * 10
    for key in ("loss", "grad_norm"):
        assert [e[key] for e in parts.events("train")] == pytest.approx(
            [e[key] for e in whole.events("train")], rel=1e-5
        )
    assert [e["loss"] for e in parts.events("eval")] == pytest.approx(
        [e["loss"] for e in whole.events("eval")], rel=1e-5
    )
