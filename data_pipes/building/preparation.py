"""What a store is prepared from: all settings that its content depends on, and their key."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipes.building.input import read_sources
from data_pipes.clean import parse_rules
from data_pipes.documents import Batch, SourceError
from data_pipes.files import hash_file
from data_pipes.normalize import hash_normalizers, parse_normalizers
from data_pipes.reading.hub import HubSource, fetch_commit
from data_pipes.reading.intake import Intake
from data_pipes.sources import Source, hash_source, parse_source
from data_pipes.store import FORMAT_VERSION

# Raise it when the same settings would give other bytes.
CONTENT_VERSION = 3
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class Preparation:
    """All settings of a store.

    Attributes:
        sources: where the text comes from, in order.
        kind: rows of pieces, or rows of characters.
        row_length: most pieces in a row, [CLS] and [SEP] included (character rows leave room for both).
        clean: rules in order, see clean.RULES.
        normalize: normalisers in order, after cleaning, see normalize.
        tokenizer: folder of a trained one (words only).
        train_tokenizer: {kind, vocab_size} to train one on the training split instead.
        packing: several documents a row (words only).
        evaluation_share: share of the documents (or groups) held out, 0-1.
        limit: most documents to read, over all sources in order, or shared out by their weights.
        near_duplicates: {threshold, ...} of near.NearDuplicates; None: exact duplicates only.
        bad_input: {policy, max_bad_share} of intake.Intake.
        rows_per_shard: above 0 the store is a stream: it may be trained on while it grows, one shard of so
            many rows after the other. What falls to the evaluation after the first shard is left out.
    """

    sources: tuple[Source, ...]
    kind: Literal["words", "characters"]
    row_length: int
    clean: tuple[dict | str, ...] = ()
    normalize: tuple[dict | str, ...] = ()
    tokenizer: str | None = None
    train_tokenizer: dict[str, Any] | None = None
    packing: bool = True
    evaluation_share: float = 0.01
    limit: int | None = None
    near_duplicates: dict[str, Any] | None = None
    bad_input: dict[str, Any] | None = None
    rows_per_shard: int = 0

    def __post_init__(self):
        if not self.sources:
            raise SourceError("data.sources is empty; name at least one text")
        if not 0 <= self.evaluation_share < 1:
            raise ValueError(f"evaluation_share is {self.evaluation_share}; wanted at least 0 and below 1")
        if self.row_length < 3:
            raise ValueError(f"row_length is {self.row_length}; wanted at least 3")
        num_tokenizers = (self.tokenizer is not None) + (self.train_tokenizer is not None)
        if num_tokenizers != (self.kind == "words"):
            wanted = "one of tokenizer and train_tokenizer" if self.kind == "words" else "no tokenizer"
            raise ValueError(f"rows of {self.kind} want {wanted}, and {num_tokenizers} were given")
        if self.rows_per_shard and self.train_tokenizer is not None:
            raise ValueError("a stream cannot be read twice: give the folder of a trained tokenizer")
        parse_rules(list(self.clean))
        parse_normalizers(list(self.normalize))

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Preparation":
        """Make one of plain settings; sources may be dictionaries, a tokenizer a path."""
        settings = dict(settings)
        sources = tuple(parse_source(spec) for spec in settings.pop("sources"))
        tokenizer = settings.pop("tokenizer", None)
        lists = {name: tuple(settings.pop(name, None) or ()) for name in ("clean", "normalize")}
        return cls(sources=sources, tokenizer=tokenizer and str(tokenizer), **lists, **settings)

    def open_intake(self) -> Intake:
        """A new count of bad input, under the settings' policy."""
        return Intake(**(self.bad_input or {}))

    def read(self, root: Path, intake: Intake) -> Iterator[tuple[int, Batch]]:
        """The raw documents of all sources, see input.read_sources."""
        return read_sources(self.sources, root, intake, limit=self.limit, bad_input=self.bad_input)

    def settle_sources(self) -> None:
        """Ask a hub for what decides the key; before `compute_key`, where a store may be built."""
        for source in self.sources:
            if isinstance(source, HubSource):
                fetch_commit(source)

    def compute_key(self, cache_root: Path) -> str:
        """A hash of all that decides the store's content; names and places of files do not count."""
        parts = asdict(self) | {
            "sources": [hash_source(source, cache_root) for source in self.sources],
            # Weights decide what is read only where a limit is shared out by them.
            "weights": None if self.limit is None else [source.weight for source in self.sources],
            "normalize": hash_normalizers(list(self.normalize)),
            "versions": [CONTENT_VERSION, FORMAT_VERSION],
            "tokenizer": None if self.tokenizer is None else hash_tokenizer(self.tokenizer, cache_root),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def hash_tokenizer(folder: str, cache_root: Path) -> dict[str, str]:
    """SHA-256 of each file of a tokenizer."""
    found = {path for pattern in TOKENIZER_FILES for path in Path(folder).glob(pattern) if path.is_file()}
    if not found:
        raise SourceError(f"{folder} holds no tokenizer (wanted tokenizer.json or a vocabulary file)")
    return {path.name: hash_file(path, cache_root) for path in sorted(found)}
