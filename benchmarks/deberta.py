"""A training step of DeBERTa-v3-base against transformers', and packed rows against padded ones.

`python -m benchmarks.deberta` (12 layers, minutes) or `--layers 4`. Both sides in one process, the same
weights and batch, one thread, median of 3 turns in seconds of the processor, which other programs stretch
less than those of the clock; look at the ratios. Saved bytes are the storages that autograd keeps for the
backward, each once, without those of parameters.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from modeling import DebertaForMaskedLM, hf

NUM_TURNS = 3
NUM_PIECES = 128_100
ROW_LENGTH = 512
BASE = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": ROW_LENGTH,
}
NUM_DOCUMENTS, MEAN_LENGTH = 12, 200
MIB = 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="DeBERTa against transformers, packed rows against padded ones"
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.1, help="0.1 is that of microsoft/deberta-v3-base")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--skip", choices=["steps", "packing"], help="leave one of the two out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    if arguments.skip != "steps":
        console.print(compare_steps(arguments.layers, arguments.rows, arguments.dropout))
    if arguments.skip != "packing":
        console.print(compare_packing(arguments.layers, arguments.dropout))


def compare_steps(num_layers: int, num_rows: int, dropout: float) -> Table:
    """Transformers, the eager kernel with the head at the targets, the fast one with a sparse last layer."""
    torch.manual_seed(0)
    ours = build_model(num_layers, dropout)
    peer = DebertaV2ForMaskedLM(ours.config)
    peer.load_state_dict(ours.state_dict())
    peer.train()
    pieces = torch.randint(5, NUM_PIECES, (num_rows, ROW_LENGTH))
    is_target = torch.rand(pieces.shape).argsort(-1) < round(0.15 * ROW_LENGTH)
    labels = torch.where(is_target, pieces, -100)
    batch = {"input_ids": pieces, "attention_mask": torch.ones_like(pieces), "labels": labels}
    sides = {
        "transformers": make_step(peer, batch),
        "eager, head at the targets": make_step(ours, batch, "eager"),
        "fast, last layer at the targets": make_step(ours, batch, "fast", sparse=True),
        "the same, nothing kept of attention": make_step(ours, batch, "fast", sparse=True, recompute=True),
    }
    title = f"{num_layers} layers, {num_rows} rows of {ROW_LENGTH}, 15 % targets, dropout {dropout}"
    table = Table(
        "step", "seconds", "faster", "TFLOP", "of the FLOPs", "saved MiB", "of the bytes", title=title
    )
    seconds = take_turns(*(forward_and_backward(side) for side in sides.values()))
    flops = [count_flops(side) for side in sides.values()]
    saved = [count_saved_bytes(side, (ours, peer)) for side in sides.values()]
    for row, name in enumerate(sides):
        table.add_row(
            name,
            f"{seconds[row]:.2f}",
            f"{seconds[0] / seconds[row]:.2f}x",
            f"{flops[row] / 1e12:.3f}",
            f"{flops[row] / flops[0]:.3f}",
            f"{saved[row] / MIB:,.0f}",
            f"{saved[row] / saved[0]:.3f}",
        )
    return table


def compare_packing(num_layers: int, dropout: float) -> Table:
    """The same documents packed and one a row, in pieces of real text a second."""
    torch.manual_seed(0)
    model = build_model(num_layers, dropout)
    drawn = torch.randint(100, 301, (NUM_DOCUMENTS,))
    lengths = (drawn + MEAN_LENGTH - drawn.sum() // NUM_DOCUMENTS).tolist()
    rows = pack_lengths(lengths)
    sides = {
        "packed": make_step(model, lay_out(rows), "fast", sparse=True),
        "one a row": make_step(model, lay_out([[length] for length in lengths]), "fast", sparse=True),
    }
    title = f"{len(lengths)} documents, mean {sum(lengths) / len(lengths):.0f} pieces, {num_layers} layers"
    table = Table("rows", "number", "seconds", "pieces a second", "faster", title=title)
    seconds = take_turns(*(forward_and_backward(side) for side in sides.values()))
    numbers = len(rows), len(lengths)
    for name, number, duration in zip(sides, numbers, seconds, strict=True):
        rate = f"{sum(lengths) / duration:,.0f}"
        table.add_row(name, str(number), f"{duration:.2f}", rate, f"{seconds[1] / duration:.2f}x")
    return table


def build_model(num_layers: int, dropout: float) -> DebertaForMaskedLM:
    """DeBERTa-v3-base with so many layers, in training mode."""
    config = {**BASE, "num_hidden_layers": num_layers}
    model = hf.build("deberta", config=config, num_pieces=NUM_PIECES, dropout=dropout, seed=0)
    assert isinstance(model, DebertaForMaskedLM)
    assert isinstance(model.config, DebertaV2Config)
    return model.train()


def pack_lengths(lengths: list[int]) -> list[list[int]]:
    """Documents in rows, each into the fullest row that has room, longest first."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= ROW_LENGTH]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


def lay_out(rows: list[list[int]]) -> dict[str, Tensor]:
    """A batch of random pieces whose rows hold documents of these lengths; 15 % of the text are targets."""
    owners = torch.zeros(len(rows), ROW_LENGTH, dtype=torch.long)
    for row, lengths in enumerate(rows):
        documents = [torch.full((length,), number) for number, length in enumerate(lengths, start=1)]
        owners[row, : sum(lengths)] = torch.cat(documents)
    pieces = torch.randint(5, NUM_PIECES, owners.shape) * (owners > 0)
    labels = torch.where((torch.rand(owners.shape) < 0.15) & (owners > 0), pieces, -100)
    return {"input_ids": pieces, "document_ids": owners, "labels": labels}


def make_step(
    model: Any,
    batch: dict[str, Tensor],
    kernel: str | None = None,
    *,
    sparse: bool = False,
    recompute: bool = False,
) -> Callable[[], Tensor]:
    """A forward that gives the loss."""

    def forward() -> Tensor:
        model.zero_grad()
        if kernel is None:
            return model(**batch).loss
        model.set_attention(kernel, recompute=recompute)
        model.sparse_last_layer = sparse
        return model(**batch).loss_sum

    return forward


def forward_and_backward(forward: Callable[[], Tensor]) -> Callable[[], None]:
    """The whole step."""
    return lambda: forward().backward()


def take_turns(*works: Callable[[], None]) -> list[float]:
    """Median processor seconds of each, all in turn, once before any counts."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(NUM_TURNS + 1):
        for place, work in enumerate(works):
            start = time.process_time()
            work()
            if turn:
                seconds[place].append(time.process_time() - start)
    return [statistics.median(times) for times in seconds]


def count_flops(forward: Callable[[], Tensor]) -> int:
    """FLOPs of the products of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        forward().backward()
    return counter.get_total_flops()


def count_saved_bytes(forward: Callable[[], Tensor], models: tuple[torch.nn.Module, ...]) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward, parameters left out."""
    parameters = {
        parameter.untyped_storage().data_ptr() for model in models for parameter in model.parameters()
    }
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward().backward()
    return sum(sizes.values())


if __name__ == "__main__":
    main()
