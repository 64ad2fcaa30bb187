import math
from collections import defaultdict

import evaluate
import numpy as np
import pytest

from launch.judging.counts import ClassMetric, FragmentationMetric, average_f1
from launch.judging.metrics import (
    RecoveryMetric,
    RowMetric,
    SpanMetric,
    TargetMetric,
    WordMetric,
    estimate_error,
)
from launch.judging.scored import round_losses

GENERATOR = np.random.default_rng(0)
FIGURES = ("loss", "perplexity", "accuracy", "accuracy_top5", "num_targets")


def make_targets(num_targets=500, num_groups=3):
    return {
        "group": GENERATOR.integers(-1, num_groups, num_targets),
        "loss": round_losses(GENERATOR.gamma(2, 2, num_targets)),
        "rank": GENERATOR.integers(0, 9, num_targets),
    }


def make_spans(num_spans=400, num_clusters=12):
    return {
        "cluster": GENERATOR.integers(0, num_clusters, num_spans),
        "loss": round_losses(GENERATOR.gamma(3, 2, num_spans)),
        "num_pieces": GENERATOR.integers(1, 5, num_spans),
        "is_right": GENERATOR.random(num_spans) < 0.3,
    }


CASES = {
    "targets": (lambda: TargetMetric(("a", "b", "c"), FIGURES), make_targets()),
    "words": (
        lambda: WordMetric(("a", "b", "c")),
        {**make_targets(), "is_first": GENERATOR.random(500) < 0.5},
    ),
    "recovery": (
        lambda: RecoveryMetric(("a", "b")),
        {"group": GENERATOR.integers(0, 2, 90), "is_right": GENERATOR.random(90) < 0.4},
    ),
    "spans": (lambda: SpanMetric(GENERATOR.random((2, 12)) < 2, ("a", "b")), make_spans()),
    "rows": (lambda: RowMetric(np.arange(1, 13)), make_spans()),
    "classes": (
        lambda: ClassMetric(4, 1),
        {"references": GENERATOR.integers(0, 4, 70), "predictions": GENERATOR.integers(0, 4, 70)},
    ),
    "fragments": (
        FragmentationMetric,
        {
            "num_pieces": GENERATOR.integers(1, 6, 80),
            "num_words": np.ones(80, np.int64),
            "is_term": GENERATOR.random(80) < 0.2,
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_the_data_add_up_to_the_same_bits(case):
    make, arrays = CASES[case]
    whole = make().compute(**arrays)
    order = GENERATOR.permutation(len(next(iter(arrays.values()))))
    parts = []
    for chosen in np.array_split(order, 3):  # as ranks have them
        part = make()
        for few in np.array_split(chosen, 4):
            part.add_batch(**{name: values[few] for name, values in arrays.items()})
        parts.append(part.state)
    together = make()
    together.state = {name: sum(part[name] for part in parts) for name in together.state}
    assert whole
    assert together.compute() == whole


@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_the_library_and_start_anew(case, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    make, arrays = CASES[case]
    metric = make()
    assert isinstance(metric, evaluate.Metric)
    assert set(metric.features) == set(arrays)
    first = metric.compute(**arrays)
    assert metric.compute() == {}, "nothing was measured since"
    assert metric.compute(**arrays) == first
    assert not (tmp_path / "cache").exists(), "a metric writes nothing"


@pytest.mark.parametrize("case", CASES)
def test_wrong_arrays_are_refused(case):
    make, arrays = CASES[case]
    name = next(iter(arrays))
    with pytest.raises(ValueError, match="wanted"):
        make().add_batch(**{other: values for other, values in arrays.items() if other != name})
    with pytest.raises(ValueError, match="wanted"):
        make().add_batch(**{**arrays, name: arrays[name][:-1]})


def test_targets_are_summed_by_group():
    arrays = make_targets()
    found = TargetMetric(("a", "b", "never", ""), FIGURES).compute(
        **{**arrays, "group": arrays["group"].clip(-1, 1)}
    )
    by_group = defaultdict(list)
    for group, loss, rank in zip(*arrays.values(), strict=True):
        by_group[min(group, 1)].append((loss, rank))
    for number, name in enumerate("ab"):
        losses, ranks = zip(*by_group[number], strict=True)
        assert found[f"{name}/loss"] == pytest.approx(math.fsum(losses) / len(losses), rel=1e-14)
        assert found[f"{name}/perplexity"] == pytest.approx(
            math.exp(math.fsum(losses) / len(losses)), rel=1e-12
        )
        assert found[f"{name}/accuracy"] == sum(rank == 0 for rank in ranks) / len(ranks)
        assert found[f"{name}/accuracy_top5"] == sum(rank <= 4 for rank in ranks) / len(ranks)
        assert found[f"{name}/num_targets"] == len(losses)
    assert not any(name.startswith(("never", "loss")) for name in found), (
        "not a number where nothing was measured"
    )


def test_a_perplexity_too_large_for_a_number_is_infinite():
    metric = TargetMetric()
    assert metric.compute(group=[0], loss=[800.0], rank=[3])["perplexity"] == math.inf


def test_a_words_perplexity_counts_words():
    found = WordMetric(("a",)).compute(
        group=[0, 0, 0, -1], loss=[1.0, 2.0, 3.0, 9.0], rank=[0, 1, 7, 0], is_first=[True, False, True, True]
    )
    assert found["a/word_perplexity"] == pytest.approx(math.exp(3))
    assert found["a/perplexity"] == pytest.approx(math.exp(2))
    assert (found["a/num_words"], found["a/num_targets"]) == (2, 3)


def test_spans_are_summed_by_category():
    arrays, membership = make_spans(), np.zeros((3, 12), bool)
    membership[0], membership[1, [2, 5]] = True, True
    found = SpanMetric(membership, ("", "few", "none")).compute(**arrays)
    for prefix, clusters in (("", range(12)), ("few/", (2, 5))):
        chosen = np.isin(arrays["cluster"], list(clusters))
        losses, sizes = arrays["loss"][chosen], arrays["num_pieces"][chosen]
        assert found[f"{prefix}perplexity"] == pytest.approx(math.exp(losses.sum() / sizes.sum()), rel=1e-12)
        assert found[f"{prefix}term_perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-12)
        assert found[f"{prefix}exact"] == pytest.approx(arrays["is_right"][chosen].mean())
        assert found[f"{prefix}num_targets"] == sizes.sum()
        assert found[f"{prefix}num_occurrences"] == chosen.sum()
        assert found[f"{prefix}num_terms"] == len(list(clusters))
        assert (
            found[f"{prefix}perplexity_low"]
            < found[f"{prefix}perplexity"]
            < found[f"{prefix}perplexity_high"]
        )
    assert not any(name.startswith("none/") for name in found)


def test_one_term_has_no_interval():
    found = SpanMetric(np.ones((1, 3), bool)).compute(
        cluster=[1, 1], loss=[1.0, 2.0], num_pieces=[1, 1], is_right=[True, False]
    )
    assert "perplexity_low" not in found
    assert found["perplexity"] == pytest.approx(math.exp(1.5))


def test_the_interval_is_that_of_a_bootstrap_over_terms():
    generator = np.random.default_rng(1)
    means, sizes = generator.gamma(4, 1, 60), generator.integers(1, 40, 60)
    sums = np.array(
        [generator.gamma(3, mean / 3, size).sum() for mean, size in zip(means, sizes, strict=True)]
    )
    drawn = generator.integers(0, 60, (4000, 60))
    ratios = sums[drawn].sum(1) / sizes[drawn].sum(1)
    assert estimate_error(sums, sizes) == pytest.approx(ratios.std(), rel=0.1)
    # Were occurrences taken for independent, the interval would be far too narrow.
    pooled = np.concatenate([np.full(size, total / size) for total, size in zip(sums, sizes, strict=True)])
    assert estimate_error(sums, sizes) > 2 * pooled.std() / math.sqrt(len(pooled))


def test_the_interval_holds_the_truth_nearly_as_often_as_it_says():
    generator, num_held = np.random.default_rng(2), 0
    for _ in range(600):
        means, sizes = generator.normal(4, 1, 40), generator.integers(1, 20, 40)
        sums = sizes * means + generator.normal(0, 1, 40) * np.sqrt(sizes)
        low = sums.sum() / sizes.sum() - 1.96 * estimate_error(sums, sizes)
        num_held += low <= 4 <= low + 2 * 1.96 * estimate_error(sums, sizes)
    assert 0.91 < num_held / 600 < 0.975


def test_a_row_is_right_when_every_span_of_it_is():
    found = RowMetric(np.array([4, 5, 6])).compute(
        cluster=[0, 0, 2, 2],
        loss=[1.0, 1.0, 2.0, 4.0],
        num_pieces=[1, 1, 1, 1],
        is_right=[True, True, True, False],
    )
    assert (found["exact"], found["accuracy"], found["num_rows"]) == (0.5, 0.75, 2)
    assert found["perplexity"] == pytest.approx(math.exp(2))
    # 8 nats over the 4 and 6 characters of the rows that have spans.
    assert found["bits_per_character"] == pytest.approx(8 / math.log(2) / 10)


def test_a_majority_stands_beside_the_classifier():
    references, predictions = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0]
    found = ClassMetric(4, 0).compute(references=references, predictions=predictions)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # F1 by class: 2 * 2 / (3 + 3), 2 * 2 / (2 + 3), 0; the fourth class does not occur.
    assert found["macro_f1"] == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert found["majority_accuracy"] == 0.5
    assert found["majority_macro_f1"] == pytest.approx((2 * 3 / (3 + 6)) / 3)
    assert average_f1(np.diag([2, 3])) == 1


def test_fragments_are_counted_in_context():
    found = FragmentationMetric().compute(
        num_pieces=[1, 3, 2, 4, 2], num_words=[1, 1, 1, 2, 2], is_term=[False, False, False, True, True]
    )
    assert found == {
        "pieces_per_word": 2.0, "num_words": 3, "terms_cut": 0.5, "pieces_per_term": 3.0, "num_terms": 2,
    }  # fmt: skip
    assert "terms_cut" not in FragmentationMetric().compute(num_pieces=[1], num_words=[1], is_term=[False])
