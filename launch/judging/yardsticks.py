"""Yardsticks: what counting pieces alone makes of the very targets and terms that a model is judged on.

Shapes: N pieces, S spans, T clusters.
"""

from collections.abc import Mapping

import numpy as np

from data_pipes.rows import Rows
from launch.judging.groups import Grouping
from launch.judging.metrics import SpanMetric
from launch.judging.passes import FrozenPass, Spans
from launch.judging.scored import Scored, round_losses


def score_targets(
    rows: FrozenPass, grouping: Grouping, counts: np.ndarray, *, num_classes: int
) -> dict[str, float]:
    """The perplexities of groups of targets under a table of counts with one added to each, by their names.

    Args:
        rows: whose frozen targets they are.
        grouping: empty; it is used up.
        counts: int64 [pieces], in the training rows.
        num_classes: pieces that a model may answer.
    """
    sheet = rows.load(np.arange(len(rows.lengths)))
    losses = _tabulate(counts, num_classes)[sheet.rows.pieces[sheet.places]]
    grouping.add(Scored(sheet, losses, np.zeros(len(losses), np.int64)))
    found = _pick(grouping.metric.compute())
    return {f"{grouping.prefix}{name}": value for name, value in found.items()}


def score_unigram(
    rows: Rows,
    spans: Spans,
    clusters: np.ndarray,
    counts: np.ndarray,
    metric: SpanMetric,
    *,
    num_classes: int,
) -> dict[str, float]:
    """The perplexities of spans under a table of counts with one added to each, by the metric's names.

    Args:
        rows: that the spans lie in.
        spans: S spans.
        clusters: int64 [S], what each is an occurrence of.
        counts: int64 [pieces of the tokenizer], in the training rows.
        metric: empty, of these clusters; it is used up.
        num_classes: pieces that a model may answer.
    """
    sums = np.append(0.0, _tabulate(counts, num_classes).take(rows.pieces).cumsum())
    first = rows.offsets[:-1][spans.rows] + spans.firsts
    found = metric.compute(
        cluster=clusters,
        loss=sums[first + spans.lengths] - sums[first],
        num_pieces=spans.lengths,
        is_right=np.zeros(spans.num_spans, bool),
    )
    return _pick(found)


def _tabulate(counts: np.ndarray, num_classes: int) -> np.ndarray:
    """The loss of each piece, float64."""
    return round_losses(-np.log((counts + 1) / (counts.sum() + num_classes)))


def _pick(found: Mapping[str, float]) -> dict[str, float]:
    """The perplexities of a metric under the names of the unigram's."""
    named = {"perplexity": "unigram_perplexity", "term_perplexity": "unigram_term_perplexity"}
    return {
        "/".join([*name.split("/")[:-1], named[name.rpartition("/")[2]]]): value
        for name, value in found.items()
        if name.rpartition("/")[2] in named
    }
