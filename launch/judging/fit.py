"""Fit: whether a saved model reads the pieces or characters that a recipe's rows are made of."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipes.tokenize import TokenizerError
from data_pipes.tokens.words import load_tokenizer
from data_pipes.vocabulary.identity import identify_tokenizer
from launch.verdict import REQUEST, RunError

_VOCABULARIES = ("tokenizer.json", "spm.model", "tokenizer.model", "vocab.txt", "vocab.json")
_SHOWN = 3


def check_pieces(folder: Path, tokenizer: Any, num_rows: int) -> str | None:
    """Compare a model's own tokenizer with the one that cuts the rows.

    Args:
        folder: of the model.
        tokenizer: of the recipe.
        num_rows: of the model's table of pieces.

    Returns:
        What to know about the figures; None: both tokenizers do the same.

    Raises:
        RunError: the model would read other pieces than the rows have.
    """
    num_pieces = len(tokenizer)
    if num_rows < num_pieces:
        raise RunError(
            REQUEST,
            f"{folder} knows {num_rows:,} pieces and the recipe's tokenizer has {num_pieces:,}; give the "
            "recipe that the model was trained with",
        )
    own = _load_own(folder)
    if own is None:
        return (
            f"{folder} has no tokenizer beside it: that its pieces are those of the recipe cannot be checked"
        )
    if identify_tokenizer(own)["sha256"] == identify_tokenizer(tokenizer)["sha256"]:
        return None
    theirs, ours = own.get_vocab(), tokenizer.get_vocab()
    others = sorted((number, piece) for piece, number in ours.items() if theirs.get(piece) != number)
    if others:
        shown = ", ".join(f"{piece!r} is {number}" for number, piece in others[:_SHOWN])
        raise RunError(
            REQUEST,
            f"{folder} was trained with another vocabulary: {len(others):,} of the {num_pieces:,} pieces of "
            f"the recipe's tokenizer are not where the model has them ({shown} in the recipe's); give the "
            "recipe that it was trained with, or tokenizer.source with the model's folder",
        )
    num_more = len(theirs) - num_pieces
    if num_more:
        return (
            f"{folder} has {num_more:,} pieces more than the recipe's tokenizer cuts: the text is cut as the "
            "model has not seen it, and perplexities a piece are not those of its own tokenizer"
        )
    return f"{folder} has the recipe's pieces, but its tokenizer cuts text by other rules or scores"


def _load_own(folder: Path) -> Any | None:
    # Of a folder that has only a config transformers makes a tokenizer without pieces.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return None
    try:
        return load_tokenizer(folder)
    except TokenizerError:
        return None


def check_characters(folder: Path, code_points: Sequence[int]) -> str | None:
    """Compare the characters that a model can answer with those of the rows; what to know, or None."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # loading it says what is wrong
    known = config.get("head_code_points")
    if not known:
        return None
    missing = sorted(set(code_points) - set(known))
    if not missing:
        return None
    shown = ", ".join(repr(chr(code_point)) for code_point in missing[:_SHOWN])
    return (
        f"{len(missing):,} of the {len(code_points):,} characters of the recipe's rows are not in the table "
        f"of {folder} ({shown}): it has never learned to answer them"
    )
