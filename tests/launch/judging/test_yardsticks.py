import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from data_pipes.yardsticks import count_pieces, score
from launch.judging.words import take_all
from tests.launch.judging.test_suite import TERMS, Knowing, cache, folder, lists, words  # noqa: F401


def test_a_unigram_is_scored_on_the_very_occurrences_of_terms(words, lists):  # noqa: F811
    suite = words.build(terms={"lists": lists, "per_term": 5})
    found = suite.measure(Knowing(words.tokenizer, lambda name: False))
    specials = set(words.tokenizer.all_special_ids)
    train = take_all(words.store.train).pieces.tolist()
    counts = Counter(piece for piece in train if piece not in specials)
    total = sum(counts.values()) + len(words.tokenizer) - len(specials)
    (section,) = suite.spans
    rows, spans = take_all(words.store.evaluation), section.rows.spans
    losses, sizes = defaultdict(list), defaultdict(int)
    names = [term for terms in TERMS.values() for term in terms]
    index = {term: number for number, term in enumerate(dict.fromkeys(names))}
    for row, first, length, term in zip(
        spans.rows, spans.firsts, spans.lengths, section.clusters, strict=True
    ):
        start = rows.offsets[row] + first
        loss = sum(
            -math.log((counts[piece] + 1) / total) for piece in rows.pieces[start : start + length].tolist()
        )
        for category in (
            "",
            *(name for name, terms in TERMS.items() if term in [index[one] for one in terms]),
        ):
            losses[category].append(loss)
            sizes[category] += int(length)
    assert len(losses) == 3
    for category, values in losses.items():
        prefix = f"eval/main/terms/{category}/" if category else "eval/main/terms/"
        assert found[f"{prefix}unigram_perplexity"] == pytest.approx(
            math.exp(sum(values) / sizes[category]), rel=1e-6
        )
        assert found[f"{prefix}unigram_term_perplexity"] == pytest.approx(
            math.exp(sum(values) / len(values)), rel=1e-6
        )
        assert len(values) == found[f"{prefix}num_occurrences"]


def test_it_counts_what_the_unigram_of_all_targets_counts(words):  # noqa: F811
    num_pieces = len(words.tokenizer)
    counts = count_pieces(words.store.train, words.masking, seed=42, num_pieces=num_pieces)
    num_classes = num_pieces - len(words.tokenizer.all_special_ids)
    wanted = score(
        words.store.train, words.store.evaluation, masking=words.masking, seed=42, num_classes=num_classes
    )["unigram"]
    labels = np.concatenate([batch["labels"].flatten().numpy() for _, batch in words.make_batches()])
    shares = (counts + 1) / (counts.sum() + num_classes)
    assert -np.log(shares[labels[labels >= 0]]).mean() == pytest.approx(wanted["loss"], rel=1e-9)
    few = count_pieces(words.store.train, words.masking, seed=42, num_pieces=num_pieces, max_pieces=200)
    assert 0 < few.sum() <= 200
