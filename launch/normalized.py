"""The normalised corpus: a recipe's sources as records of raw text, normal text and the map between them."""

import gzip
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from rich.markup import escape

from data_pipes.building.input import read_sources
from data_pipes.documents import Batch
from data_pipes.normalize import Normalized, Normalizer, normalize_batch, parse_normalizers
from data_pipes.reading.intake import Intake
from data_pipes.sources import count_estimate, parse_source
from data_pipes.split import hash_texts
from launch.console import count_progress, print_intake
from launch.terminal import Console
from launch.verdict import MACHINE, REQUEST, RunError

CARRIED = ("doc_id", "pub_id", "cap_id")
NUM_FREQUENT = 20
# Characters shown on either side of a bound term.
CONTEXT = 40


@dataclass(frozen=True)
class Place:
    """A bound term: its rule, the raw and the normal form, and the raw text around it."""

    rule: str
    raw: str
    norm: str
    before: str
    after: str


@dataclass
class Tally:
    """What was done to a corpus.

    Attributes:
        num_documents: documents written.
        num_changed: those whose normal text is another.
        rules: bound places by rule.
        terms: bound places by normal form.
        samples: some places, each bound place being as likely as any other.
    """

    num_samples: int = 0
    num_documents: int = 0
    num_changed: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    terms: Counter[str] = field(default_factory=Counter)
    samples: list[Place] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, raws: list[str], done: Normalized) -> None:
        """Count a batch."""
        self.num_documents += len(raws)
        self.num_changed += sum(raw != norm for raw, norm in zip(raws, done.texts, strict=True))
        bound = done.bound
        columns = (done.documents.tolist(), bound.starts.tolist(), bound.ends.tolist(), bound.rules)
        for document, start, end, rule in zip(*columns, strict=True):
            norm_start, norm_end = done.align_maps[document].raw_to_norm(start, end)
            norm = done.texts[document][norm_start:norm_end]
            self.rules[rule] += 1
            self.terms[norm] += 1
            # Reservoir sampling: the corpus may hold more places than memory does.
            seat = self._random.randrange(self.rules.total()) if self.num_samples else 0
            if seat < self.num_samples:
                raw = raws[document]
                place = Place(
                    rule, raw[start:end], norm, raw[max(0, start - CONTEXT) : start], raw[end:][:CONTEXT]
                )
                self._keep(place, seat)

    def _keep(self, place: Place, seat: int) -> None:
        if len(self.samples) < self.num_samples:
            self.samples.append(place)
        else:
            self.samples[seat] = place


def normalize_corpus(
    sources: Sequence[dict[str, Any]],
    normalizers: Sequence[dict[str, Any] | str],
    out: Path,
    *,
    limit: int | None = None,
    bad_input: dict[str, Any] | None = None,
    num_samples: int = 0,
) -> int:
    """Write the corpus and print what was bound; the exit code.

    Cleaning rules are not applied: `raw_text` is what the source holds.

    Args:
        sources: as `data_pipes.sources.parse_source` takes them.
        normalizers: as `data_pipes.normalize.parse_normalizers` takes them.
        out: a new file, packed if its name ends in .gz; it is there whole or not at all.
        limit: at most so many documents.
        bad_input: policy and max_bad_share of each source's intake.
        num_samples: bound places to print in their context.

    Raises:
        RunError: the request is wrong, or the file cannot be written.
    """
    if not normalizers:
        raise RunError(REQUEST, "data.normalize is empty; give normalisers, e.g. [{kind: whitespace}]")
    if out.exists():
        raise RunError(REQUEST, f"{out} is there already; name a new file or remove it")
    tally, intake = Tally(num_samples), Intake()
    try:
        steps = parse_normalizers(list(normalizers))
        with _open_draft(out) as file, _show_progress(sources, limit) as advance:
            for batch in _read(sources, limit, bad_input or {}, intake):
                _write(batch, steps, file, tally)
                advance(tally.num_documents)
    except ValueError as error:
        raise RunError(REQUEST, f"the corpus cannot be normalised: {error}") from error
    except OSError as error:
        raise RunError(MACHINE, f"{out} cannot be written: {error}") from error
    print_tally(tally, out)
    print_intake(intake.describe())
    return 0


def _read(
    sources: Sequence[dict[str, Any]], limit: int | None, bad_input: dict[str, Any], intake: Intake
) -> Iterator[Batch]:
    """Batches of all sources; what was read of each goes into the intake."""
    for spec in sources:
        if spec.get("kind") == "aligned" and spec.get("text_key", "norm_text") != "raw_text":
            raise ValueError(
                f"{spec.get('path')} is normalised already; give text_key: raw_text to normalise it anew"
            )
    parsed = [parse_source(spec) for spec in sources]
    for _, batch in read_sources(parsed, None, intake, limit=limit, bad_input=bad_input, carry=CARRIED):
        if batch.num_documents:
            yield batch


def _write(batch: Batch, steps: list[Normalizer], file: IO[bytes], tally: Tally) -> None:
    raws = batch.texts.to_pylist()
    done = normalize_batch(raws, steps)
    names = _name_documents(batch, tally.num_documents, done.texts)
    records = zip(names, raws, done.texts, done.align_maps, strict=True)
    for name, raw, norm, align in records:
        record = name | {"raw_text": raw, "norm_text": norm, "align_map": align.to_json()}
        file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    tally.add(raws, done)


def _name_documents(batch: Batch, first: int, norms: list[str]) -> list[dict[str, str | None]]:
    """The keys of each document; where it has none, its number, its group or a hash, and null.

    The hash is of the normal text: documents that are the same stay on one side of the split.
    """
    hashes = hash_texts(pa.array(norms, pa.string())).tolist()
    found = {key: batch.carried[key].to_pylist() if key in batch.carried else [] for key in CARRIED}
    groups = batch.groups.to_pylist() if batch.groups is not None else []
    names = []
    for place in range(batch.num_documents):
        doc_id, pub_id, cap_id = (found[key][place] if found[key] else "" for key in CARRIED)
        doc_id = doc_id or str(first + place)
        pub_id = pub_id or (groups[place] if groups else f"{hashes[place]:016x}")
        names.append({"doc_id": doc_id, "pub_id": pub_id, "cap_id": cap_id or None})
    return names


@contextmanager
def _open_draft(out: Path) -> Iterator[IO[bytes]]:
    """A file beside `out` that takes its name when all went well, and goes when not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as plain:
            if out.suffix == ".gz":
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=plain, mtime=0) as packed:
                    yield packed  # pyright: ignore[reportReturnType]
            else:
                yield plain
            plain.flush()
            os.fsync(plain.fileno())
        draft.chmod(0o644)
        # A link, unlike a rename, does not overwrite a file that came in the meantime.
        out.hardlink_to(draft)
    finally:
        draft.unlink()


@contextmanager
def _show_progress(sources: Sequence[dict[str, Any]], limit: int | None) -> Iterator[Any]:
    estimate = count_estimate(list(sources))
    total = None if estimate is None else min(estimate.num_documents, limit or estimate.num_documents)
    with count_progress() as bar:
        task = bar.add_task("normalising", total=total)
        yield lambda done: bar.update(task, completed=done, total=total and max(total, done))


def print_tally(tally: Tally, out: Path) -> None:
    """Counts, the most frequent bound terms, and the sample."""
    console = Console(highlight=False, soft_wrap=True)
    num_bound = tally.rules.total()
    console.print(
        f"{tally.num_documents:,} documents, {tally.num_changed:,} changed, {num_bound:,} terms bound"
    )
    for rule, count in tally.rules.most_common():
        console.print(f"  {escape(rule)}: {count:,}")
    if num_bound:
        frequent = tally.terms.most_common(NUM_FREQUENT)
        console.print(
            "most frequent: " + escape(", ".join(f"{term} ({count:,})" for term, count in frequent))
        )
    for place in tally.samples:
        before, raw, after = (" ".join(text.split()) for text in (place.before, place.raw, place.after))
        console.print(
            f"[dim]{escape(place.rule)}[/]  {escape(before)} [bold]{escape(raw)}[/] {escape(after)}"
            f"  [dim]->[/] {escape(place.norm)}"
        )
    console.print(f"written: {escape(str(out))}")
