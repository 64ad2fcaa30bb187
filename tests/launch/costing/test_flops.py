"""FLOPs against torch's own counter, which watches the operators that really run."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CanineConfig,
    DebertaV2Config,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from launch.costing.flops import count_flops
from launch.costing.flops_positions import count_reached, map_distances
from launch.costing.sizes import DEBERTA_STYLE, DEFAULTS
from modeling import DebertaForMaskedLM, attention, hf
from modeling.attention_positions import Positions, plan_blocks
from modeling.heads import IGNORED_LABEL
from tests.modeling.small_models import SHAPES, make_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
DEBERTA = {**SIZES, "position_buckets": 16, "max_position_embeddings": 256}
CANINE = {**SIZES, "num_hash_buckets": 512, "max_position_embeddings": 512, "local_transformer_stride": 32}
LETTERS = list(range(97, 123))
NUM_PIECES = 90


def make_labels(input_ids, counts):
    """Labels with so many targets in each row."""
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, count in enumerate(counts):
        labels[row, torch.randperm(input_ids.shape[1] - 12)[:count]] = 7
    return labels


def measure(model, batch, *, is_training=True):
    """What torch's counter sees of a forward and, in training, its backward."""
    model.train(is_training)
    forward: Any = model
    # The fused attention of a CPU is an operator that torch's counter takes for nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = forward(**batch)
        if is_training:
            (output.loss if getattr(output, "loss_sum", None) is None else output.loss_sum).backward()
    return counter.get_total_flops()


def make_batch(num_rows, num_slots, counts, num_ids=NUM_PIECES):
    torch.manual_seed(0)
    input_ids = torch.randint(5, num_ids, (num_rows, num_slots))
    return {"input_ids": input_ids, "labels": make_labels(input_ids, counts)}


def build_deberta(config, kernel, sparse):
    model: Any = hf.build("deberta", config=config, num_pieces=NUM_PIECES, dropout=0.0, seed=0)
    model.set_attention("fast" if kernel == "fused" else kernel)
    model.sparse_last_layer = sparse
    return model


@pytest.mark.parametrize("kernel", ["eager", "fast", "fused"])
@pytest.mark.parametrize(
    ("sparse", "is_training", "checkpointing"),
    [
        (False, True, False),
        (True, True, False),
        (True, False, False),
        (False, True, True),
        (True, True, True),
    ],
)
def test_deberta_is_counted_as_torch_counts_it(kernel, sparse, is_training, checkpointing, monkeypatch):
    if kernel == "fused":  # what a GPU runs
        monkeypatch.setattr(attention, "OPERATOR_DEVICES", ())
    for num_rows, num_slots, counts in ((2, 40, [5, 9]), (3, 150, [22, 0, 31]), (1, 256, [38])):
        model = build_deberta(DEBERTA, kernel, sparse)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found = measure(model, make_batch(num_rows, num_slots, counts), is_training=is_training)
        flops = count_flops(
            model.config,
            num_rows=num_rows,
            num_slots=num_slots,
            num_targets=counts,
            kernel=kernel,
            sparse_last_layer=sparse,
            is_training=is_training,
            checkpointing=checkpointing,
        )
        assert flops.total == pytest.approx(found, rel=1e-9), (num_slots, flops)
        assert (flops.recomputed > 0) == checkpointing


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kernel", ["eager", "fast"])
def test_every_kind_of_deberta_is_counted(shape, kernel):
    model = DebertaForMaskedLM(make_config(shape))
    model.set_attention(kernel)
    model.sparse_last_layer = kernel == "fast"
    batch = make_batch(2, 75, [9, 16], num_ids=50)
    flops = count_flops(
        model.config,
        num_rows=2,
        num_slots=75,
        num_targets=[9, 16],
        kernel=kernel,
        sparse_last_layer=model.sparse_last_layer,
    )
    assert flops.total == pytest.approx(measure(model, batch), rel=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("taps", [3, 4, 6])
def test_canine_is_counted_as_torch_counts_it(sparse, checkpointing, taps):
    config = {**CANINE, "upsampling_kernel_size": taps}
    model: Any = hf.build("canine", config=config, head_code_points=LETTERS, dropout=0.0, seed=0)
    model.sparse_last_layer = sparse
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for num_rows, num_slots, counts in ((3, 24, [2, 0, 1]), (2, 96, [9, 4]), (2, 132, [20, 3])):
        batch = make_batch(num_rows, num_slots, counts)
        # As many slots in use as make row_slots ask for just these.
        batch["attention_mask"] = (torch.arange(num_slots) < num_slots - 8).long().expand(num_rows, -1)
        found = measure(model, batch)
        flops = count_flops(
            model.config,
            num_rows=num_rows,
            num_slots=num_slots,
            num_targets=counts,
            sparse_last_layer=sparse,
            checkpointing=checkpointing,
        )
        assert flops.total == pytest.approx(found, rel=1e-9), (num_slots, flops)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(BertConfig, BertForMaskedLM), (ModernBertConfig, ModernBertForMaskedLM)],
)
def test_bert_and_modernbert_are_counted_as_torch_counts_them(config_class, model_class, kernel):
    config = config_class(**SIZES, vocab_size=NUM_PIECES, pad_token_id=0, attn_implementation=kernel)
    for num_rows, num_slots in ((2, 40), (1, 150)):
        batch = make_batch(num_rows, num_slots, [3] * num_rows)
        flops = count_flops(config, num_rows=num_rows, num_slots=num_slots, num_targets=num_rows * num_slots)
        assert flops.total == pytest.approx(measure(model_class(config), batch), rel=1e-9)


def test_deberta_v3_base_costs_what_was_measured():
    config = {**DEBERTA_STYLE, "model_type": "deberta-v2", "vocab_size": 128_100, "hidden_size": 768}
    config |= {"num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    shape = {"num_rows": 8, "num_slots": 512}
    full = count_flops(config, num_targets=8 * 512, **shape)
    hidden = count_flops(config, num_targets=614, **shape)
    # 633 M for the encoder, and 594 M or 89 M for the head, of a token
    assert (full.total - full.head) / 4096 == pytest.approx(633e6, rel=0.01)
    assert full.head / 4096 == pytest.approx(594e6, rel=0.01)
    assert hidden.head / 4096 == pytest.approx(89e6, rel=0.01)
    assert hidden.per_slot == hidden.per_row / 512 == hidden.total / 4096


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("deberta-v2", DebertaV2Config()),
        ("canine", CanineConfig()),
        ("bert", BertConfig()),
        ("modernbert", ModernBertConfig()),
    ],
)
def test_defaults_are_those_of_the_configuration_classes(model_type, config):
    wanted = {key: getattr(config, key) for key in DEFAULTS[model_type]}
    if model_type == "deberta-v2":
        assert wanted["pos_att_type"] in (None, [])
        wanted["pos_att_type"] = None
    assert DEFAULTS[model_type] == wanted


def test_a_deberta_from_scratch_has_the_style_that_is_counted():
    assert {key: hf.DEBERTA_V3_STYLE[key] for key in DEBERTA_STYLE} == DEBERTA_STYLE


@pytest.mark.parametrize("buckets", [8, 16, 32, 64, 256, -1])
@pytest.mark.parametrize("longest", [12, 128, 512])
def test_distances_and_blocks_are_those_of_the_kernel(buckets, longest):
    for length in (1, 5, 64, 65, 130, 512, 700):
        rows = map_distances(length, buckets, longest)
        assert rows.tolist() == Positions(buckets, longest).rows(length).tolist()
        for descending in (True, False):
            blocks = plan_blocks(length, Positions(buckets, longest), descending)
            wanted = sum((b.stop - b.start) * (b.last_row - b.first_row) for b in blocks)
            assert count_reached(length, buckets, longest, descending=descending) == wanted


def test_targets_given_as_one_number_are_evenly_spread():
    shape = {"num_rows": 4, "num_slots": 64, "sparse_last_layer": True}
    config = {"model_type": "deberta-v2", **DEBERTA}
    assert count_flops(config, num_targets=30, **shape) == count_flops(
        config, num_targets=[8, 8, 7, 7], **shape
    )
    assert (
        count_flops(config, num_targets=[30, 0, 0, 0], **shape).total
        > count_flops(config, num_targets=30, **shape).total
    )


def test_a_model_that_is_not_counted_says_which_are():
    with pytest.raises(ValueError, match="type 'gpt2' are not counted, of .'deberta-v2', 'canine'"):
        count_flops({"model_type": "gpt2"}, num_rows=1, num_slots=1, num_targets=1)


def test_counting_needs_no_torch():
    code = "import sys; sys.modules.update(torch=None, transformers=None); import launch.costing.flops"
    subprocess.run([sys.executable, "-c", code], check=True)
