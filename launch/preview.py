"""Preparing a recipe's data by hand, and a look at what will be masked."""

import json
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from data_pipes.collate import MASK_CHARACTER
from data_pipes.masking import Hidden, hide
from data_pipes.rows import Rows
from launch.build import build_masking, build_tokenizer
from launch.console import prepare_with_progress
from launch.recipe import Recipe


def prepare(recipe: Recipe) -> int:
    """Prepare the recipe's store and say what is in it; the exit code."""
    store = prepare_with_progress(recipe)
    manifest = store.manifest
    console = Console(highlight=False)
    for name, split in manifest["splits"].items():
        console.print(
            f"{name}: {split['num_documents']:,} documents, {split['num_rows']:,} rows, "
            f"{split['num_pieces']:,} pieces, rows filled to {split['fill']:.1%}"
        )
    for reason, count in manifest["dropped"].items():
        console.print(f"dropped, {reason}: {count:,}")
    console.print(f"store: {store.folder}", soft_wrap=True)
    return 0


def preview(recipe: Recipe, *, num_rows: int, as_json: bool) -> int:
    """Print rows of the training split with what the first epoch hides; the exit code."""
    store = prepare_with_progress(recipe)
    tokenizer = build_tokenizer(recipe, store)
    row_ids = np.arange(min(num_rows, store.train.num_rows))
    rows = store.train.take(row_ids)
    masking = build_masking(recipe, tokenizer, store)
    hidden = hide(rows, masking, row_ids=row_ids, epochs=0, seed=recipe.training.seed)
    console = Console(highlight=False)
    for row in describe_rows(rows, hidden, tokenizer, masking.special_pieces):
        if as_json:
            print(json.dumps(row, ensure_ascii=False))  # noqa: T201
        else:
            console.print(_render(row), soft_wrap=False, end="\n\n")
    return 0


def describe_rows(
    rows: Rows, hidden: Hidden, tokenizer: PreTrainedTokenizerBase, special_pieces: np.ndarray
) -> list[dict[str, Any]]:
    """Rows as plain data: text, pieces, the word of each, targets, and the pieces after corruption."""
    is_special = np.isin(rows.pieces, special_pieces)
    word_numbers = np.cumsum(rows.word_starts)
    described = []
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        part = slice(int(start), int(end))
        first = word_numbers[part.start - 1] if part.start else 0
        words = zip(word_numbers[part] - first - 1, is_special[part], strict=True)
        described.append(
            {
                "text": _join(rows.pieces[part][~is_special[part]], tokenizer),
                "pieces": _name(rows.pieces[part], tokenizer),
                "word": [None if special else int(number) for number, special in words],
                "target": hidden.is_target[part].tolist(),
                "input": _name(hidden.inputs[part], tokenizer),
            }
        )
    return described


def _has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(tokenizer.is_fast)


def _join(pieces: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    if not _has_vocabulary(tokenizer):
        return "".join(map(chr, pieces.tolist()))
    return str(tokenizer.decode(pieces.tolist()))


def _name(pieces: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not _has_vocabulary(tokenizer):
        return [chr(piece) for piece in pieces.tolist()]
    return list(tokenizer.convert_ids_to_tokens(pieces.tolist()))


def _render(row: dict[str, Any]) -> Text:
    """What is hidden stands out, with what the model sees in its place behind it."""
    text = Text()
    separator = "" if all(len(piece) == 1 for piece in row["pieces"]) else " "
    for piece, given, is_target in zip(row["pieces"], row["input"], row["target"], strict=True):
        if is_target:
            shown = "_" if given == chr(MASK_CHARACTER) else given
            text.append(piece, style="bold reverse")
            text.append(f"<{shown if given != piece else 'kept'}>", style="yellow")
        else:
            text.append(piece)
        text.append(separator)
    return text
