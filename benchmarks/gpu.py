"""Training steps on a GPU, each attention kernel against transformers: `python -m benchmarks.gpu`.

Made to take about five minutes; a side that does not fit on the card says so. A step is forward, backward and
fused AdamW, in bf16 (fp16 below compute capability 8.0) under autocast, with weights and gradients in fp32.
Every side has the card to itself, so that its peak memory is its own; seconds are the median of its steps.

MFU: the FLOPs that the task needs, which are the same for every side (head and last layer at the targets,
position scores as in the reference), over the card's peak. "busy" counts what the side really asks for: a
side that computes logits for nobody is busier, not better.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DebertaV2ForMaskedLM

from launch.costing.flops import Kernel, count_flops
from modeling import hf
from modeling.canine import row_slots

# Dense FLOP/s of half precision, by a part of the card's name; sources in launch/profiles.yaml.
PEAKS = {"2080 Ti": 53.8e12, "A100": 312e12, "H100": 790e12}
DEBERTA = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "max_position_embeddings": 512,
}  # fmt: skip
CANINE: dict[str, Any] = {"num_hidden_layers": 12, "max_position_embeddings": 2048}
NUM_PIECES, ROW_LENGTH, NAME_LENGTH = 128_100, 512, 15
RATE = 0.15
NUM_WARMUP, NUM_STEPS = 3, 10


@dataclass(frozen=True)
class Shape:
    """What a side reads: sizes of the model, rows of a batch, and slots of a row.

    Attributes:
        num_used: slots of a row that hold something; the tokens of tokens/s.
    """

    config: dict[str, Any]
    num_rows: int
    num_slots: int
    num_used: int


@dataclass(frozen=True)
class Side:
    """One way to take the step.

    Attributes:
        build: the model, on the CPU.
        head_at_targets: else logits are computed for every slot.
    """

    name: str
    build: Callable[[], Any]
    kernel: Kernel = "eager"
    is_sparse: bool = False
    head_at_targets: bool = True


@dataclass(frozen=True)
class Result:
    """Seconds of a step and peak bytes of the card; `problem` says why there are none."""

    seconds: float = 0.0
    peak_bytes: int = 0
    problem: str | None = None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="training steps on a GPU, against transformers")
    parser.add_argument("--rows", type=int, default=8, help="rows of 512 pieces in a batch of DeBERTa")
    parser.add_argument("--names", type=int, default=256, help="names in a batch of CANINE")
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--peak-tflops", type=float, help="of the card, where it is none of the known ones")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            f"benchmarks.gpu wants an NVIDIA GPU, and torch {torch.__version__} sees none: run it where "
            "there is a card and a CUDA build of torch (benchmarks.models and .deberta run on a CPU)"
        )
    device = torch.device("cuda")
    console = Console(width=120)
    console.print(describe_machine())
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else find_peak(torch.cuda.get_device_name())
    words = Shape(DEBERTA, arguments.rows, ROW_LENGTH, ROW_LENGTH)
    console.print(compare("DeBERTa-v3-base", list_deberta_sides(words), words, device, arguments.steps, peak))
    names = Shape(CANINE, arguments.names, row_slots(NAME_LENGTH + 2), NAME_LENGTH + 2)
    console.print(compare("CANINE-C", list_canine_sides(names), names, device, arguments.steps, peak))


def describe_machine() -> str:
    """Card, driver, versions, commit and date, for whoever reads the figures later."""
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    driver = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    commit = ask("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12")
    return (
        f"{torch.cuda.get_device_name()} ({memory:.0f} GiB, compute capability {major}.{minor}), "
        f"driver {driver}, torch {torch.__version__} with CUDA {torch.version.cuda}, commit {commit}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}"
    )


def ask(*command: str) -> str:
    """What a program prints, or `unknown`."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def find_peak(name: str) -> float | None:
    """Peak FLOP/s of a card by its name; None: not known."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def list_deberta_sides(shape: Shape) -> list[Side]:
    """transformers, then our model with each kernel."""

    def build(kernel: str = "eager", *, sparse: bool = False) -> Any:
        model: Any = hf.build("deberta", config=shape.config, num_pieces=NUM_PIECES, dropout=0.1, seed=0)
        model.sparse_last_layer, model.wanted_kernel = sparse, kernel
        return model

    def build_peer() -> Any:
        return DebertaV2ForMaskedLM(build().config)

    return [
        Side("transformers", build_peer, head_at_targets=False),
        Side("eager, head at the targets", build),
        Side("fast, last layer at the targets", lambda: build("fast", sparse=True), "fused", is_sparse=True),
        Side(
            "flash, last layer at the targets", lambda: build("flash", sparse=True), "flash", is_sparse=True
        ),
    ]


def list_canine_sides(shape: Shape) -> list[Side]:
    """The encoder of transformers under our head, which it has none of, at every slot and at the targets."""

    def build(*, sparse: bool = False) -> Any:
        letters = range(97, 123)
        model: Any = hf.build("canine", config=shape.config, head_code_points=letters, dropout=0.1, seed=0)
        model.sparse_last_layer = sparse
        return model

    def build_peer() -> Any:
        return EverySlot(build())

    return [
        Side("transformers' encoder, a head at every slot", build_peer, head_at_targets=False),
        Side("head at the targets", build),
        Side("all that no target reads left out", lambda: build(sparse=True), is_sparse=True),
    ]


class EverySlot(torch.nn.Module):
    """Our CANINE with logits of every slot, as transformers' masked language models have them."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        """The mean loss as `loss`."""
        output = self.model(input_ids, attention_mask=attention_mask)
        classes = self.model.map_labels(labels)
        output.loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), classes.flatten())
        return output


def make_batch(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Rows of made-up pieces or letters; the same number of targets in each."""
    torch.manual_seed(0)
    ids = torch.randint(97, 123, (shape.num_rows, shape.num_slots))
    mask = (torch.arange(shape.num_slots) < shape.num_used).long().expand(shape.num_rows, -1)
    ranks = torch.rand(shape.num_rows, shape.num_used).argsort(-1)
    is_target = torch.zeros_like(ids, dtype=torch.bool)
    is_target[:, : shape.num_used] = ranks < round(RATE * shape.num_used)
    labels = torch.where(is_target, ids, -100)
    batch = {"input_ids": ids * mask, "attention_mask": mask.contiguous(), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def count_side(side: Side, config: Any, shape: Shape) -> int:
    """FLOPs of a step as the side computes it."""
    num_targets = shape.num_rows * (round(RATE * shape.num_used) if side.head_at_targets else shape.num_slots)
    return count_flops(
        config,
        num_rows=shape.num_rows,
        num_slots=shape.num_slots,
        num_targets=num_targets,
        kernel=side.kernel,
        sparse_last_layer=side.is_sparse,
    ).total


def measure(side: Side, shape: Shape, device: torch.device, num_steps: int) -> tuple[Result, int]:
    """Speed and memory of a side, and its FLOPs; the card is empty before and after."""
    model = side.build().to(device).train()
    flops = count_side(side, getattr(model, "model", model).config, shape)
    is_cuda = device.type == "cuda"
    try:
        if wanted := getattr(model, "wanted_kernel", None):
            model.set_attention(wanted)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=is_cuda)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = take_steps(model, make_batch(shape, device), optimizer, device, num_steps)
        return Result(seconds, torch.cuda.max_memory_allocated() if is_cuda else 0), flops
    except torch.cuda.OutOfMemoryError:
        return Result(problem="out of memory"), flops
    except (ValueError, ModuleNotFoundError) as error:
        return Result(problem=str(error)), flops
    finally:
        model = optimizer = None
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()


def take_steps(
    model: Any, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer, device: torch.device, number: int
) -> float:
    """Median seconds of a step."""
    is_cuda = device.type == "cuda"
    seconds = []
    for turn in range(NUM_WARMUP + number):
        if is_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=choose_precision()) if is_cuda else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if is_cuda:
            torch.cuda.synchronize()
        if turn >= NUM_WARMUP:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def choose_precision() -> torch.dtype:
    """bf16 where the card has tensor cores for it; a step in fp16 is timed without loss scaling."""
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def compare(
    title: str, sides: list[Side], shape: Shape, device: torch.device, num_steps: int, peak: float | None
) -> Table:
    """A line for each side; the first is what the others are compared with."""
    measured = [measure(side, shape, device, num_steps) for side in sides]
    needed = min(flops for side, (_, flops) in zip(sides, measured, strict=True) if side.kernel != "fused")
    needs = f"{shape.num_rows} rows of {shape.num_slots} slots, {needed / 1e12:.3g} TFLOP needed a step"
    table = Table("step", "ms", "tokens/s", "faster", "peak GiB", "MFU", "busy", title=f"{title}, {needs}")
    first = measured[0][0].seconds
    for side, (found, flops) in zip(sides, measured, strict=True):
        if found.problem is not None:
            table.add_row(side.name, found.problem)
            continue
        shares = [f"{n / found.seconds / peak:.1%}" if peak else "-" for n in (needed, flops)]
        table.add_row(
            side.name,
            f"{found.seconds * 1000:,.1f}",
            f"{shape.num_rows * shape.num_used / found.seconds:,.0f}",
            f"{first / found.seconds:.2f}x" if first else "-",
            f"{found.peak_bytes / 2**30:.2f}",
            *shares,
        )
    return table


if __name__ == "__main__":
    main()
