"""A training step of CANINE on names as they are, against the same names padded to 128 slots.

`python -m benchmarks.canine` (the shape of google/canine-c, random weights, two minutes) or `--layers 4`;
`--names FILE` for names of your own, one a line. The peer is transformers' CanineModel with a head of 16,384
classes at every slot, as the public domain-name project has it. All sides in one process, the same weights
and names in the same number of micro-batches, one thread, median seconds of the processor, which other
programs stretch less than those of the clock; look at the ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CanineModel

from benchmarks.turns import make_names
from data_pipes.ordering.division import share
from modeling import CanineForMaskedLM, hf
from modeling.canine import CLS_CODE_POINT, MASK_CODE_POINT, SEP_CODE_POINT, row_slots
from modeling.heads import IGNORED_LABEL

NUM_TURNS = 3
NUM_PEER_CLASSES = 16_384
PEER_SLOTS = 128
RATE = 0.15
Batch = dict[str, Tensor]


class Peer(nn.Module):
    """CanineModel and a head of 16,384 classes at every slot."""

    def __init__(self, encoder: CanineModel):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, NUM_PEER_CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses."""
        hidden_BLD = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return functional.cross_entropy(
            self.head(hidden_BLD).flatten(0, 1), labels.flatten(), reduction="sum"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CANINE on exact rows against rows padded to 128")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="hidden size, a multiple of 64")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--parts", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--dropout", type=float, default=0.1, help="0.1 is that of google/canine-c")
    parser.add_argument("--names", type=Path, help="text file, one name a line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(arguments.layers, arguments.hidden, arguments.dropout)
    encoder: Any = CanineModel(model.config, add_pooling_layer=False)
    encoder.load_state_dict(model.canine.state_dict())
    peer = Peer(encoder).train()
    rows = [hide(name, seed) for seed, name in enumerate(read_names(arguments.names, arguments.rows))]
    size = len(rows) // arguments.parts
    padded = [lay_out(rows[first : first + size], PEER_SLOTS) for first in range(0, len(rows), size)]
    console = Console(width=120)
    console.print(compare_steps(model, peer, padded, cut_rows(rows, size)))
    console.print(
        f"largest difference of the logits at targets: {compare_outputs(model, encoder, padded):.1e}"
    )


def build_model(num_layers: int, hidden_size: int, dropout: float) -> CanineForMaskedLM:
    """A model whose head has the characters of domain names, in training mode."""
    shape = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 64,
        "intermediate_size": 4 * hidden_size,
    }
    characters = [ord(character) for character in "-.0123456789abcdefghijklmnopqrstuvwxyz"]
    model = hf.build("canine", config=shape, head_code_points=characters, dropout=dropout, seed=0)
    assert isinstance(model, CanineForMaskedLM)
    return model.train()


def read_names(path: Path | None, num_names: int) -> list[str]:
    """So many names of a file, evenly from all over it, or made-up ones of 15 characters on average."""
    if path is None:
        made = make_names(np.random.default_rng(1), num_names)
        return [f"{name}.{number % 97:02}.com" for number, name in enumerate(made)]
    names = path.read_text().split()
    return names[:: max(1, len(names) // num_names)][:num_names]


def hide(name: str, seed: int) -> tuple[list[int], list[int]]:
    """A row [CLS] name [SEP] with 15 % of its characters hidden, and its labels."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(name), max(1, round(RATE * len(name))), replace=False) + 1
    row = [CLS_CODE_POINT, *map(ord, name), SEP_CODE_POINT]
    labels = [row[slot] if slot in chosen else IGNORED_LABEL for slot in range(len(row))]
    return [MASK_CODE_POINT if slot in chosen else point for slot, point in enumerate(row)], labels


def lay_out(rows: list[tuple[list[int], list[int]]], num_slots: int) -> Batch:
    """Rows as tensors [B, L]."""
    input_ids = torch.zeros(len(rows), num_slots, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for number, (row, row_labels) in enumerate(rows):
        input_ids[number, : len(row)] = torch.tensor(row)
        labels[number, : len(row)] = torch.tensor(row_labels)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": labels}


def cut_rows(rows: list[tuple[list[int], list[int]]], micro_batch: int) -> list[Batch]:
    """Micro-batches as the launcher cuts them: rows of like length together, no longer than they need."""
    lengths = np.array([len(row) for row, _ in rows])
    slots = np.array([row_slots(length) for length in range(lengths.max() + 1)])
    parts = share(lengths, slots=slots, micro_batch=micro_batch, rank=0, world_size=1)
    return [lay_out([rows[row] for row in part], int(slots[lengths[part]].max())) for part in parts]


def compare_steps(model: CanineForMaskedLM, peer: Peer, padded: list[Batch], exact: list[Batch]) -> Table:
    """The peer, the same rows in our model, exact rows, and exact rows computed for their targets only."""
    sides = {
        "transformers, rows of 128, 16,384 classes everywhere": make_step(peer, padded, sparse=False),
        "rows as long as they need, characters at the targets": make_step(model, exact, sparse=False),
        "the same, sparse_last_layer": make_step(model, exact, sparse=True),
    }
    flops = [count_flops(step) for step in sides.values()]
    seconds = take_turns(*sides.values())
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in padded]) - 2
    slots = ", ".join(f"{len(batch['labels'])} of {batch['labels'].shape[1]}" for batch in exact)
    title = (
        f"{model.config.num_hidden_layers} layers of {model.config.hidden_size}, {len(lengths)} names of "
        f"{lengths.float().mean():.1f} characters, rows of slots: {slots}"
    )
    table = Table("step", "seconds", "faster", "TFLOP", "fewer FLOPs", title=title)
    for row, name in enumerate(sides):
        table.add_row(
            name,
            f"{seconds[row]:.2f}",
            f"{seconds[0] / seconds[row]:.2f}x",
            f"{flops[row] / 1e12:.4f}",
            f"{flops[0] / flops[row]:.2f}x",
        )
    return table


@torch.no_grad()
def compare_outputs(model: CanineForMaskedLM, encoder: CanineModel, padded: list[Batch]) -> float:
    """Largest difference of our logits on exact rows from those of transformers on padded rows."""
    largest = 0.0
    model.eval()
    encoder.eval()
    for batch in padded:
        hidden_BLD = encoder(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        expected = model.head(hidden_BLD[batch["labels"] != IGNORED_LABEL])
        needed = max(map(row_slots, batch["attention_mask"].sum(1).tolist()))
        found = model(**{name: tensor[:, :needed] for name, tensor in batch.items()}).logits
        assert found is not None
        largest = max(largest, (found - expected).abs().max().item())
    return largest


def make_step(model: Any, batches: list[Batch], *, sparse: bool) -> Callable[[], None]:
    """Forward and backward of all micro-batches of a step."""

    def step() -> None:
        model.zero_grad()
        model.sparse_last_layer = sparse
        for batch in batches:
            output = model(**batch)
            (output if isinstance(output, Tensor) else output.loss_sum).backward()

    return step


def take_turns(*works: Callable[[], None]) -> list[float]:
    """Median processor seconds of each, all in turn."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(NUM_TURNS):
        for place, work in enumerate(works):
            start = time.process_time()
            work()
            seconds[place].append(time.process_time() - start)
    return [statistics.median(times) for times in seconds]


def count_flops(step: Callable[[], None]) -> int:
    """FLOPs of the products of a step, as torch counts them; also what warms the step up."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
