"""Every kernel, and the sparse last layer, against the model of transformers and against float64."""

import copy

import pytest
import torch
from transformers import DebertaV2ForMaskedLM

from modeling.heads import IGNORED_LABEL
from tests.modeling.small_models import (
    MODES,
    PACKABLE,
    SHAPES,
    assert_same_step,
    make_batch,
    make_model,
    make_packed_batch,
    step,
)


def step_of_transformers(shape, batch):
    theirs = make_model(shape, DebertaV2ForMaskedLM)
    loss_sum = theirs(**batch).loss * (batch["labels"] != IGNORED_LABEL).sum()
    loss_sum.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    # Parameters that no shape of the model uses are frozen by ours and get a 0 or nothing by theirs.
    return loss_sum.item(), {name: g for name, g in gradients.items() if g is not None}


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_loss_and_gradients_are_those_of_transformers(shape, kernel, sparse, portable):
    batch = make_batch()
    model = make_model(shape, kernel=kernel, sparse=sparse)
    assert_same_step(model, batch, step_of_transformers(shape, batch))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_logits_are_those_of_transformers_at_padding_too(shape, portable):
    batch = make_batch()
    del batch["labels"]
    logits = make_model(shape, kernel="fast")(**batch).logits
    expected = make_model(shape, DebertaV2ForMaskedLM)(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
@pytest.mark.parametrize("shape", PACKABLE)
def test_packed_documents_give_the_losses_and_gradients_of_the_documents_alone(
    shape, kernel, sparse, portable
):
    batch = make_packed_batch()
    alone_model = make_model(shape)
    total, sums = 0.0, {}
    for row, owners in enumerate(batch["document_ids"]):
        for owner in range(1, int(owners.max()) + 1):
            where = owners == owner
            alone = {name: batch[name][row, where][None] for name in ("input_ids", "labels")}
            loss, gradients = step(alone_model, alone)
            total += loss
            for name, gradient in gradients.items():
                sums[name] = gradient if name not in sums or gradient is None else sums[name] + gradient
    assert_same_step(make_model(shape, kernel=kernel, sparse=sparse), batch, (total, sums))


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
@pytest.mark.parametrize("make", [make_batch, make_packed_batch])
def test_fp32_is_as_near_to_float64_as_the_reference_is(kernel, sparse, make, portable):
    batch = make()
    _, exact = step(make_model(), batch)

    def measure(model):
        gradients = step(model, batch)[1]
        return max(((gradients[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact)

    reference = measure(make_model(dtype=torch.float32))
    assert measure(make_model(kernel=kernel, sparse=sparse, dtype=torch.float32)) < max(2 * reference, 2e-6)


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
def test_bf16_autocast_is_as_near_to_float64_as_the_reference_is(kernel, sparse, portable):
    batch = make_packed_batch()
    _, exact = step(make_model(), batch)

    def measure(model):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**batch).loss_sum.backward()
        errors = [(p.grad - exact[name]).square().sum() for name, p in model.named_parameters()]
        return (sum(errors) / sum(g.square().sum() for g in exact.values())).sqrt().item()

    reference = measure(make_model(dtype=torch.float32))
    assert 1e-3 < reference < 0.1
    assert measure(make_model(kernel=kernel, sparse=sparse, dtype=torch.float32)) < 1.3 * reference


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
def test_models_in_bf16_train(kernel, sparse, portable):
    model = make_model(kernel=kernel, sparse=sparse, dtype=torch.bfloat16)
    loss, gradients = step(model, make_batch())
    assert loss == pytest.approx(step(make_model(), make_batch())[0], rel=0.03)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
@pytest.mark.parametrize("rows_with_targets", [(), (2,), (0, 2)])
def test_rows_and_batches_without_targets_reach_every_parameter(kernel, sparse, rows_with_targets, portable):
    batch = make_batch()
    for row in set(range(3)) - set(rows_with_targets):
        batch["labels"][row] = IGNORED_LABEL
    model = make_model(kernel=kernel, sparse=sparse).train()
    loss, gradients = step(model, batch)
    assert all(gradient is not None for gradient in gradients.values())
    if rows_with_targets:
        assert_same_step(model, batch, step(make_model(), batch))
    else:
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients.values())


def test_the_kernel_is_chosen_and_leaves_names_and_weights_alone():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    assert model.attention_kernel == "eager"
    assert not model.sparse_last_layer
    assert model.set_attention("auto") == (
        "fast",
        "disentangled-flash is no choice: it needs an NVIDIA GPU and the device is cpu",
    )
    assert model.attention_kernel == "fast"
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    batch = make_batch()
    assert model(**batch).loss_sum.grad_fn is not None
    model.set_attention("eager")
    assert torch.equal(model(**batch).loss_sum, make_model()(**batch).loss_sum)
    with pytest.raises(ValueError, match="the device is cpu"):
        model.set_attention("flash")
    assert model.attention_kernel == "eager"
