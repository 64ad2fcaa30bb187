"""Preparing a recipe's data by hand, and a look at what will be masked."""

from itertools import groupby
from typing import Any

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from data_pipes.collate import MASK_CHARACTER
from data_pipes.masking import Hidden, Masking, describe_rate, hide
from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from launch.build import build_masking, build_tokenizer
from launch.console import prepare_with_progress, print_intake
from launch.recipe import Recipe
from launch.terminal import Console, to_json

FATES = ("masked", "random", "kept")
_STYLES = {"masked": "bold white on red", "random": "bold black on yellow", "kept": "bold black on green"}
_UNITS = {"whole_word": "words", "span": "words", "token": "pieces"}


def prepare(recipe: Recipe, *, num_workers: int | None = None) -> int:
    """Prepare the recipe's store and say what is in it; the exit code."""
    store = prepare_with_progress(recipe, num_workers)
    manifest = store.manifest
    console = Console(highlight=False)
    for name, split in manifest["splits"].items():
        console.print(
            f"{name}: {split['num_documents']:,} documents, {split['num_rows']:,} rows, "
            f"{split['num_pieces']:,} pieces, rows filled to {split['fill']:.1%}"
        )
    print_intake(manifest["input"], console)
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
    chance: dict[str, Any] = {"row_ids": row_ids, "epochs": 0, "seed": recipe.training.seed}
    hidden = hide(rows, masking, **chance)
    described = describe_rows(rows, hidden, tokenizer, masking.special_pieces)
    if as_json:
        for row in described:
            print(to_json(row))  # noqa: T201
        return 0
    console = Console(highlight=False)
    (mask,) = _name(np.array([masking.mask_piece]), tokenizer)
    joint = "+" if _has_vocabulary(tokenizer) else ""
    console.print(_render_legend(mask, joint), soft_wrap=True, end="\n\n")
    for row in described:
        console.print(render_row(row, mask, joint), end="\n\n")
    rates = describe_rate(rows, masking, **chance)
    fill = len(rows.pieces) / max(1, rows.num_rows * recipe.data.row_length)
    unit = _UNITS.get(masking.kind, "characters")
    for line in _describe_counts(count_fates(rows, hidden, masking), rates, unit):
        console.print(line, soft_wrap=True)
    console.print(f"rows filled to {fill:.1%} of {recipe.data.row_length}")
    return 0


def describe_rows(
    rows: Rows, hidden: Hidden, tokenizer: PreTrainedTokenizerBase, special_pieces: np.ndarray
) -> list[dict[str, Any]]:
    """Rows as plain data: text, pieces, the word of each, targets, and the pieces after corruption.

    Words are numbered along the row, special pieces included; a document's start begins one.
    """
    is_special = np.isin(rows.pieces, special_pieces)
    bounds = find_words(rows)
    word_numbers = np.arange(len(bounds) - 1).repeat(np.diff(bounds))
    described = []
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        part = slice(int(start), int(end))
        numbers = word_numbers[part] - (word_numbers[start] if start < end else 0)
        words = zip(numbers.tolist(), is_special[part].tolist(), strict=True)
        described.append(
            {
                "text": _join(rows.pieces[part][~is_special[part]], tokenizer),
                "pieces": _name(rows.pieces[part], tokenizer),
                "word": [None if special else number for number, special in words],
                "target": hidden.is_target[part].tolist(),
                "input": _name(hidden.inputs[part], tokenizer),
            }
        )
    return described


def count_fates(rows: Rows, hidden: Hidden, masking: Masking) -> dict[str, int]:
    """Count the hidden words (or pieces, of a kind that hides pieces) that were masked, random or kept."""
    num_pieces = len(rows.pieces)
    is_word_kind = masking.kind in ("whole_word", "span")
    bounds = find_words(rows) if is_word_kind else np.arange(num_pieces + 1)
    num_changed = np.diff(np.append(0, (hidden.inputs != rows.pieces).cumsum())[bounds])
    is_hidden = hidden.is_target[bounds[:-1]]
    is_masked = is_hidden & (hidden.inputs[bounds[:-1]] == masking.mask_piece)
    # Some pieces of a random word may come out as they were.
    is_random = is_hidden & ~is_masked & (num_changed > 0)
    counts = (is_masked.sum(), is_random.sum(), (is_hidden & ~is_masked & ~is_random).sum())
    return {fate: int(count) for fate, count in zip(FATES, counts, strict=True)}


def render_row(row: dict[str, Any], mask: str, joint: str) -> Text:
    """A row in which what is hidden stands out, with what the model sees in its place behind it.

    Args:
        row: from `describe_rows`.
        mask: the mask piece's name.
        joint: stands between the pieces of a word, and words stand apart; empty for rows of characters.
    """
    text, previous = Text(), None
    columns = zip(row["pieces"], row["input"], row["target"], row["word"], strict=True)
    items = [
        # Each special piece stands alone; characters run on.
        (piece, given, _find_fate(piece, given, mask) if is_target else "", (word, place * (word is None)))
        for place, (piece, given, is_target, word) in enumerate(columns)
    ]
    for (fate, word), group in groupby(items, lambda item: (item[2], item[3] if joint else None)):
        pieces, inputs, _, _ = zip(*group, strict=True)
        if joint and previous is not None:
            text.append(joint if word == previous else " ", style="dim")
        previous = word
        text.append(joint.join(pieces), style=_STYLES.get(fate, ""))
        if fate:
            shown = fate if fate == "kept" else _show_mask(joint.join(inputs))
            text.append(f"<{shown}>", style="dim")
    return text


def _find_fate(piece: str, given: str, mask: str) -> str:
    if given == mask:
        return "masked"
    return "kept" if given == piece else "random"


def _show_mask(text: str) -> str:
    # CANINE's mask is a private character that no font has.
    return text.replace(chr(MASK_CHARACTER), "_")


def _render_legend(mask: str, joint: str) -> Text:
    legend = Text("hidden, with what the model sees behind it: ")
    for fate, shown in zip(FATES, (_show_mask(mask), "another", "kept"), strict=True):
        legend.append(fate, style=_STYLES[fate])
        legend.append(f"<{shown}>  ", style="dim")
    if joint:
        legend.append(f"{joint} joins the pieces of a word", style="dim")
    return legend


def _describe_counts(fates: dict[str, int], rates: dict[str, float], unit: str) -> list[str]:
    num_hidden = sum(fates.values())
    shares = ", ".join(
        f"{count:,} {fate} ({count / max(num_hidden, 1):.0%})" for fate, count in fates.items()
    )
    lines = [
        f"{rates['num_rows']:,} rows, {rates['num_units']:,} {unit} that may be hidden",
        f"{num_hidden:,} {unit} hidden: {shares}",
        f"rate {rates['realised_rate']:.2%}, asked {rates['asked_rate']:.2%}",
    ]
    if rates["num_short_rows"]:
        lines[-1] += (
            f"; {rates['num_short_rows']:,} short rows hide at least one and add "
            f"{rates['excess_targets']:,.1f}: {rates['expected_rate']:.2%} expected"
        )
    if rates["num_suffix_words"]:
        lines.append(f"{rates['num_suffix_words']:,} labels of public suffixes hidden besides")
    if rates["num_suffix_rows"]:
        lines.append(f"{rates['num_suffix_rows']:,} rows are nothing but a suffix, hidden like any other")
    return lines


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
