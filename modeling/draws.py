"""Draws from softmaxes that depend on the rows themselves and on nothing else.

A generator of random numbers would give each rank and each micro-batch its own; here the noise of a target
is a hash of its row (pieces and labels), its slot, the class and a seed. The same rows then draw the same,
however they are spread, and a resume needs no state.

Shapes: B rows, L slots of a row, K targets of the batch, V classes.
"""

import torch
from torch import Tensor

_MOST_AT_ONCE = 2**24
"""Numbers of noise at a time: 128 MB of hashes."""


def draw_classes(logits_KV: Tensor, is_drawn_V: Tensor, keys_K: Tensor, temperature: float = 1.0) -> Tensor:
    """A class [K] for each target from the softmax of logits / `temperature` over the classes `is_drawn_V`.

    By the largest of logits with Gumbel noise: where rounding moves a logit by e, a draw changes with a
    chance of about e. A search in cumulated probabilities would change with the sum of the e of all classes.
    """
    num_targets, num_classes = logits_KV.shape
    classes_V = mix_bits(torch.arange(num_classes, device=logits_KV.device))
    barred_V = torch.zeros(num_classes, device=logits_KV.device).masked_fill(~is_drawn_V, -torch.inf)
    step = max(1, _MOST_AT_ONCE // num_classes)
    drawn = [keys_K[:0]]
    for first in range(0, num_targets, step):
        part = slice(first, first + step)
        scores_KV = logits_KV[part].detach().float() / temperature + barred_V
        drawn.append((scores_KV + _draw_gumbel(keys_K[part, None] + classes_V)).argmax(-1))
    return torch.cat(drawn)


def hash_targets(input_ids_BL: Tensor, labels_BL: Tensor, is_piece_BL: Tensor, slots_K: Tensor) -> Tensor:
    """A number [K] for each target, the same however far its row is padded; int64.

    `slots_K` are in the rows laid end to end.
    """
    length = input_ids_BL.shape[1]
    places_L = mix_bits(torch.arange(length, device=input_ids_BL.device))
    content_BL = mix_bits(mix_bits(input_ids_BL + places_L) + labels_BL)
    rows_B = (content_BL * is_piece_BL).sum(-1)
    return mix_bits(rows_B[slots_K // length] + places_L[slots_K % length])


def mix_bits(values: Tensor) -> Tensor:
    """Every bit of an int64 spread over all; splitmix64 (Steele et al. 2014), whose products wrap around."""
    mixed = values + _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shift(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shift(mixed, 27)) * _signed(0x94D049BB133111EB)
    return mixed ^ _shift(mixed, 31)


def _draw_gumbel(keys: Tensor) -> Tensor:
    """Standard Gumbel noise, fp32, between -2.9 and 16.6: 23 bits are what fp32 tells apart below 1."""
    uniform = (_shift(mix_bits(keys), 41).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _shift(values: Tensor, count: int) -> Tensor:
    """To the right, filled up with zeros; that of an int64 fills up with its sign."""
    return (values >> count) & ((1 << (64 - count)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
