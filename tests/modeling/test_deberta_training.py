"""What training adds: dropout, gradient checkpointing, compilation, bytes kept for the backward pass."""

import copy

import pytest
import torch

from modeling.compiled import compile_model
from modeling.heads import IGNORED_LABEL
from tests.modeling.small_models import MODES, make_batch, make_model, make_packed_batch, step

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("kernel", "sparse"), MODES)
def test_gradient_checkpointing_and_a_seed_give_the_same_gradients_under_dropout(kernel, sparse, recompute):
    batch = make_packed_batch()
    results = []
    for is_checkpointed in (False, True, False):
        model = make_model(kernel=kernel, sparse=sparse, **DROPOUT).train()
        model.set_attention(kernel, recompute=recompute)
        num_calls = []
        model.deberta.encoder.layer[1].output.dense.register_forward_hook(lambda *_, n=num_calls: n.append(1))
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(3)
        results.append(step(model, batch))
        assert step(model, batch)[0] != results[-1][0]
        assert len(num_calls) == 2 * (1 + is_checkpointed)
    first_loss, first = results[0]
    for loss, gradients in results[1:]:
        assert loss == first_loss
        assert all(torch.equal(gradients[name], first[name]) for name in first)


@pytest.mark.parametrize(("kernel", "sparse"), MODES)
def test_mean_and_spread_of_the_loss_under_dropout_are_those_of_the_reference(kernel, sparse, portable):
    batch = make_batch()

    @torch.no_grad()
    def draw(model):
        torch.manual_seed(0)
        losses = [model.train()(**batch).loss_sum.item() for _ in range(150)]
        return torch.tensor(losses, dtype=torch.float64)

    only_attention = {"attention_probs_dropout_prob": 0.3}
    reference = draw(make_model(**only_attention))
    found = draw(make_model(kernel=kernel, sparse=sparse, **only_attention))
    error = (reference.var() / 150 + found.var() / 150).sqrt()
    assert abs(found.mean() - reference.mean()) < 4 * error
    assert found.std().item() == pytest.approx(reference.std().item(), rel=0.3)
    assert reference.std() > 0


def test_the_model_compiles_to_one_graph_for_any_number_of_targets():
    model = make_model(kernel="fast", sparse=True, dtype=torch.float32)
    plain = copy.deepcopy(model)
    num_graphs = []

    def count_graphs(graph, inputs):
        num_graphs.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=False, capture_scalar_outputs=False):
        compiled = compile_model(model, backend=count_graphs)
        for is_first in (True, False):
            batch = make_packed_batch()
            if not is_first:
                batch["labels"] = torch.where(batch["document_ids"] == 1, batch["input_ids"], IGNORED_LABEL)
            loss, gradients = step(plain, batch)
            model.zero_grad()
            loss_sum = compiled(**batch).loss_sum
            loss_sum.backward()
            assert loss_sum.item() == pytest.approx(loss, rel=1e-6)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
    assert num_graphs == [1]


def test_a_fast_model_saves_less_for_the_backward_and_less_again_with_recomputation():
    batch = make_batch(4, 256)

    def count(model):
        sizes = {}
        kept = [parameter.data_ptr() for parameter in model.parameters()]

        def keep(tensor):
            if tensor.data_ptr() not in kept:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(**batch).loss_sum.backward()
        return sum(sizes.values())

    changes = {"max_position_embeddings": 256, "attention_probs_dropout_prob": 0.1}
    eager = count(make_model(**changes).train())
    model = make_model(kernel="fast", sparse=True, **changes).train()
    fast = count(model)
    model.set_attention("fast", recompute=True)
    assert fast < eager / 2.5
    assert count(model) < fast - 0.9 * 4 * 2 * 256 * 256 * 8
