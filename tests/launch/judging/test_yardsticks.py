import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from data_pipes.yardsticks import count_pieces, score
from launch.judging.corpora import score_yardsticks
from launch.judging.passes import Runner
from launch.judging.words import take_all
from tests.launch.judging.test_suite import (  # noqa: F401
    DEBERTA,
    TERMS,
    Knowing,
    Setting,
    cache,
    folder,
    lists,
    plain,
    words,
    write_corpus,
)


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


def make_score(setting, rows):
    """Both yardsticks on the frozen targets of some rows."""
    num_classes = len(setting.tokenizer) - len(setting.tokenizer.all_special_ids)
    found = score(
        setting.store.train,
        rows,
        masking=setting.masking,
        seed=setting.recipe.training.seed,
        num_classes=num_classes,
    )
    return {name: values["perplexity"] for name, values in found.items()}


def test_a_general_corpus_has_both_yardsticks_on_its_own_targets(words, plain):  # noqa: F811
    suite = words.build(general={"sources": [{"kind": "jsonl", "path": plain}]})
    found = suite.measure(Knowing(words.tokenizer, lambda name: False))
    expected = make_score(words, suite.others[0].rows.source)
    assert set(expected) == {"unigram", "neighbours"}
    for name, perplexity in expected.items():
        assert found[f"eval/general/{name}_perplexity"] == perplexity
    # They do not move with the model, and one that knows the rest beats the unigram.
    knowing = suite.measure(Knowing(words.tokenizer, lambda name: True))
    assert knowing["eval/general/perplexity"] < knowing["eval/general/unigram_perplexity"]
    assert knowing["eval/general/unigram_perplexity"] == expected["unigram"]


def test_a_general_corpus_without_a_target_has_no_yardsticks(words):  # noqa: F811
    rows = words.store.evaluation.take(np.zeros(0, np.int64))
    runner = Runner(words.layout, 4, torch.device("cpu"))
    assert score_yardsticks(words.store.train, rows, words.masking, runner, seed=0, num_classes=50) == {}


def test_each_corpus_has_the_unigram_of_its_own_targets(folder, plain):  # noqa: F811
    other = write_corpus(folder / "second.jsonl", 60, seed=3)
    sources = ", ".join(f"{{kind: jsonl, path: '{path}'}}" for path in (other, plain))
    setting = Setting(
        DEBERTA, [f"data.sources=[{sources}]", "tokenizer.vocab_size=50", "data.evaluation_share=0.4"]
    )
    suite = setting.build()
    found = suite.measure(Knowing(setting.tokenizer, lambda name: False))
    sums = [
        found[f"eval/{name}/num_targets"] * math.log(found[f"eval/{name}/unigram_perplexity"])
        for name in ("second", "plain")
    ]
    whole = make_score(setting, setting.store.evaluation)["unigram"]
    num_targets = sum(found[f"eval/{name}/num_targets"] for name in ("second", "plain"))
    assert sum(sums) / num_targets == pytest.approx(math.log(whole), rel=1e-6)
    # Of the source without terms by hand.
    counts = count_pieces(
        setting.store.train,
        setting.masking,
        seed=setting.recipe.training.seed,
        num_pieces=len(setting.tokenizer),
    )
    shares = (counts + 1) / (counts.sum() + len(setting.tokenizer) - len(setting.tokenizer.all_special_ids))
    num_first = setting.store.evaluation.summary["source_rows"][0]
    sheet = suite.main.rows.load(np.arange(num_first, setting.store.evaluation.num_rows))
    loss = -np.log(shares[sheet.rows.pieces[sheet.places]]).mean()
    assert found["eval/plain/unigram_perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)


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
