"""A suite from a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipes.masking import FROZEN_EPOCH, Masking
from data_pipes.masks.units import find_units, find_words, flag_pieces
from data_pipes.order import permute
from data_pipes.prepare import prepare_store
from data_pipes.rows import Rows, RowSource
from data_pipes.store import Store
from data_pipes.tokenize import PieceEncoder
from data_pipes.tokens.words import load_tokenizer, tokenize_texts
from data_pipes.yardsticks import count_pieces
from launch.corpus import describe_source, find_tokenizer, store_arguments
from launch.judging.counts import ClassMetric
from launch.judging.cutting import cut_rows, encode_characters
from launch.judging.fragments import measure_fragments
from launch.judging.groups import (
    Grouping,
    group_all,
    group_by_corpus,
    group_by_frequency,
    group_names,
    recover,
)
from launch.judging.lengths import LengthMetric, choose_runs
from launch.judging.metrics import RowMetric, SpanMetric
from launch.judging.passes import FrozenPass, Runner, SpanPass, Spans
from launch.judging.probe import read_examples
from launch.judging.suite import ProbeSection, Section, SpanSection, Suite, sum_arrays
from launch.judging.terms import TermIndex, choose_occurrences
from launch.judging.words import WordHasher, count_words, list_words, take_all
from launch.judging.yardsticks import score_unigram
from launch.recipe import Recipe
from launch.recipe_data import name_corpora
from launch.recipe_metrics import General, Metrics, Names, Probe, PseudoPerplexity, RareWords, TermPerplexity
from launch.verdict import MACHINE, REQUEST, RunError
from launch.vocabulary import read_terms

_TERMS = "main/terms/"
_ALL_FIGURES = ("loss", "perplexity", "accuracy", "accuracy_top5", "num_targets")


def build_suite(
    recipe: Recipe, store: Store, tokenizer: Any, *, masking: Masking, runner: Runner
) -> Suite | None:
    """What the recipe asks for beside loss, perplexity and accuracy; None where that is nothing.

    Args:
        recipe: of the run.
        store: its rows.
        tokenizer: that goes with them.
        masking: of the evaluation.
        runner: cuts rows as the evaluation does.

    Raises:
        RunError: a file or corpus that is named cannot be used, or a package is missing.
    """
    wanted = recipe.evaluation.metrics
    if not isinstance(wanted, Metrics):
        return None
    return _Builder(recipe, wanted, store, tokenizer, masking, runner).build()


class _Builder:
    """Builds the parts of a suite, each from its own settings."""

    def __init__(
        self, recipe: Recipe, wanted: Metrics, store: Store, tokenizer: Any, masking: Masking, runner: Runner
    ):
        self._recipe, self._wanted, self._store = recipe, wanted, store
        self._tokenizer, self._masking, self._runner = tokenizer, masking, runner
        self._seed = recipe.training.seed
        self._source: RowSource = store.evaluation
        self._is_words = recipe.model.family != "canine"
        self._hides_words = masking.kind in ("whole_word", "span")
        self._hasher = WordHasher.build(tokenizer) if self._is_words else None

    def build(self) -> Suite:
        """All parts."""
        wanted = self._wanted
        lists = {
            name: read_terms(Path(path))
            for name, path in (wanted.terms.lists if wanted.terms else {}).items()
        }
        suite = Suite(self._runner, Section(self._freeze(self._source), self._group_main()))
        if wanted.general:
            suite.others.append(self._build_general(wanted.general))
        if wanted.terms:
            section, marks = self._build_terms(wanted.terms, lists)
            suite.spans.append(section)
            suite.constants |= marks
        if wanted.names and wanted.names.max_span:
            suite.spans.append(self._build_lengths(wanted.names.max_span, wanted.names.num_spans))
        if wanted.pseudo:
            suite.spans.append(self._build_pseudo(wanted.pseudo))
        suite.probes += [self._build_probe(probe) for probe in wanted.probes]
        if wanted.fragmentation:
            suite.constants |= self._measure_fragments(lists)
        return suite

    def _freeze(self, source: RowSource) -> FrozenPass:
        return FrozenPass(source, self._masking, self._seed)

    def _group_main(self) -> list[Grouping]:
        wanted = self._wanted
        groupings = [group_all(("accuracy_top5",)), recover(self._hides_words)]
        if wanted.rare_words:
            groupings.append(self._group_by_frequency(wanted.rare_words))
        if wanted.names:
            groupings += _group_names(self._source, wanted.names)
        return [*_put_under("main/", groupings), *self._group_by_corpus()]

    def _group_by_corpus(self) -> list[Grouping]:
        """The sources of the evaluation rows, where there are several."""
        counts = self._store.evaluation.summary["source_rows"]
        if sum(count > 0 for count in counts) < 2:
            return []
        names = name_corpora(self._recipe.data.sources)
        return [group_by_corpus(names, counts, _ALL_FIGURES)]

    def _group_by_frequency(self, wanted: RareWords) -> Grouping:
        assert self._hasher is not None
        words = list_words(self._source, self._hasher)
        runner = self._runner
        counts = count_words(
            self._store.train,
            self._hasher,
            words,
            seed=self._seed,
            max_pieces=wanted.max_pieces,
            part=(runner.rank, runner.world_size),
        )
        counts = sum_arrays(counts, runner.device)
        return group_by_frequency(self._hasher, words, counts, wanted.bounds)

    def _build_general(self, wanted: General) -> Section:
        """Rows of another corpus, cut as those of the run; kept in the cache like them."""
        arguments = store_arguments(self._recipe)
        assert arguments is not None
        sources = [source.model_copy(update={"split": "train", "weight": None}) for source in wanted.sources]
        arguments |= {
            "sources": [describe_source(source) for source in sources],
            "limit": wanted.limit,
            "evaluation_share": 0.0,
            "near_duplicates": None,
            "rows_per_shard": 0,
        }
        if self._is_words:
            arguments |= {"tokenizer": self._store.tokenizer_folder, "train_tokenizer": None}
        try:
            store = prepare_store(**arguments)
        except ValueError as error:
            raise RunError(REQUEST, f"evaluation.metrics.general cannot be used: {error}") from error
        except (OSError, ModuleNotFoundError) as error:
            raise RunError(MACHINE, f"evaluation.metrics.general cannot be prepared: {error}") from error
        return Section(self._freeze(store.train), _put_under("general/", [group_all(_ALL_FIGURES)]))

    def _build_terms(
        self, wanted: TermPerplexity, lists: Mapping[str, Sequence[str]]
    ) -> tuple[SpanSection, dict[str, float]]:
        """Hidden occurrences of terms, and what a unigram makes of the same."""
        assert self._hasher is not None
        index = TermIndex.build(lists, PieceEncoder(self._tokenizer), self._hasher)
        rows = take_all(self._source)
        found = index.find(rows, self._hasher)
        chosen = choose_occurrences(
            found.spans,
            found.terms,
            per_term=wanted.per_term,
            max_occurrences=wanted.max_occurrences,
            seed=self._seed,
        )
        spans, terms = found.spans.take(chosen), found.terms[chosen]
        membership = np.concatenate([np.ones((1, len(index.terms)), bool), index.membership])
        categories = ("", *index.categories)
        section = SpanSection(
            _TERMS,
            self._hide(spans, together=wanted.hidden == "together"),
            terms,
            SpanMetric(membership, categories),
        )
        if self._recipe.data.streaming:  # there are no training rows to count yet
            return section, {}
        num_pieces = len(self._tokenizer)
        marks = score_unigram(
            rows,
            spans,
            terms,
            count_pieces(self._store.train, self._masking, seed=self._seed, num_pieces=num_pieces),
            SpanMetric(membership, categories),
            num_classes=num_pieces - len(self._tokenizer.all_special_ids),
        )
        return section, {f"eval/{_TERMS}{name}": value for name, value in marks.items()}

    def _build_lengths(self, max_span: int, num_spans: int) -> SpanSection:
        """Runs of 1 to max_span characters, each hidden alone."""
        lengths = range(1, max_span + 1)
        rows, is_barred = take_all(self._source), flag_pieces(self._masking.special_pieces)
        # What training never hides as a character like any other is no part of a gap either.
        rules = self._masking.suffix_rules if self._masking.suffix != "any" else None
        units = find_units(rows, is_barred.take(rows.pieces, mode="clip"), None, rules)
        may_hide = np.zeros(len(rows.pieces), bool)
        may_hide[units.firsts] = True
        spans, numbers = choose_runs(rows, may_hide, lengths, num_spans=num_spans, seed=self._seed)
        return SpanSection(
            "main/names/span/", self._hide(spans, together=False), numbers, LengthMetric(lengths)
        )

    def _build_pseudo(self, wanted: PseudoPerplexity) -> SpanSection:
        """Rows in a random order until they hold so many pieces."""
        num_rows = self._source.num_rows
        order = permute(np.arange(num_rows), num_rows=num_rows, seed=self._seed, epochs=FROZEN_EPOCH)
        num_before = np.append(0, np.cumsum(np.asarray(self._source.lengths)[order], dtype=np.int64))[:-1]
        chosen = np.sort(order[num_before < wanted.num_pieces])
        is_word = wanted.unit == "masking" and self._hides_words
        taken = self._source.take(chosen)
        spans = list_units(taken, self._masking.special_pieces, is_word=is_word)
        clusters = spans.rows
        metric = RowMetric(np.bincount(clusters, self._count_characters(taken, spans), len(chosen)))
        rows = self._hide(replace(spans, rows=chosen[clusters]), together=False)
        return SpanSection("main/pseudo/", rows, clusters, metric)

    def _count_characters(self, rows: Rows, spans: Spans) -> np.ndarray:
        """The characters of each span, marks of a space left out, int64."""
        if self._hasher is None:
            return spans.lengths
        sums = np.append(0, self._hasher.sizes.take(rows.pieces).cumsum())
        firsts = rows.offsets[:-1][spans.rows] + spans.firsts
        return sums[firsts + spans.lengths] - sums[firsts]

    def _hide(self, spans: Spans, *, together: bool) -> SpanPass:
        return SpanPass(self._source, spans, self._masking.mask_piece, together)

    def _build_probe(self, wanted: Probe) -> ProbeSection:
        examples = read_examples(wanted, self._seed)
        row_length = self._recipe.data.row_length
        texts = pa.array(list(examples.texts), pa.string())
        rows = self._encode(texts, row_length) if self._is_words else encode_characters(texts, row_length)
        counts = np.bincount(examples.labels[examples.is_train], minlength=len(examples.classes))
        metric = ClassMetric(len(examples.classes), int(counts.argmax()))
        return ProbeSection(f"main/probes/{wanted.name}/", rows, examples, metric)

    def _encode(self, texts: pa.StringArray, row_length: int) -> Rows:
        encoder = PieceEncoder(self._tokenizer)
        pieces = tokenize_texts(encoder, texts)
        rows = Rows(pieces.ids, pieces.offsets, pieces.word_starts, np.zeros(len(pieces.ids), bool))
        return cut_rows(rows, row_length, (encoder.cls_id, encoder.sep_id))

    def _measure_fragments(self, lists: Mapping[str, Sequence[str]]) -> dict[str, float]:
        tokenizer = self._recipe.tokenizer
        former = None
        if tokenizer is not None and tokenizer.extend is not None:
            folder = find_tokenizer(tokenizer.source, True)
            assert folder is not None
            former = load_tokenizer(folder)
        found = measure_fragments(take_all(self._source), self._tokenizer, lists, former)
        return {f"eval/main/fragmentation/{name}": value for name, value in found.items()}


def list_units(rows: Rows, special_pieces: np.ndarray, *, is_word: bool) -> Spans:
    """Every word, or every piece, that may be hidden."""
    is_barred = flag_pieces(special_pieces).take(rows.pieces, mode="clip")
    units = find_units(rows, is_barred, find_words(rows) if is_word else None)
    row = np.searchsorted(rows.offsets, units.firsts, side="right") - 1
    lengths = np.diff(units.bounds)[units.numbers]
    documents = rows.document_starts.cumsum()[units.firsts]
    return Spans(row, units.firsts - rows.offsets[row], lengths, documents)


def _group_names(source: RowSource, wanted: Names) -> list[Grouping]:
    try:
        return group_names(take_all(source), wanted.num_suffixes)
    except ModuleNotFoundError as error:
        raise RunError(MACHINE, f"evaluation.metrics.names: {error}") from error


def _put_under(place: str, groupings: Sequence[Grouping]) -> list[Grouping]:
    return [replace(grouping, prefix=place + grouping.prefix) for grouping in groupings]
