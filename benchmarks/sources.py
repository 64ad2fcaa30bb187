"""Reading sources: documents per second of data_pipes.sources against plain Python on the same files.

    python -m benchmarks.sources [--text FILE.jsonl] [--names FILE.txt]

The other side is what most scripts do: a loop over the lines with json.loads, csv.reader or strip, which
checks and counts nothing. One thread each.
"""

import argparse
import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.turns import rate, take_turns, write_names, write_text
from data_pipes.sources import CsvSource, JsonlSource, TextSource, read_batches


def read_with_us(source: JsonlSource | CsvSource | TextSource) -> int:
    """Number of documents."""
    return sum(batch.num_documents for batch in read_batches(source))


def read_jsonl(path: Path) -> int:
    """Number of documents, by json.loads."""
    with path.open() as file:
        return len([json.loads(line)["text"] for line in file if line.strip()])


def read_csv(path: Path) -> int:
    """Number of documents, by csv.reader."""
    with path.open(newline="") as file:
        rows = csv.reader(file)
        place = next(rows).index("text")
        return len([row[place] for row in rows if row[place].strip()])


def read_text(path: Path) -> int:
    """Number of documents, line by line."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return len([line.rstrip("\n") for line in file if line.strip()])


def write_files(folder: Path, text: Path, names: Path) -> list[tuple[str, Callable, Callable]]:
    """The files of both sides, and for each a name, our work and theirs."""
    listed = names.read_text().split("\n")
    plain, quoted, records = folder / "plain.csv", folder / "quoted.csv", folder / "names.jsonl"
    packed, lines = folder / "names.txt.gz", folder / "names.txt"
    lines.write_text("\n".join(listed))
    packed.write_bytes(gzip.compress("\n".join(listed).encode(), 6))
    plain.write_text("text,id\n" + "".join(f"{name},{number}\n" for number, name in enumerate(listed)))
    quoted.write_text("text,id\n" + "".join(f'"{name}",{number}\n' for number, name in enumerate(listed)))
    records.write_text("".join(json.dumps({"text": name, "id": 7}) + "\n" for name in listed))
    return [
        ("text lines", lambda: read_with_us(TextSource(str(lines))), lambda: read_text(lines)),
        ("text lines, .gz", lambda: read_with_us(TextSource(str(packed))), lambda: read_text(packed)),
        ("JSON lines, long", lambda: read_with_us(JsonlSource(str(text))), lambda: read_jsonl(text)),
        ("JSON lines, short", lambda: read_with_us(JsonlSource(str(records))), lambda: read_jsonl(records)),
        ("CSV without quotes", lambda: read_with_us(CsvSource(str(plain))), lambda: read_csv(plain)),
        ("CSV with quotes", lambda: read_with_us(CsvSource(str(quoted))), lambda: read_csv(quoted)),
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, help="JSON lines with a field `text`")
    parser.add_argument("--names", type=Path, help="one name a line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        text = arguments.text or write_text(folder / "text.jsonl")
        names = arguments.names or write_names(folder / "made.txt")
        print(f"{'documents of':22} {'ours':>14} {'plain Python':>14} {'ratio':>6}")
        for name, ours, theirs in write_files(folder, text, names):
            num_documents = ours()
            if num_documents != theirs():
                raise SystemExit(f"{name}: the sides read different numbers of documents")
            seconds = take_turns(ours, theirs)
            print(
                "{:22} {:>14} {:>14} {:>6}".format(name, *rate(*(num_documents / taken for taken in seconds)))
            )


if __name__ == "__main__":
    main()
