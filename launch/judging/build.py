"""A suite from a recipe."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipes.masking import FROZEN_EPOCH, Masking
from data_pipes.masks.units import find_units, find_words, flag_pieces
from data_pipes.order import permute
from data_pipes.rows import Rows, RowSource
from data_pipes.store import Store
from data_pipes.tokenize import PieceEncoder
from data_pipes.tokens.words import load_tokenizer, tokenize_texts
from data_pipes.yardsticks import count_pieces
from launch.build import count_classes
from launch.corpus import find_tokenizer
from launch.judging.corpora import Corpus, prepare_general, score_yardsticks
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
from launch.judging.yardsticks import score_targets, score_unigram
from launch.recipe import Recipe
from launch.recipe_data import name_corpora
from launch.recipe_metrics import Metrics, Names, Probe, PseudoPerplexity, RareWords, TermPerplexity
from launch.verdict import MACHINE, RunError
from launch.vocabulary import read_terms

_NUM_CHARACTERS = 0x110000
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
        self._seed = recipe.evaluation.seed
        self._num_classes = count_classes(recipe, tokenizer, store)
        self._lists = {
            name: read_terms(Path(path))
            for name, path in (wanted.terms.lists if wanted.terms else {}).items()
        }
        self._is_words = recipe.model.family != "canine"
        self._hides_words = masking.kind in ("whole_word", "span")
        self._hasher = WordHasher.build(tokenizer) if self._is_words else None

    def build(self) -> Suite:
        """All parts; of the general corpus the same as of the main one."""
        wanted = self._wanted
        corpora = [Corpus("main/", self._store.evaluation, ("accuracy_top5",))]
        if wanted.general:
            rows = prepare_general(self._recipe, wanted.general, self._store)
            corpora.append(Corpus("general/", rows, _ALL_FIGURES))
        words = self._count_words(corpora, wanted.rare_words) if wanted.rare_words else None
        main, *others = (
            Section(self._freeze(corpus.source), self._group(corpus, words)) for corpus in corpora
        )
        main.groupings.extend(self._group_by_corpus())
        suite = Suite(self._runner, main, others)
        for corpus in corpora:
            self._add_spans(suite, corpus)
        suite.probes += [self._build_probe(probe) for probe in wanted.probes]
        if not self._recipe.data.streaming:  # there are no training rows to count yet
            suite.constants |= self._score_corpora(corpora[1:])
        return suite

    def _add_spans(self, suite: Suite, corpus: Corpus) -> None:
        """What is measured of a corpus with passes of its own, and what does not depend on the model."""
        wanted = self._wanted
        if wanted.terms:
            section, marks = self._build_terms(wanted.terms, corpus)
            suite.spans.append(section)
            suite.constants |= marks
        if wanted.names and wanted.names.max_span:
            suite.spans.append(self._build_lengths(wanted.names.max_span, wanted.names.num_spans, corpus))
        if wanted.pseudo:
            suite.spans.append(self._build_pseudo(wanted.pseudo, corpus))
        if wanted.fragmentation:
            suite.constants |= self._measure_fragments(corpus)

    def _freeze(self, source: RowSource) -> FrozenPass:
        return FrozenPass(source, self._masking, self._seed)

    def _group(self, corpus: Corpus, words: tuple[np.ndarray, np.ndarray] | None) -> list[Grouping]:
        """The targets of a corpus in groups; `words` are hashes and counts of all that come."""
        wanted = self._wanted
        groupings = [group_all(corpus.figures), recover(self._hides_words)]
        if wanted.rare_words:
            assert self._hasher is not None
            assert words is not None
            groupings.append(group_by_frequency(self._hasher, *words, wanted.rare_words.bounds))
        if wanted.names:
            groupings += _group_names(corpus.source, wanted.names)
        return [replace(grouping, prefix=corpus.place + grouping.prefix) for grouping in groupings]

    def _group_by_corpus(self) -> list[Grouping]:
        """The sources of the evaluation rows, where there are several."""
        counts = self._store.evaluation.summary["source_rows"]
        if sum(count > 0 for count in counts) < 2:
            return []
        names = name_corpora(self._recipe.data.sources)
        return [group_by_corpus(names, counts, _ALL_FIGURES)]

    def _count_words(self, corpora: Sequence[Corpus], wanted: RareWords) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of all words of some corpora, and how often the training rows hold each."""
        assert self._hasher is not None
        lists = [list_words(corpus.source, self._hasher) for corpus in corpora]
        words = np.unique(np.concatenate(lists))
        runner = self._runner
        counts, scale = count_words(
            self._store.train,
            self._hasher,
            words,
            seed=self._seed,
            max_pieces=wanted.max_pieces,
            part=(runner.rank, runner.world_size),
        )
        return words, sum_arrays(counts, runner.device) * scale

    def _score_corpora(self, others: Sequence[Corpus]) -> dict[str, float]:
        """What counting the training rows makes of the sources of the evaluation and of other corpora."""
        marks: dict[str, float] = {}
        for grouping in self._group_by_corpus():
            rows = self._freeze(self._store.evaluation)
            marks |= score_targets(rows, grouping, self._counts, num_classes=self._num_classes)
        for corpus in others:
            found = score_yardsticks(
                self._store.train,
                corpus.source,
                self._masking,
                self._runner,
                seed=self._seed,
                num_classes=self._num_classes,
            )
            marks |= {f"{corpus.place}{name}": value for name, value in found.items()}
        return {f"eval/{name}": value for name, value in marks.items()}

    @cached_property
    def _counts(self) -> np.ndarray:
        """The pieces of the training rows, int64 [pieces]."""
        num_pieces = len(self._tokenizer) if self._is_words else _NUM_CHARACTERS
        return count_pieces(self._store.train, self._masking, seed=self._seed, num_pieces=num_pieces)

    def _build_terms(self, wanted: TermPerplexity, corpus: Corpus) -> tuple[SpanSection, dict[str, float]]:
        """Hidden occurrences of terms, and what a unigram makes of the same."""
        assert self._hasher is not None
        index = TermIndex.build(self._lists, PieceEncoder(self._tokenizer), self._hasher)
        rows = take_all(corpus.source)
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
        place = f"{corpus.place}terms/"
        section = SpanSection(
            place,
            self._hide(corpus, spans, together=wanted.hidden == "together"),
            terms,
            SpanMetric(membership, categories),
        )
        if self._recipe.data.streaming:  # there are no training rows to count yet
            return section, {}
        marks = score_unigram(
            rows,
            spans,
            terms,
            self._counts,
            SpanMetric(membership, categories),
            num_classes=self._num_classes,
        )
        return section, {f"eval/{place}{name}": value for name, value in marks.items()}

    def _build_lengths(self, max_span: int, num_spans: int, corpus: Corpus) -> SpanSection:
        """Runs of 1 to max_span characters, each hidden alone."""
        lengths = range(1, max_span + 1)
        rows, is_barred = take_all(corpus.source), flag_pieces(self._masking.special_pieces)
        # What training never hides as a character like any other is no part of a gap either.
        rules = self._masking.suffix_rules if self._masking.suffix != "any" else None
        units = find_units(rows, is_barred.take(rows.pieces, mode="clip"), None, rules)
        may_hide = np.zeros(len(rows.pieces), bool)
        may_hide[units.firsts] = True
        spans, numbers = choose_runs(rows, may_hide, lengths, num_spans=num_spans, seed=self._seed)
        hidden = self._hide(corpus, spans, together=False)
        return SpanSection(f"{corpus.place}names/span/", hidden, numbers, LengthMetric(lengths))

    def _build_pseudo(self, wanted: PseudoPerplexity, corpus: Corpus) -> SpanSection:
        """Rows in a random order until they hold so many pieces."""
        num_rows = corpus.source.num_rows
        order = permute(np.arange(num_rows), num_rows=num_rows, seed=self._seed, epochs=FROZEN_EPOCH)
        num_before = np.append(0, np.cumsum(np.asarray(corpus.source.lengths)[order], dtype=np.int64))[:-1]
        chosen = np.sort(order[num_before < wanted.num_pieces])
        is_word = wanted.unit == "masking" and self._hides_words
        taken = corpus.source.take(chosen)
        spans = list_units(taken, self._masking.special_pieces, is_word=is_word)
        clusters = spans.rows
        metric = RowMetric(np.bincount(clusters, self._count_characters(taken, spans), len(chosen)))
        rows = self._hide(corpus, replace(spans, rows=chosen[clusters]), together=False)
        return SpanSection(f"{corpus.place}pseudo/", rows, clusters, metric)

    def _count_characters(self, rows: Rows, spans: Spans) -> np.ndarray:
        """The characters of each span, marks of a space left out, int64."""
        if self._hasher is None:
            return spans.lengths
        sums = np.append(0, self._hasher.sizes.take(rows.pieces).cumsum())
        firsts = rows.offsets[:-1][spans.rows] + spans.firsts
        return sums[firsts + spans.lengths] - sums[firsts]

    def _hide(self, corpus: Corpus, spans: Spans, *, together: bool) -> SpanPass:
        return SpanPass(corpus.source, spans, self._masking.mask_piece, together)

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

    def _measure_fragments(self, corpus: Corpus) -> dict[str, float]:
        tokenizer = self._recipe.tokenizer
        former = None
        if tokenizer is not None and tokenizer.extend is not None:
            folder = find_tokenizer(tokenizer.source, True)
            assert folder is not None
            former = load_tokenizer(folder)
        found = measure_fragments(take_all(corpus.source), self._tokenizer, self._lists, former)
        return {f"eval/{corpus.place}fragmentation/{name}": value for name, value in found.items()}


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
