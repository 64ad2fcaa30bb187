"""The last layer at the targets only: what it computes, and when it does not."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling.heads import IGNORED_LABEL
from modeling.layers import arrange_queries
from tests.modeling.small_models import make_batch, make_model, step


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


def test_a_step_takes_fewer_flops_with_a_sparse_last_layer():
    def count(sparse):
        with FlopCounterMode(display=False) as counter:
            step(make_model(kernel="fast", sparse=sparse), make_batch())
        return counter.get_total_flops()

    assert count(True) < 0.8 * count(False)
