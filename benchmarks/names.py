"""Names at scale: `python -m benchmarks.names` prepares 1 M and 10 M made-up domain names.

Each size runs in a fresh process: time, peak resident memory (the file cache that a memory map shows as
resident included) and bytes on disk, while it is prepared and while a thousand batches are read. The last
line extrapolates to 255 M names; it is derived, not measured.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

LARGE = 255_000_000
BATCH, NUM_BATCHES = 1024, 1000
TLDS = (b".com", b".net", b".org", b".de", b".co.uk", b".info", b".xyz", b".nl")


def main(arguments: list[str] | None = None) -> None:
    """Measure each size in its own process and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--step", choices=["prepare", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.step:
        print(json.dumps(STEPS[chosen.step](chosen.folder)))
        return
    table = Table("names", "prepared in", "names/s", "peak", "read", "peak", "bytes a name", box=None)
    rates, num_bytes = [], 0.0
    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_many_names(folder / "names.txt", size)
            prepared, read = (_run(step, folder) for step in STEPS)
            rates.append(prepared["seconds"] / size)
            num_bytes = prepared["bytes_per_name"]
            table.add_row(
                f"{size:,}",
                f"{prepared['seconds']:.1f} s",
                f"{size / prepared['seconds']:,.0f}",
                f"{prepared['peak_bytes'] / 2**20:,.0f} MiB",
                f"{read['rows_per_second']:,.0f} rows/s",
                f"{read['peak_bytes'] / 2**20:,.0f} MiB",
                f"{prepared['bytes_per_name']:.2f}",
            )
    console = Console(width=120, highlight=False)
    console.print(table)
    if len(rates) > 1:
        console.print(f"seconds a name, last size over first: {rates[-1] / rates[0]:.2f}")
    console.print(
        f"derived: {LARGE:,} names take {LARGE * rates[-1] / 60:.0f} min and "
        f"{LARGE * num_bytes / 1e9:.1f} GB on disk"
    )


def _run(step: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.names", "--step", step, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def prepare(folder: Path) -> dict:
    """Build the store."""
    from data_pipes.prepare import prepare_store

    start = time.perf_counter()
    store = prepare_store(**_settings(folder))
    seconds = time.perf_counter() - start
    num_bytes = sum(path.stat().st_size for path in store.folder.iterdir())
    num_names = store.train.num_rows + store.evaluation.num_rows
    return {"seconds": seconds, "bytes_per_name": num_bytes / num_names, "peak_bytes": _peak_bytes()}


def read(folder: Path) -> dict:
    """Read random batches of the store."""
    from data_pipes.order import PlainOrder
    from data_pipes.prepare import prepare_store

    rows = prepare_store(**_settings(folder), verify=False).train
    order = PlainOrder(rows.num_rows, seed=1)
    start = time.perf_counter()
    for step in range(NUM_BATCHES):
        rows.take(order.rows_of_step(step, BATCH)[0])
    seconds = time.perf_counter() - start
    return {"rows_per_second": BATCH * NUM_BATCHES / seconds, "peak_bytes": _peak_bytes()}


STEPS = {"prepare": prepare, "read": read}


def _settings(folder: Path) -> dict:
    source = {"kind": "text", "path": str(folder / "names.txt")}
    names = {"sources": [source], "kind": "characters", "row_length": 66, "evaluation_share": 0.001}
    return {**names, "clean": ["lower"], "cache_root": folder / "cache"}


def _peak_bytes() -> int:
    of_all = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(who).ru_maxrss * 1024 for who in of_all)


def write_many_names(path: Path, number: int) -> None:
    """Made-up names whose lengths are those of registered ones: mean 14, from 4 to 40."""
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, number, 100_000):
            count = min(100_000, number - start)
            lengths = np.clip(generator.gamma(4.0, 2.4, count).astype(int) + 1, 1, 36)
            letters = generator.integers(97, 123, lengths.sum()).astype(np.uint8).tobytes()
            ends = np.cumsum(lengths).tolist()
            tails = generator.integers(0, len(TLDS), count).tolist()
            file.write(
                b"".join(
                    letters[end - length : end] + TLDS[tail] + b"\n"
                    for end, length, tail in zip(ends, lengths.tolist(), tails, strict=True)
                )
            )


if __name__ == "__main__":
    main()
