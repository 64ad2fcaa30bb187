"""How long the loop stands still for a save in the background, and how long writing that save takes.

A model of some 45 M parameters with Adam (540 MB), one process and two under DDP. A step here is a product of
matrices; how long it takes beside a write is printed too, as thread and loop share the machine.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch.multiprocessing.spawn import spawn
from transformers import CanineTokenizer
from transformers.utils.logging import disable_progress_bar

from launch.build import Job
from launch.checkpoints.saving import Saver
from launch.progress import Progress
from launch.recipe_file import read_recipe
from modeling import hf

CONFIG = {
    "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
    "max_position_embeddings": 512,
}  # fmt: skip
NUM_PIECES = 14_000
STEP_SIZE = 512
LIMIT = 0.05


class Figures:
    """Keeps the events of saves."""

    def __init__(self) -> None:
        self.saves: list[dict[str, Any]] = []

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Keep one that is a save; anything else is an error here."""
        if kind != "save":
            raise RuntimeError(f"{kind} at {step}: {values}")
        self.saves.append(values)


def build_job(rank: int, num_ranks: int) -> Job:
    """A job of which nothing is needed but what a save reads."""
    group = InitProcessGroupKwargs(backend="gloo", timeout=timedelta(seconds=120))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[group] if num_ranks > 1 else None)
    model = hf.build("deberta", config=CONFIG, num_pieces=NUM_PIECES, dropout=0.0, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    prepared, optimizer = accelerator.prepare(model, optimizer)
    rest: Any = SimpleNamespace(
        world_size=num_ranks, zero_stage=None, precision="fp32", manifest={"key": "0"}
    )
    return Job(
        recipe=read_recipe("deberta-tiny-encyclopedia-wwm"), plan=rest, store=rest, accelerator=accelerator,
        model=prepared, bare_model=model, terms=(), optimizer=optimizer, tokenizer=CanineTokenizer(),
        feed=rest, frozen=rest, load_report=None,
    )  # fmt: skip


def take_steps(saver: Saver, seconds: float) -> list[float]:
    """Steps until a save is done, or so many seconds; how long each took."""
    factors = torch.randn(STEP_SIZE, STEP_SIZE)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (saver._tasks or seconds) and (not seconds or time.perf_counter() < end):
        begin = time.perf_counter()
        torch.mm(factors, factors)
        saver.look()
        taken.append(time.perf_counter() - begin)
    return taken


def measure(rank: int, num_ranks: int, port: int, folder: str, num_saves: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    disable_progress_bar()
    if num_ranks > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    job, figures = build_job(rank, num_ranks), Figures()
    num_parameters = sum(parameter.numel() for parameter in job.bare_model.parameters())
    with Saver(job, figures, Path(folder)) as saver:  # pyright: ignore[reportArgumentType]
        saver.look()  # as after the first step: it makes the buffers
        alone = take_steps(saver, 1.0)
        job.accelerator.wait_for_everyone()
        beside: list[float] = []
        for step in range(1, num_saves + 1):
            saver.save(Progress(step=step))
            beside += take_steps(saver, 0.0)
    if rank:
        return
    first, *later = figures.saves
    print(f"{num_ranks} process{'es' if num_ranks > 1 else ''}, {num_parameters / 1e6:.1f} M parameters, "
          f"{first['bytes'] / 1e6:.0f} MB a save, {num_saves} saves")  # fmt: skip
    for name, saves in (("first", [first]), ("later, median", later)):
        blocked, written = (
            statistics.median(save[key] for save in saves) for key in ("blocked_seconds", "seconds")
        )
        verdict = "under" if blocked < LIMIT * written else "NOT under"
        print(f"  {name:13} blocked {blocked:6.3f} s  written in {written:6.2f} s  "
              f"ratio {blocked / written:6.2%}  {verdict} {LIMIT:.0%}")  # fmt: skip
    if num_ranks == 1:
        usual, slow = (statistics.median(steps) * 1e3 for steps in (alone, beside))
        worst = max(beside) * 1e3
        print(f"  a step of {usual:.2f} ms takes {slow:.2f} ms beside a write (worst {worst:.0f} ms)")


def main() -> None:
    """One process, then two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", help="where to save; its file system is measured (default: a temporary one)"
    )
    parser.add_argument("--num-saves", type=int, default=5)
    arguments = parser.parse_args()
    for num_ranks in (1, 2):
        with socket.socket() as probe, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            probe.close()
            spawn(measure, (num_ranks, port, folder, arguments.num_saves), nprocs=num_ranks, join=True)


if __name__ == "__main__":
    main()
