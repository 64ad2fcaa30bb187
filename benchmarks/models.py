"""Training steps of both models against Hugging Face's way of doing the same: `python -m benchmarks.models`.

Side by side in one process, median of several turns; look at the ratios, seconds depend on the machine.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DebertaV2Config, DebertaV2ForMaskedLM

from modeling import hf
from modeling.canine import row_slots

NUM_TURNS = 7
DEBERTA = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
CANINE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
NUM_PIECES = 32_000
ROW_LENGTH, NUM_ROWS = 128, 16


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    table = Table(
        "step (forward + backward)", "ours", "peer", "time ratio", "FLOP ratio", box=None, pad_edge=False
    )
    table.add_row(
        f"DeBERTa, {NUM_PIECES:,} pieces, head at 15 % of the places vs everywhere", *compare_heads()
    )
    table.add_row("CANINE, 64 names of 15 characters, exact rows vs rows of 128", *compare_rows())
    Console().print(table)


def compare_heads() -> tuple[str, ...]:
    """Our DeBERTa against DebertaV2ForMaskedLM with the same weights and batch."""
    config = {**DEBERTA, "max_position_embeddings": ROW_LENGTH, "position_buckets": 64}
    ours = hf.build("deberta", config=config, num_pieces=NUM_PIECES, dropout=0.0, seed=0)
    assert isinstance(ours.config, DebertaV2Config)
    peer = DebertaV2ForMaskedLM(ours.config)
    peer.load_state_dict(ours.state_dict())
    pieces = torch.randint(5, NUM_PIECES, (NUM_ROWS, ROW_LENGTH))
    labels = torch.where(torch.rand(pieces.shape) < 0.15, pieces, -100)
    batch = {"input_ids": pieces, "attention_mask": torch.ones_like(pieces), "labels": labels}
    return compare(make_step(ours, batch), make_step(peer, batch))


def compare_rows() -> tuple[str, ...]:
    """The same names in the shortest exact rows and padded to 128 slots."""
    config = {**CANINE, "num_hash_buckets": 1024, "max_position_embeddings": 128}
    model = hf.build("canine", config=config, head_code_points=range(97, 123), dropout=0.0, seed=0)
    names = torch.randint(97, 123, (64, 15))
    return compare(*(make_step(model, lay_out(names, slots)) for slots in (row_slots(17), 128)))


def lay_out(names: Tensor, num_slots: int) -> dict[str, Tensor]:
    """Names between [CLS] and [SEP] in rows of so many slots, every seventh character a target."""
    rows = torch.zeros(len(names), num_slots, dtype=torch.long)
    length = names.shape[1]
    rows[:, 0], rows[:, 1 : length + 1], rows[:, length + 1] = 0xE000, names, 0xE001
    labels = torch.full_like(rows, -100)
    labels[:, 2 : length + 1 : 7] = rows[:, 2 : length + 1 : 7]
    mask = (rows != 0).long()
    return {"input_ids": rows, "attention_mask": mask, "labels": labels}


def make_step(model: torch.nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One forward and backward."""

    def step() -> None:
        model.zero_grad()
        output = model(**batch)
        loss = output.loss if getattr(output, "loss_sum", None) is None else output.loss_sum
        loss.backward()

    return step


def compare(ours: Callable[[], None], peer: Callable[[], None]) -> tuple[str, ...]:
    """Median seconds of both, turn by turn, and their ratios in time and FLOPs."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(NUM_TURNS + 1):
        for step, found in zip((ours, peer), seconds, strict=True):
            start = time.perf_counter()
            step()
            if turn:
                found.append(time.perf_counter() - start)
    medians = [statistics.median(found) for found in seconds]
    flops = [count_flops(step) for step in (ours, peer)]
    shown = [f"{median * 1000:.0f} ms" for median in medians]
    return *shown, f"{medians[1] / medians[0]:.2f}x", f"{flops[1] / flops[0]:.2f}x"


def count_flops(step: Callable[[], None]) -> int:
    """Multiply-adds of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
