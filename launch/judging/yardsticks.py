"""Yardsticks of terms: what counting pieces alone makes of the very occurrences that a model is judged on.

Shapes: N pieces, S spans, T clusters.
"""

import numpy as np

from data_pipes.rows import Rows
from launch.judging.metrics import SpanMetric
from launch.judging.passes import Spans
from launch.judging.scored import round_losses


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
    losses = round_losses(-np.log((counts + 1) / (counts.sum() + num_classes)))
    sums = np.append(0.0, losses.take(rows.pieces).cumsum())
    first = rows.offsets[:-1][spans.rows] + spans.firsts
    found = metric.compute(
        cluster=clusters,
        loss=sums[first + spans.lengths] - sums[first],
        num_pieces=spans.lengths,
        is_right=np.zeros(spans.num_spans, bool),
    )
    named = {"perplexity": "unigram_perplexity", "term_perplexity": "unigram_term_perplexity"}
    return {
        "/".join([*name.split("/")[:-1], named[name.rpartition("/")[2]]]): value
        for name, value in found.items()
        if name.rpartition("/")[2] in named
    }
