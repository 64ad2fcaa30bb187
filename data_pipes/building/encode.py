"""Encoding: a batch of raw documents as pieces, in this process or in others, in order.

Everything here is a pure function of the batch and the settings, so that any number of processes gives the
same. What looks across batches (duplicates, packing) is the builder's.

Shapes: D documents, N pieces in all of them.
"""

import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipes.building.preparation import Preparation
from data_pipes.clean import apply_rules, drop_unfit_characters, parse_rules
from data_pipes.documents import Batch, pc
from data_pipes.normalize import normalize_texts, parse_normalizers
from data_pipes.split import choose_evaluation, hash_texts
from data_pipes.tokenize import PieceEncoder, Pieces
from data_pipes.tokens.characters import encode_characters
from data_pipes.tokens.words import tokenize_texts

if TYPE_CHECKING:
    from data_pipes.duplication.near import NearDuplicates

# Other processes cost seconds to start; a smaller corpus (bytes) is done before they are up.
INLINE_BYTES = 1 << 25


@dataclass(frozen=True)
class Encoded:
    """D cleaned documents as pieces.

    Attributes:
        batch: the documents; their texts serve messages only.
        hashes: of the texts, uint64 [D].
        is_evaluation: bool [D].
        pieces: of all documents, end to end; of characters the ids are code points.
        is_cut: of characters: whether the document lost its end, bool [D].
        sketches: MinHash signatures [D, P] where near-duplicates are looked for.
        dropped: documents removed, by reason.
    """

    batch: Batch
    hashes: np.ndarray
    is_evaluation: np.ndarray
    pieces: Pieces
    is_cut: np.ndarray
    sketches: np.ndarray | None
    dropped: Counter


class BatchEncoder:
    """Cleans, normalises, splits and encodes batches.

    Args:
        preparation: the settings.
        tokenizer: folder of the tokenizer of a word store.
    """

    def __init__(self, preparation: Preparation, tokenizer: Path | None = None):
        self._preparation = preparation
        self._rules = parse_rules(list(preparation.clean))
        self._normalizers = parse_normalizers(list(preparation.normalize))
        self._encoder = None if tokenizer is None else PieceEncoder.from_folder(tokenizer)
        self._near = open_near_duplicates(preparation)

    def clean(self, batch: Batch, dropped: Counter) -> Batch:
        """The documents as they are encoded; `dropped` counts those that are not."""
        batch = apply_rules(batch, self._rules, dropped)
        if self._normalizers:
            batch = batch.with_texts(normalize_texts(batch.texts, self._normalizers))
        if self._preparation.kind == "characters":
            batch = drop_unfit_characters(batch, dropped)
        return batch

    def encode(self, batch: Batch) -> Encoded:
        """Encode one batch."""
        dropped: Counter = Counter()
        batch = self.clean(batch, dropped)
        hashes = hash_texts(batch.texts)
        is_evaluation = choose_evaluation(batch, hashes, self._preparation.evaluation_share)
        if self._encoder is None:
            capacity = self._preparation.row_length - 2
            ids, lengths, _ = encode_characters(batch.texts, capacity)
            is_cut = pc.greater(pc.utf8_length(batch.texts), capacity).to_numpy(zero_copy_only=False)
            offsets = np.concatenate(([0], np.cumsum(lengths)))
            pieces = Pieces(ids, offsets, np.zeros(0, bool), np.zeros(0, bool))
        else:
            pieces = tokenize_texts(self._encoder, batch.texts)
            is_cut = np.zeros(batch.num_documents, bool)
        sketches = None if self._near is None else self._near.sketch(batch.texts)
        return Encoded(batch, hashes, is_evaluation, pieces, is_cut, sketches, dropped)


def open_near_duplicates(preparation: Preparation, folder: Path | None = None) -> "NearDuplicates | None":
    """What finds near-duplicates, if they are looked for."""
    if preparation.near_duplicates is None:
        return None
    # Imported here: its library is optional.
    from data_pipes.duplication.near import NearDuplicates

    return NearDuplicates(**preparation.near_duplicates, folder=folder)


def encode_in_order(
    batches: Iterable[Batch], preparation: Preparation, tokenizer: Path | None, num_workers: int
) -> Iterator[Encoded]:
    """Encode batches and give them in their order.

    Args:
        batches: read as they are needed.
        preparation: the settings.
        tokenizer: folder of the tokenizer of a word store.
        num_workers: processes for all but the first 32 MiB of text; below 2: all is done here.
    """
    encoder, num_bytes = BatchEncoder(preparation, tokenizer), 0
    remaining = iter(batches)
    for batch in remaining:
        yield encoder.encode(batch)
        num_bytes += batch.texts.nbytes
        if num_workers > 1 and num_bytes > INLINE_BYTES:
            yield from _encode_elsewhere(remaining, preparation, tokenizer, num_workers)


def _encode_elsewhere(
    batches: Iterator[Batch], preparation: Preparation, tokenizer: Path | None, num_workers: int
) -> Generator[Encoded, None, None]:
    # A forked process would inherit the locks of this one's threads.
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(preparation, tokenizer),
    )
    ahead: deque[Future[Encoded]] = deque()
    try:
        for batch in batches:
            ahead.append(pool.submit(_encode_here, batch))
            if len(ahead) > num_workers + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: BatchEncoder | None = None


def _start_worker(preparation: Preparation, tokenizer: Path | None) -> None:
    global _worker
    # The processes are the parallelism: threads on top would fight for the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = BatchEncoder(preparation, tokenizer)


def _encode_here(batch: Batch) -> Encoded:
    assert _worker is not None
    return _worker.encode(batch)


def take_documents(pieces: Pieces, is_kept: np.ndarray) -> Pieces:
    """The pieces of the documents where is_kept (bool [D]) is true."""
    if is_kept.all():
        return pieces
    lengths = np.diff(pieces.offsets)
    is_piece_kept = np.repeat(is_kept, lengths)
    flags = {
        name: flag[is_piece_kept] if len(flag) else flag
        for name, flag in (("word_starts", pieces.word_starts), ("sentence_starts", pieces.sentence_starts))
    }
    offsets = np.concatenate(([0], np.cumsum(lengths[is_kept])))
    return replace(pieces, ids=pieces.ids[is_piece_kept], offsets=offsets, **flags)
