"""Trace of a training step without a GPU: bytes as straight lines in the number of rows, for any depth.

Run as a program, it reads a request as JSON from standard input and writes the answer to standard output.

Layers in the middle are alike, and so are rows. From four small steps, of 3 and 4 layers and of 2 and 4 rows,
each operation gets bytes that are linear in both; the moments that are never the worst are left out.
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from launch.costing.trace_cache import NUM_CHUNKS, name_way
from launch.costing.trace_steps import Request, Step, build_model, count_classes, list_stacks, trace_step
from launch.costing.trace_storages import KINDS

NUM_LAYERS = 3
"""Of the model that is traced: a first, a middle and a last one."""
NUM_ROWS = (2, 4)
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MismatchError(ValueError):
    """Two steps that should run the same operations do not."""


def answer(request: Request) -> dict[str, Any]:
    """The fields of `launch.costing.trace_cache.Trace`."""
    depths = list_depths(request)
    model = build_model(request, depths)
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    # A generator keeps its logits to draw from them.
    chunks = (1,) if request.discriminator is not None else (1, NUM_CHUNKS)
    half = _HALF.get(request.precision)
    lines = {}
    for mode in ("full",) if half is None else ("autocast", "half"):
        models = _build_models(request, depths, half if mode == "half" else None)
        options: dict[str, Any] = {"autocast": half if mode == "autocast" else None}
        for checkpointing, num_chunks in product((False, True), chunks):
            options |= {"checkpointing": checkpointing, "num_chunks": num_chunks}
            # So many that chunks of one size make up their targets.
            num_rows = NUM_ROWS if num_chunks == 1 else (num_chunks, 2 * num_chunks)
            grids = [[trace_step(one, request, rows, **options) for rows in num_rows] for one in models]
            name = name_way(mode, checkpointing, num_chunks > 1)
            lines[name] = draw_lines(grids, depths, num_rows).tolist()
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_trained": sum(trained),
        "num_largest": max(trained),
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        "num_classes": count_classes(model),
        "num_targets": request.num_targets,
        "device": request.device,
        "lines": lines,
    }


def list_depths(request: Request) -> tuple[int, ...]:
    """Layers of the model, or of the two of a pair."""
    parts = [sizes for sizes in (request.sizes, request.discriminator) if sizes is not None]
    model = build_model(request, (None,) * len(parts))
    return tuple(len(layers) for layers in list_stacks(model))


def _build_models(request: Request, depths: tuple[int, ...], dtype: torch.dtype | None) -> list[nn.Module]:
    """A model of few layers, and for each stack that is deeper one with a layer more in it."""
    few = tuple(min(depth, NUM_LAYERS) for depth in depths)
    chosen = [few]
    for number, depth in enumerate(depths):
        if depth > NUM_LAYERS:
            chosen.append(tuple(size + (stack == number) for stack, size in enumerate(few)))
    return [build_model(request, sizes).to(dtype or torch.float32) for sizes in chosen]


def draw_lines(
    grids: list[list[Step]], depths: tuple[int, ...], num_rows: tuple[int, int] = NUM_ROWS
) -> np.ndarray:
    """Bytes of each kind at the moments that can be the worst: [lines, kinds, 2], constant and per row.

    Args:
        grids: steps of the model with few layers, then of each with one more, each for both numbers of rows.
        depths: layers that are wanted.
        num_rows: of the steps.

    Raises:
        MismatchError: the steps do not line up.
    """
    base, *deeper = grids
    stacks = [number for number, depth in enumerate(depths) if depth > NUM_LAYERS]
    found = []
    for name, _ in base[0].marks:
        few, more = (
            _extrapolate(
                step.phase(name),
                [
                    (one[number].phase(_match(name, stack)), depths[stack] - NUM_LAYERS)
                    for one, stack in zip(deeper, stacks, strict=True)
                ],
                name,
            )
            for number, step in enumerate(base)
        )
        if few.shape != more.shape:
            # Draws of a generator go in chunks, of which more rows have more: their worst moments then.
            few, more = (sizes[:, [sizes.sum(0).argmax()]] for sizes in (few, more))
        per_row = (more - few) / (num_rows[1] - num_rows[0])
        found.append(np.stack([few - num_rows[0] * per_row, per_row], -1).swapaxes(0, 1))
    return drop_dominated(np.concatenate(found))


def _extrapolate(few: np.ndarray, more: list[tuple[np.ndarray, int]], name: str) -> np.ndarray:
    total = few.astype(np.float64)
    for one_more, num_layers in more:
        if one_more.shape != few.shape:
            raise MismatchError(
                f"{name}: {few.shape[1]} operations, and {one_more.shape[1]} with a layer more"
            )
        total += num_layers * (one_more - few)
    return total


def _match(name: str, stack: int) -> str:
    """The phase of the model with one layer more that stands for a phase.

    Of those in the middle it is the uppermost. Memory is linear from layer to layer, so if a lower one needs
    more, for the gradients that came so far, the first one needs most.
    """
    kind, *numbers = name.split()
    if kind not in ("forward", "backward") or int(numbers[0]) != stack or numbers[1] == "0":
        return name
    return f"{kind} {stack} {int(numbers[1]) + 1}"


def drop_dominated(lines: np.ndarray) -> np.ndarray:
    """Lines that are worst for some number of rows, size of chunk and state of the gradients."""
    keys = np.stack(list(_rank(lines)), 1)
    order = np.argsort(-keys.sum(1), kind="stable")
    kept: list[int] = []
    for number in order:
        if not any((keys[other] >= keys[number]).all() for other in kept):
            kept.append(int(number))
    return lines[kept]


def _rank(lines: np.ndarray) -> Iterator[np.ndarray]:
    gradients, logits = KINDS.index("gradients"), KINDS.index("logits")
    others = [number for number in range(len(KINDS)) if number not in (gradients, logits)]
    yield lines[:, others, 0].sum(1)
    yield lines[:, others, 1].sum(1)
    yield lines[:, logits, 0]
    yield lines[:, logits, 1]
    yield lines[:, gradients, 0]


def main() -> None:
    """Answer the request on standard input."""
    json.dump(answer(Request(**json.load(sys.stdin))), sys.stdout)


if __name__ == "__main__":
    main()
