import copy

import pytest
import torch

from modeling.compiled import compile_model
from modeling.heads import IGNORED_LABEL
from tests.modeling.small_canines import (
    DROPOUT,
    assert_same,
    make_batch,
    make_model,
    step,
    step_of_transformers,
)


@pytest.mark.parametrize("lengths", [(17, 15, 9, 22), (127, 20)], ids=str)
def test_fp32_is_as_near_to_float64_as_the_reference_is(lengths):
    batch = make_batch(lengths)
    exact_loss, exact = step(make_model(), batch)

    def measure(model):
        loss, gradients = step(model, batch)
        assert loss == pytest.approx(exact_loss, rel=1e-6)
        # A bias of the keys shifts all scores of a query alike: its gradient is 0 but for rounding.
        names = [name for name in exact if not name.endswith("key.bias")]
        return max(((gradients[name] - exact[name]).norm() / exact[name].norm()).item() for name in names)

    reference = measure(make_model(sparse=False, dtype=torch.float32))
    assert measure(make_model(dtype=torch.float32)) < max(1.5 * reference, 1e-6)
    model = make_model(dtype=torch.float32)
    logits = model(**batch).logits
    model.sparse_last_layer = False
    torch.testing.assert_close(logits, model(**batch).logits, rtol=0, atol=1e-5)


def measure_autocast(model, batch, exact):
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch).loss_sum.backward()
    errors = [(p.grad - exact[name]).square().sum() for name, p in model.named_parameters()]
    return (sum(errors) / sum(g.square().sum() for g in exact.values())).sqrt().item()


@pytest.mark.parametrize("lengths", [(17, 15, 9, 22), (127, 20)], ids=str)
def test_bf16_autocast_is_as_near_to_float64_as_the_reference_is(lengths):
    batch = make_batch(lengths)
    _, exact = step(make_model(), batch)
    reference = measure_autocast(make_model(sparse=False, dtype=torch.float32), batch, exact)
    assert 1e-3 < reference < 0.3
    assert measure_autocast(make_model(dtype=torch.float32), batch, exact) < 1.2 * reference


@pytest.mark.parametrize("is_autocast", [False, True])
def test_a_row_without_a_slot_in_use_changes_nothing(is_autocast):
    alone = make_batch((12,), 20)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED_LABEL}
    both = {n: torch.cat([tensor, torch.full_like(tensor, fill[n])]) for n, tensor in alone.items()}
    results = []
    for batch in (alone, both):
        model = make_model(dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            results.append(step(model, batch))
    assert_same(results[1], results[0], atol=2e-2 if is_autocast else 1e-5)


def test_models_in_bf16_train():
    batch = make_batch((17, 9))
    loss, gradients = step(make_model(dtype=torch.bfloat16), batch)
    assert loss == pytest.approx(step(make_model(), batch)[0], rel=0.05)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("rows_with_targets", [(), (2,), (0, 2)])
def test_rows_and_batches_without_targets_reach_every_parameter(rows_with_targets):
    batch = make_batch((9, 17, 12))
    for row in set(range(3)) - set(rows_with_targets):
        batch["labels"][row] = IGNORED_LABEL
    model = make_model().train()
    loss, gradients = step(model, batch)
    assert all(gradient is not None for gradient in gradients.values())
    if rows_with_targets:
        assert_same((loss, gradients), step_of_transformers(model, batch)[:2], atol=1e-10)
    else:
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_gradient_checkpointing_and_a_seed_give_the_same_gradients_under_dropout(is_reentrant):
    batch, results = make_batch((17, 9, 12)), []
    for is_checkpointed in (False, True, False):
        model = make_model(**DROPOUT).train()
        counts = []
        for layer in (
            model.canine.initial_char_encoder.layer[0],
            *model.canine.encoder.layer,
            model.canine.final_char_encoder.layer[0],
        ):
            counts.append([])
            layer.output.dense.register_forward_hook(lambda *_, n=counts[-1]: n.append(1))
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": is_reentrant})
        torch.manual_seed(3)
        results.append(step(model, batch))
        assert [len(n) for n in counts] == [1 + is_checkpointed] * 4
        assert step(model, batch)[0] != results[-1][0]
    first_loss, first = results[0]
    for loss, gradients in results[1:]:
        assert loss == first_loss
        assert all(torch.equal(gradients[name], first[name]) for name in first)


@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_mean_and_spread_of_the_loss_under_dropout_are_those_of_the_reference(kind):
    batch = make_batch((17, 9, 12))

    @torch.no_grad()
    def draw(model):
        torch.manual_seed(0)
        losses = [model.train()(**batch).loss_sum.item() for _ in range(120)]
        return torch.tensor(losses, dtype=torch.float64)

    reference, found = draw(make_model(sparse=False, **{kind: 0.3})), draw(make_model(**{kind: 0.3}))
    error = (reference.var() / 120 + found.var() / 120).sqrt()
    assert abs(found.mean() - reference.mean()) < 4 * error
    assert found.std().item() == pytest.approx(reference.std().item(), rel=0.3)
    assert reference.std() > 0


def test_the_model_compiles_to_one_graph_a_length_for_any_number_of_rows_and_targets():
    model = make_model(dtype=torch.float32, num_hidden_layers=1)
    plain = copy.deepcopy(model)
    num_graphs = []

    def count_graphs(graph, inputs):
        num_graphs.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=False, capture_scalar_outputs=False, recompile_limit=1
    ):
        compiled = compile_model(model, backend=count_graphs)
        batches = [
            make_batch((17, 9, 12)),
            make_batch((17, 15, 12), rate=0.9, seed=1),
            make_batch((17, 9, 12, 14, 14), rate=0.1, seed=2),
            make_batch((17, 2), rate=0.0),
            make_batch((25, 9)),
            make_batch((25, 9, 26), 32, rate=0.6),
            make_batch((9, 5)),
        ]
        batches[3]["labels"].fill_(IGNORED_LABEL)
        for batch in batches:
            loss, gradients = step(plain, batch)
            model.zero_grad()
            loss_sum = compiled(**batch).loss_sum
            loss_sum.backward()
            assert loss_sum.item() == pytest.approx(loss, rel=1e-6)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
    assert num_graphs == [1, 1, 1]
