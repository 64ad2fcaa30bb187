"""Text to packed rows against `datasets.map` with the same tokenizer: `python -m benchmarks.packing`.

With no path it makes its own text; `--text FILE.jsonl[.xz]` takes a real one. One process and one thread on
every side, turns taken alternately, medians; look at the ratios. Ours finds word and sentence starts as well,
and begins each turn with an empty lexicon.

Peers: the tokenizer's own call; `datasets.map(tokenize, batched=True)`; the same and then `map(group_texts)`
of the usual training scripts, which joins documents and cuts every `row_length` pieces, wherever that is.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

# Before the tokenizers' thread pool starts.
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from benchmarks.turns import rate, take_turns, write_text
from data_pipes.pack import Packer, cut_documents
from data_pipes.sources import JsonlSource, read_batches
from data_pipes.tokenize import PieceEncoder
from data_pipes.tokens.words import split_columns, tokenize_texts
from data_pipes.vocab import SPECIAL_PIECES, train_tokenizer

ROW_LENGTHS = (64, 128, 512)
VOCAB_SIZE = 8000
NAMES = ("pad", "cls", "sep", "unk", "mask")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="JSON lines with a key `text`")
    parser.add_argument("--characters", type=int, default=4_000_000, help="most characters of text to use")
    parser.add_argument(
        "--kinds", nargs="+", choices=("unigram", "wordpiece", "byte_level"), default=["unigram"]
    )
    chosen = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    console = Console(width=120, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        texts = read_text(chosen.text or write_text(Path(folder) / "text.jsonl"), chosen.characters)
        num_characters = sum(map(len, texts.to_pylist()))
        console.print(f"{len(texts):,} documents, {num_characters:,} characters; rates in pieces/s\n")
        for kind in chosen.kinds:
            tokenizer = make_tokenizer(kind, texts, Path(folder) / kind)
            console.print(compare_speed(kind, tokenizer, texts))
            console.print()
            console.print(compare_fill(tokenizer, texts))
            console.print()


def read_text(path: Path, num_characters: int) -> pa.StringArray:
    """The first documents of a file, up to a number of characters."""
    texts: list[str] = []
    for batch in read_batches(JsonlSource(str(path))):
        for text in batch.texts.to_pylist():
            if num_characters <= 0:
                return pa.array(texts, pa.string())
            texts.append(text)
            num_characters -= len(text)
    return pa.array(texts, pa.string())


def make_tokenizer(kind: str, texts: pa.StringArray, folder: Path) -> Any:
    """A tokenizer of a kind, trained on the texts."""
    if kind == "unigram":
        return train_tokenizer([texts], "unigram", VOCAB_SIZE, folder)
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer, backend.pre_tokenizer = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
        )
        trainer = trainers.WordPieceTrainer(
            vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL_PIECES), show_progress=False
        )
        backend.train_from_iterator(texts.to_pylist(), trainer)
        return BertTokenizer(vocab=backend.get_vocab())
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_PIECES),
        show_progress=False,
    )
    backend.train_from_iterator(texts.to_pylist(), trainer)
    named = {f"{name}_token": f"[{name.upper()}]" for name in NAMES}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def compare_speed(kind: str, tokenizer: Any, texts: pa.StringArray) -> Table:
    """Pieces per second of the whole way from text to rows of 512."""
    strings = texts.to_pylist()
    num_pieces = len(tokenize_texts(PieceEncoder(tokenizer), texts).ids)
    corpus = datasets.Dataset(pa.table({"text": texts}))
    shares: list[float] = []
    ours, whole, plain, mapped, grouped = take_turns(
        lambda: shares.append(pack_text(tokenizer, texts, 512)[0]),
        lambda: [PieceEncoder(tokenizer).encode_whole(chunk) for chunk in split_columns(texts)],
        lambda: tokenizer(strings, add_special_tokens=False, return_token_type_ids=False),
        lambda: map_texts(corpus, tokenizer),
        lambda: map_groups(map_texts(corpus, tokenizer), 512),
    )
    table = Table("work", "ours against", "ours", "peer's", "ratio", box=None, pad_edge=False)
    work = f"{kind}: text -> packed rows of 512, word and sentence starts"
    for name, peer in (
        ("datasets.map(tokenize)", mapped),
        ("datasets.map(tokenize).map(group_texts)", grouped),
        ("the tokenizer's own call", plain),
        ("our own tokenizing of whole texts", whole),
    ):
        table.add_row(work, name, *rate(num_pieces / ours, num_pieces / peer))
        work = ""
    table.add_row("", "inside the tokenizer", f"{statistics.median(shares):.0%}", "", "")
    return table


class TimedTokenizer:
    """Stands in for the tokenizer inside an encoder and counts the seconds spent in it."""

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        self.seconds = 0.0

    def encode_batch(self, *arguments: Any, **named: Any) -> list:
        """As the tokenizer's."""
        start = time.perf_counter()
        try:
            return self._backend.encode_batch(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - start


def pack_text(tokenizer: Any, texts: pa.StringArray, row_length: int) -> tuple[float, int]:
    """Tokenize and pack; gives the share of the time spent in the tokenizer, and the number of rows."""
    start = time.perf_counter()
    encoder = PieceEncoder(tokenizer)
    encoder._backend = timed = TimedTokenizer(encoder._backend)  # pyright: ignore[reportAttributeAccessIssue]
    packer = Packer(row_length, encoder.cls_id, encoder.sep_id)
    num_rows = sum(packer.pack(encoder.encode(chunk)).num_rows for chunk in split_columns(texts))
    num_rows += packer.finish().num_rows
    return timed.seconds / (time.perf_counter() - start), num_rows


def map_texts(corpus: datasets.Dataset, tokenizer: Any) -> datasets.Dataset:
    """Tokenize with special pieces, as run_mlm does; nothing is read from the cache."""

    def tokenize(batch: dict[str, list]) -> Any:
        return tokenizer(batch["text"], return_special_tokens_mask=True)

    return corpus.map(tokenize, batched=True, remove_columns=["text"], load_from_cache_file=False)


def map_groups(corpus: datasets.Dataset, row_length: int) -> datasets.Dataset:
    """Join documents and cut every row_length pieces; what is left at the end of a thousand is dropped."""

    def group(batch: dict[str, list]) -> dict[str, list]:
        joined = {key: list(chain.from_iterable(values)) for key, values in batch.items()}
        end = len(next(iter(joined.values()))) // row_length * row_length
        return {
            key: [values[at : at + row_length] for at in range(0, end, row_length)]
            for key, values in joined.items()
        }

    return corpus.map(group, batched=True, load_from_cache_file=False)


def compare_fill(tokenizer: Any, texts: pa.StringArray) -> Table:
    """Share of slots that hold a piece: best fit, no packing, and a document a row cut at its end."""
    encoder = PieceEncoder(tokenizer)
    pieces = tokenize_texts(encoder, texts)
    lengths = np.diff(pieces.offsets)
    columns = ("rows of", "packed", "closed rows only", "a row a part", "a row a document", "cut off by that")
    table = Table(
        *columns, "our cuts at sentences", box=None, pad_edge=False, title="share of slots that are real"
    )
    for row_length in ROW_LENGTHS:
        packer = Packer(row_length, encoder.cls_id, encoder.sep_id)
        closed, opened = packer.pack(pieces), packer.finish()
        single = Packer(row_length, encoder.cls_id, encoder.sep_id, is_packed=False).pack(pieces)
        num_pieces, num_rows = len(closed.pieces) + len(opened.pieces), closed.num_rows + opened.num_rows
        starts, _ = cut_documents(pieces, row_length - 2)
        inner = np.setdiff1d(starts, pieces.offsets)
        kept = np.minimum(lengths, row_length - 2)
        shares = [
            num_pieces / (num_rows * row_length),
            len(closed.pieces) / max(1, closed.num_rows * row_length),
            single.lengths.mean() / row_length,
            (kept + 2).mean() / row_length,
            1 - kept.sum() / lengths.sum(),
            pieces.sentence_starts[inner].mean() if len(inner) else 1.0,
        ]
        table.add_row(str(row_length), *(f"{share:.1%}" for share in shares))
    return table


if __name__ == "__main__":
    main()
