"""Vocabulary: domain terms that a tokenizer cuts, a tokenizer that has them, and what that changed."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from launch.console import count_progress, print_intake, print_table
from launch.corpus import describe_source, find_tokenizer, store_arguments
from launch.recipe import Recipe
from launch.terminal import Console, escape_json
from launch.verdict import MACHINE, REQUEST, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data_pipes.vocabulary.fragments import Report
    from data_pipes.vocabulary.mine import Mining

COLUMNS = ("term", "count", "pieces", "score", "origin")
_NUM_SHOWN = 10


def mine(
    recipe: Recipe,
    out: Path,
    *,
    tokenizer: str | None = None,
    lists: Sequence[Path] = (),
    num_terms: int = 500,
    min_count: int = 5,
    lists_only: bool = False,
) -> int:
    """Write a list of terms worth a piece of their own, say what was refused, and give the exit code.

    Args:
        recipe: its training documents are read, cleaned and normalised as for a run.
        out: a new file, tab-separated.
        tokenizer: a folder or hub id; None: the recipe's.
        lists: files of known terms, one a line, `_` for a space.
        num_terms: most terms to propose.
        min_count: occurrences that a term needs; 0 takes listed terms that the corpus lacks.
        lists_only: propose only terms of the lists.

    Raises:
        RunError: the request is wrong, or the file cannot be written.
    """
    if out.exists():
        raise RunError(REQUEST, f"{out} is there already; name another file, or remove it")
    with _explain_errors():
        from data_pipes.vocabulary.mine import mine_terms

        mining = mine_terms(
            _read_texts(recipe, is_training_only=True),
            _load(tokenizer) if tokenizer else _load_of_recipe(recipe),
            lists=[read_terms(path) for path in lists],
            num_terms=num_terms,
            min_count=min_count,
            lists_only=lists_only,
        )
    _write_text(out, _format_terms(mining))
    _print_mining(mining, out)
    return 0


def extend(tokenizer: str | Path, terms: Path, out: Path, *, version: str | None = None) -> int:
    """Write a tokenizer that has a piece for each term, say which got none, and give the exit code.

    Args:
        tokenizer: a folder or hub id.
        terms: a list from `mine`, or one term a line.
        out: a new folder; it is whole or not there.
        version: of the new tokenizer; None: one up.

    Raises:
        RunError: the request is wrong, or the folder cannot be written.
    """
    with _explain_errors():
        from data_pipes.vocabulary.extend import extend_tokenizer
        from data_pipes.vocabulary.identity import identify_tokenizer

        extension = extend_tokenizer(_load(str(tokenizer)), read_terms(terms), out, version=version)
        identity = identify_tokenizer(extension.tokenizer)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    numbers = extension.new_pieces.values()
    console.print(
        f"{len(numbers):,} new pieces, {min(numbers):,} to {max(numbers):,}; version {identity['version']}, "
        f"sha256 {identity['sha256'][:12]}: {out}"
    )
    for term, reason in extension.skipped.items():
        console.print(f"skipped {term}: {reason}", markup=False)
    return 0


def report(
    recipe: Recipe, before: str, after: str, *, terms: Path | None = None, as_json: bool = False
) -> int:
    """Print what an extended tokenizer does to the recipe's corpus, before and after; the exit code.

    Args:
        recipe: all its documents are read, cleaned and normalised as for a run.
        before: a folder or hub id of the tokenizer that was extended.
        after: a folder or hub id of the extended one.
        terms: a list of domain terms; None: the new pieces.
        as_json: print an object.

    Raises:
        RunError: the request is wrong.
    """
    with _explain_errors():
        from data_pipes.vocabulary.fragments import report_fragments

        wanted = None if terms is None else read_terms(terms)
        texts = _read_texts(recipe, is_training_only=False)
        found = report_fragments(texts, _load(before), _load(after), wanted)
    if as_json:
        print(escape_json(found.to_json()))  # noqa: T201
    else:
        _print_report(found)
    return 0


def read_terms(path: Path) -> list[str]:
    """Terms of a file: the first column of each line; empty lines and those that begin with # are left out.

    Raises:
        RunError: the file cannot be read or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(
            REQUEST, f"the list {path} cannot be read ({error}); wanted one term a line, UTF-8"
        ) from error
    firsts = (line.split("\t")[0].strip() for line in lines if not line.startswith("#"))
    return [term for term in firsts if term]


@contextmanager
def _explain_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RunError(REQUEST, str(error)) from error
    except OSError as error:
        raise RunError(MACHINE, f"the vocabulary cannot be read or written: {error}") from error


def _load(source: str) -> "PreTrainedTokenizerBase":
    from data_pipes.tokens.words import load_tokenizer

    folder = find_tokenizer(source, True)
    assert folder is not None
    return load_tokenizer(folder)


def _load_of_recipe(recipe: Recipe) -> "PreTrainedTokenizerBase":
    if recipe.tokenizer is None:
        raise RunError(REQUEST, f"{recipe.name} has no tokenizer; name one with --tokenizer")
    if recipe.tokenizer.source != "train":
        return _load(recipe.tokenizer.source)
    from data_pipes.prepare import find_store
    from data_pipes.tokens.words import load_tokenizer

    store = find_store(**(store_arguments(recipe) or {}))
    if store is None:
        raise RunError(
            REQUEST,
            f"the tokenizer of {recipe.name} is not trained yet; run `maskwright data prepare` first, or "
            "name one with --tokenizer",
        )
    return load_tokenizer(store.folder / "tokenizer")


def _read_texts(recipe: Recipe, *, is_training_only: bool) -> Iterator[pa.StringArray]:
    """Documents as a run sees them, with progress on stderr."""
    from data_pipes.building.input import read_sources
    from data_pipes.clean import apply_rules, parse_rules
    from data_pipes.documents import SourceError
    from data_pipes.files import find_cache_root
    from data_pipes.normalize import normalize_texts, parse_normalizers
    from data_pipes.reading.intake import Intake
    from data_pipes.sources import parse_source
    from data_pipes.split import choose_evaluation, hash_texts

    data, root = recipe.data, find_cache_root(None)
    rules = parse_rules([rule.model_dump(exclude_none=True) for rule in data.clean])
    normalizers = parse_normalizers([each.model_dump(exclude_none=True) for each in data.normalize])
    num_read, num_kept, intake = 0, 0, Intake()
    sources = [parse_source(describe_source(source)) for source in data.sources]
    with _show_progress() as show:
        for _, batch in read_sources(
            sources, root, intake, limit=data.limit, bad_input=data.bad_input.model_dump()
        ):
            num_read += batch.num_documents
            batch = apply_rules(batch, rules, Counter())
            if normalizers:
                batch = batch.with_texts(normalize_texts(batch.texts, normalizers))
            if is_training_only:
                share = data.evaluation_share
                batch = batch.filter(~choose_evaluation(batch, hash_texts(batch.texts), share))
            num_kept += batch.num_documents
            yield batch.texts
            show(num_read)
    if intake.num_skipped:
        print_intake(intake.describe(), Console(stderr=True, highlight=False, soft_wrap=True))
    if num_kept == 0:
        raise SourceError(f"none of the {num_read:,} documents is left; check data.sources and data.clean")


@contextmanager
def _show_progress() -> Iterator[Any]:
    with count_progress() as bar:
        task = bar.add_task("reading", total=None)
        yield lambda count: bar.update(task, completed=count)


def _write_text(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise RunError(MACHINE, f"{path} cannot be written: {error}") from error


def _format_terms(mining: "Mining") -> str:
    """A table; refused listed terms stand in comments behind it."""
    text = io.StringIO()
    rows = csv.writer(text, "excel-tab", quoting=csv.QUOTE_NONE, escapechar=None, lineterminator="\n")
    text.write("# " + "\t".join(COLUMNS) + "\n")
    for term in mining.terms:
        rows.writerow([term.text, term.count, term.num_pieces, term.score, term.origin])
    for term, reason in mining.refused_listed.items():
        text.write(f"# refused\t{term}\t{reason}\n")
    return text.getvalue()


def _print_mining(mining: "Mining", out: Path) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    num_listed = sum(term.origin == "list" for term in mining.terms)
    console.print(
        f"{len(mining.terms):,} terms in {out}: {num_listed:,} of the lists, "
        f"{len(mining.terms) - num_listed:,} of the corpus of {mining.num_words:,} words "
        f"({mining.num_left:,} more would do)"
    )
    for whose, counts in (
        ("listed terms", dict(Counter(mining.refused_listed.values()).most_common())),
        ("words", mining.refused_words),
    ):
        if counts:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
            console.print(f"refused {whose}: {reasons}")
    if mining.num_repeated:
        console.print(f"entries of the lists that stand there twice: {mining.num_repeated:,}")
    if mining.num_forgotten:
        console.print(f"rare words were dropped on the way: a count may be {mining.num_forgotten:,} too low")


def _print_report(found: "Report") -> None:
    before, after = found.before, found.after
    rows = [
        ("pieces", f"{before.num_pieces:,}", f"{after.num_pieces:,}"),
        ("pieces a word", f"{before.pieces_per_word:.3f}", f"{after.pieces_per_word:.3f}"),
        ("domain terms cut", f"{before.share_cut:.1%}", f"{after.share_cut:.1%}"),
    ]
    for number, count in before.terms_by_pieces.items():
        name = f"terms of {number} piece{'s' if number > 1 else ''}"
        name += " and more" if number == len(before.terms_by_pieces) else ""
        rows.append((name, f"{count:,}", f"{after.terms_by_pieces[number]:,}"))
    print_table(["", "before", "after"], rows)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"\n{found.num_documents:,} documents, {found.num_words:,} words; {found.num_term_words:,} "
        f"occurrences of {found.num_terms_met:,} of {found.num_terms:,} terms"
    )
    console.print(
        f"other words with other pieces: {found.num_changed_words:,}, of these cut anew: "
        f"{found.num_recut_words:,} (in the rest, pieces are merged)"
    )
    for title, counts in (("changed", found.changed_words), ("cut anew", found.recut_words)):
        if counts:
            console.print(f"  {title}: {_list_counts(counts)}", markup=False)
    console.print(f"new pieces: {len(found.uses):,}, never used {found.num_unused:,}")
    console.print(f"  most used: {_list_counts(found.uses)}", markup=False)


def _list_counts(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:_NUM_SHOWN]
    return ", ".join(f"{name} {count:,}" for name, count in shown)
