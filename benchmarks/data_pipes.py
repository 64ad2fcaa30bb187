"""Data pipes against what Hugging Face offers for the same: `python -m benchmarks.data_pipes`.

With no paths it makes its own text; `--text FILE.jsonl[.xz]` and `--names FILE.txt[.xz]` take real ones. One
process and one thread on both sides, turns taken alternately, medians; look at the ratios.
"""

import argparse
import os
import tempfile
import time
from itertools import chain
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
from transformers import CanineTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from benchmarks.turns import rate, take_turns, write_names, write_text
from data_pipes.collate import Layout, collate
from data_pipes.masking import Masking, hide
from data_pipes.pack import Packer
from data_pipes.prepare import prepare_store
from data_pipes.rows import Rows
from data_pipes.sources import JsonlSource, TextSource, read_batches
from data_pipes.tokenize import PieceEncoder, Pieces
from data_pipes.tokens.characters import encode_characters
from data_pipes.tokens.words import split_columns
from data_pipes.vocab import train_tokenizer

ROW_LENGTH, NUM_MASKED_ROWS = 512, 128


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="JSON lines with a key `text`")
    parser.add_argument("--names", type=Path, help="one name a line")
    parser.add_argument("--characters", type=int, default=4_000_000, help="most characters of text to use")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = Table("work", "peer", "ours", "peer's", "ratio", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        names = chosen.names or write_names(Path(folder) / "names.txt")
        text = chosen.text or write_text(Path(folder) / "text.jsonl")
        for row in [
            *compare_names(names, Path(folder)),
            *compare_text(text, chosen.characters, Path(folder)),
        ]:
            table.add_row(*row)
    Console(width=120).print(table)


def compare_names(path: Path, folder: Path) -> list[tuple[str, ...]]:
    """Names per second: the whole preparation, and code points alone, against CanineTokenizer."""
    source = {"kind": "text", "path": str(path)}
    start = time.perf_counter()
    store = prepare_store(
        sources=[source],
        kind="characters",
        row_length=64,
        evaluation_share=0.001,
        cache_root=folder / "cache",
    )
    whole = (store.train.num_rows + store.evaluation.num_rows) / (time.perf_counter() - start)
    names = next(read_batches(TextSource(str(path)))).texts[:20_000]
    strings, tokenizer = names.to_pylist(), CanineTokenizer()

    def encode_all() -> None:
        for _ in range(20):  # one pass takes milliseconds
            encode_characters(names, 62)

    ours, peer = take_turns(
        encode_all, lambda: tokenizer(strings, truncation=True, max_length=64, return_token_type_ids=False)
    )
    ours, peer = 20 * len(names) / ours, len(names) / peer
    return [
        ("names -> store (read, split, deduplicate, write, hash)", "CanineTokenizer", *rate(whole, peer)),
        ("names -> code points", "CanineTokenizer", *rate(ours, peer)),
    ]


def compare_text(path: Path, num_characters: int, folder: Path) -> list[tuple[str, ...]]:
    """Pieces per second of tokenizing and packing, and rows per second of masking."""
    texts = read_text(path, num_characters)
    tokenizer = train_tokenizer([texts], "unigram", 8000, folder / "tokenizer")
    strings = texts.to_pylist()
    num_pieces = len(PieceEncoder(tokenizer).encode(texts).ids)
    ours, plain, grouped = take_turns(
        lambda: pack_text(tokenizer, texts),
        lambda: tokenizer(strings, add_special_tokens=False, return_token_type_ids=False),
        lambda: group_text(tokenizer, strings),
    )
    work = "text -> packed rows with word starts"
    return [
        (work, "tokenizer alone", *rate(num_pieces / ours, num_pieces / plain)),
        (work, "tokenizer + run_mlm's group_texts", *rate(num_pieces / ours, num_pieces / grouped)),
        compare_masking(tokenizer, strings),
    ]


def pack_text(tokenizer: PreTrainedTokenizerBase, texts: pa.StringArray) -> int:
    """Tokenize and pack; gives the number of rows."""
    encoder = PieceEncoder(tokenizer)
    packer = Packer(ROW_LENGTH, encoder.cls_id, encoder.sep_id)
    num_rows = sum(packer.pack(encoder.encode(chunk)).num_rows for chunk in split_columns(texts))
    return num_rows + packer.finish().num_rows


def group_text(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> int:
    """Tokenize with special pieces, concatenate and cut every 512, a thousand documents at a time."""
    num_rows = 0
    for start in range(0, len(strings), 1000):
        encoded = tokenizer(strings[start : start + 1000], return_special_tokens_mask=True)
        joined = {key: list(chain.from_iterable(encoded[key])) for key in encoded}  # pyright: ignore
        end = len(joined["input_ids"]) // ROW_LENGTH * ROW_LENGTH
        rows = {
            key: [values[at : at + ROW_LENGTH] for at in range(0, end, ROW_LENGTH)]
            for key, values in joined.items()
        }
        num_rows += len(rows["input_ids"])
    return num_rows


def compare_masking(tokenizer: Any, strings: list[str]) -> tuple[str, ...]:
    """Rows per second from pieces to tensors with whole words hidden, on the same rows."""
    encoded = tokenizer(
        strings,
        truncation=True,
        max_length=ROW_LENGTH,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_token_type_ids=False,
    )
    full = [place for place, ids in enumerate(encoded["input_ids"]) if len(ids) == ROW_LENGTH]
    full = (full * NUM_MASKED_ROWS)[:NUM_MASKED_ROWS]
    examples = [{key: encoded[key][place] for key in encoded} for place in full]
    encoder = PieceEncoder(tokenizer)
    rows = frame_rows(encoder, encoder.encode(pa.array([strings[place] for place in full])))
    assert rows.pieces.tolist() == list(chain.from_iterable(example["input_ids"] for example in examples))
    specials = np.array(tokenizer.all_special_ids, np.uint32)
    randoms = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    masking = Masking("whole_word", 0.15, tokenizer.mask_token_id, randoms, specials)
    layout, row_ids = Layout("words", ROW_LENGTH), np.arange(NUM_MASKED_ROWS)
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mlm_probability=0.15, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    ours, peer = take_turns(
        lambda: collate(rows, hide(rows, masking, row_ids=row_ids, epochs=0, seed=1), layout),
        lambda: [collator(examples[at : at + 32]) for at in range(0, NUM_MASKED_ROWS, 32)],
    )
    name = "DataCollatorForLanguageModeling, batches of 32"
    return (
        "rows of 512 -> tensors, whole words",
        name,
        *rate(NUM_MASKED_ROWS / ours, NUM_MASKED_ROWS / peer),
    )


def frame_rows(encoder: PieceEncoder, pieces: Pieces) -> Rows:
    """The first 510 pieces of each document between [CLS] and [SEP]."""
    shape = (len(pieces.offsets) - 1, ROW_LENGTH)
    ids, starts = np.empty(shape, np.uint32), np.ones(shape, bool)
    places = pieces.offsets[:-1, None] + np.arange(ROW_LENGTH - 2)
    ids[:, 0], ids[:, 1:-1], ids[:, -1] = encoder.cls_id, pieces.ids[places], encoder.sep_id
    starts[:, 1:-1] = pieces.word_starts[places]
    documents = np.zeros(shape, bool)
    documents[:, 0] = True
    offsets = np.arange(shape[0] + 1) * ROW_LENGTH
    return Rows(ids.ravel(), offsets, starts.ravel(), documents.ravel())


def read_text(path: Path, num_characters: int) -> pa.StringArray:
    """The first documents of a file, up to a number of characters."""
    texts: list[str] = []
    left = num_characters
    for batch in read_batches(JsonlSource(str(path))):
        for text in batch.texts.to_pylist():
            if left <= 0:
                return pa.array(texts, pa.string())
            texts.append(text)
            left -= len(text)
    return pa.array(texts, pa.string())


if __name__ == "__main__":
    main()
