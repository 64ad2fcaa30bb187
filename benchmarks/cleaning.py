"""Cleaning and duplicates against the usual loops of Python: `python -m benchmarks.cleaning`.

With no paths it makes its own text; `--text FILE.jsonl[.xz]` and `--names FILE.txt[.xz]` take real ones. One
process and one thread on both sides, turns taken alternately, medians; look at the ratios.
"""

import argparse
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable
from itertools import chain
from pathlib import Path

# Before the thread pool of rensa starts.
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import idna
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.turns import rate, take_turns, write_names, write_text
from data_pipes.clean import parse_rules
from data_pipes.duplication.duplicates import HashSet
from data_pipes.duplication.near import NearDuplicates
from data_pipes.sources import JsonlSource, TextSource, read_batches
from data_pipes.split import hash_texts

MAX_TEXT_BYTES, NUM_NAMES, NUM_HASHES = 8_000_000, 200_000, 1_000_000
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
LIGATURE_LETTERS = ("ff", "fi", "fl", "ffi", "ffl", "st", "st")
LIGATURES = str.maketrans({chr(0xFB00 + number): new for number, new in enumerate(LIGATURE_LETTERS)})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="JSONL with a column text")
    parser.add_argument("--names", type=Path, help="one name a line")
    paths = parser.parse_args(arguments)
    table = Table("what", "unit", "ours", "loop of Python", "ratio", title="cleaning and duplicates")
    with tempfile.TemporaryDirectory() as folder:
        text = paths.text or write_text(Path(folder) / "text.jsonl")
        names = paths.names or write_names(Path(folder) / "names.txt")
        _measure_texts(table, _break_lines(_read(JsonlSource(str(text)), MAX_TEXT_BYTES)))
        _measure_names(table, _read(TextSource(str(names)), 1 << 30)[:NUM_NAMES])
        _measure_sets(table, Path(folder) / "set")
    Console(highlight=False).print(table)


def _read(source: JsonlSource | TextSource, max_bytes: int) -> pa.StringArray:
    columns, num_bytes = [], 0
    for batch in read_batches(source):
        columns.append(batch.texts)
        num_bytes += batch.texts.nbytes
        if num_bytes > max_bytes:
            break
    return pa.chunked_array(columns).combine_chunks()


def _break_lines(texts: pa.StringArray) -> pa.StringArray:
    """The texts as they would be printed: lines of twelve words, every fourth one ends in a cut word."""
    broken = []
    for text in texts.to_pylist():
        words = text.split(" ")
        lines = [words[at : at + 12] for at in range(0, len(words), 12)]
        for line in lines[::4]:
            line[-1] = f"{line[-1][:3]}-\n{line[-1][3:]}"
        broken.append("\n".join(map(" ".join, lines)))
    return pa.array(broken, pa.string())


def _measure_texts(table: Table, texts: pa.StringArray) -> None:
    loops: dict[str, Callable[[str], str]] = {
        "lower": str.lower,
        "nfc": lambda text: unicodedata.normalize("NFC", text),
        "nfkc": lambda text: unicodedata.normalize("NFKC", text),
        "ligatures": lambda text: text.translate(LIGATURES),
        "hyphens": lambda text: re.sub(r"([a-z])-\s*\n\s*([a-z])", r"\1\2", text.replace("\u00ad", "")),
        "whitespace": _tidy,
    }
    for kind, loop in loops.items():
        _add(table, kind, texts, parse_rules([kind])[0].change, loop)
    heads = parse_rules(["running_heads"])[0].change
    _add(table, "running_heads (loop: split lines)", texts, heads, lambda text: "\n".join(text.split("\n")))
    near = NearDuplicates()
    seconds = take_turns(lambda: near.sketch(texts), lambda: [_shingle(text) for text in texts.to_pylist()])
    table.add_row("MinHash signature (loop: shingles)", "bytes", *rate(*(texts.nbytes / s for s in seconds)))


def _measure_names(table: Table, names: pa.StringArray) -> None:
    _add(table, "lower", names, parse_rules(["lower"])[0].change, str.lower)
    _add(table, "labels", names, parse_rules(["labels"])[0].keep, _is_valid)
    _add(table, "idn to ascii", names, parse_rules(["idn"])[0].change, _encode)
    _add(table, "hash_texts (loop: hash)", names, hash_texts, hash)


def _add(table: Table, name: str, texts: pa.StringArray, ours: Callable | None, loop: Callable) -> None:
    assert ours is not None
    seconds = take_turns(lambda: ours(texts), lambda: pa.array(list(map(loop, texts.to_pylist()))))
    table.add_row(name, "bytes", *rate(*(texts.nbytes / taken for taken in seconds)))


def _tidy(text: str) -> str:
    text = re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _shingle(text: str) -> set[int]:
    words = text.lower().split()
    return {hash(tuple(words[at : at + 5])) for at in range(len(words) - 4)}


def _is_valid(name: str) -> bool:
    return len(name) <= 253 and all(map(LABEL.fullmatch, name.split(".")))


def _encode(name: str) -> str:
    return name if name.isascii() else idna.encode(name, uts46=True).decode()


def _measure_sets(table: Table, folder: Path) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, NUM_HASHES, dtype=np.uint64)
    parts = np.split(hashes, 10)

    def add_ours() -> None:
        ours = HashSet(folder, NUM_HASHES // 4)
        for part in parts:
            ours.add(part)

    seconds = take_turns(add_ours, lambda: set(chain.from_iterable(part.tolist() for part in parts)))
    table.add_row("set of hashes, in files (a set)", "hashes", *rate(*(NUM_HASHES / s for s in seconds)))


if __name__ == "__main__":
    main()
