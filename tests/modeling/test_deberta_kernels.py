import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DebertaV2ForMaskedLM

from modeling import attention
from modeling.attention_flash import FLASH_MODULE, FlashRows, attend_flash, describe_rows
from modeling.compiled import compile_model
from modeling.heads import IGNORED_LABEL
from modeling.layers import arrange_queries, list_attentions
from tests.modeling.small_models import (
    PACKABLE,
    SHAPES,
    make_batch,
    make_model,
    make_packed_batch,
    step,
)

MODES = [("eager", True), ("fast", False), ("fast", True)]


@pytest.fixture(params=["operator", "fused"])
def portable(request, monkeypatch):
    """Both forms of the fast kernel: that of a CPU and that of other devices, here on the CPU as well."""
    if request.param == "fused":
        monkeypatch.setattr(attention, "OPERATOR_DEVICES", ())
    return request.param


def assert_same_step(model, batch, expected, *, rtol=1e-8, atol=1e-10):
    loss, gradients = step(model, batch)
    wanted_loss, wanted = expected
    assert loss == pytest.approx(wanted_loss, rel=rtol)
    for name, gradient in wanted.items():
        message = f"{name}: {{}}"
        assert (gradients[name] is None) == (gradient is None), message
        if gradient is not None:
            torch.testing.assert_close(
                gradients[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
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


def test_the_last_layer_runs_at_the_targets_only():
    model, batch = make_model(kernel="fast", sparse=True), make_batch()
    seen = {}
    layers = model.deberta.encoder.layer
    for number, layer in enumerate(layers):
        modules = {
            "query": layer.attention.self.query_proj,
            "out": layer.attention.output,
            "ff": layer.intermediate,
        }
        for name, module in modules.items():
            module.register_forward_pre_hook(
                lambda _, inputs, key=(number, name): seen.update({key: seen.get(key, inputs[0].shape)})
            )
    model(**batch)
    counts = (batch["labels"] != IGNORED_LABEL).sum(1)
    assert seen[0, "query"] == seen[0, "out"] == seen[0, "ff"] == (3, 75, 16)
    assert seen[1, "out"] == seen[1, "ff"] == (counts.sum(), 16)
    assert counts.max() <= seen[1, "query"][1] <= counts.max() + 8


def test_targets_are_laid_out_as_a_loop_lays_them():
    labels = make_batch()["labels"]
    labels[2] = IGNORED_LABEL
    slots = (labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
    queries = arrange_queries(slots, *labels.shape)
    num_places = queries.positions.shape[1]
    expected = [
        (row, rank, slot)
        for row in range(3)
        for rank, slot in enumerate((labels[row] != IGNORED_LABEL).nonzero().squeeze(1).tolist())
    ]
    assert [row * num_places + rank for row, rank, _ in expected] == queries.places.tolist()
    assert all(queries.positions[row, rank] == slot for row, rank, slot in expected)
    assert queries.positions.sum() == sum(slot for *_, slot in expected)


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_who_asks_for_all_states_gets_them_and_the_same_loss(option):
    batch = make_batch()
    expected = make_model()(**batch, **{option: True})
    output = make_model(kernel="fast", sparse=True)(**batch, **{option: True})
    name = option.removeprefix("output_")
    assert len(output[name]) == len(expected[name]) > 0
    for found, wanted in zip(output[name], expected[name], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    assert output.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-12)


def test_a_convolution_after_the_only_layer_keeps_the_layer_whole():
    batch = make_batch()
    model = make_model("v2 with convolution", kernel="fast", sparse=True, num_hidden_layers=1)
    expected = make_model("v2 with convolution", num_hidden_layers=1)(**batch).loss_sum.item()
    assert model(**batch).loss_sum.item() == pytest.approx(expected, rel=1e-12)


def test_labels_of_another_shape_are_refused():
    batch = make_batch()
    batch["labels"] = batch["labels"][:, :-1]
    with pytest.raises(ValueError, match=r"labels have shape \[3, 74\] and the rows \[3, 75\]"):
        make_model(sparse=True)(**batch)


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


def test_a_step_takes_fewer_flops_with_a_sparse_last_layer():
    def count(sparse):
        with FlopCounterMode(display=False) as counter:
            step(make_model(kernel="fast", sparse=sparse), make_batch())
        return counter.get_total_flops()

    assert count(True) < 0.8 * count(False)


def test_rows_for_flash_bound_documents_and_padding():
    pytest.importorskip(FLASH_MODULE)
    batch = make_packed_batch(((40, 4), (75,), (3, 30, 40)))
    rows = describe_rows(batch["document_ids"] > 0, batch["document_ids"])
    assert rows.packing is not None
    bounds, description = rows.packing
    assert bounds.tolist() == [0, 40, 44, 75, 150, 153, 183, 223, 225]
    assert description.max_seqlen == 75


def test_the_package_around_our_parameters_gives_our_attention():
    pytest.importorskip(FLASH_MODULE)
    model = make_model(dtype=torch.float32)
    layer = model.deberta.encoder.layer[0].attention.self
    layer.flash_backend, layer.flash_config = "torch", model.config
    names = list(model.state_dict())
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 75, 16, generator=generator, requires_grad=True)
    mask = make_batch()["attention_mask"].bool()
    rel_embeddings = model.deberta.encoder.get_rel_embedding()
    found = attend_flash(layer, hidden, FlashRows(mask), rel_embeddings)
    wanted = layer(hidden, mask[:, None, None] & mask[:, None, :, None], rel_embeddings=rel_embeddings)[0]
    torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-4, atol=1e-5)
    found[mask].sum().backward()
    assert layer.query_proj.weight.grad is not None
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("sparse", [False, True])
def test_a_model_with_flash_rows_gives_the_step_of_the_reference(sparse):
    pytest.importorskip(FLASH_MODULE)
    model = make_model(sparse=sparse)
    model.attention_kernel = "flash"
    for layer in list_attentions(model.deberta.encoder):
        layer.kernel, layer.flash_backend, layer.flash_config = "flash", "torch", model.config
    assert_same_step(model, make_batch(), step(make_model(), make_batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["fast", "flash"])
@pytest.mark.parametrize("make", [make_batch, make_packed_batch])
def test_kernels_of_a_gpu_give_the_step_of_the_reference(kernel, make):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if kernel == "flash":
        pytest.importorskip(FLASH_MODULE)
        if torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("needs compute capability 8.0")
    batch = {name: tensor.cuda() for name, tensor in make().items()}
    wide = {"hidden_size": 64, "num_attention_heads": 2}
    _, exact = step(make_model(**wide), make())
    model = make_model(dtype=torch.float32, sparse=True, **wide).cuda()
    model.set_attention(kernel)
    first, second = step(model, batch)[1], step(model, batch)[1]
    for name, gradient in exact.items():
        error = (first[name].cpu().double() - gradient).norm() / gradient.norm()
        assert error < 1e-3, name
        assert kernel == "flash" or torch.equal(first[name], second[name]), name
