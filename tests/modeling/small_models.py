"""Tiny DeBERTa models of many shapes, with weights so large that attention and positions matter."""

from typing import Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from modeling import DebertaForMaskedLM
from modeling.heads import IGNORED_LABEL

V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 96,
    "type_vocab_size": 0,
    "legacy": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "v3": V3,
    "v3-legacy": {**V3, "legacy": True},
    "no buckets": {**V3, "position_buckets": -1},
    "no buckets, short table": {**V3, "position_buckets": -1, "max_relative_positions": 12},
    "own keys": {**V3, "share_att_key": False},
    "c2p only": {**V3, "pos_att_type": ["c2p"]},
    "p2c only": {**V3, "pos_att_type": ["p2c"], "share_att_key": False},
    "no position scores": {**V3, "pos_att_type": []},
    "no relative attention": {**V3, "relative_attention": False, "pos_att_type": []},
    "v2 with convolution": {**V3, "conv_kernel_size": 3, "conv_act": "gelu"},
    "v2 with absolute positions": {**V3, "position_biased_input": True, "type_vocab_size": 2},
    "one large head": {**V3, "num_attention_heads": 1},
    "many heads": {**V3, "num_attention_heads": 8},
}
NUM_PIECES = 50
MODES = [("eager", True), ("fast", False), ("fast", True)]
"""Kernel, and whether the last layer is sparse."""
PACKABLE = [name for name in SHAPES if not name.startswith("v2")]


def make_config(shape: str, **changes: Any) -> Any:
    """The configuration of a shape, without dropout."""
    small = {
        "vocab_size": NUM_PIECES,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return DebertaV2Config(**{**small, **SHAPES[shape], **changes})


def make_model(
    shape: str = "v3",
    model_class: type[DebertaV2ForMaskedLM] = DebertaForMaskedLM,
    *,
    kernel: str = "eager",
    sparse: bool = False,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> Any:
    """A model in eval mode; the same weights for the same shape, whatever the rest."""
    torch.manual_seed(7)
    model: Any = model_class(make_config(shape, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    if model_class is DebertaForMaskedLM:
        model.set_attention(kernel)
        model.sparse_last_layer = sparse
    return model.to(dtype)


def make_batch(num_rows: int = 3, num_slots: int = 75, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 75 slots (one block and a bit), the second padded, with targets."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, NUM_PIECES, (num_rows, num_slots), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1 % num_rows, num_slots * 2 // 3 :] = 0
    labels = torch.where(torch.rand(input_ids.shape, generator=generator) < 0.2, input_ids, IGNORED_LABEL)
    labels[0, 0] = 0
    labels[attention_mask == 0] = IGNORED_LABEL
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def make_packed_batch(lengths: tuple[tuple[int, ...], ...] = ((40, 4, 1, 9), (75,), (3, 30, 40))) -> Any:
    """Rows of 75 slots with several documents each, padded at the end, with targets."""
    batch = make_batch(len(lengths))
    document_ids = torch.zeros_like(batch["input_ids"])
    for row, parts in enumerate(lengths):
        owners = [torch.full((length,), number) for number, length in enumerate(parts, start=1)]
        document_ids[row, : sum(parts)] = torch.cat(owners)
    labels = torch.where(document_ids > 0, batch["labels"], IGNORED_LABEL)
    return {"input_ids": batch["input_ids"], "document_ids": document_ids, "labels": labels}


def step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, Any]]:
    """Loss sum and gradients by name of one forward and backward."""
    model.zero_grad()
    output = model(**batch)
    loss_sum = output.loss_sum
    loss_sum.backward()
    return loss_sum.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_step(
    model: Any, batch: Any, expected: Any, *, rtol: float = 1e-8, atol: float = 1e-10
) -> None:
    """A step gives the loss sum and the gradients that are expected."""
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
