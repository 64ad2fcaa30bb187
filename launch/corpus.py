"""The corpus of a recipe: its store, and how much is in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.plan import Corpus
from launch.recipe import Recipe
from launch.recipe_data import Source
from launch.verdict import REQUEST, RunError

# English text in a vocabulary of 128,000 pieces holds 4.4 characters a piece; smaller vocabularies cut finer.
_CHARACTERS_PER_PIECE = 4.4


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
        folder = _find_tokenizer(tokenizer.source, may_download)
        if folder is None:
            return None
    return {
        "sources": [_describe_source(source) for source in data.sources],
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
    }


def _describe_source(source: Source) -> dict[str, Any]:
    names = {"package": "name", "list_key": "key"} if source.kind == "package" else {}
    values = source.model_dump(exclude={"licence"}, exclude_none=True)
    return {names.get(key, key): value for key, value in values.items()}


def _find_tokenizer(source: str, may_download: bool) -> Path | None:
    """The folder of a tokenizer: the one named, or a hub's snapshot."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from data_pipes.prepare import TOKENIZER_FILES

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


def measure_corpus(recipe: Recipe) -> Corpus:
    """How many training rows there are: counted, else declared, else estimated from file sizes."""
    from data_pipes.prepare import find_store
    from data_pipes.sources import SourceError, count_estimate

    data = recipe.data
    problem = estimate = None
    try:
        arguments = store_arguments(recipe, may_download=False)
        store = find_store(**arguments) if arguments else None
        if store is not None:
            return Corpus(store.train.num_rows, store.train.num_pieces, "prepared")
        estimate = count_estimate([_describe_source(source) for source in data.sources])
    except SourceError as error:
        problem = f"the corpus is not there yet: {error}"
    if data.expected_rows or data.expected_tokens:
        return _declared(recipe, problem)
    if estimate is None:
        return Corpus(None, None, "unknown", problem)
    return _estimated(recipe, estimate.num_documents, estimate.num_characters)


def _declared(recipe: Recipe, problem: str | None) -> Corpus:
    data = recipe.data
    rows = data.expected_rows or -(-(data.expected_tokens or 0) // data.row_length)
    return Corpus(rows, data.expected_tokens, "declared", problem)


def _estimated(recipe: Recipe, num_documents: int, num_characters: int) -> Corpus:
    share = 1 - recipe.data.evaluation_share
    if recipe.model.family == "canine":
        return Corpus(round(num_documents * share), round(num_characters * share), "estimated")
    num_tokens = round(num_characters / _CHARACTERS_PER_PIECE * share)
    return Corpus(max(1, num_tokens // recipe.data.row_length), num_tokens, "estimated")


def prepare_corpus(recipe: Recipe, progress: Callable | None = None) -> Any:
    """The recipe's store, prepared if it is not there yet.

    Raises:
        RunError: the sources cannot be used, or training and evaluation overlap.
    """
    from data_pipes.prepare import prepare_store

    arguments = store_arguments(recipe)
    assert arguments is not None
    try:
        return prepare_store(**arguments, progress=progress)
    except (ValueError, OSError) as error:
        raise RunError(REQUEST, f"the data cannot be used: {error}") from error
