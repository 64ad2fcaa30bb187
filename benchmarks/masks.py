"""What masking by words does to a text: `python -m benchmarks.masks FILE.jsonl[.xz]`.

Trains a Unigram vocabulary on the text, packs it into rows, hides words in 2,000 of them and prints the
realised rate, rows without a target, words hidden in part, and how often words are hidden by their number of
pieces. The interval of a share is Wilson's (1927) at 95 %, which stays inside 0 to 1.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipes.masking import Masking, hide
from data_pipes.prepare import prepare_store
from data_pipes.rows import Rows
from data_pipes.tokens.words import load_tokenizer

NUM_ROWS, ROW_LENGTH, VOCAB_SIZE = 2000, 512, 8000
LONGEST = 8  # words of this many pieces and more are counted together
NORMAL_QUANTILE = 1.959964


def main(arguments: list[str] | None = None) -> None:
    """Hide words and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="JSON lines")
    parser.add_argument("--text-key", default="text")
    parser.add_argument("--group-key", help="key of the publication")
    parser.add_argument("--kind", choices=["whole_word", "span"], default="whole_word")
    parser.add_argument("--rate", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=42)
    chosen = parser.parse_args(arguments)
    source = {
        "kind": "jsonl",
        "path": str(chosen.text),
        "text_key": chosen.text_key,
        "group_key": chosen.group_key,
    }
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_store(
            sources=[source],
            kind="words",
            row_length=ROW_LENGTH,
            train_tokenizer={"kind": "unigram", "vocab_size": VOCAB_SIZE},
            evaluation_share=0.0,
            cache_root=folder,
        )
        tokenizer = load_tokenizer(store.folder / "tokenizer")
        specials = np.array(tokenizer.all_special_ids, np.uint32)
        row_ids = np.arange(min(NUM_ROWS, store.train.num_rows))
        rows = store.train.take(row_ids)
    randoms = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    mask_piece = int(tokenizer.mask_token_id)  # pyright: ignore[reportArgumentType]
    masking = Masking(chosen.kind, chosen.rate, mask_piece, randoms, specials)
    hidden = hide(rows, masking, row_ids=row_ids, epochs=0, seed=chosen.seed)
    report(rows, hidden.is_target, np.isin(rows.pieces, specials), chosen.rate)


def report(rows: Rows, is_target: np.ndarray, is_special: np.ndarray, rate: float) -> None:
    """Count words one by one from the flags that the store and the masks carry, and print."""
    console = Console(highlight=False)
    word_of_piece = np.cumsum(rows.word_starts) - 1
    num_words = int(word_of_piece[-1]) + 1
    lengths = np.bincount(word_of_piece, minlength=num_words)
    num_hidden = np.bincount(word_of_piece, weights=is_target, minlength=num_words).astype(int)
    # Counted over all words, the ones that must be left alone included.
    num_partial = np.count_nonzero((num_hidden > 0) & (num_hidden < lengths))
    # Words with [UNK] in them are left alone.
    is_ordinary = np.bincount(word_of_piece, weights=is_special, minlength=num_words) == 0
    lengths, num_hidden = lengths[is_ordinary], num_hidden[is_ordinary]
    is_hidden = num_hidden > 0
    realised = is_hidden.mean()
    of_pieces = is_target.sum() / np.count_nonzero(~is_special)
    targets_of_row = np.bincount(rows.row_of_piece, weights=is_target, minlength=rows.num_rows)
    console.print(
        f"rows                     {rows.num_rows:,} of up to {ROW_LENGTH} pieces, {len(lengths):,} words"
    )
    console.print(
        f"words hidden             {realised:.4%}, recipe {rate:.2%}, relative {realised / rate - 1:+.3%}"
    )
    console.print(f"pieces hidden            {of_pieces:.4%}, relative {of_pieces / rate - 1:+.3%}")
    console.print(f"rows without a target    {np.count_nonzero(targets_of_row == 0):,}")
    console.print(f"words hidden in part     {num_partial:,}")
    console.print(f"special pieces hidden    {np.count_nonzero(is_target & is_special):,}\n")
    table = Table("pieces in the word", "words", "hidden", "95 % interval", box=None, pad_edge=False)
    for length in range(1, LONGEST + 1):
        is_chosen = np.minimum(lengths, LONGEST) == length
        number, successes = int(is_chosen.sum()), int(is_hidden[is_chosen].sum())
        if number == 0:
            continue
        low, high = find_interval(successes, number)
        label = f"{length} and more" if length == LONGEST else f"{length}"
        table.add_row(label, f"{number:,}", f"{successes / number:.2%}", f"{low:.2%} to {high:.2%}")
    console.print(table)


def find_interval(successes: int, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    share, spread = successes / number, NORMAL_QUANTILE**2 / number
    centre = share + spread / 2
    half = NORMAL_QUANTILE * np.sqrt(share * (1 - share) / number + spread / (4 * number))
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


if __name__ == "__main__":
    main()
