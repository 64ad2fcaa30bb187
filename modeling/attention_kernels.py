"""The portable attention of a CPU as one operator of torch, with its gradient.

As an operator it is a single node for torch.compile, which therefore keeps the model in one graph. The
counter of FLOPs cannot look into it, so it is told the products of matrices that are really done.

Shapes: B rows of the batch, L slots of a row, H heads, E size of a head, R rows of a position table.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from modeling.attention_blocks import Gradients, Inputs, Settings, attend, backpropagate
from modeling.attention_positions import plan_blocks


@torch.library.custom_op("maskwright::disentangled_attention", mutates_args=())
def disentangled_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_table: Tensor | None,
    query_table: Tensor | None,
    allowed: Tensor | None,
    seed: Tensor | None,
    settings: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Contexts [B, L, H * E] and what the backward wants kept, on a CPU.

    Args:
        query: [B, L, H * E], as are `key` and `value`.
        key: see above.
        value: see above.
        key_table: [R, H * E], what queries meet at each distance; None leaves that term out.
        query_table: [R, H * E], what keys meet.
        allowed: bool [B, 1 or L, L], which keys a query may see; None for all.
        seed: int64 [1], of the dropout.
        settings: a `Settings` as a list.
    """
    numbers = Settings.read(list(settings))
    with torch.autocast("cpu", enabled=False):
        inputs = _read_inputs((query, key, value, key_table, query_table, allowed), numbers)
        contexts, kept = attend(inputs, _read_seed(seed))
        return _merge_heads(contexts), kept


@torch.library.custom_op("maskwright::disentangled_attention_backward", mutates_args=())
def disentangled_attention_backward(
    gradient: Tensor, contexts: Tensor, kept: Tensor, saved: Sequence[Tensor], settings: Sequence[float]
) -> list[Tensor]:
    """Gradients of query, key, value and the two tables; empty for a table that is absent.

    `saved` are the tensors that the forward took, an empty one in place of None.
    """
    numbers = Settings.read(list(settings))
    with torch.autocast("cpu", enabled=False):
        *tensors, seed = (tensor if tensor.numel() else None for tensor in saved)
        inputs = _read_inputs(tensors, numbers)
        heads = numbers.num_heads
        sums = backpropagate(
            inputs,
            _split_heads(gradient.to(contexts.dtype), heads),
            _split_heads(contexts, heads),
            kept,
            _read_seed(seed),
        )
        return _write_gradients(sums, saved, numbers.scale)


def _read_inputs(tensors: Sequence[Tensor | None], settings: Settings) -> Inputs:
    query, key, value, key_table, query_table, allowed = tensors
    assert query is not None and key is not None and value is not None  # noqa: PT018
    heads, dtype = settings.num_heads, query.dtype
    return Inputs(
        _split_heads(query / settings.scale, heads),
        _split_heads(key.to(dtype), heads),
        _split_heads(value.to(dtype), heads),
        None if key_table is None else _split_table(key_table.to(dtype), heads),
        None if query_table is None else _split_table(query_table.to(dtype) / settings.scale, heads),
        allowed,
        settings,
    )


def _write_gradients(sums: Gradients, saved: Sequence[Tensor], scale: float) -> list[Tensor]:
    query, key, value, key_table, query_table = saved[:5]
    return [
        _merge_heads(sums.query.div_(scale)).to(query.dtype),
        _merge_heads(sums.key).to(key.dtype),
        _merge_heads(sums.value).to(value.dtype),
        *(
            torch.empty_like(table) if total is None else total.transpose(0, 1).flatten(1).to(table.dtype)
            for total, table in (
                (sums.key_table, key_table),
                (None if sums.query_table is None else sums.query_table.div_(scale), query_table),
            )
        ),
    ]


def _split_heads(states: Tensor, num_heads: int) -> Tensor:
    return states.unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3).contiguous()


def _split_table(table: Tensor, num_heads: int) -> Tensor:
    return table.unflatten(-1, (num_heads, -1)).transpose(0, 1).contiguous()


def _merge_heads(states_HBLE: Tensor) -> Tensor:
    return states_HBLE.permute(1, 2, 0, 3).flatten(2).contiguous()


def _read_seed(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


@disentangled_attention.register_fake
def _(query, key, value, key_table, query_table, allowed, seed, settings):
    numbers = Settings.read(list(settings))
    num_rows, length = query.shape[:2]
    shape = (0,) if numbers.recompute else (numbers.num_heads, num_rows, length, length)
    return query.new_empty(query.shape), query.new_empty(shape)


@disentangled_attention_backward.register_fake
def _(gradient, contexts, kept, saved, settings):
    return [tensor.new_empty(tensor.shape) for tensor in saved[:5]]


def _set_up_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.settings = inputs
    ctx.is_absent = [tensor is None for tensor in tensors]
    ctx.set_materialize_grads(False)
    empty = output[0].new_empty(0)
    ctx.save_for_backward(*output, *(empty if tensor is None else tensor for tensor in tensors))


def _run_backward(ctx: Any, gradient: Tensor | None, _: Any) -> tuple[Any, ...]:
    if gradient is None:
        return (None,) * 8
    contexts, kept, *saved = ctx.saved_tensors
    found = disentangled_attention_backward(gradient, contexts, kept, saved, ctx.settings)
    gradients = [None if absent else tensor for absent, tensor in zip(ctx.is_absent, found, strict=False)]
    return (*gradients, None, None, None)


disentangled_attention.register_autograd(_run_backward, setup_context=_set_up_backward)


def count_products(
    length: int, num_rows: int, head_size: int, has_tables: Sequence[bool], settings: Settings
) -> int:
    """Multiply-adds times 2 of one pass over scores and position scores, as the blocks do them."""
    cells = length * length
    for has_table, descending in zip(has_tables, (True, False), strict=True):
        if has_table:
            blocks = plan_blocks(length, settings.positions, descending)
            cells += sum((block.stop - block.start) * (block.last_row - block.first_row) for block in blocks)
    return 2 * settings.num_heads * num_rows * head_size * cells


def _count_forward(
    query: Any, key: Any, value: Any, key_table: Any, query_table: Any, *rest: Any, **_: Any
) -> int:
    settings = Settings.read(list(rest[2]))
    num_rows, length, size = query
    head_size = size // settings.num_heads
    scores = count_products(
        length, num_rows, head_size, [key_table is not None, query_table is not None], settings
    )
    return scores + 2 * num_rows * length * length * size


def _count_backward(gradient: Any, contexts: Any, kept: Any, saved: Any, settings: Any, **_: Any) -> int:
    numbers = Settings.read(list(settings))
    num_rows, length, size = contexts
    has_tables = [0 not in table for table in saved[3:5]]
    scores = count_products(length, num_rows, size // numbers.num_heads, has_tables, numbers)
    num_passes = 3 if numbers.recompute else 2
    return num_passes * scores + 4 * num_rows * length * length * size


register_flop_formula(torch.ops.maskwright.disentangled_attention)(_count_forward)
register_flop_formula(torch.ops.maskwright.disentangled_attention_backward)(_count_backward)
