"""Masks and tensors against what Hugging Face offers for the same: `python -m benchmarks.masking`.

With no paths it makes its own text; `--text FILE.jsonl[.xz]` and `--names FILE.txt[.xz]` take real ones. One
process and one thread on both sides, turns taken alternately, medians of processor time (waiting for a busy
machine is nobody's work); look at the ratios. Ours repeats its work until its turn is about as long as the
other's, since otherwise it is measured with cold caches and the other is not.
"""

import argparse
import json
import lzma
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

# Before the tokenizers' thread pool starts.
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table
from transformers import CanineTokenizer, DataCollatorForLanguageModeling

from benchmarks.turns import NUM_TURNS, rate, write_names, write_text
from data_pipes.collate import MASK_CHARACTER, NOT_A_TARGET, Layout, collate
from data_pipes.documents import flatten_code_points
from data_pipes.masking import Hidden, Masking, hide
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from data_pipes.vocab import train_tokenizer

NUM_ROWS, ROW_LENGTH, NUM_CHARACTERS = 128, 512, 1_500_000
NUM_NAMES, NUM_PEER_NAMES, NAME_LENGTH = 16_384, 1024, 128
CLS_CHARACTER, SEP_CHARACTER = 0xE000, 0xE001


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="JSON lines with a key `text`")
    parser.add_argument("--names", type=Path, help="one name a line")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = Table("work", "peer", "ours", "peer's", "ratio", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        text = chosen.text or write_text(Path(folder) / "text.jsonl")
        names = chosen.names or write_names(Path(folder) / "names.txt")
        for row in chain(compare_words(text, Path(folder)), compare_names(names)):
            table.add_row(*row)
    Console(width=130).print(table)


def compare_words(path: Path, folder: Path) -> Iterator[tuple[str, ...]]:
    """Rows per second from pieces to tensors with whole words hidden, on the same rows."""
    texts, left = [], NUM_CHARACTERS
    for line in read_lines(path):
        texts.append(json.loads(line)["text"])
        left -= len(texts[-1])
        if left <= 0:
            break
    tokenizer: Any = train_tokenizer([pa.array(texts, pa.string())], "unigram", 8000, folder / "tokenizer")
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=ROW_LENGTH,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_token_type_ids=False,
    )
    full = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) == ROW_LENGTH]
    full = (full * NUM_ROWS)[:NUM_ROWS]
    examples = [{key: encoded[key][place] for key in encoded} for place in full]
    rows = frame_rows(PieceEncoder(tokenizer), [texts[place] for place in full])
    assert rows.pieces.tolist() == list(chain.from_iterable(example["input_ids"] for example in examples))
    specials = np.array(tokenizer.all_special_ids, np.uint32)
    randoms = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    layout = Layout("words", ROW_LENGTH)
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mlm_probability=0.15, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    for kind, batch in (("whole_word", 8), ("whole_word", 32), ("span", 8)):
        masking = Masking(kind, 0.15, tokenizer.mask_token_id, randoms, specials)  # pyright: ignore[reportArgumentType]
        parts = [np.arange(at, at + batch) for at in range(0, NUM_ROWS, batch)]
        taken = [rows.take(part) for part in parts]

        def ours(masking=masking, parts=parts, taken=taken) -> None:
            for part, ids in zip(taken, parts, strict=True):
                collate(part, hide(part, masking, row_ids=ids, epochs=0, seed=1), layout)

        def peer(batch=batch) -> None:
            for at in range(0, NUM_ROWS, batch):
                collator(examples[at : at + batch])

        yield (
            f"{batch} rows of {ROW_LENGTH} -> tensors, {kind}",
            "DataCollatorForLanguageModeling, whole words",
            *compare(ours, NUM_ROWS, peer, NUM_ROWS),
        )

    masking = Masking("whole_word", 0.15, tokenizer.mask_token_id, randoms, specials)  # pyright: ignore[reportArgumentType]

    def hide_together() -> None:
        hidden = hide(rows, masking, row_ids=np.arange(NUM_ROWS), epochs=0, seed=1)
        for first in range(0, NUM_ROWS, 8):
            part = slice(first * ROW_LENGTH, (first + 8) * ROW_LENGTH)
            cut = Hidden(hidden.inputs[part], hidden.is_target[part])
            collate(rows.cut(first, first + 8), cut, layout)

    yield (
        f"the same, {NUM_ROWS // 8} micro-batches of 8 hidden together, as the feed does",
        "DataCollatorForLanguageModeling, whole words",
        *compare(
            hide_together,
            NUM_ROWS,
            lambda: [collator(examples[at : at + 8]) for at in range(0, NUM_ROWS, 8)],
            NUM_ROWS,
        ),
    )


def compare_names(path: Path) -> Iterator[tuple[str, ...]]:
    """Names per second from code points to masked batches of exact lengths, sorted as the feed does."""
    names = pa.array(list(islice(read_lines(path), NUM_NAMES)), pa.string())
    pieces, offsets = flatten_code_points(names)
    flags = np.ones(len(pieces), bool)
    unsorted = Rows(pieces.astype(np.uint32), offsets.astype(np.int64), flags, ~flags)
    order = np.argsort(-unsorted.lengths, kind="stable")
    peer_names = names.take(pa.array(order)).to_pylist()[:: len(names) // NUM_PEER_NAMES]
    tokenizer, chance = CanineTokenizer(), np.random.default_rng(0)
    layout = Layout("characters", int(unsorted.lengths.max()))
    randoms = np.unique(unsorted.pieces)

    def peer() -> None:
        mask_in_loop(tokenizer, peer_names, randoms, chance)

    choices = [("character", "any", 2048), ("character", "any", 16_384), ("character_span", "any", 2048)]
    for kind, suffix, batch in [*choices, ("character", "never", 2048), ("character", "always", 2048)]:
        masking = Masking(kind, 0.15, MASK_CHARACTER, randoms, np.zeros(0), suffix=suffix)  # pyright: ignore[reportArgumentType]
        parts = [order[at : at + batch] for at in range(0, len(order), batch)]

        def ours(masking=masking, parts=parts) -> None:
            for ids in parts:
                part = unsorted.take(ids)
                collate(part, hide(part, masking, row_ids=ids, epochs=0, seed=1), layout)

        yield (
            f"names -> batches of {batch:,}, {kind}, suffix {suffix}",
            "CanineTokenizer padded to 128, a loop over rows",
            *compare(ours, len(order), peer, len(peer_names)),
        )


def mask_in_loop(tokenizer: Any, names: list[str], randoms: np.ndarray, chance: np.random.Generator) -> None:
    """What one writes by hand: tokenize padded, then hide characters row by row."""
    for at in range(0, len(names), 256):
        encoded = tokenizer(
            names[at : at + 256],
            padding="max_length",
            truncation=True,
            max_length=NAME_LENGTH,
            return_tensors="pt",
        )
        inputs = encoded["input_ids"]
        labels = torch.full_like(inputs, NOT_A_TARGET)
        for row, own_labels in zip(inputs, labels, strict=True):
            is_special = (row == 0) | (row == CLS_CHARACTER) | (row == SEP_CHARACTER)
            places = (~is_special).nonzero().flatten().tolist()
            for place in chance.permutation(places)[: max(1, round(0.15 * len(places)))].tolist():
                own_labels[place] = row[place]
                draw = chance.random()
                if draw < 0.8:
                    row[place] = MASK_CHARACTER
                elif draw < 0.9:
                    row[place] = int(chance.choice(randoms))


def compare(
    ours: Callable[[], Any], num_ours: int, peer: Callable[[], Any], num_peer: int
) -> tuple[str, str, str]:
    """Both rates and their ratio, with turns of about equal length."""
    seconds = [_measure(work) for work in (ours, peer, ours, peer)][2:]
    num_repeats = max(1, round(seconds[1] / seconds[0]))

    def repeat() -> None:
        for _ in range(num_repeats):
            ours()

    turns = [(_measure(repeat), _measure(peer)) for _ in range(NUM_TURNS)]
    first, second = (statistics.median(column) for column in zip(*turns, strict=True))
    return rate(num_repeats * num_ours / first, num_peer / second)


def _measure(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def frame_rows(encoder: PieceEncoder, texts: list[str]) -> Rows:
    """The first 510 pieces of each text between [CLS] and [SEP]."""
    pieces = encoder.encode(pa.array(texts, pa.string()))
    shape = (len(texts), ROW_LENGTH)
    ids, starts, documents = np.empty(shape, np.uint32), np.ones(shape, bool), np.zeros(shape, bool)
    places = pieces.offsets[:-1, None] + np.arange(ROW_LENGTH - 2)
    ids[:, 0], ids[:, 1:-1], ids[:, -1] = encoder.cls_id, pieces.ids[places], encoder.sep_id
    starts[:, 1:-1] = pieces.word_starts[places]
    documents[:, 0] = True
    return Rows(ids.ravel(), np.arange(shape[0] + 1) * ROW_LENGTH, starts.ravel(), documents.ravel())


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain or .xz."""
    with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
        for line in file:
            yield line.rstrip("\n")


if __name__ == "__main__":
    main()
