from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CanineConfig, CanineModel

from modeling import CanineForMaskedLM
from modeling.canine import row_slots
from modeling.canine_layers import UpsamplingConvolution
from modeling.heads import IGNORED_LABEL
from tests.modeling.small_canines import (
    LETTERS,
    SMALL,
    assert_same,
    make_batch,
    make_model,
    step,
    step_of_transformers,
)

LENGTHS = [
    *[(n,) for n in (2, 3, 4, 5, 6, 14, 15, 16, 17)],
    *[(n,) for n in range(125, 131)],
    *[(n,) for n in range(253, 259)],
    (17, 3, 9, 14),
    (127, 140, 5),
    (256, 126, 130, 2),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_loss_logits_and_gradients_are_those_of_transformers_in_long_rows(lengths):
    batch, model = make_batch(lengths), make_model()
    wanted_loss, wanted, logits = step_of_transformers(model, batch)
    assert_same(step(model, batch), (wanted_loss, wanted), atol=1e-10)
    torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("more", [1, 2, 3, 5, 101])
@pytest.mark.parametrize("lengths", [(14, 9), (126, 5), (127, 129)], ids=str)
def test_rows_of_any_length_give_the_same(lengths, more):
    model = make_model()
    batch = make_batch(lengths, 256)
    expected = step_of_transformers(model, batch)[:2]
    cut = {name: tensor[:, : max(lengths) + more] for name, tensor in batch.items()}
    assert_same(step(model, cut), expected, atol=1e-10)


def test_rows_without_padding_or_mask_give_the_same():
    model, batch = make_model(), make_batch((13,), 13)
    expected = step_of_transformers(model, batch)[:2]
    del batch["attention_mask"]
    assert_same(step(model, batch), expected, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"downsampling_rate": 2},
        {"downsampling_rate": 5},
        {"upsampling_kernel_size": 1},
        {"upsampling_kernel_size": 3},
        {"upsampling_kernel_size": 7, "downsampling_rate": 2},
        {"local_transformer_stride": 16},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 0},
        {"hidden_act": "relu", "num_attention_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_characters", [14, 17, 31])
def test_other_shapes_of_the_encoder_give_the_same(changes, num_characters):
    model = make_model(**changes)
    config = model.config
    slots = row_slots(
        num_characters,
        downsampling_rate=config.downsampling_rate,
        upsampling_kernel_size=config.upsampling_kernel_size,
        local_transformer_stride=config.local_transformer_stride,
    )
    batch = make_batch((num_characters, 4), slots)
    assert_same(step(model, batch), step_of_transformers(model, batch, 160)[:2], atol=1e-10)


def test_labels_at_padding_get_the_loss_of_the_full_computation():
    batch = make_batch((9, 14), 24)
    batch["labels"][0, 23] = ord("a")
    assert_same(step(make_model(), batch), step(make_model(sparse=False), batch), atol=1e-12)
    batch["labels"][0, 23] = IGNORED_LABEL
    batch["labels"][0, 9] = ord("b")
    assert_same(step(make_model(), batch), step(make_model(sparse=False), batch), atol=1e-12)


def test_slots_left_out_in_the_middle_of_a_row_stay_out():
    batch = make_batch((17, 12))
    batch["attention_mask"][0, 4:9] = 0
    batch["labels"][0, 4] = ord("a")
    model = make_model()
    assert_same(step(model, batch), step_of_transformers(model, batch)[:2], atol=1e-10)


def test_rows_that_the_positions_leave_no_room_get_the_full_computation():
    batch = make_batch((598,), 600)
    assert_same(step(make_model(), batch), step(make_model(sparse=False), batch), atol=1e-12)


def test_token_types_count():
    batch = make_batch((17, 9))
    batch["token_type_ids"] = (batch["input_ids"] % 2).long()
    expected = step(make_model(sparse=False), batch)
    assert_same(step(make_model(), batch), expected, atol=1e-10)
    del batch["token_type_ids"]
    assert abs(step(make_model(), batch)[0] - expected[0]) > 1e-3


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_who_asks_for_all_states_gets_them_and_the_same_loss(option):
    batch = make_batch((17, 9))
    expected = make_model(sparse=False)(**batch, **{option: True})
    output = make_model()(**batch, **{option: True})
    name = option.removeprefix("output_")
    assert len(output[name]) == len(expected[name]) > 0
    assert output.loss_sum.item() == pytest.approx(expected.loss_sum.item(), rel=1e-12)


def test_positions_of_ones_own_are_used():
    batch = make_batch((17, 9))
    positions = torch.arange(batch["input_ids"].shape[1]).flip(0)[None]
    expected = step(make_model(sparse=False), {**batch, "position_ids": positions})
    assert_same(step(make_model(), {**batch, "position_ids": positions}), expected, atol=1e-12)


@torch.no_grad()
def test_logits_at_every_slot_do_not_know_of_the_switch():
    batch = make_batch((17, 9))
    del batch["labels"]
    logits = make_model()(**batch).logits
    assert logits.shape == (2, 24, 27)
    assert torch.equal(logits, make_model(sparse=False)(**batch).logits)


def test_labels_of_another_shape_are_refused():
    batch = make_batch((17, 9))
    batch["labels"] = batch["labels"][:, :-1]
    for sparse in (False, True):
        with pytest.raises(ValueError, match=r"labels have shape \[2, 23\] and the rows \[2, 24\]"):
            make_model(sparse=sparse)(**batch)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.integers(1, 6),
    num_taps=st.integers(1, 8),
    num_molecules=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_the_convolution_of_molecules_is_that_of_repeated_molecules(rate, num_taps, num_molecules, seed):
    generator = torch.Generator().manual_seed(seed)
    conv: Any = torch.nn.Conv1d(6, 3, num_taps, dtype=torch.float64)
    num_slots = rate * num_molecules
    before = (num_taps - 1) // 2
    num_read = num_slots + before - (num_taps - 1)
    if num_read < 1:
        return
    chars = torch.randn(2, num_slots, 3, generator=generator, dtype=torch.float64)
    molecules = torch.randn(2, num_molecules, 3, generator=generator, dtype=torch.float64)
    both = torch.cat([chars, molecules.repeat_interleave(rate, 1)], -1).transpose(1, 2)
    expected = conv(functional.pad(both, (before, 0))).transpose(1, 2)
    assert expected.shape[1] == num_read
    conv.__class__ = UpsamplingConvolution
    torch.testing.assert_close(conv(chars, molecules), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(conv(functional.pad(both, (before, 0))).transpose(1, 2), expected)


def test_the_last_layer_runs_at_the_targets_only_and_the_rest_at_slots_that_are_read():
    model, batch, seen = make_model(), make_batch((17, 9)), {}
    canine = model.canine
    last = canine.final_char_encoder.layer[0]
    modules = {
        "embedding": canine.char_embeddings.LayerNorm,
        "first": canine.initial_char_encoder.layer[0].intermediate,
        "molecules": canine.encoder.layer[0].intermediate,
        "last molecules": canine.encoder.layer[1].intermediate,
        "projection": canine.projection.LayerNorm,
        "key": last.attention.self.key,
        "query": last.attention.self.query,
        "out": last.attention.output,
        "ff": last.intermediate,
    }
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, inputs, key=name: seen.update({key: inputs[0].shape[:-1]}))
    model(**batch)
    num_targets = int((batch["labels"] != IGNORED_LABEL).sum())
    assert batch["input_ids"].shape == (2, 24)
    assert seen["embedding"] == seen["first"] == (2, 20)
    assert (seen["molecules"], seen["last molecules"]) == ((2, 6), (2, 5))
    assert seen["projection"] == seen["key"] == (2, 18)
    assert seen["query"] == seen["out"] == seen["ff"] == (num_targets,)


def test_a_step_takes_fewer_flops():
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 12}

    def count(sparse):
        with FlopCounterMode(display=False) as counter:
            step(make_model(sparse=sparse, **shape), make_batch((17,) * 16, rate=0.1))
        return counter.get_total_flops()

    assert 0.70 < count(True) / count(False) < 0.80


def test_the_switch_is_off_at_first_and_names_and_weights_are_those_of_transformers():
    model = CanineForMaskedLM(CanineConfig(**SMALL), head_code_points=LETTERS)
    assert not model.sparse_last_layer
    encoder = CanineModel(CanineConfig(**SMALL), add_pooling_layer=False)
    assert [n for n, _ in model.canine.named_parameters()] == [n for n, _ in encoder.named_parameters()]
