"""While only new rows learn, every other number keeps its bits."""

import copy
from typing import Any

import pytest
import torch
from torch.optim import AdamW

from modeling.new_rows import NewRows, list_piece_parameters
from tests.modeling import small_models
from tests.modeling.test_general import build as build_general
from tests.modeling.test_general import make_batch as make_general_batch

NEW = [46, 47, 49]
V = small_models.NUM_PIECES
MODELS: dict[str, Any] = {
    "deberta v3": lambda: small_models.make_model("v3"),
    "deberta legacy": lambda: small_models.make_model("v3-legacy"),
    "bert": lambda: build_general("bert"),
    "roberta": lambda: build_general("roberta"),
    "modernbert": lambda: build_general("modernbert"),
    "bert, not tied": lambda: build_general("bert", tie_word_embeddings=False),
}
EMBEDDING = {
    "deberta": "deberta.embeddings.word_embeddings.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "roberta": "roberta.embeddings.word_embeddings.weight",
    "modernbert": "model.embeddings.tok_embeddings.weight",
}
OUTPUT = {
    "deberta v3": ["lm_predictions.lm_head.bias"],
    "deberta legacy": ["cls.predictions.bias"],
    "bert": ["cls.predictions.bias"],
    "roberta": ["lm_head.bias"],
    "modernbert": ["decoder.bias"],
    "bert, not tied": ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"],
}


def make_batch(name):
    return small_models.make_batch() if name.startswith("deberta") else make_general_batch()


def train_steps(model, optimizer, batch, num_steps, scale=1.0):
    for _ in range(num_steps):
        for _ in range(2):  # micro-batches
            (model(**batch).loss * scale).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()


def build_optimizer(model, weight_decay, fused=None):
    return AdamW(model.parameters(), lr=0.05, weight_decay=weight_decay, eps=1e-6, fused=fused)


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_with_a_row_for_each_piece_are_found_by_name(name):
    model = MODELS[name]()
    named = dict(model.named_parameters(remove_duplicate=False))
    wanted = {id(named[key]) for key in [EMBEDDING[name.split()[0].strip(",")], *OUTPUT[name]]}
    found = list_piece_parameters(model)
    assert {id(parameter) for parameter in found} == wanted
    assert len(found) == len(wanted)
    assert all(parameter.shape[0] == V for parameter in found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fused", [None, True])
def test_only_the_new_rows_move_and_moments_of_the_rest_stay_zero(name, fused):
    model = MODELS[name]().float().train()
    batch, rows = make_batch(name), NewRows(model, NEW)
    optimizer = build_optimizer(model, 0.0, fused)
    before = copy.deepcopy(model.state_dict())
    rows.is_on = True
    train_steps(model, optimizer, batch, 5)
    by_piece = {id(parameter) for parameter in list_piece_parameters(model)}
    is_new = torch.zeros(V, dtype=torch.bool)
    is_new[NEW] = True
    for key, parameter in model.named_parameters():
        if parameter not in optimizer.state:  # frozen, or BERT's second name for a bias that is not tied
            assert torch.equal(parameter, before[key]), key
            continue
        state = optimizer.state[parameter]
        if id(parameter) in by_piece:
            assert (parameter[is_new] != before[key][is_new]).all(), key
            assert torch.equal(parameter[~is_new], before[key][~is_new]), key
            assert (state["exp_avg"][is_new] != 0).all(), key
            moments = [state[name][~is_new] for name in ("exp_avg", "exp_avg_sq")]
        else:
            assert torch.equal(parameter, before[key]), key
            moments = [state[name] for name in ("exp_avg", "exp_avg_sq")]
        assert not any(moment.any() for moment in moments), key
    rows.is_on = False
    train_steps(model, optimizer, batch, 1)
    changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) > 15
    for parameter in list_piece_parameters(model):
        assert optimizer.state[parameter]["exp_avg"][~is_new].any()


def test_decay_or_a_moment_would_move_the_rest():
    """What the first phase has to see to beside the gradients."""
    for weight_decay, num_before in ((0.1, 0), (0.0, 1)):
        model = MODELS["deberta v3"]().train()
        rows, optimizer = NewRows(model, NEW), build_optimizer(model, weight_decay)
        batch = make_batch("deberta")
        train_steps(model, optimizer, batch, num_before)
        before = copy.deepcopy(model.state_dict())
        rows.is_on = True
        train_steps(model, optimizer, batch, 1)
        key = "deberta.encoder.layer.0.output.dense.weight"
        assert not torch.equal(model.state_dict()[key], before[key])


def test_gradients_of_new_rows_and_their_norm_are_those_of_the_whole_model():
    model, batch = MODELS["deberta legacy"](), make_batch("deberta")
    _, whole = small_models.step(model, batch)
    rows = NewRows(model, NEW)
    rows.is_on = True
    _, kept = small_models.step(model, batch)
    by_piece = {EMBEDDING["deberta"], *OUTPUT["deberta legacy"]}
    squares = 0.0
    for key, gradient in kept.items():
        if gradient is None:
            continue
        if key in by_piece:
            torch.testing.assert_close(gradient[NEW], whole[key][NEW], rtol=0, atol=0)
            squares += whole[key][NEW].square().sum().item()
        assert gradient.count_nonzero() <= (len(NEW) * gradient[0].numel() if key in by_piece else 0)
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in kept.values() if g is not None]))
    assert norm.item() == pytest.approx(squares**0.5, rel=1e-12)


def test_numbers_that_are_not_finite_do_not_leak_and_those_of_new_rows_are_seen():
    model, batch = MODELS["deberta v3"](), make_batch("deberta")
    rows = NewRows(model, NEW)
    rows.is_on = True
    output = model(**batch)
    (output.loss_sum * torch.inf).backward()
    embedding = model.get_input_embeddings().weight
    assert not torch.isfinite(embedding.grad[NEW]).all()
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.shape[0] != V:
            assert not parameter.grad.any()
    is_old = torch.ones(V, dtype=torch.bool)
    is_old[NEW] = False
    assert not embedding.grad[is_old].any()


@pytest.mark.parametrize("pieces", [[], [V], [-1]])
def test_pieces_that_the_model_lacks_are_refused(pieces):
    with pytest.raises(ValueError, match="give at least one, all below 50"):
        NewRows(MODELS["deberta v3"](), pieces)
