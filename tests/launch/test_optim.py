import copy
import math

import pytest
import torch
from torch import nn

from launch.optim import build_optimizer, clip_gradients, set_decays, set_rate
from launch.recipe_file import read_recipe
from modeling.hf import decays


def parameters_with(gradients):
    found = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        found.append(parameter)
    return found


@pytest.mark.parametrize("limit", [0.5, 1.0, 1e6, math.inf])
def test_clipping_equals_a_float64_reference(limit):
    torch.manual_seed(0)
    gradients = [torch.randn(500_000) * 1e-3 * torch.rand(500_000) ** 3, torch.randn(64, 3)]
    parameters = parameters_with(gradients)
    norm = clip_gradients([*parameters, nn.Parameter(torch.zeros(3))], limit)
    wanted = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    # torch.nn.utils.clip_grad_norm_ is off by 1e-5 here
    assert float(norm) == pytest.approx(wanted, rel=1e-9)
    factor = min(1.0, limit / (wanted + 1e-6))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient.double() * factor, rtol=1e-6, atol=0)


def test_a_norm_that_is_not_finite_is_reported():
    assert math.isnan(float(clip_gradients(parameters_with([torch.tensor([1.0, math.nan])]), 1.0)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3)
        self.LayerNorm = nn.LayerNorm(3)
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def test_weight_decay_spares_biases_and_norms_and_frozen_weights_stay():
    model = Small()
    training = read_recipe("deberta-tiny-encyclopedia-wwm").training
    optimizer = build_optimizer(model, training, decays)
    decayed, spared = (group["params"] for group in optimizer.param_groups)
    assert [id(p) for p in decayed] == [id(model.dense.weight)]
    assert {id(p) for p in spared} == {id(p) for p in (model.dense.bias, *model.LayerNorm.parameters())}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    before = copy.deepcopy(model.state_dict())
    set_rate(optimizer, 0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # with zero gradients only the decay moves anything: w * (1 - rate * decay)
    torch.testing.assert_close(model.dense.weight.data, before["dense.weight"] * (1 - 0.5 * 0.01))
    assert torch.equal(model.dense.bias.data, before["dense.bias"])
    assert torch.equal(model.LayerNorm.weight.data, before["LayerNorm.weight"])


def test_decays_are_written_to_each_group():
    optimizer = build_optimizer(Small(), read_recipe("deberta-tiny-encyclopedia-wwm").training, decays)
    set_decays(optimizer, [0.25, 0.5])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.5]
    with pytest.raises(ValueError, match="shorter"):
        set_decays(optimizer, [0.25])


def test_the_fused_update_of_offloaded_weights_is_that_of_the_plain_one():
    training = read_recipe("deberta-tiny-encyclopedia-wwm").training
    models = [Small(), Small()]
    models[1].load_state_dict(models[0].state_dict())
    plain, fused = (
        build_optimizer(model, training, decays, is_offloaded=flag)
        for model, flag in zip(models, (False, True), strict=True)
    )
    assert [optimizer.defaults["fused"] for optimizer in (plain, fused)] == [None, True]
    before = models[0].dense.weight.detach().clone()
    torch.manual_seed(0)
    for step in range(20):
        for model in models:
            for parameter, other in zip(model.parameters(), models[0].parameters(), strict=True):
                gradient = torch.randn_like(parameter) * 1e-3 if model is models[0] else other.grad
                parameter.grad = gradient if parameter.requires_grad else None
        for optimizer in (plain, fused):
            set_rate(optimizer, 1e-2 / (step + 1))
            optimizer.step()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert (models[0].dense.weight - before).abs().min() > 1e-3
