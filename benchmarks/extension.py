"""Extension: a small model on domain text, with the tokenizer it had and with the domain's terms in it.

    python -m benchmarks.extension CORPUS.jsonl FOLDER [--steps 1500] [--seeds 2] [--terms 500]

The base tokenizer is that of the small encyclopedia recipe, so that the domain's words are cut as a general
tokenizer cuts them. Terms are mined from the training books alone; whole books are held out. Both sides see
the same books for the same number of steps of 64 rows of 64 pieces, with the same seeds; an extended
tokenizer gets more text into a row, and its model has one more row of embeddings for each term.

Perplexities a piece are not comparable between two tokenizers. What is: the perplexity of whole occurrences
of the terms, bits a character of whole words, both on the same text, and how often terms are cut. A term in
one piece is easier for counting already, as the pieces of a cut one are guessed without each other: the
unigram on the same occurrences shows how much of a difference that is.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from launch.cli import main as maskwright
from launch.console import prepare_with_progress
from launch.events import number
from launch.recipe_file import read_recipe
from launch.record import Record, read_record
from launch.sweeping.state import Entry, read_state

_RECIPE = "deberta-tiny-encyclopedia-wwm"
_HELD_OUT = 16
"""One book of so many, by the hash of its name."""
_TERMS = "eval/main/terms/"
_FIGURES = {
    "pieces a word": "eval/main/fragmentation/pieces_per_word",
    "terms cut": "eval/main/fragmentation/terms_cut",
    "perplexity of a term": f"{_TERMS}term_perplexity",
    "the same of a unigram": f"{_TERMS}unigram_term_perplexity",
    "terms recovered": f"{_TERMS}exact",
    "bits a character": "eval/main/pseudo/bits_per_character",
    "words recovered": "eval/main/pseudo/accuracy",
    "perplexity a piece (not comparable)": "perplexity",
}
"""Row of the table: figure of the last evaluation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Split, mine, train both sides, compare; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extension")
    parser.add_argument("corpus", type=Path, help="records with text and pub_id, .jsonl, may be packed")
    parser.add_argument("folder", type=Path, help="of everything that is made; outside the repository")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--terms", type=int, default=500)
    parser.add_argument("--evaluation-characters", type=int, default=60_000)
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    sizes = split_books(arguments.corpus, folder, arguments.evaluation_characters)
    store = prepare_with_progress(read_recipe(_RECIPE))
    shared = write_shared(folder, store.tokenizer_folder, arguments.steps)
    terms = folder / "terms.tsv"
    if not terms.exists():
        code = maskwright(["vocab", "mine", _RECIPE, str(terms), "--terms", str(arguments.terms), *shared])
        if code:
            return code
    metrics = {
        "terms": {"lists": {"mined": str(terms)}},
        "fragmentation": True,
        "pseudo": {"num_pieces": 10**8},
    }
    code = maskwright(
        [
            "sweep",
            _RECIPE,
            *shared,
            f"evaluation.metrics={json.dumps(metrics)}",
            f"tokenizer.extend=[null, {{terms: {terms}}}]",
            f"training.seed={list(range(1, arguments.seeds + 1))}",
            "--profile",
            "cpu",
            "--output",
            str(folder / "runs"),
        ]
    )
    if code:
        return code
    print_table(folder / "runs", sizes)
    return 0


def split_books(corpus: Path, folder: Path, num_characters: int) -> dict[str, int]:
    """Write the training books and the beginnings of the held-out ones; their sizes in characters."""
    shares: dict[str, int] = {}
    sizes = {"train": 0, "evaluation": 0}
    records = [json.loads(line) for line in _read_lines(corpus)]
    books = sorted({record["pub_id"] for record in records})
    held_out = {book for book in books if int(hashlib.sha256(book.encode()).hexdigest(), 16) % _HELD_OUT == 0}
    with (folder / "train.jsonl").open("w") as train, (folder / "evaluation.jsonl").open("w") as evaluation:
        for record in records:
            book, text = record["pub_id"], record["text"]
            if book not in held_out:
                train.write(json.dumps({"text": text}) + "\n")
                sizes["train"] += len(text)
                continue
            room = num_characters // len(held_out) - shares.get(book, 0)
            if room > 0:
                shares[book] = shares.get(book, 0) + len(text[:room])
                evaluation.write(json.dumps({"text": text[:room]}) + "\n")
    sizes["evaluation"] = sum(shares.values())
    return {**sizes, "train books": len(books) - len(held_out), "evaluation books": len(held_out)}


def _read_lines(corpus: Path) -> Iterator[str]:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(corpus.suffix, open)
    with opener(corpus, "rt", encoding="utf-8") as file:
        yield from file


def write_shared(folder: Path, tokenizer: Path, num_steps: int) -> list[str]:
    """The overrides of both sides."""
    sources = [
        {"kind": "jsonl", "path": str(folder / f"{split}.jsonl"), "split": split}
        for split in ("train", "evaluation")
    ]
    return [
        f"tokenizer={{source: {tokenizer}}}",
        f"data.sources={json.dumps(sources)}",
        f"training.max_steps={num_steps}",
        f"evaluation.every={num_steps // 2}",
        f"checkpoint.every={num_steps // 2}",
        "evaluation.samples=[]",
    ]


def print_table(runs: Path, sizes: dict[str, int]) -> None:
    """The figures as Markdown: the mean over seeds, and each of them."""
    state = read_state(runs)
    assert state is not None
    sides: dict[bool, list[Record]] = {False: [], True: []}
    for entry in state.entries:
        sides[_is_extended(entry)].append(read_record(runs / entry.name))
    print(f"\n{json.dumps(sizes)}\n")
    print("| figure | base | extended |\n| --- | --- | --- |")
    reads: dict[str, Callable[[Record], float | None]] = {
        name: partial(_read_figure, key=key) for name, key in _FIGURES.items()
    }
    for name, read in {**reads, "steps/s": _read_speed}.items():
        cells = [_show([read(one) for one in sides[side]]) for side in (False, True)]
        print(f"| {name} | {' | '.join(cells)} |")
    first = sides[True][0].evaluation() or {}
    counts = {key: number(first, f"{_TERMS}num_{key}") for key in ("occurrences", "terms")}
    print(f"\n{counts}, seeds {[entry.seed for entry in state.entries]}, {state.fixed[2]}")


def _is_extended(entry: Entry) -> bool:
    return entry.values["tokenizer.extend"] is not None


def _read_figure(record: Record, key: str) -> float | None:
    return number(record.evaluation() or {}, key)


def _read_speed(record: Record) -> float | None:
    speeds = [value for _, value in record.events.curve("train", "rows_per_second")]
    return statistics.median(speeds) / 64 if speeds else None


def _show(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.fmean(known):,.4g}"
    spread = ", ".join(f"{value:,.4g}" for value in known)
    return mean if len(set(known)) == 1 else f"{mean} ({spread})"


if __name__ == "__main__":
    raise SystemExit(main())
