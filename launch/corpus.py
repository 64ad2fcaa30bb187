"""The corpus of a recipe: its store, and how much is in it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.recipe import Extension, Recipe
from launch.recipe_data import Source
from launch.steps import Corpus
from launch.verdict import MACHINE, REQUEST, RunError

# Characters a piece of English text, by the size of the vocabulary: 3.2 measured at 2,000, 4.4 at 128,000.
_CHARACTERS_PER_PIECE = ((4_000, 3.2), (20_000, 3.9))
_CHARACTERS_PER_PIECE_OF_LARGE = 4.4


def store_arguments(recipe: Recipe, *, may_download: bool = True) -> dict[str, Any] | None:
    """What `data_pipes` needs to prepare or find the recipe's store.

    Args:
        recipe: the recipe.
        may_download: whether a tokenizer may be fetched from the hub; None is returned if it is not here.
    """
    data, tokenizer = recipe.data, recipe.tokenizer
    trains = tokenizer is not None and tokenizer.source == "train"
    folder = None
    if tokenizer is not None and not trains:
        folder = find_tokenizer(tokenizer.source, may_download)
        if folder is not None and tokenizer.extend is not None:
            folder = _find_extended(folder, tokenizer.extend, may_download)
        if folder is None:
            return None
    return {
        "sources": [describe_source(source) for source in data.sources],
        "clean": [rule.model_dump(exclude_none=True) for rule in data.clean],
        "kind": "characters" if recipe.model.family == "canine" else "words",
        "tokenizer": folder,
        "train_tokenizer": tokenizer.model_dump(include={"kind", "vocab_size"})
        if tokenizer and trains
        else None,
        "row_length": data.row_length,
        "packing": data.packing and recipe.model.family != "canine",
        "evaluation_share": data.evaluation_share,
        "limit": data.limit,
        "normalize": [normalizer.model_dump(exclude_none=True) for normalizer in data.normalize],
        "near_duplicates": data.near_duplicates and data.near_duplicates.model_dump(),
        "bad_input": data.bad_input.model_dump(),
        "rows_per_shard": data.shard_rows if data.streaming else 0,
    }


def describe_source(source: Source) -> dict[str, Any]:
    """A source as `data_pipes.sources.parse_source` takes it."""
    names = {"package": "name", "list_key": "key"} if source.kind == "package" else {}
    values = source.model_dump(exclude={"licence"}, exclude_none=True)
    return {names.get(key, key): value for key, value in values.items()}


def find_tokenizer(source: str, may_download: bool) -> Path | None:
    """The folder of a tokenizer: the one named, or a hub's snapshot."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from data_pipes.building.preparation import TOKENIZER_FILES

    patterns = ["config.json", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=not may_download))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        if not may_download:
            return None
        raise RunError(
            REQUEST,
            f"tokenizer.source {source!r} is no folder here and could not be had from the hub "
            f"({type(error).__name__}); give the folder of a tokenizer",
        ) from error


def _find_extended(folder: Path, extension: Extension, may_build: bool) -> Path | None:
    """The folder of a tokenizer grown by a list of terms, kept in the cache by the content of both."""
    from data_pipes.building.preparation import hash_tokenizer
    from data_pipes.files import find_cache_root, hash_file, hold_lock

    root = find_cache_root()
    try:
        parts = [hash_tokenizer(str(folder), root), hash_file(Path(extension.terms), root), extension.version]
    except OSError as error:
        raise RunError(REQUEST, f"tokenizer.extend.terms {extension.terms}: {error}") from error
    place = root / "tokenizers" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    if place.is_dir() or not may_build:
        return place if place.is_dir() else None
    from launch.vocabulary import extend

    with hold_lock(root / "tokenizers" / f"{place.name}.lock"):
        if not place.is_dir():
            extend(folder, Path(extension.terms), place, version=extension.version)
    return place


def measure_corpus(recipe: Recipe) -> Corpus:
    """How many training rows there are: counted, else declared, else estimated from file sizes."""
    from data_pipes.prepare import find_store
    from data_pipes.sources import SourceError, count_estimate

    data = recipe.data
    problem = estimate = None
    try:
        arguments = store_arguments(recipe, may_download=False)
        store = find_store(**arguments) if arguments else None
        # What a stream holds so far must not decide how long the run is: ranks look at different times.
        if store is not None and not data.streaming:
            return Corpus(store.train.num_rows, store.train.num_pieces, "prepared")
        estimate = count_estimate([describe_source(source) for source in data.sources])
    except SourceError as error:
        problem = f"the corpus is not there yet: {error}"
    except OSError as error:
        problem = f"the corpus cannot be looked at: {error}"
    if data.expected_rows or data.expected_tokens:
        return _declared(recipe, problem)
    if estimate is None:
        return Corpus(None, None, "unknown", problem)
    return _estimated(recipe, estimate.num_documents, estimate.num_characters)


def count_documents(recipe: Recipe) -> int | None:
    """Documents that a preparation will read, roughly; None where that cannot be said quickly."""
    from data_pipes.sources import SourceError, count_estimate

    try:
        estimate = count_estimate([describe_source(source) for source in recipe.data.sources])
    except (SourceError, OSError):
        return None
    if estimate is None:
        return None
    return min(estimate.num_documents, recipe.data.limit or estimate.num_documents)


def _declared(recipe: Recipe, problem: str | None) -> Corpus:
    data = recipe.data
    rows = data.expected_rows or -(-(data.expected_tokens or 0) // data.row_length)
    return Corpus(rows, data.expected_tokens, "declared", problem)


def _estimated(recipe: Recipe, num_documents: int, num_characters: int) -> Corpus:
    """Rows and tokens from a count of characters; good to a third or so."""
    data = recipe.data
    kept = min(1.0, (data.limit or num_documents) / max(1, num_documents)) * (1 - data.evaluation_share)
    num_documents, num_characters = round(num_documents * kept), round(num_characters * kept)
    if not num_documents:
        return Corpus(None, None, "unknown", "the sources hold no document")
    if recipe.model.family == "canine":
        return Corpus(num_documents, num_characters, "estimated")
    num_tokens = max(1, round(num_characters / _find_characters_per_piece(recipe)))
    if data.packing:
        return Corpus(-(-num_tokens // data.row_length), num_tokens, "estimated")
    rows_per_document = -(-num_tokens // (num_documents * (data.row_length - 2)))
    return Corpus(num_documents * rows_per_document, num_tokens, "estimated")


def _find_characters_per_piece(recipe: Recipe) -> float:
    vocab_size = recipe.tokenizer.vocab_size if recipe.tokenizer else None
    for most, characters in _CHARACTERS_PER_PIECE:
        if vocab_size is not None and vocab_size <= most:
            return characters
    return _CHARACTERS_PER_PIECE_OF_LARGE


def prepare_corpus(
    recipe: Recipe,
    progress: Callable | None = None,
    *,
    num_workers: int | None = None,
    may_grow: bool = False,
) -> Any:
    """The recipe's store, prepared if it is not there yet.

    Args:
        recipe: the recipe.
        progress: see data_pipes.prepare.prepare_store.
        num_workers: see there.
        may_grow: of a streaming recipe, give the store as soon as its first shard is there.

    Raises:
        RunError: the sources cannot be used, training and evaluation overlap or one is empty, or the store
        cannot be written.
    """
    from data_pipes.prepare import prepare_store

    try:
        arguments = store_arguments(recipe)
        assert arguments is not None
        if recipe.data.streaming and may_grow:
            from data_pipes.stream import open_stream

            store = open_stream(**arguments)
        else:
            store = prepare_store(**arguments, progress=progress, num_workers=num_workers)
    except ValueError as error:
        raise RunError(REQUEST, f"the data cannot be used: {error}") from error
    except (OSError, ModuleNotFoundError) as error:
        raise RunError(MACHINE, f"the data cannot be prepared: {error}") from error
    if store.evaluation.num_rows == 0:
        raise RunError(
            REQUEST,
            f"no document fell to the evaluation: data.evaluation_share is {recipe.data.evaluation_share} of "
            f"{store.manifest['splits']['train']['num_documents']:,} documents (or groups); raise it",
        )
    return store
