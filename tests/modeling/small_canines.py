"""Tiny CANINE models with weights so large that neighbours matter, batches, and transformers as oracle."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import CanineConfig, CanineModel

from modeling import CanineForMaskedLM
from modeling.canine import CLS_CODE_POINT, MASK_CODE_POINT, SEP_CODE_POINT, row_slots
from modeling.heads import IGNORED_LABEL

LETTERS = list(range(ord("a"), ord("z") + 1))
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_hash_buckets": 600,
    "max_position_embeddings": 600,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}


def make_model(*, sparse=True, dtype=torch.float64, **changes) -> Any:
    """A tiny model whose weights are large enough for the neighbours of a slot to matter."""
    torch.manual_seed(5)
    model = CanineForMaskedLM(CanineConfig(**{**SMALL, **changes}), head_code_points=LETTERS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.sparse_last_layer = sparse
    make_masks_exact(model.canine)
    return model.to(dtype)


def make_masks_exact(encoder: Any) -> None:
    """Let transformers run in float64, where its mask of the first layer is fp32, overflows and gives NaN."""

    def add_in_full(_, inputs):
        queries, keys, mask, *rest = inputs
        if queries.dtype == torch.float64 and mask.dim() == 3:
            mask = ((1 - mask.to(queries.dtype)) * torch.finfo(queries.dtype).min)[:, None]
        return queries, keys, mask, *rest

    encoder.initial_char_encoder.layer[0].attention.self.register_forward_pre_hook(add_in_full)


def make_batch(lengths, num_slots=None, rate=0.3, seed=0) -> dict[str, torch.Tensor]:
    """Rows of [CLS] letters [SEP] and padding; [CLS] of the first row and the last slots are targets too."""
    generator = torch.Generator().manual_seed(seed)
    num_slots = num_slots or max(map(row_slots, lengths))
    slots = torch.arange(num_slots)[None]
    ends = torch.tensor(lengths)[:, None]
    mask = (slots < ends).long()
    letters = torch.randint(90, 123, mask.shape, generator=generator)
    row = (
        torch.where(slots == 0, CLS_CODE_POINT, torch.where(slots == ends - 1, SEP_CODE_POINT, letters))
        * mask
    )
    is_target = (torch.rand(mask.shape, generator=generator) < rate) & (mask == 1)
    is_target[0, 0] = True
    is_target |= slots == ends - 1
    return {
        "input_ids": torch.where(is_target & (letters % 4 > 0), MASK_CODE_POINT, row),
        "attention_mask": mask,
        "labels": torch.where(is_target, row, IGNORED_LABEL),
    }


def step(model, batch) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss_sum = model(**batch).loss_sum
    loss_sum.backward()
    return loss_sum.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def step_of_transformers(model, batch, num_slots=None) -> tuple[float, dict[str, Any], torch.Tensor]:
    """Loss, gradients and target logits of CanineModel as it ships, in long rows, classes one by one."""
    encoder = CanineModel(model.config, add_pooling_layer=False).to(model.dtype)
    encoder.load_state_dict(model.canine.state_dict())
    make_masks_exact(encoder)
    head = copy.deepcopy(model.head)
    if num_slots is None:
        num_slots = 128 * (1 + -(-batch["input_ids"].shape[1] // 128))
    missing = num_slots - batch["input_ids"].shape[1]
    long = [functional.pad(batch[name], (0, missing)) for name in ("input_ids", "attention_mask")]
    hidden = encoder.eval()(long[0], attention_mask=long[1]).last_hidden_state
    is_target = batch["labels"] != IGNORED_LABEL
    logits = head(hidden[:, : is_target.shape[1]])[is_target]
    classes = [1 + LETTERS.index(label) if label in LETTERS else 0 for label in batch["labels"][is_target]]
    loss_sum = functional.cross_entropy(logits, torch.tensor(classes), reduction="sum")
    head.zero_grad()
    loss_sum.backward()
    parts = [("canine", encoder), ("head", head)]
    gradients = {f"{part}.{name}": p.grad for part, module in parts for name, p in module.named_parameters()}
    return loss_sum.item(), gradients, logits.detach()


def assert_same(found, expected, *, atol):
    loss, gradients = found
    wanted_loss, wanted = expected
    assert loss == pytest.approx(wanted_loss, rel=atol)
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        scale = wanted[name].abs().max().item()
        torch.testing.assert_close(
            gradient, wanted[name], rtol=0, atol=atol * max(scale, 1), msg=lambda m, n=name: f"{n}: {m}"
        )
