"""Random rows against `datasets`, and threads of the feed: `python -m benchmarks.rows [--rows 10_000_000]`.

A store and an Arrow dataset of the same made-up rows (or of the names of `--names FILE.txt[.xz]`, repeated)
are written and read once, so the page cache is warm. Then a fresh process for each turn opens one of them,
shuffles it and reads batches of 1,024 random rows: the store by its keyed permutation, the dataset by
`shuffle(seed)` and slices, as Arrow tables (which copies least) or as numpy arrays. Medians of turns taken in
turn, one thread each.
"""

import argparse
import json
import lzma
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipes.building.writer import SplitWriter
from data_pipes.collate import Layout
from data_pipes.feed import Feed
from data_pipes.masking import Masking
from data_pipes.order import PlainOrder
from data_pipes.store import StoredRows

NUM_TURNS, NUM_BATCHES, BATCH_ROWS = 5, 100, 1024
WORD_LENGTH, ROWS_PER_WORD_ROW = 512, 50
WORD_BITS = np.uint32(1 << 31)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of names; a fiftieth of word rows")
    parser.add_argument("--names", type=Path, help="one name a line")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.read:
        side, folder = chosen.read
        print(json.dumps(SIDES[side](Path(folder))))
        return
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as made:
        for kind, num_rows in (("characters", chosen.rows), ("words", chosen.rows // ROWS_PER_WORD_ROW)):
            folder = Path(made) / kind
            folder.mkdir()
            write_rows(folder, kind, num_rows, chosen.names)
            console.print(compare_reading(folder, kind, num_rows))
            console.print(compare_threads(folder, kind))


def write_rows(folder: Path, kind: str, num_rows: int, names: Path | None) -> None:
    """Write a store and an Arrow dataset of the same rows."""
    import datasets
    import pyarrow as pa

    writer = SplitWriter(folder, "train", "words" if kind == "words" else "characters", WORD_LENGTH)
    chance, tables = np.random.default_rng(0), []
    pool = read_names(names) if names and kind == "characters" else None
    for first in range(0, num_rows, 1 << 18):
        size = min(1 << 18, num_rows - first)
        if kind == "words":
            lengths = np.full(size, WORD_LENGTH)
            pieces = chance.integers(5, 128_000, lengths.sum(), dtype=np.uint32)
            bits = (chance.random(len(pieces)) < 0.7) * WORD_BITS
        else:
            pieces, lengths = make_names(chance, size) if pool is None else repeat_names(pool, first, size)
            bits = np.uint32(0)
        writer.append(pieces | bits, lengths)
        # The dataset holds the ids alone, in the smallest type.
        values = pa.array(pieces if kind == "words" else pieces.astype(np.uint8))
        offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
        tables.append(pa.table({"input_ids": pa.ListArray.from_arrays(offsets, values)}))
    (folder / "summary.json").write_text(json.dumps(writer.close()))
    datasets.disable_progress_bars()
    datasets.Dataset(pa.concat_tables(tables)).save_to_disk(folder / "arrow")


def make_names(chance: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Letters and lengths of made-up names, 4 to 30 long and 16 on average."""
    lengths = np.clip(chance.normal(16, 5, number).round(), 4, 30).astype(np.int64)
    return chance.integers(97, 123, lengths.sum(), dtype=np.uint32), lengths


def read_names(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Code points and starts of all names of a file, ASCII ones."""
    text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    flat = np.frombuffer(text.rstrip(b"\n") + b"\n", np.uint8)
    ends = np.flatnonzero(flat == 10)
    return flat, np.concatenate(([0], ends + 1))


def repeat_names(
    pool: tuple[np.ndarray, np.ndarray], first: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Names from a place on, from the start again behind the last."""
    flat, starts = pool
    chosen = (first + np.arange(number)) % (len(starts) - 1)
    lengths = starts[chosen + 1] - 1 - starts[chosen]
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return flat[np.repeat(starts[chosen], lengths) + inside].astype(np.uint32), lengths


def compare_reading(folder: Path, kind: str, num_rows: int) -> Table:
    """Rows per second, and the seconds to the first batch, each turn in a process of its own."""
    for path in folder.rglob("*"):  # warms the page cache
        if path.is_file():
            path.read_bytes()
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for _ in range(NUM_TURNS):
        for side, turns in found.items():
            command = [sys.executable, "-m", "benchmarks.rows", "--read", side, str(folder)]
            turns.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    columns = ("rows/s", "ratio", "seconds to the first batch", "ratio")
    table = Table(f"{num_rows:,} rows of {kind}", *columns, box=None, pad_edge=False)
    speeds, waits = (
        {side: statistics.median(turn[place] for turn in turns) for side, turns in found.items()}
        for place in (0, 1)
    )
    for side in SIDES:
        ratios = speeds["store"] / speeds[side], waits[side] / waits["store"]
        table.add_row(
            side, f"{speeds[side]:,.0f}", f"{ratios[0]:.1f}", f"{waits[side]:.4f}", f"{ratios[1]:.1f}"
        )
    return table


def read_store(folder: Path) -> tuple[float, float]:
    """Rows per second after the first batch, and seconds up to it."""
    start = time.perf_counter()
    rows = open_rows(folder)
    order = PlainOrder(rows.num_rows, seed=1)
    return time_batches(start, lambda batch: rows.take(order.rows_of_step(batch, BATCH_ROWS)[0]))


def read_dataset(folder: Path, kind: str) -> tuple[float, float]:
    """The same of the dataset, in one of its formats."""
    import datasets

    datasets.disable_caching()
    start = time.perf_counter()
    dataset = datasets.load_from_disk(folder / "arrow").shuffle(seed=1).with_format(kind)
    most = max(1, len(dataset) // BATCH_ROWS)

    def read(batch: int) -> object:
        first = batch % most * BATCH_ROWS
        return dataset[first : first + BATCH_ROWS]

    return time_batches(start, read)


SIDES = {
    "store": read_store,
    "datasets, arrow": lambda folder: read_dataset(folder, "arrow"),
    "datasets, numpy": lambda folder: read_dataset(folder, "numpy"),
}


def time_batches(start: float, read: Callable[[int], object]) -> tuple[float, float]:
    """Read the first batch, then the rest."""
    read(0)
    middle = time.perf_counter()
    for batch in range(1, NUM_BATCHES + 1):
        read(batch)
    end = time.perf_counter()
    return NUM_BATCHES * BATCH_ROWS / (end - middle), middle - start


def open_rows(folder: Path) -> StoredRows:
    """The training rows of a written folder."""
    kind = "words" if folder.name == "words" else "characters"
    return StoredRows(folder, kind, json.loads((folder / "summary.json").read_text()))


def compare_threads(folder: Path, kind: str) -> Table:
    """Rows per second from the store to masked tensors, prepared by 0 to 4 threads."""
    is_words = kind == "words"
    specials = np.arange(5, dtype=np.uint32)
    feed = Feed(
        open_rows(folder),
        layout=Layout("words" if is_words else "characters", WORD_LENGTH if is_words else 66),
        masking=Masking(
            kind="whole_word" if is_words else "character",
            rate=0.15,
            mask_piece=4 if is_words else 0xE003,
            random_pieces=np.arange(5, 128_000) if is_words else np.arange(97, 123),
            special_pieces=specials if is_words else np.zeros(0, np.uint32),
        ),
        seed=1,
        global_batch=8 if is_words else 256,
        micro_batch=8 if is_words else 128,
    )
    num_steps = 100
    numbers = (0, 1, 2, 4)
    seconds = {number: [] for number in numbers}
    num_pieces = 0
    for turn in range(NUM_TURNS + 1):
        for number in numbers:
            start = time.perf_counter()
            num_pieces = sum(step.num_pieces for step in feed.steps(0, num_steps, num_workers=number))
            if turn:
                seconds[number].append(time.perf_counter() - start)
    shape = f"{feed.global_batch} x {WORD_LENGTH}" if is_words else f"{feed.global_batch} names in 2 parts"
    table = Table(
        f"feed, steps of {shape}", "rows/s", "pieces/s", "against 1 thread", box=None, pad_edge=False
    )
    medians = {number: statistics.median(times) for number, times in seconds.items()}
    for number, median in medians.items():
        name = f"{number} threads" if number else "no thread, inline"
        rates = (f"{count / median:,.0f}" for count in (num_steps * feed.global_batch, num_pieces))
        table.add_row(name, *rates, f"{medians[1] / median:.2f}")
    return table


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
