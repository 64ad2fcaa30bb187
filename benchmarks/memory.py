"""Predicted memory against measured: `python -m benchmarks.memory`, a minute on a CPU and some on a card.

On a CPU: bytes that real models of 6 layers keep for the backward, and the most that torch's allocator has
given out within a step, against what was extrapolated from 3 and 4 layers without storage. On a card, where
there is one: real steps of DeBERTa-v3-base and CANINE-C, AdamW and clipping included, against
`predict_memory`, without the two terms that it assumes; those are measured beside.
"""

import argparse
import gc
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from launch.costing.memory import Setting, Shape, Trace, predict_memory
from launch.costing.sizes import HUB_MODELS
from launch.costing.trace import answer, list_depths
from launch.costing.trace_cache import name_way
from launch.costing.trace_steps import Request, build_model, make_batch, trace_step
from launch.optim import clip_gradients
from modeling import hf

MIB, GIB = 2**20, 2**30
NUM_ROWS = 8
_SMALL = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024, "num_hidden_layers": 6}
SMALL: dict[str, tuple[dict[str, Any], int, int]] = {
    "DeBERTa": (
        {
            **hf.DEBERTA_V3_STYLE, **_SMALL, "model_type": "deberta-v2", "vocab_size": 8000,
            "max_position_embeddings": 128, "position_buckets": 32,
        },
        128,
        19,
    ),
    "CANINE": ({**_SMALL, "model_type": "canine", "num_classes": 40, "max_position_embeddings": 512}, 24, 3),
}  # fmt: skip
LARGE = {
    "DeBERTa-v3-base": ("microsoft/deberta-v3-base", 512, 77, (4, 8)),
    "CANINE-C": ("google/canine-c", 24, 3, (256, 1024)),
}


@dataclass(frozen=True)
class Measured:
    """Bytes of a step on a card: allocated at most, reserved at most, and taken outside of torch."""

    peak: int
    reserved: int
    outside: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="predicted memory against measured")
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="of the small models on the CPU")
    parser.add_argument("--skip", choices=["cpu", "gpu"], help="leave one of the two out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    if arguments.skip != "cpu":
        console.print(compare_on_cpu(arguments.rows))
    if arguments.skip == "gpu":
        return
    if not torch.cuda.is_available():
        console.print("No card is seen: steps on one are left out.")
        return
    console.print(torch.cuda.get_device_name())
    console.print(compare_on_gpu())


def compare_on_cpu(num_rows: int) -> Table:
    """Kept bytes and peaks of small models in fp32."""
    table = Table("model", "kernel", "checkpointing", "kept MiB", "predicted", "peak MiB", "predicted")
    for name, (sizes, row_length, num_targets) in SMALL.items():
        for kernel in ("eager", "fast") if name == "DeBERTa" else ("fast",):
            request = Request(sizes, row_length, num_targets, None, "cpu", "fp32", kernel)
            lines = answer(request)["lines"]
            for checkpointing in (False, True):
                depths = list_depths(request)
                kept = extrapolate_kept(request, num_rows, depths[0], checkpointing)
                model: Any = build_model(request, depths, device="cpu")
                if checkpointing:
                    model.activation_checkpointing_enable({"use_reentrant": False})
                batch = make_batch(request, model, num_rows, "cpu")
                way = np.array(lines[name_way("full", checkpointing, is_chunked=False)])
                peak = float((way[:, :, 0] + way[:, :, 1] * num_rows).sum(1).max())
                peak -= sum(tensor.nbytes for tensor in batch.values())
                measured = measure_kept(model, batch), measure_peak(model, batch)
                table.add_row(
                    name,
                    kernel,
                    "on" if checkpointing else "off",
                    *show(measured[0], kept, MIB),
                    *show(measured[1], peak, MIB),
                )
    return table


def show(measured: float, predicted: float, unit: int) -> tuple[str, str]:
    """The two, the second with its share of error."""
    return f"{measured / unit:,.2f}", f"{predicted / unit:,.2f} ({predicted / measured - 1:+.2%})"


def extrapolate_kept(request: Request, num_rows: int, depth: int, checkpointing: bool) -> float:
    """Bytes kept for the backward, from four small steps on the meta device."""
    at_rows = []
    for layers in (3, 4):
        few, more = (
            trace_step(build_model(request, (layers,)), request, rows, checkpointing=checkpointing).num_kept
            for rows in (2, 4)
        )
        at_rows.append(few + (more - few) / 2 * (num_rows - 2))
    return at_rows[0] + (at_rows[1] - at_rows[0]) * (depth - 3)


def measure_kept(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of all storages that torch keeps for the backward, each once, but those of weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch)
    num_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    del output
    return num_bytes


def measure_peak(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """The most that torch's CPU allocator has given out within a step, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(**batch)
        loss = output.loss_sum
        del output
        loss.backward()
        model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return int(np.cumsum([num_bytes for _, num_bytes in changes]).max())


def compare_on_gpu() -> Table:
    """Peaks of real steps, plain and with checkpointing, at once and accumulated."""
    precision = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    table = Table(
        "model", "kernel", "rows", "checkpointing", "accumulation", f"peak GiB, {precision}", "predicted",
        "reserved beyond", "outside of torch",
    )  # fmt: skip
    for name, (hub_name, row_length, num_targets, row_counts) in LARGE.items():
        for kernel in ("fast", "eager") if name.startswith("DeBERTa") else ("fast",):
            shape = Shape(HUB_MODELS[hub_name], row_length, num_targets)
            request = Request(**vars(shape), precision=precision, kernel=kernel)
            trace = Trace(**answer(request))
            plain = Setting(row_counts[0], precision, kernel)  # pyright: ignore[reportArgumentType]
            settings = [
                plain,
                replace(plain, micro_batch=row_counts[1]),
                replace(plain, accumulation=2),
                replace(plain, checkpointing=True),
                replace(plain, micro_batch=row_counts[1], checkpointing=True, accumulation=2),
            ]
            for setting in settings:
                table.add_row(
                    name,
                    kernel,
                    str(setting.micro_batch),
                    "on" if setting.checkpointing else "off",
                    str(setting.accumulation),
                    *compare_setting(request, trace, setting),
                )
    return table


def compare_setting(request: Request, trace: Trace, setting: Setting) -> tuple[str, ...]:
    """Cells of a setting; a step that does not fit says so."""
    terms = predict_memory(trace, setting).gpu_terms
    predicted = sum(size for name, size in terms.items() if name not in ("context", "margin"))
    try:
        measured = measure_steps(request, setting)
    except torch.OutOfMemoryError:
        return "does not fit", f"{predicted / GIB:,.2f}", "", ""
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    beyond = f"{measured.reserved / measured.peak - 1:+.1%} (assumed {terms['margin'] / predicted:+.1%})"
    outside = f"{measured.outside / GIB:.2f} (assumed {terms['context'] / GIB:.2f})"
    return *show(measured.peak, predicted, GIB), beyond, outside


def measure_steps(request: Request, setting: Setting) -> Measured:
    """Peaks of the second of two updates, when the optimizer has its states."""
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float16
    model: Any = build_model(request, list_depths(request), device="cuda")
    if setting.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    batch = make_batch(request, model, setting.micro_batch, "cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(setting.accumulation):
            with torch.autocast("cuda", dtype=dtype):
                loss = model(**batch).loss_sum
            loss.backward()
            del loss
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    free, total = torch.cuda.mem_get_info()
    return Measured(
        torch.cuda.max_memory_allocated(),
        torch.cuda.max_memory_reserved(),
        total - free - torch.cuda.memory_reserved(),
    )


if __name__ == "__main__":
    main()
