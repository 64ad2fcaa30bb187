"""Normalising against a loop of regular expressions per document: `python -m benchmarks.normalizing`.

With no path it makes its own text; `--text FILE.jsonl[.xz]` takes a real one. One process and one thread on
both sides, turns taken alternately, medians; look at the ratios. Instead, `--check FILE.jsonl[.gz]` looks for
lost letters in a corpus that `data normalize` wrote, and `--sample N` lists bound places of the text.
"""

import argparse
import gzip
import json
import random
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.turns import make_names, rate, take_turns
from data_pipes.align import AlignMap
from data_pipes.normalize import normalize_batch, normalize_documents, normalize_texts, parse_normalizers
from data_pipes.normalizing.term_rules import find_rule_file, read_term_rules
from data_pipes.sources import JsonlSource, read_batches

RULES = "chronostratigraphy"
PLANTED = [
    *(
        "Wheeler Formation",
        "Upper Wheeler  Shale",
        "Wheeler Fm",
        "Stage 10",
        "Stage-10",
        "South China",
        "New\nYork",
    ),
    *(
        "Olenoides gilberti",
        "O. gilberti",
        "House Range",
        "Middle Cambrian",
        "The Wheeler",
        "These trilobites",
    ),
]
CLEANING = ["nfkc", "ligatures", "hyphens", "whitespace"]
TERMS = {"kind": "terms", "file": RULES}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print, or check a corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="JSON lines with a key `text`")
    parser.add_argument("--characters", type=int, default=4_000_000, help="most characters of text to use")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="list N bound places of the text")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--check", type=Path, help="a corpus as `data normalize` writes it")
    parser.add_argument("--rules", default=RULES, help="the rule file of that corpus")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        print_check(chosen.check, chosen.rules)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.text or write_stratigraphy(Path(folder) / "text.jsonl")
        texts = read_texts(path, chosen.characters)
    if chosen.sample:
        print_sample(texts, chosen.sample, chosen.seed)
        return
    table = Table("work", "peer", "ours", "peer's", "ratio", box=None, pad_edge=False)
    for row in compare(texts):
        table.add_row(*row)
    Console(width=120).print(table)


def compare(texts: list[str]) -> list[tuple[str, ...]]:
    """Bytes of text per second with maps, and without."""
    num_bytes = sum(len(text.encode()) for text in texts)
    column = pa.array(texts, pa.string())
    terms, everything = parse_normalizers([TERMS]), parse_normalizers([*CLEANING, TERMS])
    bind, both, plain, loop, cleaning_loop = take_turns(
        lambda: normalize_documents(texts, terms),
        lambda: normalize_documents(texts, everything),
        lambda: normalize_texts(column, everything),
        lambda: [bind_slowly(text) for text in texts],
        lambda: [bind_slowly(clean_slowly(text)) for text in texts],
    )
    return [
        ("terms, with maps", "9 re.sub, dict maps", *rate(num_bytes / bind, num_bytes / loop)),
        (
            "clean + terms, with maps",
            "6 + 9 re.sub, dict maps",
            *rate(num_bytes / both, num_bytes / cleaning_loop),
        ),
        (
            "clean + terms, no maps",
            "6 + 9 re.sub, dict maps",
            *rate(num_bytes / plain, num_bytes / cleaning_loop),
        ),
    ]


_UNIT = "(?:Formation|Member|Shale|Limestone|Sandstone|Quartzite|Dolomite)"
_NAME, _PLACE = r"[A-Z][a-z]+", "(?:Range|Mountains|Mountain|Canyon|Valley|Basin|Plateau|Park|Quarry)"
FAMILIES = [
    re.compile(pattern)
    for pattern in (
        r"\bCambrian\s+(?:Stage|Series)\s+\d+\b",
        r"\b(?:Stage|Series)\s+\d+\b",
        rf"\b{_NAME}\s+(?:Upper|Middle|Lower)\s+{_NAME}\s+{_UNIT}\b",
        rf"\b(?:Upper|Middle|Lower)\s+{_NAME}\s+{_UNIT}\b",
        rf"\b{_NAME}\s+{_UNIT}\b",
        rf"\b{_NAME}\s+{_NAME}\s+{_UNIT}\b",
        rf"\b{_NAME}\s+{_PLACE}\b",
        rf"\b{_NAME}\s+{_NAME}\s+(?:Park|Canyon|Basin)\b",
        r"\b[A-Z][a-z]{3,}\s+[a-z]{5,}\b",
    )
]


def bind_slowly(text: str) -> tuple[str, dict[int, int]]:
    """Nine families of patterns, one search each, and a map of one entry per character."""
    spans: list[tuple[int, int]] = []
    for family in FAMILIES:
        for match in family.finditer(text):
            if not any(match.start() < end and start < match.end() for start, end in spans[-3:]):
                spans.append(match.span())
    parts, align, done, place = [], {}, 0, 0
    for start, end in sorted(spans):
        if start < done:
            continue
        parts.append(text[done:start])
        for raw in range(done, start):
            align[raw] = place
            place += 1
        bound = re.sub(r"\s+", "_", text[start:end])
        for raw in range(start, end):
            align[raw] = min(place + raw - start, place + len(bound) - 1)
        parts.append(bound)
        place += len(bound)
        done = end
    for raw in range(done, len(text)):
        align[raw] = place
        place += 1
    return "".join([*parts, text[done:]]), align


def clean_slowly(text: str) -> str:
    """What the other normalisers do, as a script would, without maps."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub("(?<=[^\\W\\d_])-[ \\t]*\\n[ \\t]*(?=[a-z])", "", text)
    text = re.sub("\u00ad", "", text)
    text = re.sub("[\u2010\u2011]", "-", text)
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def write_stratigraphy(path: Path) -> Path:
    """2 million characters of made-up words, every 50th place a term or what looks like one."""
    generator = np.random.default_rng(0)
    names = np.array(make_names(generator, 20_000))
    terms = np.array(PLANTED)
    chances = 1 / np.arange(10, 20_010)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(300):
            words = names[generator.choice(len(names), 1000, p=chances / chances.sum())].astype(object)
            words[::12] = np.char.capitalize(words[::12].astype(str))
            words[5::50] = generator.choice(terms, len(words[5::50]))
            file.write(json.dumps({"text": " ".join(words.tolist()) + "."}) + "\n")
    return path


def read_texts(path: Path, num_characters: int) -> list[str]:
    """The first documents of a file, up to a number of characters."""
    texts: list[str] = []
    left = num_characters
    for batch in read_batches(JsonlSource(str(path))):
        for text in batch.texts.to_pylist():
            if left <= 0:
                return texts
            texts.append(text)
            left -= len(text)
    return texts


def print_sample(texts: list[str], num_places: int, seed: int) -> None:
    """Random bound places in their context, for a person to judge."""
    done = normalize_batch(texts, parse_normalizers([*CLEANING, TERMS]))
    chosen = random.Random(seed).sample(range(len(done.documents)), min(num_places, len(done.documents)))
    for number, place in enumerate(chosen, 1):
        document, start, end = (int(c[place]) for c in (done.documents, done.bound.starts, done.bound.ends))
        norm = slice(*done.align_maps[document].raw_to_norm(start, end))
        text = texts[document]
        around = text[max(0, start - 45) : start], text[start:end], text[end : end + 30]
        before, raw, after = (" ".join(part.split()) for part in around)
        print(
            f"{number:3} {done.bound.rules[place]:20} {before} [{raw}] {after}",
            f"-> {done.texts[document][norm]}",
        )


def print_check(path: Path, rules: str) -> None:
    """Count letters of a corpus that are neither where the map says nor changed by a rule."""
    forms = read_term_rules(find_rule_file(rules)).spellings()
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        found = count_letters(map(json.loads, file), forms)
    print(", ".join(f"{name}: {count:,}" for name, count in found.items()))


def count_letters(records: Iterable[dict[str, Any]], forms: dict[str, str]) -> Counter[str]:
    """Where the letters and digits of raw texts are in the normal texts, told from the records alone.

    Returns:
        Counts of letters: `kept` stand at the mapped place, `equivalent` as their compatibility form,
        `spelled` belong to a spelling (`Fm`) that became its normal form, `lost` are the rest; `invented`
        ones of the normal text come from nowhere. Also `words` and `documents`.
    """
    counts: Counter[str] = Counter({"kept": 0, "equivalent": 0, "spelled": 0, "lost": 0, "invented": 0})
    told = {(_letters(old), _letters(new)) for old, new in forms.items()}
    told |= {pair for old, new in forms.items() for pair in _pair_words(old, new)}
    for record in records:
        raw, norm = record["raw_text"], record["norm_text"]
        align = AlignMap.from_json(record["align_map"], len(raw), len(norm))
        counts["documents"] += 1
        counts["words"] += len(raw.split())
        for old, new in _walk(raw, norm, align):
            before, after = _letters(old), _letters(new)
            if before == after:
                counts["kept"] += len(before)
            elif _letters(unicodedata.normalize("NFKC", old)) == _letters(unicodedata.normalize("NFKC", new)):
                counts["equivalent"] += len(before)
            elif (before, after) in told:
                counts["spelled"] += len(before)
            else:
                counts["lost"] += len(before)
                counts["invented"] += len(after)
    return counts


def _walk(raw: str, norm: str, align: AlignMap) -> Iterator[tuple[str, str]]:
    """Corresponding parts of both texts: changed segments, equal runs, and single characters replaced."""
    done = norm_done = 0
    for start, end, norm_start, norm_end in [
        *align.segments.tolist(),
        [len(raw), len(raw), len(norm), len(norm)],
    ]:
        old, new = raw[done:start], norm[norm_done:norm_start]
        assert len(old) == len(new)
        yield from [(old, new)] if old == new else zip(old, new, strict=True)
        yield raw[start:end], norm[norm_start:norm_end]
        done, norm_done = end, norm_end


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def _pair_words(old: str, new: str) -> list[tuple[str, str]]:
    """The words of a spelling with those of its normal form, where they are equally many."""
    olds, news = old.split(), new.split()
    return (
        [(_letters(a), _letters(b)) for a, b in zip(olds, news, strict=True)]
        if len(olds) == len(news)
        else []
    )


if __name__ == "__main__":
    main()
